"""Where a workspace stands, stage by stage, in words: since when, and what it waits for. Pure.

Stages follow one another; the first one that is not done is the one to look at. They are read off the objects, not
remembered: whoever asks, whenever, gets the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from kaito_api.apps import Deployment
from kaito_api.core import Pod
from kaito_api.karpenter import Machine
from kaito_api.meta import Condition, find_condition, is_true
from kaito_api.workspace import Workspace

__all__ = ["STAGES", "Stage", "stages"]

STAGES = (
    "Admitted",
    "MachineLaunched",
    "NodeRegistered",
    "NodeInitialized",
    "PodScheduled",
    "EngineStarted",
    "Serving",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. ``since`` is when it was done, or when it began; ``waits_for`` is empty once it is done."""

    name: str
    done: bool
    since: datetime | None
    waits_for: str = ""


def stages(
    ws: Workspace, machines: Sequence[Machine], deployment: Deployment | None, pods: Sequence[Pod]
) -> tuple[Stage, ...]:
    """All stages of *ws*, in order."""
    resource = find_condition(ws.status.conditions, "ResourceReady")
    found = [Stage("Admitted", True, ws.metadata.creation_timestamp)]
    if is_true(ws.status.conditions, "ResourceReady") and not machines:
        found += [Stage(name, True, _since(resource)) for name in STAGES[1:4]]
    else:
        found += _machine_stages(ws, machines)
    found.append(_scheduled(deployment, pods))
    found.append(_started(pods))
    served = find_condition(ws.status.conditions, "InferenceReady")
    if served is not None and served.status == "True":
        found.append(Stage("Serving", True, _since(served)))
    else:
        waits = served.message if served is not None else "the readiness probe of the server"
        found.append(Stage("Serving", False, _since(served), waits))
    return tuple(found)


def _since(condition: Condition | None) -> datetime | None:
    return condition.last_transition_time if condition is not None else None


def _machine_stages(ws: Workspace, machines: Sequence[Machine]) -> list[Stage]:
    failed = find_condition(ws.status.conditions, "ResourceReady")
    if not machines:
        text = failed.message if failed is not None and failed.status == "False" else "a machine to be asked for"
        return [Stage(name, False, None, text if name == "MachineLaunched" else "") for name in STAGES[1:4]]
    rows = []
    for kind, name, waits in (
        ("MachineLaunched", "MachineLaunched", "the cloud to grant an instance"),
        ("MachineRegistered", "NodeRegistered", "the instance to boot and its node to join"),
        ("MachineInitialized", "NodeInitialized", "the node to be ready, with its GPUs"),
    ):
        conditions = [(each, find_condition(each.status.conditions, kind)) for each in machines]
        missing = [(each, found) for each, found in conditions if found is None or found.status != "True"]
        if missing:
            machine, condition = missing[0]
            reason = condition.message if condition is not None and kind == "MachineLaunched" else ""
            text = f"{machine.name}: {reason or waits}"
            rows.append(Stage(name, False, _since(condition) or machine.metadata.creation_timestamp, text))
        else:
            times = [at for _, found in conditions if (at := _since(found)) is not None]
            rows.append(Stage(name, True, max(times, default=None)))
    return rows


def _scheduled(deployment: Deployment | None, pods: Sequence[Pod]) -> Stage:
    name = "PodScheduled"
    if deployment is None:
        return Stage(name, False, None, "nodes to be ready")
    if not pods:
        return Stage(name, False, deployment.metadata.creation_timestamp, "the pod to be made")
    for pod in pods:
        condition = find_condition(pod.status.conditions, "PodScheduled")
        if condition is None or condition.status != "True":
            text = condition.message if condition is not None and condition.message else "a node with a free GPU"
            return Stage(name, False, pod.metadata.creation_timestamp, text)
    times = [at for pod in pods if (at := _since(find_condition(pod.status.conditions, name))) is not None]
    return Stage(name, True, max(times, default=None))


def _started(pods: Sequence[Pod]) -> Stage:
    name = "EngineStarted"
    if not pods:
        return Stage(name, False, None, "the pod to be scheduled")
    for pod in pods:
        for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
            if status.started:
                continue
            waiting = status.state.waiting or {}
            if waiting.get("reason") == "CrashLoopBackOff":
                ended = status.last_state.terminated or {}
                text = (
                    f"container {status.name} to stay up: it ended {status.restart_count} times, last with exit code "
                    f"{ended.get('exitCode')} ({ended.get('reason')}); see kubectl logs {pod.name} --previous"
                )
            elif waiting.get("reason"):
                text = f"{waiting['reason']}: {waiting.get('message') or 'container ' + status.name}"
            elif status.state.running is not None:
                text = f"the model to load ({pod.name})"
            else:
                text = f"container {status.name} to start"
            return Stage(name, False, pod.status.start_time, text)
        if not pod.status.container_statuses:
            return Stage(name, False, pod.status.start_time, f"the node to start {pod.name}")
    times = [pod.status.start_time for pod in pods if pod.status.start_time is not None]
    return Stage(name, True, max(times, default=None))
