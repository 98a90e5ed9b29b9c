"""The shell around the workspace's plan: reads the cache, calls the plan, carries it out, writes the status once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from kaito_api.apps import ControllerRevision, Deployment, StatefulSet
from kaito_api.core import Node, Pod, Service
from kaito_api.karpenter import NodeRequest
from kaito_api.meta import Resource, owned_by
from kaito_api.workspace import Workspace, WorkspaceStatus
from kaito_ctrl.reconcilers.diff import is_applied, is_edited, stamped
from kaito_ctrl.reconcilers.names import WORKSPACE_FINALIZER, WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL
from kaito_ctrl.reconcilers.workspace.admission import named_config_maps
from kaito_ctrl.reconcilers.workspace.lookup import (
    CLAIM_INDEXES,
    NODE_INDEXES,
    POD_INDEXES,
    WORKSPACE_INDEXES,
    claims_of,
    namesake,
    nodes_for,
    pods_of,
    workspaces_of,
)
from kaito_ctrl.reconcilers.workspace.plan import Observed, Plan, plan_workspace, refused
from kaito_ctrl.reconcilers.workspace.services import headless_name
from kaito_ctrl.reconcilers.workspace.settings import Settings
from kaito_ctrl.reconcilers.workspace.telling import WorkspaceMetrics, tell
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.runtime import (
    Context,
    Controller,
    ObjectKey,
    Reader,
    Result,
    Scope,
    by_label,
    key_of,
    owns,
    reads,
    watches,
)
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.conditions import merge, put
from kaito_ctrl.runtime.errors import BadRequest, Conflict, Forbidden, Invalid, NotFound
from kaito_ctrl.runtime.source import Source

__all__ = ["WorkspaceController"]

_PARTS: tuple[type[Resource], ...] = (Deployment, StatefulSet, Service)
"""What a workspace is served by, each under a name that follows from the workspace's."""
_PATIENCE = 300.0
"""Seconds for which a deleted workload may hold up the end of its nodes."""


class WorkspaceController(Controller[Workspace]):
    """Brings nodes, a Service and a workload to every Workspace, and takes them away again."""

    name = "workspace"
    kind = Workspace
    workers = 16
    finalizer = WORKSPACE_FINALIZER
    sources = (
        *(owns(kind) for kind in _PARTS),
        # Whoever stands where ours should makes a difference too, by coming and by going.
        *(watches(kind, namesake) for kind in _PARTS),
        # Nobody else writes them, and what they say is not acted upon: their changes need not wake anybody.
        reads(ControllerRevision),
        watches(Pod, by_label(WORKSPACE_LABEL), scope=Scope(labels=WORKSPACE_LABEL), indexes=POD_INDEXES),
        watches(Node, workspaces_of, indexes=NODE_INDEXES),
    )
    indexes = WORKSPACE_INDEXES

    def __init__(self, rules: Rules, settings: Settings | None = None, metrics: WorkspaceMetrics | None = None) -> None:
        self._rules = rules
        self._settings = settings or Settings()
        self._claims = self._settings.node_api
        self._metrics = metrics

    def bound_sources(self) -> tuple[Source, ...]:
        """Which kind nodes are asked for by is decided when the controller is made."""
        ours = by_label(WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL)
        return (*super().bound_sources(), watches(self._claims, ours, indexes=CLAIM_INDEXES))

    async def reconcile(self, ws: Workspace, ctx: Context) -> Result:
        raw = ctx.cache.store(Workspace).entry(ctx.key)
        assert raw is not None
        wire = decode_json(raw.raw)
        maps = await named_config_maps(wire, ctx.key.namespace, ctx.client)
        claims = claims_of(self._claims, ctx.key, ctx.cache)
        seen = Observed(
            nodes=nodes_for(ws, claims, ctx.cache),
            claims=claims,
            workload=_workload(ws, ctx.cache),
            services=tuple(
                found
                for name in (ws.name, headless_name(ws))
                if (found := ctx.cache.get(Service, name, ws.namespace)) is not None
            ),
            revisions=ctx.cache.list(ControllerRevision, owner=ws),
            pods=pods_of(ctx.key, ctx.cache),
            problems=self._rules.check(wire, config_maps=maps),
        )
        plan = plan_workspace(ws, seen, self._rules.catalogue, self._rules.skus, self._settings, ctx.now())
        await self._execute(ws, plan, ctx)
        return Result.retry_in(plan.look_again) if plan.look_again is not None else Result.done()

    async def cleanup(self, ws: Workspace, ctx: Context) -> Result:
        """Deletes the workload, then the claims, and is done when the last one has gone: when its instance has."""
        deleting = put(
            "WorkspaceDeleting",
            "True",
            "workspaceDeleted",
            "workspace is being deleted",
            generation=ws.metadata.generation,
            now=ctx.now(),
        )
        await self._write_status(ws, ws.status.evolve(conditions=merge(ws.status.conditions, (deleting,))), ctx)
        # The workload first: while it is there, it makes a new pod for each one that leaves a node.
        if await _workload_remains(ws, ctx):
            return Result.retry_in(5.0)
        claims = await ctx.client.list(self._claims, labels=_labels_of(ctx.key))
        await _delete(claims, ctx)
        # The last one's end wakes us; the timer is for a watch that has fallen behind.
        return Result.retry_in(5.0) if claims else Result.done()

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        """Claims whose workspace does not exist are nobody's: they go. Both facts are read live."""
        if not claims_of(self._claims, key, ctx.cache):
            return
        try:
            await ctx.client.get(Workspace, key.name, key.namespace)
        except NotFound as error:
            if not error.of_object:
                raise  # it is the kind that is not there just now: that says nothing of the workspace
            claims = await ctx.client.list(self._claims, labels=_labels_of(key))
            if claims:
                ctx.log.warning("deleting claims of a workspace that is gone", claims=[each.name for each in claims])
            await _delete(claims, ctx)

    async def _execute(self, ws: Workspace, plan: Plan, ctx: Context) -> None:
        if plan.claims:
            # A node costs money, and the cache may still show a workspace that is gone: ask before paying.
            live = await ctx.client.get(Workspace, ws.name, ws.namespace)
            if live.uid != ws.uid or live.deleting:
                return
        if plan.revisions is not None:
            await self._apply(ws, plan.revisions.current, ctx)
            await _forget(plan.revisions.expired, ctx)
            await _note(ws, plan.revisions.annotations, ctx)
        for claim in plan.claims:
            await ctx.client.apply(claim)
            ctx.log.info("asked for a node", claim=str(claim), instance_type=ws.resource.instance_type)
        await self._give_back(plan.surplus, ctx)
        for wanted in plan.apply:
            try:
                await self._apply(ws, wanted, ctx)
            except (BadRequest, Forbidden, Invalid) as error:
                await self._write_status(ws, refused(ws, plan, wanted, error.message, self._settings, ctx.now()), ctx)
                raise
        await self._write_status(ws, plan.status, ctx)

    async def _give_back(self, surplus: Iterable[NodeRequest], ctx: Context) -> None:
        for claim in surplus:
            try:
                live = await ctx.client.get(type(claim), claim.name)
            except NotFound:
                continue
            if live.uid == claim.uid and not live.status.node_name:
                ctx.log.info("giving back a claim that is not needed any more", claim=str(claim))
                await _delete((live,), ctx)

    async def _apply(self, ws: Workspace, wanted: Resource, ctx: Context) -> None:
        wanted = stamped(wanted)
        live = ctx.cache.store(type(wanted)).entry(key_of(wanted))
        if live is not None:
            present = decode_json(live.raw)
            if is_applied(present, wanted, ws):
                return
            if is_edited(present, wanted, ws):
                # To apply leaves alone what others have put into our lists, and some of that forbids what is ours.
                again = {"metadata": {"uid": live.header.uid}, "spec": wanted.to_wire()["spec"]}
                await ctx.client.patch(type(wanted), key_of(wanted), again)
        await ctx.client.apply(wanted, owner=ws)
        ctx.log.info("applied", object=str(wanted))

    async def _write_status(self, ws: Workspace, status: WorkspaceStatus, ctx: Context) -> None:
        wire: dict[str, Any] = {
            "workerNodes": list(status.worker_nodes),
            "conditions": [each.to_wire() for each in status.conditions],
            "stages": [each.to_wire() for each in status.stages],
        }
        entry = ctx.cache.store(Workspace).entry(ctx.key)
        present = (decode_json(entry.raw).get("status") or {}) if entry is not None else {}
        if all(present.get(name, []) == value for name, value in wire.items()):
            return
        try:
            await ctx.client.patch(
                Workspace, ctx.key, {"metadata": {"uid": ws.uid}, "status": wire}, subresource="status"
            )
        except NotFound:
            ctx.log.debug("gone before its status was written")
            return
        tell(ws, status.stages, ctx.events, self._metrics)


def _labels_of(key: ObjectKey) -> dict[str, str]:
    return {WORKSPACE_LABEL: key.name, WORKSPACE_NAMESPACE_LABEL: key.namespace}


def _workload(ws: Workspace, cache: Reader) -> Deployment | StatefulSet | None:
    """What serves *ws*, or stands where that should: of the two kinds, its own one first."""
    deployment = cache.get(Deployment, ws.name, ws.namespace)
    stateful_set = cache.get(StatefulSet, ws.name, ws.namespace)
    foreign = stateful_set is not None and not owned_by(stateful_set, ws)
    if stateful_set is None or (deployment is not None and foreign):
        return deployment
    return stateful_set


async def _forget(revisions: Iterable[ControllerRevision], ctx: Context) -> None:
    for revision in revisions:
        with suppress(NotFound, Conflict):
            live = await ctx.client.get(ControllerRevision, revision.name, revision.namespace)
            if live.uid == revision.uid:
                version = live.metadata.resource_version
                await ctx.client.delete(ControllerRevision, key_of(live), uid=live.uid, resource_version=version)


async def _note(ws: Workspace, annotations: Mapping[str, str], ctx: Context) -> None:
    """Put *annotations* on the workspace itself, if they are not there."""
    if all(ws.metadata.annotations.get(key) == value for key, value in annotations.items()):
        return
    with suppress(NotFound):
        metadata = {"uid": ws.uid, "annotations": dict(annotations)}
        await ctx.client.patch(Workspace, ctx.key, {"metadata": metadata})


async def _workload_remains(ws: Workspace, ctx: Context) -> bool:
    """Delete what serves the workspace, its pods with it; whether there is still something to wait for."""
    remains = [await _remains(kind, ws, ctx) for kind in (Deployment, StatefulSet)]
    return any(remains)


async def _remains(kind: type[Deployment] | type[StatefulSet], ws: Workspace, ctx: Context) -> bool:
    try:
        workload = await ctx.client.get(kind, ws.name, ws.namespace)
    except NotFound:
        return False
    if not any(ref.uid == ws.uid for ref in workload.metadata.owner_references):
        return False
    since = workload.metadata.deletion_timestamp
    if since is None:
        try:
            await ctx.client.delete(kind, ctx.key, uid=workload.uid, propagation="Foreground")
        except NotFound:
            return False
        return True
    # Where nobody collects garbage, or a pod will not end, the nodes are not held for ever.
    return (ctx.now() - since).total_seconds() < _PATIENCE


async def _delete(claims: Iterable[NodeRequest], ctx: Context) -> None:
    for claim in claims:
        if not claim.deleting:
            try:
                await ctx.client.delete(type(claim), key_of(claim), uid=claim.uid)
            except NotFound:
                continue
