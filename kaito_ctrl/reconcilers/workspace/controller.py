"""The shell around the workspace's plan: reads the cache, calls the plan, carries it out, writes the status once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kaito_api.apps import Deployment
from kaito_api.core import Node, Service
from kaito_api.karpenter import Machine
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace, WorkspaceStatus
from kaito_ctrl.reconcilers.conditions import merge, put
from kaito_ctrl.reconcilers.diff import is_applied
from kaito_ctrl.reconcilers.names import WORKSPACE_FINALIZER, WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL
from kaito_ctrl.reconcilers.workspace.plan import Observed, Plan, plan_workspace
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.reconcilers.workspace.workload import Settings
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, by_label, key_of, owns, watches
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import NotFound

__all__ = ["WorkspaceController"]


def _workspaces_of(node: Node, cache: Reader) -> Iterable[ObjectKey]:
    """Whose selector matches *node*, and who uses it."""
    return (
        key_of(ws)
        for ws in cache.list(Workspace)
        if node.name in ws.status.worker_nodes or ws.resource.label_selector.matches(node.metadata.labels)
    )


class WorkspaceController(Controller[Workspace]):
    """Brings nodes, a Service and a Deployment to every Workspace, and takes them away again."""

    name = "workspace"
    kind = Workspace
    workers = 16
    finalizer = WORKSPACE_FINALIZER
    sources = (
        owns(Deployment),
        owns(Service),
        watches(Machine, by_label(WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL)),
        watches(Node, _workspaces_of),
    )

    def __init__(self, rules: Rules, settings: Settings | None = None) -> None:
        self._rules = rules
        self._settings = settings or Settings()

    async def reconcile(self, ws: Workspace, ctx: Context) -> Result:
        raw = ctx.cache.store(Workspace).entry(ctx.key)
        assert raw is not None
        seen = Observed(
            nodes=ctx.cache.list(Node),
            machines=_machines_of(ws, ctx.cache),
            deployment=ctx.cache.get(Deployment, ws.name, ws.namespace),
            service=ctx.cache.get(Service, ws.name, ws.namespace),
            problems=self._rules.check(decode_json(raw.raw)),
        )
        plan = plan_workspace(ws, seen, self._rules.catalogue, self._rules.skus, self._settings, ctx.now())
        await self._execute(ws, plan, ctx)
        return Result.done()

    async def cleanup(self, ws: Workspace, ctx: Context) -> Result:
        """Deletes the machines, and is done when the last one has gone: that is when its instance has."""
        deleting = put(
            "WorkspaceDeleting",
            "True",
            "workspaceDeleted",
            "workspace is being deleted",
            generation=ws.metadata.generation,
            now=ctx.now(),
        )
        await self._write_status(ws, ws.status.evolve(conditions=merge(ws.status.conditions, (deleting,))), ctx)
        machines = await ctx.client.list(Machine, labels=_labels_of(ctx.key))
        await _delete(machines, ctx)
        # The last machine's end wakes us; the timer is for a watch that has fallen behind.
        return Result.retry_in(5.0) if machines else Result.done()

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        """Machines whose workspace does not exist are nobody's: they go. Both facts are read live."""
        if not ctx.cache.list(Machine, labels=_labels_of(key)):
            return
        try:
            await ctx.client.get(Workspace, key.name, key.namespace)
        except NotFound:
            machines = await ctx.client.list(Machine, labels=_labels_of(key))
            if machines:
                ctx.log.warning("deleting machines of a workspace that is gone", machines=[m.name for m in machines])
            await _delete(machines, ctx)

    async def _execute(self, ws: Workspace, plan: Plan, ctx: Context) -> None:
        if plan.machines:
            # A machine costs money, and the cache may still show a workspace that is gone: ask before paying.
            live = await ctx.client.get(Workspace, ws.name, ws.namespace)
            if live.uid != ws.uid or live.deleting:
                return
        for machine in plan.machines:
            await ctx.client.apply(machine)
            ctx.log.info("asked for a machine", machine=machine.name, instance_type=ws.resource.instance_type)
        for wanted in plan.apply:
            await self._apply(ws, wanted, ctx)
        await self._write_status(ws, plan.status, ctx)

    async def _apply(self, ws: Workspace, wanted: Resource, ctx: Context) -> None:
        live = ctx.cache.store(type(wanted)).entry(key_of(wanted))
        if live is not None and is_applied(decode_json(live.raw), wanted, ws):
            return
        await ctx.client.apply(wanted, owner=ws)
        ctx.log.info("applied", object=str(wanted))

    async def _write_status(self, ws: Workspace, status: WorkspaceStatus, ctx: Context) -> None:
        wire: dict[str, Any] = {
            "workerNodes": list(status.worker_nodes),
            "conditions": [each.to_wire() for each in status.conditions],
        }
        entry = ctx.cache.store(Workspace).entry(ctx.key)
        present = (decode_json(entry.raw).get("status") or {}) if entry is not None else {}
        if {"workerNodes": present.get("workerNodes", []), "conditions": present.get("conditions", [])} == wire:
            return
        try:
            await ctx.client.patch(
                Workspace, ctx.key, {"metadata": {"uid": ws.uid}, "status": wire}, subresource="status"
            )
        except NotFound:
            ctx.log.debug("gone before its status was written")


def _labels_of(key: ObjectKey) -> dict[str, str]:
    return {WORKSPACE_LABEL: key.name, WORKSPACE_NAMESPACE_LABEL: key.namespace}


def _machines_of(ws: Workspace, cache: Reader) -> tuple[Machine, ...]:
    return cache.list(Machine, labels=_labels_of(key_of(ws)))


async def _delete(machines: Iterable[Machine], ctx: Context) -> None:
    for machine in machines:
        if not machine.deleting:
            try:
                await ctx.client.delete(Machine, key_of(machine), uid=machine.uid)
            except NotFound:
                continue
