"""What is to be done for a workspace: a pure function of what was seen.

No I/O, no clock, no randomness: the same input gives the same plan, byte for byte, and a workspace that is where it
should be gives a plan that changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from kaito_api.apps import ControllerRevision, Deployment, StatefulSet
from kaito_api.core import Node, Pod, Service
from kaito_api.karpenter import NodeRequest
from kaito_api.meta import Condition, ConditionStatus, Resource, find_condition, is_true
from kaito_api.workspace import StageError, Workspace, WorkspaceStatus
from kaito_ctrl.reconcilers.workspace.claims import WORDS, Words, claim
from kaito_ctrl.reconcilers.workspace.findings import Finding, near_misses, place_in_queue, strays, why_not_launched
from kaito_ctrl.reconcilers.workspace.nodes import NodePlan, plan_nodes, replacement_wait
from kaito_ctrl.reconcilers.workspace.revisions import Revisions, plan_revisions
from kaito_ctrl.reconcilers.workspace.services import headless_service, service
from kaito_ctrl.reconcilers.workspace.settings import Settings
from kaito_ctrl.reconcilers.workspace.stages import Scene, current_stage, look_again, stages
from kaito_ctrl.reconcilers.workspace.validation import Problem
from kaito_ctrl.reconcilers.workspace.workload import inference_workload
from kaito_ctrl.runtime.conditions import merge, put
from kaito_presets.catalogue import Catalogue
from kaito_presets.preset import Preset
from kaito_presets.skus import SkuTable

__all__ = ["Observed", "Plan", "plan_workspace", "refused"]


_CONFIG = 30.0
"""Seconds between two looks at a ConfigMap that is not there, or is wrong."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read for one pass."""

    nodes: Sequence[Node] = ()
    """Those that it may use, those that its claims name, and perhaps others."""
    claims: Sequence[NodeRequest] = ()
    workload: Deployment | StatefulSet | None = None
    services: Sequence[Service] = ()
    """Those that have the name of the workspace's Service or of its headless one, whoever's they are."""
    revisions: Sequence[ControllerRevision] = ()
    pods: Sequence[Pod] = ()
    problems: Sequence[Problem] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: note the revision, claims to make and to give back, objects to apply, one status; and
    when to look again if nothing happens, in seconds."""

    status: WorkspaceStatus
    claims: tuple[NodeRequest, ...] = ()
    surplus: tuple[NodeRequest, ...] = ()
    apply: tuple[Resource, ...] = ()
    revisions: Revisions | None = None
    look_again: float | None = None


def plan_workspace(
    ws: Workspace, seen: Observed, catalogue: Catalogue, skus: SkuTable, settings: Settings, now: datetime
) -> Plan:
    """The next step for *ws*."""
    problem = _obstacle(ws, seen, settings)
    if problem is not None:
        write = _StatusWriter(ws, WORDS[settings.node_api], now)
        # ConfigMaps are not watched: a cluster is full of them, and hardly any is meant for us.
        again = _CONFIG if any(each.field.startswith("tuning.config") for each in seen.problems) else None
        made = Plan(write.status(*write.no_resources(problem.message)), look_again=again)
        return replace(made, status=_staged(ws, made, Scene(seen.claims, problem=problem), now))
    section = ws.inference or ws.tuning
    assert section is not None
    preset = catalogue.get(section.preset.name) if section.preset is not None else None
    nodes = plan_nodes(ws, seen.nodes, seen.claims, now)
    made = _plan(ws, seen, nodes, preset, skus, settings, now)
    status = _staged(ws, made, _scene(ws, seen, nodes, preset, made), now)
    if nodes.complete(ws.resource.count) and not is_true(status.conditions, "InferenceReady"):
        status = _explained(ws, status, settings, now)
    waits = [each for each in (made.look_again, look_again(seen.claims, status.stages, now)) if each is not None]
    return replace(made, status=status, look_again=min(waits, default=None))


def _explained(ws: Workspace, status: WorkspaceStatus, settings: Settings, now: datetime) -> WorkspaceStatus:
    """*status* with the cause in its conditions when the workload fails, whether or not it has served before."""
    current = current_stage(status.stages)
    if current is None or current.state != "Failed" or current.message is None:
        return status
    write = _StatusWriter(ws.evolve(status=status), WORDS[settings.node_api], now)
    return write.status(*write.not_serving(current.message))


def _scene(ws: Workspace, seen: Observed, nodes: NodePlan, preset: Preset | None, made: Plan) -> Scene:
    mine = tuple(pod for pod in seen.pods if pod.metadata.namespace == ws.namespace)
    # What is left of a pod that was evicted, or is on its way out, says nothing once another has taken its place.
    lasting = tuple(pod for pod in mine if pod.status.phase not in ("Failed", "Succeeded") and not pod.deleting)
    pods = lasting if len(lasting) >= ws.resource.count else mine
    claims = tuple(each for each in seen.claims if each not in nodes.surplus)
    loading = float(preset.readiness_timeout_seconds) if preset is not None else 1800.0
    in_use = (*nodes.selected, *nodes.awaited)
    hint = near_misses(ws, seen.nodes) if not in_use else None
    lost = strays(ws, claims, seen.nodes)
    return Scene(claims, in_use, seen.workload, pods, hint=hint, strays=lost, asked=len(made.claims), loading=loading)


def _staged(ws: Workspace, made: Plan, scene: Scene, now: datetime) -> WorkspaceStatus:
    """The status of *made* with its stages."""
    as_planned = ws.evolve(status=made.status.evolve(stages=ws.status.stages))
    return made.status.evolve(stages=stages(as_planned, scene, now))


def _plan(
    ws: Workspace,
    seen: Observed,
    nodes: NodePlan,
    preset: Preset | None,
    skus: SkuTable,
    settings: Settings,
    now: datetime,
) -> Plan:
    words = WORDS[settings.node_api]
    write = _StatusWriter(ws, words, now)
    revisions = plan_revisions(ws, seen.revisions)
    if not nodes.complete(ws.resource.count):
        return replace(_waiting_for_nodes(ws, nodes, preset, settings, write, now), revisions=revisions)

    resources = (
        write.put(words.condition, "True", "installNodePluginsSuccess", words.installed),
        write.put("ResourceReady", "True", "workspaceResourceStatusSuccess", "workspace resource is ready"),
    )
    if ws.inference is None:
        # The job, and what it serves while it runs, come here.
        jobless = write.put(
            "WorkspaceReady", "False", "workspacePending", "the nodes are ready; this release runs no tuning jobs yet"
        )
        status = write.status(*resources, jobless, nodes=nodes.selected)
        return Plan(status, surplus=nodes.surplus, revisions=revisions)
    distributed = preset is not None and preset.distributed
    sku = skus.get(ws.resource.instance_type)
    objects: tuple[Resource, ...] = (
        service(ws, distributed=distributed),
        *((headless_service(ws),) if distributed else ()),
        inference_workload(ws, preset, sku, settings, revisions.current.revision),
    )
    served: tuple[Condition, ...] = ()
    serving, message = _serving(seen.workload)
    if serving:
        served = (
            write.put(
                "InferenceReady", "True", "WorkspaceInferenceStatusSuccess", "Inference has been deployed successfully"
            ),
            write.put("WorkspaceReady", "True", "workspaceReady", "workspace is ready"),
        )
    elif find_condition(ws.status.conditions, "InferenceReady") is not None:
        # It has served before: say that it does not now. Before that the columns stay empty, as they do upstream.
        served = write.not_serving(message)
    status = write.status(*resources, *served, nodes=nodes.selected)
    return Plan(status, surplus=nodes.surplus, apply=objects, revisions=revisions)


def refused(ws: Workspace, plan: Plan, what: Resource, why: str, settings: Settings, now: datetime) -> WorkspaceStatus:
    """The status of *plan* when the API server refuses one of its objects: in words, because retrying will not help."""
    write = _StatusWriter(ws.evolve(status=plan.status), WORDS[settings.node_api], now)
    text = f"{what} was refused: {why}"
    status = write.status(*write.not_serving(text))
    problem = Finding(
        "PodScheduled", "ObjectRefused", str(what), f"was refused: {why}", "the message says what forbids it"
    )
    told = [
        each.evolve(
            state="Failed",
            message=text,
            last_error=StageError(code=problem.code, message=problem.message, source=problem.source),
            next_action=problem.fix,
        )
        if each.name == problem.stage
        else each
        for each in status.stages
    ]
    return status.evolve(stages=tuple(told))


class _StatusWriter:
    """Builds the status of one pass: every condition carries the generation that it was made for."""

    def __init__(self, ws: Workspace, words: Words, now: datetime) -> None:
        self._ws = ws
        self.words = words
        self._now = now

    def put(self, kind: str, status: ConditionStatus, reason: str, message: str) -> Condition:
        return put(kind, status, reason, message, generation=self._ws.metadata.generation, now=self._now)

    def not_serving(self, why: str) -> tuple[Condition, ...]:
        """The workload is not there, or does not serve."""
        return (
            self.put("InferenceReady", "False", "WorkspaceInferenceStatusFailed", why),
            self.put("WorkspaceReady", "False", "workspaceFailed", why),
        )

    def no_resources(self, why: str) -> tuple[Condition, ...]:
        """There are not enough nodes; what has served before does not serve now."""
        lost = self.put("ResourceReady", "False", "workspaceResourceStatusFailed", why)
        served = find_condition(self._ws.status.conditions, "InferenceReady")
        return (lost, *(self.not_serving(why) if served is not None else self.not_serving(why)[1:]))

    def status(self, *conditions: Condition, nodes: Sequence[Node] | None = None) -> WorkspaceStatus:
        """The status with *conditions* put in; without *nodes* the known ones stay."""
        present = self._ws.status
        names = tuple(sorted(node.name for node in nodes)) if nodes is not None else present.worker_nodes
        # What was said of claims of another kind, before this one was decided for, nobody will ever correct.
        stale = {each.condition for each in WORDS.values()} - {self.words.condition}
        known = tuple(each for each in present.conditions if each.type not in stale)
        return present.evolve(worker_nodes=names, conditions=merge(known, conditions))


def _obstacle(ws: Workspace, seen: Observed, settings: Settings) -> Finding | None:
    """Why nothing can be done for *ws*."""
    if seen.problems:
        text = "; ".join(str(problem) for problem in seen.problems)
        fix = next((problem.fix for problem in seen.problems if problem.fix), "correct the workspace")
        return Finding("Planned", "InvalidWorkspace", str(ws), text, fix)
    if ws.tuning is not None and not settings.tuning:
        text = "tuning: this release of kaito-ctrl serves models, and does not tune them yet"
        return Finding("Planned", "NotSupported", str(ws), text)
    for taken in (*seen.services, seen.workload):
        if taken is not None and not any(ref.uid == ws.uid for ref in taken.metadata.owner_references):
            text = f"{taken} exists and is not this workspace's: delete it, or give the workspace another name"
            return Finding("Planned", "NameTaken", str(taken), text, "delete it, or give the workspace another name")
    return None


def _waiting_for_nodes(
    ws: Workspace, nodes: NodePlan, preset: Preset | None, settings: Settings, write: _StatusWriter, now: datetime
) -> Plan:
    need = preset if ws.inference is not None or preset is None else preset.tuning
    disk = need.disk if need is not None else "0"
    wait = replacement_wait(ws, now) if nodes.missing else 0.0
    in_use = (*nodes.selected, *nodes.awaited)
    words = write.words
    conditions: tuple[Condition, ...]
    if failure := _launch_failure(nodes.pending):
        conditions = (write.put(words.condition, "False", words.failed, failure), *write.no_resources(failure))
    elif nodes.awaited:
        names = ", ".join(node.name for node in nodes.awaited)
        conditions = write.no_resources(f"not ready, and expected back: node {names}")
    elif wait:
        text = f"{len(nodes.missing)} {words.several} did not become ready; the next is asked for in {_rounded(wait)}"
        conditions = (write.put(words.condition, "False", words.failed, text), *write.no_resources(text))
    else:
        lacking = ws.resource.count - len(nodes.selected)
        text = f"creating {lacking} {words.several}"
        if places := [f"{each.name}: {place}" for each in nodes.pending if (place := place_in_queue(each))]:
            text += f"; {'; '.join(places[:3])}"
        conditions = (write.put(words.condition, "Unknown", words.pending, text),)
        if find_condition(ws.status.conditions, "ResourceReady") is not None:
            text = f"{len(nodes.selected)} of {ws.resource.count} nodes are ready"
            conditions += write.no_resources(text)
    return Plan(
        write.status(*conditions, nodes=in_use),
        claims=() if wait else tuple(claim(ws, name, disk, settings) for name in nodes.missing),
        surplus=nodes.surplus,
        look_again=min((each for each in (nodes.patience, wait or None) if each is not None), default=None),
    )


def _rounded(seconds: float) -> str:
    """A wait in words that stay the same while it lasts: it is part of a status."""
    steps = [60 * 2**power for power in range(7)]
    return f"{min((step for step in steps if step >= seconds), default=3600) // 60} min at most"


def _launch_failure(claims: Sequence[NodeRequest]) -> str:
    """Why one of *claims* cannot be launched, or nothing."""
    found = next((why for each in claims if (why := why_not_launched(each)) is not None), None)
    return f"{found.source}: {found.code}: {found.message}" if found is not None else ""


def _serving(workload: Deployment | StatefulSet | None) -> tuple[bool, str]:
    """Whether every replica of the current template serves, and what to say if not."""
    if workload is None:
        return False, "the workload is being created"
    what = workload.kind.lower()
    spec, status = workload.spec, workload.status
    if status.observed_generation < workload.metadata.generation:
        return False, f"the {what} is being updated"
    if isinstance(workload, Deployment):
        stalled = find_condition(workload.status.conditions, "Progressing")
        if stalled is not None and stalled.status == "False":
            return False, f"the {what} does not progress: {stalled.message}"
    # Of a StatefulSet that has never been updated, no replica counts as updated.
    current = isinstance(workload, StatefulSet) and workload.status.update_revision == workload.status.current_revision
    if status.ready_replicas < spec.replicas or (status.updated_replicas < spec.replicas and not current):
        return False, f"{status.ready_replicas} of {spec.replicas} replicas are ready"
    return True, ""
