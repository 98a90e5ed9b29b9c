"""Where a workspace stands, stage by stage: since when, until when, what it waits for, what to do. Pure.

Stages follow one another; the first one that is not done is the one to look at. They are read off the objects, and not
remembered, so whoever asks, whenever, gets the same answer. Only two things are taken from the status as it was: how
often something was tried, and the last error of a stage, which stays for whoever comes too late to see it.

The order is Kubernetes': a pod gets its node before its images and adapters are fetched there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args

from kaito_api.apps import Deployment, StatefulSet
from kaito_api.core import ContainerStatus, Node, Pod
from kaito_api.karpenter import NodeRequest
from kaito_api.meta import Condition, find_condition, is_true
from kaito_api.workspace import StageError, StageName, StageStatus, Workspace
from kaito_ctrl.reconcilers.workspace.findings import (
    SETTLING,
    UNNOTICED,
    Finding,
    of_claim,
    of_node,
    of_pod,
    of_workload,
    words,
)

__all__ = ["STAGES", "Scene", "current_stage", "find_out", "look_again", "stages"]

STAGES: tuple[StageName, ...] = get_args(StageName)

_BUDGET: dict[StageName, float] = {
    "CapacityReserved": 600.0,
    "MachineLaunched": 600.0,
    "NodeRegistered": 900.0,
    "NodeInitialized": 900.0,
    "PodScheduled": 300.0,
    "ArtifactsReady": 1800.0,
    "Serving": 300.0,
}
"""Seconds that a stage may take; that of ``EngineStarted`` is the model's own."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is around a workspace: its claims, the nodes that it uses, its workload and its pods."""

    claims: Sequence[NodeRequest] = ()
    nodes: Sequence[Node] = ()
    workload: Deployment | StatefulSet | None = None
    pods: Sequence[Pod] = ()
    problem: Finding | None = None
    """Why nothing can be done for the workspace at all (of stage ``Planned``), or why a step of it was refused."""
    hint: Finding | None = None
    """What may be the reason that nobody provides a node."""
    strays: Sequence[Finding] = ()
    """Nodes that it should use, and does not select."""
    asked: int = 0
    """Claims that are made in this pass."""
    loading: float = 1800.0
    """Seconds that the model may take to load."""


@dataclass(frozen=True, slots=True)
class _Step:
    """How far a stage is. ``since`` is when it was done."""

    name: StageName
    done: bool
    since: datetime | None = None
    waits_for: str = ""


def stages(ws: Workspace, scene: Scene, now: datetime) -> tuple[StageStatus, ...]:
    """All stages of *ws*, in order."""
    steps = _steps(ws, scene)
    # A server that has only just started is not ready for a moment, and nothing is wrong with that.
    served = find_condition(ws.status.conditions, "InferenceReady") is not None
    before = {each.name: each for each in ws.status.stages}
    due = before["Serving"].deadline if "Serving" in before else None
    late = served or (due is not None and due <= now)
    findings = tuple(each for each in find_out(scene, now) if late or each.code != "NotReady")
    current = next((each.name for each in steps if not each.done), None)
    built: list[StageStatus] = []
    began = ws.metadata.creation_timestamp
    for step in steps:
        old = before.get(step.name)
        finding = _worst(findings, step.name) if step.name == current else None
        if finding is not None and finding.code == "NoProvisioner" and scene.hint is not None:
            finding = scene.hint
        status = _status(step, old, began, finding, scene, current=step.name == current)
        if step.name == "CapacityReserved":
            status = _counted(status, old, scene, now, served=current is None)
        built.append(status)
        if step.done:
            began = step.since or began
    return tuple(built)


def current_stage(found: Iterable[StageStatus]) -> StageStatus | None:
    """The first stage that is not done; ``None`` when all are."""
    return next((each for each in found if each.state != "Done"), None)


def find_out(scene: Scene, now: datetime) -> Iterable[Finding]:
    """Everything that is wrong, the earliest stage first, and of each stage the first object by name."""
    found: list[Finding | None] = [scene.problem]
    found += [of_claim(each, now) for each in sorted(scene.claims, key=lambda each: each.name)]
    found += scene.strays
    found += [of_node(each) for each in sorted(scene.nodes, key=lambda each: each.name)]
    found += [of_workload(scene.workload)] if scene.workload is not None else []
    found += [of_pod(each) for each in sorted(scene.pods, key=lambda each: each.name)]
    return sorted((each for each in found if each is not None), key=lambda each: STAGES.index(each.stage))


def look_again(claims: Sequence[NodeRequest], found: Sequence[StageStatus], now: datetime) -> float | None:
    """Seconds until the mere passing of time makes a difference to *found*; ``None`` if it does not."""
    moments = [
        each.metadata.creation_timestamp + timedelta(seconds=UNNOTICED)
        for each in claims
        if not each.status.conditions and each.metadata.creation_timestamp is not None
    ]
    moments += [
        joined + timedelta(seconds=SETTLING)
        for each in claims
        if not is_true(each.status.conditions, each.initialized)
        and (joined := _since(find_condition(each.status.conditions, each.registered))) is not None
    ]
    moments += [each.deadline for each in found if each.name == "Serving" and each.deadline is not None]
    return min(((each - now).total_seconds() for each in moments if each > now), default=None)


def _worst(findings: Sequence[Finding], stage: StageName) -> Finding | None:
    """What holds up *stage*: something of that stage itself, or of a later one, or of one that was done before."""
    position = STAGES.index(stage)
    later = [each for each in findings if STAGES.index(each.stage) >= position]
    return next(iter((*later, *findings)), None)


def _status(
    step: _Step,
    old: StageStatus | None,
    began: datetime | None,
    finding: Finding | None,
    scene: Scene,
    *,
    current: bool,
) -> StageStatus:
    name = step.name
    error = StageError(code=finding.code, message=finding.message, source=finding.source) if finding else None
    error = error or (old.last_error if old is not None else None)
    attempts = _attempts(name, old, scene, begun=step.done or current)
    if step.done:
        return StageStatus(
            name=name, state="Done", started_at=began, finished_at=step.since, attempts=attempts, last_error=error
        )
    if not current:
        return StageStatus(name=name, state="Pending", attempts=attempts, last_error=error)
    seconds = scene.loading if name == "EngineStarted" else _BUDGET.get(name)
    return StageStatus(
        name=name,
        state="Failed" if finding is not None else "Active",
        started_at=began,
        deadline=began + timedelta(seconds=seconds) if began is not None and seconds is not None else None,
        attempts=attempts,
        message=f"{finding.source}: {finding.message}" if finding is not None else step.waits_for,
        last_error=error,
        next_action=(finding.fix or None) if finding is not None else None,
    )


def _counted(status: StageStatus, old: StageStatus | None, scene: Scene, now: datetime, *, served: bool) -> StageStatus:
    """How many claims were made since the workspace was served last, and when the last one was."""
    known, there = (old.attempts if old is not None else 0), len(scene.claims)
    if served:
        return status.evolve(attempts=there)
    asked_at = now.replace(microsecond=0) if scene.asked else old.last_attempt_at if old is not None else None
    return status.evolve(attempts=max(known, there) + scene.asked, last_attempt_at=asked_at)


def _attempts(name: StageName, old: StageStatus | None, scene: Scene, *, begun: bool) -> int:
    known = old.attempts if old is not None else 0
    if name == "EngineStarted":
        statuses = [status for pod in scene.pods for status in pod.status.container_statuses]
        return max((status.restart_count + (status.state.waiting is None) for status in statuses), default=known)
    return max(known, 1 if begun else 0)


def _steps(ws: Workspace, scene: Scene) -> list[_Step]:
    made = ws.metadata.creation_timestamp
    steps = [_Step("Admitted", True, made)]
    resource = find_condition(ws.status.conditions, "ResourceReady")
    if scene.problem is not None and scene.problem.stage == "Planned":
        steps += [_Step(name, False) for name in STAGES[1:]]
        return steps
    steps.append(_Step("Planned", True, made))
    enough = len(scene.nodes) >= ws.resource.count
    since = resource.last_transition_time if resource is not None else made
    if enough and is_true(ws.status.conditions, "ResourceReady"):
        steps += _claim_steps(scene.claims, since) if scene.claims else _given(since)
    elif enough and (away := [each.name for each in scene.nodes if not is_true(each.status.conditions, "Ready")]):
        # Whoever made them may go on calling them initialized.
        steps += [*_given(since)[:3], _Step("NodeInitialized", False, None, f"node {', '.join(away)} to be back")]
    elif scene.claims:
        steps += _claim_steps(scene.claims, None)
    else:
        steps += [_Step("CapacityReserved", False, None, "a node to be asked for"), *_ahead(STAGES[3:6])]
    steps += [_scheduled(scene), _artifacts(scene.pods), _engine(scene.pods), _serving(ws, scene)]
    return steps


def _given(since: datetime | None) -> list[_Step]:
    """Nodes that were there, or that somebody else made: there is nothing to see of how."""
    return [_Step(name, True, since) for name in STAGES[2:6]]


def _ahead(names: Iterable[StageName]) -> list[_Step]:
    return [_Step(name, False) for name in names]


_CLAIM_STEPS: tuple[tuple[StageName, Callable[[NodeRequest], str], str], ...] = (
    ("CapacityReserved", lambda claim: claim.launched, "the cloud to grant an instance"),
    ("MachineLaunched", lambda claim: claim.launched, "the instance to start"),
    ("NodeRegistered", lambda claim: claim.registered, "the instance to boot and its node to join"),
    ("NodeInitialized", lambda claim: claim.initialized, "the node to be ready, with its GPUs"),
)


def _claim_steps(claims: Sequence[NodeRequest], ready: datetime | None) -> list[_Step]:
    """By the slowest of *claims*; when the resources were *ready* as a whole, all of it is done."""
    steps = []
    for name, kind, waits in _CLAIM_STEPS:
        conditions = [(each, find_condition(each.status.conditions, kind(each))) for each in claims]
        missing = [_in_words(each) for each, found in conditions if found is None or found.status != "True"]
        times = [at for _, found in conditions if (at := _since(found)) is not None]
        if missing and ready is None:
            steps.append(_Step(name, False, None, f"{waits} ({', '.join(sorted(missing))})"))
        else:
            steps.append(_Step(name, True, max(times, default=ready)))
    return steps


def _in_words(claim: NodeRequest) -> str:
    """Which claim, and what its provisioner says that it waits for."""
    said = words(claim)
    return f"{claim.name}: {said}" if said else claim.name


def _since(condition: Condition | None) -> datetime | None:
    return condition.last_transition_time if condition is not None and condition.status == "True" else None


def _scheduled(scene: Scene) -> _Step:
    name: StageName = "PodScheduled"
    if scene.workload is None:
        return _Step(name, False, None, "the workload to be created")
    wanted = scene.workload.spec.replicas
    if len(scene.pods) < wanted:
        return _Step(name, False, None, f"{wanted - len(scene.pods)} of {wanted} pods to be made")
    return _of_pods(name, "PodScheduled", scene.pods, "a node with free GPUs")


def _artifacts(pods: Sequence[Pod]) -> _Step:
    name: StageName = "ArtifactsReady"
    if not pods:
        return _Step(name, False)
    for pod in pods:
        waiting = [each for each in pod.status.container_statuses if not _fetched(each)]
        initialized = is_true(pod.status.conditions, "Initialized") or not pod.status.conditions
        if not initialized or waiting or not pod.status.container_statuses:
            adapters = not initialized and bool(pod.spec.init_containers)
            what = "adapters and images to be fetched" if adapters else "the images to be pulled"
            return _Step(name, False, None, f"{what} ({pod.name})")
    return _of_pods(name, "Initialized", pods, "")


def _fetched(status: ContainerStatus) -> bool:
    """Whether the container's image is there: it says so, or it has been started from it."""
    return bool(status.image_id or status.state.running or status.state.terminated or status.last_state.terminated)


def _engine(pods: Sequence[Pod]) -> _Step:
    name: StageName = "EngineStarted"
    for pod in pods:
        for status in pod.status.container_statuses:
            if not status.started:
                return _Step(name, False, None, f"the model to load ({pod.name})")
    if not pods or not all(pod.status.container_statuses for pod in pods):
        return _Step(name, False)
    times = [since for pod in pods if (since := _started_at(pod)) is not None]
    return _Step(name, True, max(times, default=None))


def _started_at(pod: Pod) -> datetime | None:
    """When its server was started last; ready pods say more precisely when it had loaded."""
    ready = find_condition(pod.status.conditions, "Ready")
    return _since(ready) or pod.status.start_time


def _serving(ws: Workspace, scene: Scene) -> _Step:
    served = find_condition(ws.status.conditions, "InferenceReady")
    if served is not None and served.status == "True":
        return _Step("Serving", True, served.last_transition_time)
    text = served.message if served is not None and served.message else "every replica to be ready"
    return _Step("Serving", False, None, text)


def _of_pods(name: StageName, kind: str, pods: Sequence[Pod], waits: str) -> _Step:
    for pod in pods:
        if not is_true(pod.status.conditions, kind):
            return _Step(name, False, None, f"{waits} ({pod.name})" if waits else pod.name)
    times = [at for pod in pods if (at := _since(find_condition(pod.status.conditions, kind))) is not None]
    return _Step(name, True, max(times, default=None))
