"""Why a workspace is where it is, and how it came there: the chain down to a container, and everything by time. Pure.

It goes by the objects alone, so it works on any cluster, and also when no controller runs: then that is the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from kaito_api.apps import Deployment, StatefulSet
from kaito_api.core import ContainerStatus, Node, Pod
from kaito_api.events import Event
from kaito_api.karpenter import NODE_REQUESTS, NodeRequest
from kaito_api.meta import Condition, Resource, find_condition, is_true
from kaito_api.workspace import StageStatus, Workspace
from kaito_ctrl.reconcilers.names import machine_name
from kaito_ctrl.reconcilers.workspace.claims import WORDS
from kaito_ctrl.reconcilers.workspace.findings import UNNOTICED, Finding, is_wrong, near_misses, strays, words
from kaito_ctrl.reconcilers.workspace.nodes import eligible
from kaito_ctrl.reconcilers.workspace.stages import Scene, current_stage, find_out, stages

__all__ = ["Explanation", "Link", "Moment", "World", "explain", "timeline"]

State = Literal["ok", "busy", "wrong", "missing"]


@dataclass(frozen=True, slots=True)
class World:
    """Everything that was read for one workspace."""

    workspace: Workspace
    claims: Sequence[NodeRequest] = ()
    """Its node requests, of whichever kind."""
    nodes: Sequence[Node] = ()
    """All nodes of the cluster."""
    workload: Deployment | StatefulSet | None = None
    pods: Sequence[Pod] = ()
    events: Sequence[Event] = ()
    problem: Finding | None = None
    """What is wrong with the workspace itself."""


@dataclass(frozen=True, slots=True)
class Link:
    """One object on the way; ``depth`` is its distance from the workspace."""

    depth: int
    what: str
    state: State
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """``cause`` is what to look at first; ``others`` is what is wrong as well."""

    ready: bool
    stage: StageStatus | None
    chain: tuple[Link, ...]
    cause: Finding | None
    others: tuple[Finding, ...]
    warnings: tuple[Event, ...]
    """The latest warnings about any of these objects, the newest first."""


def explain(world: World, now: datetime) -> Explanation:
    """Why the workspace is, or is not, served."""
    ws = world.workspace
    used = _used(world)
    hint = near_misses(ws, world.nodes) if not used else None
    lost = strays(ws, world.claims, world.nodes)
    scene = Scene(world.claims, used, world.workload, world.pods, world.problem, hint, lost)
    found = list(find_out(scene, now))
    if any(each.code == "NoProvisioner" for each in found) and hint is not None:
        found.insert(0, hint)
    if (unseen := _unseen(ws, now)) is not None:
        found.insert(0, unseen)
    stage = current_stage(stages(ws, scene, now))
    ready = is_true(ws.status.conditions, "WorkspaceReady") and not found
    warnings = sorted((each for each in _about(world) if each.type == "Warning"), key=_when, reverse=True)
    cause = next(iter(found), None)
    if cause is None and not ready and stage is not None and warnings:
        last = warnings[0]
        source = f"{last.regarding.kind} {last.regarding.name}"
        cause = Finding(stage.name, last.reason or "Warning", source, last.note, f"kubectl describe {source.lower()}")
    others = tuple(each for each in found if each != cause)
    return Explanation(ready, stage, tuple(_chain(world, used, found)), cause, others, tuple(warnings[:5]))


def _unseen(ws: Workspace, now: datetime) -> Finding | None:
    """Whether nobody reconciles workspaces."""
    made = ws.metadata.creation_timestamp
    conditions = ws.status.conditions
    newest = max((each.observed_generation or 0 for each in conditions), default=0)
    if ws.deleting or made is None or (now - made).total_seconds() < UNNOTICED:
        return None
    if conditions and newest >= ws.metadata.generation:
        return None
    text = "no controller has looked at it" if not conditions else "no controller has looked at its last change"
    return Finding("Planned", "NoController", str(ws), text, "run one: kaito-ctrl run; and see its log")


def _used(world: World) -> tuple[Node, ...]:
    """The nodes that the workspace uses, or would use."""
    ws = world.workspace
    named = {*ws.status.worker_nodes, *(each.status.node_name for each in world.claims)}
    return tuple(node for node in world.nodes if node.name in named or eligible(node, ws))


def _chain(world: World, used: Sequence[Node], found: Sequence[Finding]) -> Iterator[Link]:
    ws, wrong = world.workspace, {each.source: each for each in found}

    def link(depth: int, what: str, ok: bool, busy: str) -> Link:
        finding = wrong.get(what)
        if finding is not None:
            return Link(depth, what, "wrong", f"{finding.code}: {finding.message}")
        return Link(depth, what, "ok") if ok else Link(depth, what, "busy", busy)

    ready = is_true(ws.status.conditions, "WorkspaceReady")
    yield link(0, str(ws), ready, _said(ws.status.conditions))
    by_name = {node.name: node for node in used}
    for claim in world.claims:
        done = is_true(claim.status.conditions, "Ready")
        yield link(1, str(claim), done, words(claim) or "not ready")
        node = by_name.pop(claim.status.node_name, None)
        if node is not None:
            yield link(2, str(node), is_true(node.status.conditions, "Ready"), "not ready")
        elif claim.status.node_name:
            yield Link(2, f"Node {claim.status.node_name}", "missing", "is gone")
    for node in by_name.values():
        yield link(1, str(node), is_true(node.status.conditions, "Ready"), "not ready")
    if world.workload is None:
        yield Link(1, "Workload", "missing", "made once its nodes are ready")
        return
    workload = world.workload
    yield link(
        1,
        str(workload),
        workload.status.ready_replicas >= workload.spec.replicas,
        f"{workload.status.ready_replicas} of {workload.spec.replicas} replicas are ready",
    )
    for pod in world.pods:
        yield link(2, str(pod), is_true(pod.status.conditions, "Ready"), pod.status.phase)
        for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
            ended = (status.state.terminated or {}).get("exitCode") == 0
            yield link(3, f"{pod}, container {status.name}", status.ready or ended, _container(status))


def _said(conditions: tuple[Condition, ...]) -> str:
    """What the workspace's controller says of it, the most general first."""
    for kind in ("WorkspaceReady", "ResourceReady", *(each.condition for each in WORDS.values())):
        found = find_condition(conditions, kind)
        if found is not None and found.status != "True":
            return found.message or found.reason
    return "not ready"


def _container(status: ContainerStatus) -> str:
    if status.state.running is not None:
        return "runs; loading" if not status.started else "runs, not ready"
    waiting = status.state.waiting or {}
    return str(waiting.get("reason") or "waits")


# -- by time -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Moment:
    """One thing that happened."""

    at: datetime
    what: str
    """Whose it is."""
    text: str
    wrong: bool = False


def timeline(world: World) -> tuple[Moment, ...]:
    """Everything that the objects and their events still tell, the oldest first."""
    ws = world.workspace
    used = _used(world)
    objects: list[Resource] = [ws, *world.claims, *used, *([world.workload] if world.workload else []), *world.pods]
    moments: set[Moment] = set()
    for each in objects:
        made, going = each.metadata.creation_timestamp, each.metadata.deletion_timestamp
        if made is not None:
            moments.add(Moment(made, str(each), "created"))
        if going is not None:
            moments.add(Moment(going, str(each), "deletion asked for"))
        moments.update(_conditions(each))
    for pod in world.pods:
        moments.update(_containers(pod))
    for event in _about(world):
        moments.update(_event(event))
    return tuple(sorted(moments))


def _conditions(obj: Resource) -> Iterator[Moment]:
    conditions: tuple[Condition, ...] = getattr(obj, "status").conditions  # noqa: B009 - each of them has one
    for each in conditions:
        if each.last_transition_time is None:
            continue
        said = f"{each.type} is {each.status}" + (f" ({each.reason})" if each.reason else "")
        said += f": {each.message}" if each.message and each.status != "True" else ""
        pressure = each.type.endswith("Pressure") or each.type in ("NetworkUnavailable", "ReplicaFailure")
        wrong = each.status == ("True" if pressure else "False")
        if isinstance(obj, NodeRequest):
            wrong = is_wrong(obj, each)
        if not (pressure and not wrong):
            yield Moment(each.last_transition_time, str(obj), said, wrong)


def _containers(pod: Pod) -> Iterator[Moment]:
    for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        what = f"{pod}, container {status.name}"
        for state in (status.last_state, status.state):
            started = _time((state.running or state.terminated or {}).get("startedAt"))
            if started is not None:
                yield Moment(started, what, "started")
            ended = state.terminated or {}
            at = _time(ended.get("finishedAt"))
            if at is not None:
                code, reason = ended.get("exitCode"), ended.get("reason")
                yield Moment(at, what, f"ended with exit code {code} ({reason})", bool(code))


def _event(event: Event) -> Iterator[Moment]:
    where = f"{event.regarding.namespace}/" if event.regarding.namespace else ""
    times = event.series.count if event.series is not None else event.deprecated_count
    again = f" (x{times})" if times > 1 else ""
    yield Moment(
        _when(event),
        f"{event.regarding.kind} {where}{event.regarding.name}",
        f"{event.reason}: {event.note}{again}",
        event.type == "Warning",
    )


def _about(world: World) -> Iterator[Event]:
    """The events about any of the world's objects."""
    objects: Iterable[Resource] = (
        world.workspace,
        *world.claims,
        *_used(world),
        *([world.workload] if world.workload is not None else ()),
        *world.pods,
    )
    known = {(each.kind, each.namespace or "", each.name) for each in objects}
    uid = world.workspace.uid
    # A claim that the cloud had nothing for may be gone by now: Karpenter deletes it, and says why in an event alone.
    earlier = (machine_name(uid, index) for index in range(world.workspace.resource.count + 1))
    known |= {(kind.kind, "", name) for name in earlier for kind in NODE_REQUESTS.values()}
    # What is told of objects that are gone by now, such as earlier pods, is told under names that begin like ours.
    prefix = f"{world.workspace.name}-"
    for event in world.events:
        about = event.regarding
        key = (about.kind, about.namespace, about.name)
        namesake = about.kind in ("Pod", "ReplicaSet") and about.name.startswith(prefix)
        if key in known or about.uid == uid or (namesake and about.namespace == world.workspace.namespace):
            yield event


def _when(event: Event) -> datetime:
    series = event.series.last_observed_time if event.series is not None else None
    found = series or event.deprecated_last_timestamp or event.event_time or event.metadata.creation_timestamp
    assert found is not None
    return found


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
