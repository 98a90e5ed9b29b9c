"""For each way in which a workspace can fail to come up: the cause, and the next step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.findings import Finding, near_misses, of_claim, of_node, of_pod, of_workload

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def claim(
    step: int = 0,
    status: str = "Unknown",
    reason: str = "",
    message: str = "",
    *,
    kind: type[NodeRequest] = Machine,
    **metadata: Any,
) -> NodeRequest:
    """One that got through *step* - 1 of: 1 launched, 2 registered, 3 initialized. At 0 nobody has looked at it."""
    order, earlier = (kind.launched, kind.registered, kind.initialized), (NOW - timedelta(minutes=4)).isoformat()
    conditions = [{"type": each, "status": "True", "lastTransitionTime": earlier} for each in order[: max(step - 1, 0)]]
    if step:
        last = {"type": order[step - 1], "status": status, "reason": reason, "message": message}
        conditions.append({**last, "lastTransitionTime": earlier})
    created = (NOW - timedelta(minutes=5)).isoformat()
    spec: dict[str, Any] = {"requirements": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}
    if kind is NodeClaim:
        spec["nodeClassRef"] = {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}
    return kind.model_validate(
        {
            "metadata": {"name": "ws1", "creationTimestamp": created, **metadata},
            "spec": spec,
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


UNAVAILABLE = "all requested instance types were unavailable during launch"
NO_RIGHT = "AuthorizationFailed: the client has no authorization"
REFUSALS: list[tuple[str, str, str, str]] = [
    ("QuotaExceeded", "0 of 6; ask for more", "QuotaExceeded", "quota"),
    ("InsufficientCapacity", f"{UNAVAILABLE}: a: none; wait", "InsufficientCapacity", "another instance type"),
    ("UnknownInstanceType", "no such size", "UnknownInstanceType", "offers"),
    ("Unauthorized", "no role assignment", "Unauthorized", "identity"),
    ("Conflict", "the cluster is being upgraded", "Conflict", "wait"),
    ("InvalidRequest", "a disk of 3 bytes", "InvalidRequest", "correct what the message names"),
    ("CloudUnavailable", "503", "CloudUnavailable", "repeated"),
    ("NodeClassNotReady", "", "NodeClassNotReady", "kubectl describe"),
    # What Karpenter's own providers and gpu-provisioner write.
    ("LaunchFailed", UNAVAILABLE, "InsufficientCapacity", "another instance type"),
    ("LaunchFailed", "ZonalAllocationFailed: zone 1", "InsufficientCapacity", "another instance type"),
    ("LaunchFailed", "Operation could not be completed: Quota exceeded", "QuotaExceeded", "quota"),
    (
        "LaunchFailed",
        "The VM size of X is not allowed in your subscription in location",
        "UnknownInstanceType",
        "offers",
    ),
    ("LaunchFailed", "429: too many requests", "Throttled", "nothing"),
    ("LaunchFailed", NO_RIGHT, "Unauthorized", "identity"),
    ("LaunchFailed", "creating instance failed", "LaunchFailed", "provisioner's log"),
]
SPELLINGS: list[tuple[type[NodeRequest], str]] = [
    (kind, status) for kind in (Machine, NodeClaim) for status in ("Unknown", "False")
]
CLAIMS: list[tuple[NodeRequest, str, str, str]] = [
    (claim(1, status, reason, message, kind=kind), "CapacityReserved", code, fix)
    for kind, status in SPELLINGS
    for reason, message, code, fix in REFUSALS
]
for _kind, _status in SPELLINGS:
    CLAIMS += [
        (
            claim(2, _status, "MultipleNodesFound", "several nodes", kind=_kind),
            "NodeRegistered",
            "MultipleNodesFound",
            "delete",
        ),
        (claim(2, _status, "Odd", "a hook", kind=_kind), "NodeRegistered", "Odd", f"describe {_kind.kind.lower()} ws1"),
        (
            claim(3, _status, "ResourceNotRegistered", "nvidia.com/gpu", kind=_kind),
            "NodeInitialized",
            "ResourceNotRegistered",
            "device plug-in",
        ),
        (
            claim(3, _status, "NodeNotReady", "NotReady", kind=_kind),
            "NodeInitialized",
            "NodeNotReady",
            "kubectl describe node n1",
        ),
        (
            claim(3, _status, "StartupTaintsExist", "taint", kind=_kind),
            "NodeInitialized",
            "StartupTaintsExist",
            "take the taint off",
        ),
        (claim(3, _status, "Odd", "", kind=_kind), "NodeInitialized", "Odd", "kubectl describe node n1"),
    ]


def named(rows: list[tuple[NodeRequest, str, str, str]]) -> list[str]:
    return [f"{row[0].kind} {row[0].status.conditions[-1].status} {row[2]}" for row in rows]


@pytest.mark.parametrize(("seen", "stage", "code", "fix"), CLAIMS, ids=named(CLAIMS))
def test_why_a_node_is_not_there(seen: NodeRequest, stage: str, code: str, fix: str) -> None:
    found = of_claim(seen, NOW)
    assert found is not None
    assert (found.stage, found.code) == (stage, code)
    assert fix in found.fix


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
def test_a_claim_that_nobody_serves_and_one_that_is_going_are_called_by_their_kind(kind: type[NodeRequest]) -> None:
    alone = of_claim(claim(kind=kind), NOW)
    assert alone is not None
    assert (alone.stage, alone.code) == ("CapacityReserved", "NoProvisioner")
    assert (
        f"a provisioner for {kind.kind}s: kaito-ctrl run --provisioner aks --node-api {kind.kind.lower()}" in alone.fix
    )
    going = of_claim(claim(1, "True", kind=kind, deletionTimestamp="2026-01-01T11:59:00Z"), NOW)
    assert going is not None
    assert (going.stage, going.code, going.source) == ("MachineLaunched", f"{kind.kind}Deleting", f"{kind.kind} ws1")
    assert "another one" in going.fix


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


@pytest.mark.parametrize(("kind", "status"), SPELLINGS)
@pytest.mark.parametrize(
    ("step", "reason"),
    [
        *((1, reason) for reason in ("", "AwaitingReconciliation", "Launching", "InstanceDeleting", "Throttled")),
        *((2, reason) for reason in ("", "AwaitingReconciliation", "NodeNotFound", "MachineNotLaunched")),
        *((3, reason) for reason in ("", "AwaitingReconciliation", "NodeNotFound", "MachineNotLaunched")),
    ],
)
def test_a_claim_that_is_under_way_is_no_finding_whatever_its_status_says(
    kind: type[NodeRequest], status: str, step: int, reason: str
) -> None:
    assert of_claim(claim(step, status, reason, "in a minute", kind=kind), NOW) is None


def test_what_is_only_busy_is_no_finding() -> None:
    young = claim().metadata.evolve(creation_timestamp=NOW - timedelta(seconds=5))
    assert of_claim(claim().evolve(metadata=young), NOW) is None
    assert of_claim(claim(3, "True"), NOW) is None
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
    found: list[Finding | None] = [of_claim(row[0], NOW) for row in CLAIMS]
    found += [of_pod(row[0]) for row in PODS]
    assert all(each is not None and each.fix and each.message and each.source for each in found)


def test_the_last_line_that_a_container_printed_is_why_it_ended() -> None:
    found = of_pod(pod(ended(2, message='{"event": "listening"}\nerror: adapter a: it does not fit\n')))
    assert found is not None
    assert found.message == "it ended 3 times, last with exit code 2 (Error): error: adapter a: it does not fit"
