"""The stages of a workspace, read off the objects around it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod
from kaito_api.karpenter import Machine
from kaito_api.workspace import StageStatus, Workspace
from kaito_ctrl.reconcilers.workspace.findings import Finding
from kaito_ctrl.reconcilers.workspace.stages import STAGES, Scene, current_stage, look_again, stages

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
MADE = NOW - timedelta(minutes=10)


def at(minutes: float) -> str:
    """A moment that many minutes after the workspace was made."""
    return (MADE + timedelta(minutes=minutes)).isoformat()


def workspace(*conditions: tuple[str, str, float], before: tuple[StageStatus, ...] = ()) -> Workspace:
    wire = [{"type": kind, "status": word, "lastTransitionTime": at(when)} for kind, word, when in conditions]
    ws = Workspace.model_validate(
        {
            "metadata": {"name": "ws", "namespace": "default", "creationTimestamp": at(0)},
            "resource": {"labelSelector": {"matchLabels": {"apps": "phi-3"}}},
            "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
            "status": {"conditions": wire},
        }
    )
    return ws.evolve(status=ws.status.evolve(stages=before))


def machine(*done: tuple[str, float], **condition: Any) -> Machine:
    conditions: list[dict[str, Any]] = [
        {"type": kind, "status": "True", "lastTransitionTime": at(when)} for kind, when in done
    ]
    if condition:
        conditions.append(condition)
    return Machine.model_validate(
        {"metadata": {"name": "ws1", "creationTimestamp": at(0)}, "status": {"conditions": conditions}}
    )


def pod(*conditions: tuple[str, float], **container: Any) -> Pod:
    wire = [{"type": kind, "status": "True", "lastTransitionTime": at(when)} for kind, when in conditions]
    return Pod.model_validate(
        {
            "metadata": {"name": "ws-0", "namespace": "default"},
            "status": {
                "conditions": wire,
                "startTime": at(4),
                "containerStatuses": [{"name": "ws", **container}] if container else [],
            },
        }
    )


NODE = Node.model_validate(
    {"metadata": {"name": "n1"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
)
WORKLOAD = Deployment.model_validate({"metadata": {"name": "ws"}, "spec": {"replicas": 1}})
BOOTED = machine(("MachineLaunched", 1), ("MachineRegistered", 2), ("MachineInitialized", 3))


def states(found: tuple[StageStatus, ...]) -> str:
    return "".join(each.state[0] for each in found)


def test_at_first_a_machine_is_to_be_asked_for() -> None:
    found = stages(workspace(), Scene(asked=1), NOW)
    assert [each.name for each in found] == list(STAGES)
    assert states(found) == "DDAPPPPPPP"
    current = current_stage(found)
    assert current is not None
    assert (current.name, current.attempts, current.started_at) == ("CapacityReserved", 1, MADE)
    assert current.deadline == MADE + timedelta(minutes=10)


def test_each_stage_begins_when_the_one_before_was_done() -> None:
    found = stages(workspace(), Scene([machine(("MachineLaunched", 1))]), NOW)
    assert states(found) == "DDDDAPPPPP"
    registering = found[4]
    assert (registering.name, registering.started_at) == ("NodeRegistered", MADE + timedelta(minutes=1))
    assert registering.message == "the instance to boot and its node to join (ws1)"
    assert found[3].finished_at == MADE + timedelta(minutes=1)


def test_what_fails_names_the_cause_the_source_and_the_next_step() -> None:
    refused = machine(type="MachineLaunched", status="Unknown", reason="QuotaExceeded", message="0 of 6 left")
    [failed] = [each for each in stages(workspace(), Scene([refused]), NOW) if each.state == "Failed"]
    assert failed.name == "CapacityReserved"
    assert failed.message == "Machine ws1: 0 of 6 left"
    assert failed.last_error is not None
    assert (failed.last_error.code, failed.last_error.source) == ("QuotaExceeded", "Machine ws1")
    assert "quota" in (failed.next_action or "")


def test_the_last_error_stays_when_the_stage_has_recovered() -> None:
    refused = machine(type="MachineLaunched", status="Unknown", reason="QuotaExceeded", message="0 of 6 left")
    before = stages(workspace(), Scene([refused]), NOW)
    after = stages(workspace(before=before), Scene([machine(("MachineLaunched", 9))]), NOW)
    assert after[2].state == "Done"
    assert after[2].last_error is not None
    assert after[2].last_error.code == "QuotaExceeded"
    assert after[2].next_action is None


def test_with_the_nodes_there_the_pod_is_looked_at() -> None:
    ws = workspace(("ResourceReady", "True", 3))
    assert states(stages(ws, Scene([BOOTED], [NODE]), NOW)) == "DDDDDDAPPP"
    scene = Scene([BOOTED], [NODE], WORKLOAD, [pod(("PodScheduled", 4))])
    assert states(stages(ws, scene, NOW)) == "DDDDDDDAPP"
    loading = pod(("PodScheduled", 4), ("Initialized", 4), state={"running": {}}, imageID="x", started=False)
    found = stages(ws, Scene([BOOTED], [NODE], WORKLOAD, [loading], loading=600), NOW)
    assert states(found) == "DDDDDDDDAP"
    assert found[8].message == "the model to load (ws-0)"
    assert found[8].deadline == MADE + timedelta(minutes=4 + 10)


def test_when_it_serves_everything_is_done() -> None:
    ws = workspace(("ResourceReady", "True", 3), ("InferenceReady", "True", 6))
    serving = pod(
        ("PodScheduled", 4),
        ("Initialized", 4),
        ("Ready", 6),
        state={"running": {}},
        imageID="x",
        started=True,
        ready=True,
    )
    found = stages(ws, Scene([BOOTED], [NODE], WORKLOAD, [serving]), NOW)
    assert states(found) == "D" * 10
    assert current_stage(found) is None
    assert found[-1].finished_at == MADE + timedelta(minutes=6)
    assert (
        stages(
            workspace(("ResourceReady", "True", 3), ("InferenceReady", "True", 6), before=found),
            Scene([BOOTED], [NODE], WORKLOAD, [serving]),
            NOW + timedelta(hours=3),
        )
        == found
    ), "time alone changes nothing"


def test_nodes_that_were_there_before_need_no_machine() -> None:
    ws = workspace(("ResourceReady", "True", 0))
    assert states(stages(ws, Scene((), [NODE], WORKLOAD), NOW)) == "DDDDDDAPPP"


def test_restarts_are_counted_as_attempts() -> None:
    crashing = pod(
        ("PodScheduled", 4),
        ("Initialized", 4),
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        imageID="x",
        restartCount=4,
        lastState={"terminated": {"exitCode": 1}},
    )
    found = stages(workspace(("ResourceReady", "True", 3)), Scene([BOOTED], [NODE], WORKLOAD, [crashing]), NOW)
    assert (found[8].state, found[8].attempts) == ("Failed", 4)


def test_a_workspace_that_makes_no_sense_goes_no_further() -> None:
    problem = Finding("Planned", "InvalidWorkspace", "Workspace ws", "unknown preset", "correct it")
    found = stages(workspace(), Scene(problem=problem), NOW)
    assert states(found) == "DFPPPPPPPP"
    assert found[1].next_action == "correct it"


def test_a_server_that_has_just_started_is_not_failing_but_one_that_has_served_is() -> None:
    unready = pod(
        ("PodScheduled", 4), ("Initialized", 4), state={"running": {}}, imageID="x", started=True, ready=False
    )
    scene = Scene([BOOTED], [NODE], WORKLOAD, [unready])
    assert states(stages(workspace(("ResourceReady", "True", 3)), scene, NOW))[-1] == "A"
    served = workspace(("ResourceReady", "True", 3), ("InferenceReady", "False", 6))
    assert states(stages(served, scene, NOW))[-1] == "F"


def test_a_machine_that_nobody_looks_at_is_looked_at_again_by_us() -> None:
    young = Machine.model_validate(
        {"metadata": {"name": "a", "creationTimestamp": (NOW - timedelta(seconds=20)).isoformat()}}
    )
    assert look_again([young], (), NOW) == 40.0
    assert look_again([BOOTED], (), NOW) is None
    assert look_again([machine()], (), NOW) is None


def test_a_node_that_has_just_joined_is_awaited_and_not_complained_about() -> None:
    # Every new node is unready at first, and without GPUs until its device plug-in has started.
    def scene(lacking: float) -> Scene:
        wait = {"type": "MachineInitialized", "status": "Unknown", "reason": "ResourceNotRegistered"}
        joined = 10 - lacking / 60
        return Scene([machine(("MachineLaunched", 1), ("MachineRegistered", joined), **wait, message="no GPU yet")])

    found = stages(workspace(), scene(100), NOW)
    assert (found[5].state, found[5].message) == ("Active", "the node to be ready, with its GPUs (ws1: no GPU yet)")
    assert look_again(scene(100).claims, found, NOW) == 80.0
    assert stages(workspace(), scene(180), NOW)[5].state == "Failed"
    assert look_again(scene(180).claims, (), NOW) is None
