"""For each way in which a workspace can fail to come up: the cause, and the next step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod
from kaito_api.karpenter import Machine
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.findings import Finding, near_misses, of_machine, of_node, of_pod, of_workload

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def machine(kind: str = "", status: str = "Unknown", reason: str = "", message: str = "", **more: Any) -> Machine:
    """One whose conditions are true up to *kind*."""
    order = ("MachineLaunched", "MachineRegistered", "MachineInitialized")
    conditions = [{"type": each, "status": "True"} for each in order[: order.index(kind)]] if kind else []
    if kind:
        conditions.append({"type": kind, "status": status, "reason": reason, "message": message})
    created = (NOW - timedelta(minutes=5)).isoformat()
    return Machine.model_validate(
        {
            "metadata": {"name": "ws1", "creationTimestamp": created, **more},
            "status": {"conditions": conditions, "nodeName": "n1"},
        }
    )


def container(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "ws", "state": state, **more}


def pod(*statuses: dict[str, Any], init: list[dict[str, Any]] | None = None, **status: Any) -> Pod:
    conditions = status.pop("conditions", [{"type": "PodScheduled", "status": "True"}])
    return Pod.model_validate(
        {
            "metadata": {"name": "ws-0", "namespace": "default"},
            "status": {
                "conditions": conditions,
                "containerStatuses": list(statuses),
                "initContainerStatuses": init or [],
                **status,
            },
        }
    )


def waiting(reason: str, message: str = "") -> Pod:
    return pod(container({"waiting": {"reason": reason, "message": message}}))


def ended(exit_code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    last = {"terminated": {"exitCode": exit_code, "reason": reason, **more}}
    return container({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}, lastState=last, restartCount=3)


def unscheduled(message: str) -> Pod:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}])


def replicas(message: str) -> Deployment:
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    return Deployment.model_validate({"metadata": {"name": "ws"}, "status": {"conditions": [condition]}})


def node(**more: Any) -> Node:
    status = more.pop("status", {"conditions": [{"type": "Ready", "status": "True"}]})
    return Node.model_validate({"metadata": {"name": "n1", **more.pop("metadata", {})}, "status": status, **more})


MACHINES: list[tuple[Machine, str, str, str]] = [
    (machine(), "CapacityReserved", "NoProvisioner", "kaito-ctrl run"),
    (machine("MachineLaunched", "Unknown", "QuotaExceeded", "0 of 6"), "CapacityReserved", "QuotaExceeded", "quota"),
    (
        machine("MachineLaunched", "Unknown", "InsufficientCapacity", "none left"),
        "CapacityReserved",
        "InsufficientCapacity",
        "another instance type",
    ),
    (
        machine("MachineLaunched", "False", "x", "all requested instance types were unavailable during launch"),
        "CapacityReserved",
        "InsufficientCapacity",
        "another instance type",
    ),
    (
        machine("MachineLaunched", "False", "LaunchFailed", "Operation could not be completed: Quota exceeded"),
        "CapacityReserved",
        "QuotaExceeded",
        "quota",
    ),
    (
        machine("MachineLaunched", "False", "UnknownInstanceType", "no such size"),
        "CapacityReserved",
        "UnknownInstanceType",
        "offers",
    ),
    (machine("MachineLaunched", "Unknown", "Throttled", "429"), "CapacityReserved", "Throttled", "nothing"),
    (
        machine("MachineLaunched", "False", "LaunchFailed", "AuthorizationFailed: the client has no authorization"),
        "CapacityReserved",
        "Unauthorized",
        "identity",
    ),
    (
        machine("MachineRegistered", "False", "MultipleNodesFound", "several nodes"),
        "NodeRegistered",
        "MultipleNodesFound",
        "delete",
    ),
    (
        machine("MachineInitialized", "Unknown", "ResourceNotRegistered", "nvidia.com/gpu"),
        "NodeInitialized",
        "ResourceNotRegistered",
        "device plug-in",
    ),
    (
        machine("MachineInitialized", "Unknown", "NodeNotReady", "NotReady"),
        "NodeInitialized",
        "NodeNotReady",
        "kubectl describe node n1",
    ),
    (
        machine("MachineInitialized", "Unknown", "StartupTaintsExist", "taint"),
        "NodeInitialized",
        "StartupTaintsExist",
        "take the taint off",
    ),
    (
        machine("MachineLaunched", "True", deletionTimestamp="2026-01-01T11:59:00Z"),
        "MachineLaunched",
        "MachineDeleting",
        "another one",
    ),
]


@pytest.mark.parametrize(("seen", "stage", "code", "fix"), MACHINES, ids=[row[2] for row in MACHINES])
def test_why_a_machine_is_not_there(seen: Machine, stage: str, code: str, fix: str) -> None:
    found = of_machine(seen, NOW)
    assert found is not None
    assert (found.stage, found.code) == (stage, code)
    assert fix in found.fix


PODS: list[tuple[Pod, str, str, str]] = [
    (unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "PodScheduled", "InsufficientGPU", "GPUs"),
    (unscheduled("3 node(s) had taints that the pod didn't tolerate"), "PodScheduled", "NodeTainted", "taint"),
    (unscheduled("3 node(s) didn't match Pod's node affinity/selector"), "PodScheduled", "NoMatchingNode", "labels"),
    (unscheduled("3 Insufficient memory."), "PodScheduled", "InsufficientResources", "lacks"),
    (waiting("ImagePullBackOff", 'rpc error: manifest unknown: "a:1"'), "ArtifactsReady", "ImageNotFound", "tag"),
    (waiting("ErrImagePull", "unauthorized: authentication required"), "ArtifactsReady", "ImageUnauthorized", "Secret"),
    (waiting("ErrImagePull", "429 Too Many Requests"), "ArtifactsReady", "RegistryRateLimit", "wait"),
    (waiting("ErrImagePull", "dial tcp: lookup x: no such host"), "ArtifactsReady", "RegistryUnreachable", "reaches"),
    (waiting("InvalidImageName", "couldn't parse image"), "ArtifactsReady", "InvalidImageName", "name"),
    (
        waiting("CreateContainerConfigError", 'configmap "c" not found'),
        "EngineStarted",
        "CreateContainerConfigError",
        "create what",
    ),
    (pod(ended(137, "OOMKilled")), "EngineStarted", "OutOfMemory", "main memory"),
    (pod(ended(2)), "EngineStarted", "CrashLoop", "kubectl logs ws-0 -n default -c ws --previous"),
    (pod(ended(127)), "EngineStarted", "CommandNotFound", "holds the command"),
    (pod({**ended(137), "started": False}), "EngineStarted", "StartupProbeFailed", "how far"),
    (
        pod(init=[container({"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": {"exitCode": 1}})]),
        "ArtifactsReady",
        "AdapterFailed",
        "/data",
    ),
    (
        pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage"),
        "PodScheduled",
        "Evicted",
        "ran out of",
    ),
    (
        pod(phase="Failed", reason="UnexpectedAdmissionError", message="Allocate failed"),
        "PodScheduled",
        "UnexpectedAdmissionError",
        "device plug-in",
    ),
    (
        pod(
            container({"running": {}}, started=True, ready=False),
            conditions=[{"type": "PodScheduled", "status": "True"}, {"type": "Initialized", "status": "True"}],
        ),
        "Serving",
        "NotReady",
        "probe",
    ),
]


@pytest.mark.parametrize(("seen", "stage", "code", "fix"), PODS, ids=[row[2] for row in PODS])
def test_why_a_pod_does_not_serve(seen: Pod, stage: str, code: str, fix: str) -> None:
    found = of_pod(seen)
    assert found is not None
    assert (found.stage, found.code) == (stage, code), found
    assert fix in found.fix


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('pods "ws-1" is forbidden: exceeded quota: q, requested: pods=1', "ResourceQuota"),
        ('pods "ws-1" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurity"),
        ('admission webhook "x" denied the request', "PodRefused"),
        ('pods "ws-1" is forbidden: no service account', "PodForbidden"),
    ],
)
def test_why_a_workload_has_no_pods(text: str, code: str) -> None:
    found = of_workload(replicas(text))
    assert found is not None
    assert (found.stage, found.code) == ("PodScheduled", code)
    assert found.fix


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        (node(status={"conditions": [{"type": "Ready", "status": "Unknown", "message": "stopped"}]}), "NodeNotReady"),
        (node(status={}), "NodeNotReady"),
        (node(spec={"unschedulable": True}), "NodeCordoned"),
        (node(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), "NodeDeleting"),
        (
            node(
                status={
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "capacity": {"nvidia.com/gpu": "1"},
                    "allocatable": {"nvidia.com/gpu": "0"},
                }
            ),
            "GPUMissing",
        ),
    ],
)
def test_why_a_node_does_not_carry_it(seen: Node, code: str) -> None:
    found = of_node(seen)
    assert found is not None
    assert found.code == code
    assert found.fix


def test_what_is_only_busy_is_no_finding() -> None:
    young = machine().metadata.evolve(creation_timestamp=NOW - timedelta(seconds=5))
    assert of_machine(machine().evolve(metadata=young), NOW) is None
    assert of_machine(machine("MachineLaunched", "Unknown", "Launching", "making one"), NOW) is None
    assert of_machine(machine("MachineRegistered", "Unknown", "NodeNotFound"), NOW) is None
    assert of_machine(machine("MachineInitialized", "True"), NOW) is None
    assert of_node(node()) is None
    assert of_pod(waiting("ContainerCreating")) is None
    assert of_pod(waiting("PodInitializing")) is None
    assert of_pod(pod(container({"running": {}}, started=False))) is None
    assert of_pod(pod(container({"running": {}}, started=True, ready=True))) is None
    assert of_workload(Deployment.model_validate({"metadata": {"name": "ws"}})) is None


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        ({"apps": "phi3"}, True),
        ({"app": "phi-3"}, True),
        ({"apps": "falcon"}, False),
        ({"team": "phi-3"}, False),
    ],
)
def test_a_selector_that_nearly_matches_is_pointed_out(labels: dict[str, str], hint: bool) -> None:
    ws = Workspace.model_validate(
        {"metadata": {"name": "ws"}, "resource": {"labelSelector": {"matchLabels": {"apps": "phi-3"}}}}
    )
    found = near_misses(ws, [node(metadata={"labels": labels})])
    assert (found is not None) == hint
    if found is not None:
        assert "kubectl label node n1 apps=phi-3" in found.fix


def test_every_finding_can_be_acted_on() -> None:
    found: list[Finding | None] = [of_machine(row[0], NOW) for row in MACHINES]
    found += [of_pod(row[0]) for row in PODS]
    assert all(each is not None and each.fix and each.message and each.source for each in found)


def test_the_last_line_that_a_container_printed_is_why_it_ended() -> None:
    found = of_pod(pod(ended(2, message='{"event": "listening"}\nerror: adapter a: it does not fit\n')))
    assert found is not None
    assert found.message == "it ended 3 times, last with exit code 2 (Error): error: adapter a: it does not fit"
