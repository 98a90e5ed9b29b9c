"""What is to be done for a workspace: a pure function of what was seen.

No I/O, no clock, no randomness: the same input gives the same plan, byte for byte, and a workspace that is where it
should be gives a plan that changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from kaito_api.apps import Deployment
from kaito_api.core import Node, Service
from kaito_api.karpenter import Machine
from kaito_api.meta import Condition, ConditionStatus, Resource, find_condition
from kaito_api.workspace import Workspace, WorkspaceStatus
from kaito_ctrl.reconcilers.conditions import merge, put
from kaito_ctrl.reconcilers.workspace.nodes import NodePlan, plan_nodes
from kaito_ctrl.reconcilers.workspace.validation import Problem
from kaito_ctrl.reconcilers.workspace.workload import Settings, inference_deployment, machine, service
from kaito_presets.catalogue import Catalogue
from kaito_presets.preset import Preset
from kaito_presets.skus import SkuTable

__all__ = ["Observed", "Plan", "plan_workspace"]


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read for one pass."""

    nodes: Sequence[Node] = ()
    machines: Sequence[Machine] = ()
    deployment: Deployment | None = None
    service: Service | None = None
    problems: Sequence[Problem] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: machines to ask for, objects to apply, and one status."""

    status: WorkspaceStatus
    machines: tuple[Machine, ...] = ()
    apply: tuple[Resource, ...] = field(default=())


def plan_workspace(
    ws: Workspace, seen: Observed, catalogue: Catalogue, skus: SkuTable, settings: Settings, now: datetime
) -> Plan:
    """The next step for *ws*."""

    write = _StatusWriter(ws, now)
    problem = _obstacle(ws, seen, catalogue)
    if problem:
        return Plan(
            write.status(
                write.put("ResourceReady", "False", "workspaceResourceStatusFailed", problem),
                write.put("WorkspaceReady", "False", "workspaceFailed", problem),
            )
        )

    assert ws.inference is not None
    preset = catalogue.get(ws.inference.preset.name) if ws.inference.preset is not None else None
    nodes = plan_nodes(ws, seen.nodes, seen.machines)
    if not nodes.complete(ws.resource.count):
        return _waiting_for_nodes(ws, nodes, preset, write)

    resources = (
        write.put(
            "MachineReady", "True", "installNodePluginsSuccess", "machines plugins have been installed successfully"
        ),
        write.put("ResourceReady", "True", "workspaceResourceStatusSuccess", "workspace resource is ready"),
    )
    objects: tuple[Resource, ...] = (
        service(ws),
        inference_deployment(ws, preset, skus.get(ws.resource.instance_type), settings),
    )
    served: tuple[Condition, ...] = ()
    serving, message = _serving(seen.deployment)
    if serving:
        served = (
            write.put(
                "InferenceReady", "True", "WorkspaceInferenceStatusSuccess", "Inference has been deployed successfully"
            ),
            write.put("WorkspaceReady", "True", "workspaceReady", "workspace is ready"),
        )
    elif find_condition(ws.status.conditions, "InferenceReady") is not None:
        # It has served before: say that it does not now. Before that the columns stay empty, as they do upstream.
        served = (
            write.put("InferenceReady", "False", "WorkspaceInferenceStatusFailed", message),
            write.put("WorkspaceReady", "False", "workspaceFailed", message),
        )
    return Plan(write.status(*resources, *served, nodes=nodes.selected), apply=objects)


class _StatusWriter:
    """Builds the status of one pass: every condition carries the generation that it was made for."""

    def __init__(self, ws: Workspace, now: datetime) -> None:
        self._ws = ws
        self._now = now

    def put(self, kind: str, status: ConditionStatus, reason: str, message: str) -> Condition:
        return put(kind, status, reason, message, generation=self._ws.metadata.generation, now=self._now)

    def status(self, *conditions: Condition, nodes: Sequence[Node] | None = None) -> WorkspaceStatus:
        """The status with *conditions* put in; without *nodes* the known ones stay."""
        present = self._ws.status
        names = tuple(sorted(node.name for node in nodes)) if nodes is not None else present.worker_nodes
        return WorkspaceStatus(worker_nodes=names, conditions=merge(present.conditions, conditions))


def _obstacle(ws: Workspace, seen: Observed, catalogue: Catalogue) -> str:
    """Why nothing can be done for *ws*, or nothing."""
    if seen.problems:
        return "; ".join(str(problem) for problem in seen.problems)
    if ws.tuning is not None:
        return "tuning: this release of kaito-ctrl serves models, and does not tune them yet"
    assert ws.inference is not None
    if ws.inference.adapters:
        return "inference.adapters: this release of kaito-ctrl does not load adapters yet"
    if ws.inference.preset is not None:
        preset = catalogue.get(ws.inference.preset.name)
        if preset is not None and preset.distributed:
            return f"inference.preset.name: this release of kaito-ctrl does not distribute {preset.name} yet"
    for taken in (seen.service, seen.deployment):
        if taken is not None and not any(ref.uid == ws.uid for ref in taken.metadata.owner_references):
            return f"{taken} exists and is not this workspace's: delete it, or give the workspace another name"
    return ""


def _waiting_for_nodes(ws: Workspace, nodes: NodePlan, preset: Preset | None, write: _StatusWriter) -> Plan:
    disk = preset.disk if preset is not None else "0"
    wanted = tuple(machine(ws, name, disk) for name in nodes.missing)
    failed = next(
        (
            (each, launched)
            for each in nodes.pending
            if (launched := find_condition(each.status.conditions, "MachineLaunched")) is not None
            and launched.status != "True"
            and launched.message
        ),
        None,
    )
    conditions: list[Condition] = []
    if failed is not None:
        text = f"machine {failed[0].name}: {failed[1].message}"
        conditions.append(write.put("MachineReady", "False", "machineFailedCreation", text))
        conditions.append(write.put("ResourceReady", "False", "workspaceResourceStatusFailed", text))
        conditions.append(write.put("WorkspaceReady", "False", "workspaceFailed", text))
    else:
        lacking = ws.resource.count - len(nodes.selected)
        conditions.append(write.put("MachineReady", "Unknown", "CreateMachinePending", f"creating {lacking} machines"))
        if find_condition(ws.status.conditions, "ResourceReady") is not None:
            text = f"{len(nodes.selected)} of {ws.resource.count} nodes are ready"
            conditions.append(write.put("ResourceReady", "False", "workspaceResourceStatusFailed", text))
            conditions.append(write.put("WorkspaceReady", "False", "workspaceFailed", text))
    return Plan(write.status(*conditions, nodes=nodes.selected), machines=wanted)


def _serving(deployment: Deployment | None) -> tuple[bool, str]:
    """Whether every replica of the current template serves, and what to say if not."""
    if deployment is None:
        return False, "the deployment is being created"
    spec, status = deployment.spec, deployment.status
    if status.observed_generation < deployment.metadata.generation:
        return False, "the deployment is being updated"
    stalled = find_condition(status.conditions, "Progressing")
    if stalled is not None and stalled.status == "False":
        return False, f"the deployment does not progress: {stalled.message}"
    if status.ready_replicas < spec.replicas or status.updated_replicas < spec.replicas:
        return False, f"{status.ready_replicas} of {spec.replicas} replicas are ready"
    return True, ""
