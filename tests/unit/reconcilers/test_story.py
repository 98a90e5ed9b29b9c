"""What ``why`` and ``timeline`` make of the objects around a workspace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod
from kaito_api.events import Event
from kaito_api.karpenter import Machine, NodeClaim
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import machine_name
from kaito_ctrl.reconcilers.workspace.story import World, explain, timeline

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def workspace(*conditions: dict[str, Any], generation: int = 1, age: float = 600, **status: Any) -> Workspace:
    return Workspace.model_validate(
        {
            "metadata": {
                "name": "ws",
                "namespace": "default",
                "uid": "u1",
                "generation": generation,
                "creationTimestamp": ago(age),
            },
            "resource": {"labelSelector": {"matchLabels": {"apps": "phi-3"}}},
            "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
            "status": {"conditions": list(conditions), **status},
        }
    )


def condition(kind: str, status: str = "True", **more: Any) -> dict[str, Any]:
    return {"type": kind, "status": status, "observedGeneration": 1, "lastTransitionTime": ago(60), **more}


MACHINE = Machine.model_validate(
    {
        "metadata": {"name": "ws1", "creationTimestamp": ago(500)},
        "status": {
            "nodeName": "n1",
            "conditions": [
                condition(each) for each in ("MachineLaunched", "MachineRegistered", "MachineInitialized", "Ready")
            ],
        },
    }
)
NODE = Node.model_validate(
    {
        "metadata": {"name": "n1", "labels": {"apps": "phi-3"}, "creationTimestamp": ago(400)},
        "status": {"conditions": [condition("Ready")]},
    }
)


def deployment(ready: int) -> Deployment:
    return Deployment.model_validate(
        {
            "metadata": {"name": "ws", "namespace": "default"},
            "spec": {"replicas": 1},
            "status": {"readyReplicas": ready},
        }
    )


def pod(ready: bool, **container: Any) -> Pod:
    conditions = [condition("PodScheduled"), condition("Initialized"), condition("Ready", str(ready))]
    status = {"name": "server", "imageID": "x", "ready": ready, "started": ready, **container}
    return Pod.model_validate(
        {
            "metadata": {"name": "ws-1", "namespace": "default", "creationTimestamp": ago(300)},
            "status": {"phase": "Running", "conditions": conditions, "containerStatuses": [status]},
        }
    )


def event(reason: str, note: str, kind: str = "Pod", name: str = "ws-1", **more: Any) -> Event:
    return Event.model_validate(
        {
            "metadata": {"name": f"{name}.{reason}", "namespace": "default"},
            "eventTime": ago(30),
            "regarding": {"kind": kind, "namespace": "default", "name": name},
            "reason": reason,
            "note": note,
            "type": "Warning",
            **more,
        }
    )


def test_one_that_is_served_has_nothing_wrong() -> None:
    ws = workspace(*(condition(each) for each in ("ResourceReady", "InferenceReady", "WorkspaceReady")))
    said = explain(World(ws, [MACHINE], [NODE], deployment(1), [pod(True, state={"running": {}})]), NOW)
    assert said.ready
    assert said.cause is None
    assert {link.state for link in said.chain} == {"ok"}
    assert [(link.depth, link.what) for link in said.chain] == [
        (0, "Workspace default/ws"),
        (1, "Machine ws1"),
        (2, "Node n1"),
        (1, "Deployment default/ws"),
        (2, "Pod default/ws-1"),
        (3, "Pod default/ws-1, container server"),
    ]


def test_the_culprit_is_marked_where_it_stands_in_the_chain() -> None:
    ws = workspace(condition("ResourceReady"), condition("WorkspaceReady", "False", message="0 of 1"))
    crashing = pod(
        False,
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        restartCount=3,
        lastState={"terminated": {"exitCode": 1, "reason": "Error"}},
    )
    said = explain(World(ws, [MACHINE], [NODE], deployment(0), [crashing]), NOW)
    assert not said.ready
    assert said.stage is not None
    assert said.stage.name == "EngineStarted"
    assert said.cause is not None
    assert said.cause.code == "CrashLoop"
    assert [link.what for link in said.chain if link.state == "wrong"] == ["Pod default/ws-1, container server"]


def test_that_nobody_reconciles_is_the_first_thing_to_say() -> None:
    said = explain(World(workspace()), NOW)
    assert said.cause is not None
    assert said.cause.code == "NoController"
    assert "kaito-ctrl run" in said.cause.fix
    changed = workspace(condition("ResourceReady"), generation=2)
    late = explain(World(changed, [MACHINE], [NODE]), NOW).cause
    assert late is not None
    assert "last change" in late.message
    assert explain(World(workspace(age=5)), NOW).cause is None


def test_without_a_provisioner_a_selector_that_nearly_matches_comes_first() -> None:
    alone = Machine.model_validate({"metadata": {"name": "ws1", "creationTimestamp": ago(300)}})
    other = NODE.evolve(metadata=NODE.metadata.evolve(labels={"apps": "phi3"}))
    said = explain(World(workspace(condition("MachineReady", "Unknown")), [alone], [other]), NOW)
    assert said.cause is not None
    assert said.cause.code == "SelectorMatchesNoNode"
    assert [each.code for each in said.others] == ["NoProvisioner"]


def test_what_only_an_event_tells_is_found_in_the_events() -> None:
    ws = workspace(condition("ResourceReady"))
    waiting = pod(False, state={"waiting": {"reason": "ContainerCreating"}}, imageID="")
    mount = event("FailedMount", 'MountVolume.SetUp failed for volume "weights"')
    said = explain(World(ws, [MACHINE], [NODE], deployment(0), [waiting], [mount]), NOW)
    assert said.cause is not None
    assert (said.cause.code, said.cause.source) == ("FailedMount", "Pod ws-1")
    assert said.warnings == (mount,)


def test_events_about_others_are_not_ours() -> None:
    ws = workspace(condition("ResourceReady"))
    foreign = event("FailedMount", "x", name="other-1")
    assert explain(World(ws, [MACHINE], [NODE], events=[foreign]), NOW).warnings == ()


def test_the_timeline_is_in_order_and_knows_restarts_and_pods_that_are_gone() -> None:
    ended = {"terminated": {"exitCode": 137, "startedAt": ago(200), "finishedAt": ago(100), "reason": "OOMKilled"}}
    crashing = pod(False, state={"running": {"startedAt": ago(90)}}, lastState=ended)
    killed = event("Killing", "Stopping container", name="ws-0", type="Normal", eventTime=ago(250))
    world = World(workspace(condition("ResourceReady")), [MACHINE], [NODE], deployment(0), [crashing], [killed])
    told = timeline(world)
    assert list(told) == sorted(told)
    assert (told[0].what, told[0].text) == ("Workspace default/ws", "created")
    texts = [f"{each.what}: {each.text}" for each in told]
    assert "Pod default/ws-0: Killing: Stopping container" in texts
    container = "Pod default/ws-1, container server"
    assert [each.text for each in told if each.what == container] == [
        "started",
        "ended with exit code 137 (OOMKilled)",
        "started",
    ]
    assert [each.wrong for each in told if "137" in each.text] == [True]


def launching(kind: type[Machine] | type[NodeClaim], status: str, reason: str, message: str) -> Machine | NodeClaim:
    conditions = [
        condition(kind.launched, status, reason=reason, message=message),
        condition(kind.registered, status, reason="NodeNotFound", message="Node not registered with cluster"),
        condition("Ready", status, reason="ReconcilingDependents", message="Launched=Unknown, Registered=Unknown"),
    ]
    return kind.model_validate(
        {"metadata": {"name": "ws1", "creationTimestamp": ago(500)}, "status": {"conditions": conditions}}
    )


@pytest.mark.parametrize(("kind", "status"), [(Machine, "False"), (NodeClaim, "Unknown")])
def test_a_claim_on_its_way_says_what_it_waits_for_and_is_called_by_its_kind(
    kind: type[Machine] | type[NodeClaim], status: str
) -> None:
    ws = workspace(condition(f"{kind.kind}Ready", "Unknown", message="creating 1 of them"))
    world = World(ws, [launching(kind, status, "Launching", "the cloud is making a Standard_NC6s_v3")])
    said = explain(world, NOW)
    assert said.cause is None
    assert [(each.what, each.state, each.detail) for each in said.chain[:2]] == [
        ("Workspace default/ws", "busy", "creating 1 of them"),
        (f"{kind.kind} ws1", "busy", "the cloud is making a Standard_NC6s_v3"),
    ]
    assert not [each for each in timeline(world) if each.wrong], "that it is not there yet is nothing wrong"


@pytest.mark.parametrize(("kind", "status"), [(Machine, "False"), (NodeClaim, "Unknown")])
def test_a_refusal_is_wrong_in_either_spelling(kind: type[Machine] | type[NodeClaim], status: str) -> None:
    world = World(workspace(condition("Test")), [launching(kind, status, "QuotaExceeded", "0 of 6; ask for more")])
    said = explain(world, NOW)
    assert said.cause is not None
    assert (said.cause.code, said.cause.source) == ("QuotaExceeded", f"{kind.kind} ws1")
    wrong = [each for each in timeline(world) if each.wrong]
    assert [each.text for each in wrong] == [f"{kind.launched} is {status} (QuotaExceeded): 0 of 6; ask for more"]


def test_what_karpenter_says_of_a_claim_that_it_has_deleted_is_found() -> None:
    told = event(
        "InsufficientCapacityError",
        "NodeClaim event: all requested instance types were unavailable during launch",
        kind="NodeClaim",
        name=machine_name("u1", 0),
        regarding={"kind": "NodeClaim", "namespace": "", "name": machine_name("u1", 0)},
    )
    said = explain(World(workspace(condition("NodeClaimReady", "False")), events=[told]), NOW)
    assert said.cause is not None
    assert (said.cause.code, said.stage and said.stage.name) == ("InsufficientCapacityError", "CapacityReserved")
