"""The shell around a claim's plan: one lifecycle for Machine and NodeClaim, against a cloud."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import (
    INSTANCE_TYPE_LABEL,
    LAUNCHING_ANNOTATION,
    OPERATION_ANNOTATION,
    TERMINATION_FINALIZER,
    Machine,
    NodeRequest,
    NodeRequestStatus,
)
from kaito_api.meta import find_condition, is_true
from kaito_ctrl.reconcilers.machine import telling
from kaito_ctrl.reconcilers.machine.deadlines import LAUNCHING, LIMITS, Stage, Stopwatches, stage_of
from kaito_ctrl.reconcilers.machine.fleet import BLIP
from kaito_ctrl.reconcilers.machine.inventory import Inventory
from kaito_ctrl.reconcilers.machine.launch import Launcher, may_have_instance, patience, reference
from kaito_ctrl.reconcilers.machine.managed import concerns, is_managed
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics, Disruption
from kaito_ctrl.reconcilers.machine.plan import PRIVATE, Observed, Plan, plan_claim
from kaito_ctrl.reconcilers.machine.termination import Termination, live_nodes
from kaito_ctrl.reconcilers.machine.trouble import Trouble
from kaito_ctrl.runtime import (
    Context,
    Controller,
    ObjectKey,
    Reader,
    Result,
    RetryAfter,
    generation_changed,
    key_of,
    watches,
)
from kaito_ctrl.runtime.codec import Header
from kaito_ctrl.runtime.entry import Entry
from kaito_ctrl.runtime.errors import Conflict, NotFound
from kaito_ctrl.runtime.store import Change
from kaito_provisioner import CloudError, CloudProvider, Instance, UnavailableOfferings
from kaito_provisioner import NotFound as InstanceNotFound

__all__ = ["MachineController"]

_POLL = 5.0
"""Seconds between two looks at a cloud that is busy for us; nodes and claims wake us by themselves."""
_LAG = 60.0
"""Seconds until an instance that is being made is shown by every cloud, and after which one that is not shown any more
is believed to be gone."""
_SILENCE = 60.0
"""Seconds between two looks at the instance of a node that is not ready."""
_DISRUPTIONS: Mapping[Stage, Disruption] = {
    "launch": "launch_timeout",
    "registration": "registration_timeout",
    "initialization": "initialization_timeout",
    "absence": "unhealthy",
}
_OVERDUE: Mapping[Stage, str] = {
    "launch": "the cloud has not made its instance",
    "registration": "its node has not joined",
    "initialization": "its node has not become usable",
    "absence": "its node has not come back",
}


def _provider_id(claim: NodeRequest) -> tuple[str, ...]:
    return (claim.status.provider_id,) if claim.status.provider_id else ()


def _provider_id_of(node: Node) -> tuple[str, ...]:
    return (node.spec.provider_id,) if node.spec.provider_id else ()


def _asks_for_something_else(change: Change[NodeRequest]) -> bool:
    """The spec has changed, or an annotation that is not one of our notes: some say what the node has to be like."""
    if change.old is None or change.new is None or generation_changed(change):
        return True
    old, new = (
        {key: value for key, value in (each.header.annotations or {}).items() if key not in PRIVATE}
        for each in (change.old, change.new)
    )
    return old != new


@dataclass(frozen=True, slots=True)
class _Look:
    """What there is, of a claim as it is now, and in how many seconds to look again if nothing wakes us."""

    claim: NodeRequest
    seen: Observed
    wait: float | None = None


class MachineController(Controller[NodeRequest]):
    """Runs the lives of all claims of one kind that are ours, against a cloud."""

    name = "machine"
    workers = 32
    # Our own writes must not wake us: that would void the patience that a refusing cloud is owed.
    when = _asks_for_something_else
    finalizer = TERMINATION_FINALIZER

    def __init__(
        self,
        cloud: CloudProvider,
        kind: type[NodeRequest] = Machine,
        *,
        metrics: ClaimMetrics | None = None,
        unavailable: UnavailableOfferings | None = None,
    ) -> None:
        self.name = kind.kind.lower()
        self.kind = kind
        self.indexes = {"providerID": _provider_id}
        self.sources = (watches(Node, self._claims_of, indexes={"providerID": _provider_id_of}),)
        self._cloud = cloud
        self._metrics = metrics if metrics is not None else ClaimMetrics(kind)
        self._launcher = Launcher(cloud, unavailable)
        self._termination = Termination(cloud, self._metrics)
        self._watches = Stopwatches()
        self._missing: dict[ObjectKey, float] = {}
        """When the cloud first said that it does not know an instance any more, on the monotonic clock."""
        self._awaited: dict[ObjectKey, Mapping[str, str]] = {}
        """The labels of nodes that are to come, where the cloud does not know their provider ids."""
        self._trouble = Trouble(cloud, kind)

    def concerns(self, entry: Entry[NodeRequest]) -> bool:
        return concerns(entry, self._cloud.node_classes)

    def _claims_of(self, node: Node, cache: Reader) -> Iterable[ObjectKey]:
        if not node.spec.provider_id:
            return
        for claim in cache.list(self.kind, index=("providerID", node.spec.provider_id)):
            yield key_of(claim)
        for key, labels in self._awaited.items():
            if _has(node, labels):
                yield key

    async def reconcile(self, claim: NodeRequest, ctx: Context) -> Result:
        if await self._overdue(claim, ctx):
            return Result.done()
        registered = is_true(claim.status.conditions, claim.registered)
        look = await (self._look_at_node if registered else self._look_at_cloud)(claim, ctx)
        if look is None:
            return Result.done()
        after = await self._write(look, plan_claim(look.claim, look.seen, ctx.now()), ctx)
        self._tell(claim, after, ctx)
        left = self._left(after, self._stage(after, ctx), ctx)
        waits = [each for each in (look.wait, max(left, _POLL) if left is not None else None) if each is not None]
        return Result.retry_in(min(waits)) if waits else Result.done()

    async def cleanup(self, claim: NodeRequest, ctx: Context) -> Result:
        return await self._termination.run(claim, ctx)

    async def abandon(self, header: Header, ctx: Context) -> Result:
        return await self._termination.abandon(self.kind, ctx)

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        self._watches.forget(key)
        self._missing.pop(key, None)
        self._awaited.pop(key, None)

    # -- before the node has joined ------------------------------------------------------------------------------

    async def _look_at_cloud(self, claim: NodeRequest, ctx: Context) -> _Look | None:
        """The instance, made if there is none; nothing if the claim is given up."""
        instance, absent, shown = None, False, True
        try:
            if may_have_instance(claim):
                instance = await self._cloud.find(reference(claim))
        except InstanceNotFound:
            absent = True
        except CloudError as error:
            return _refused(claim, Observed(error=error, silent=True), ctx)
        if instance is None:
            launched = find_condition(claim.status.conditions, claim.launched)
            granted = launched is not None and launched.status == "True"
            if granted or (launched is not None and launched.reason == LAUNCHING):
                if not await self._is_gone(claim, _LAG, ctx):
                    return _Look(claim, Observed(nodes=self._nodes_of(_known(claim), ctx)), _POLL)
                if granted:
                    return await self._vanished(claim, Observed(nodes=self._nodes_of(_known(claim), ctx)), ctx)
            attempt = await self._launcher.launch(claim, ctx)
            claim, instance, shown = attempt.claim, attempt.instance, False
            if instance is None:
                return _refused(claim, Observed(None, attempt.error, definite=attempt.definite, absent=absent), ctx)
        self._missing.pop(ctx.key, None)
        if instance.state == "Failed":
            instance, failure, wait = await self._launcher.give_up(claim, instance, ctx)
            return _Look(claim, Observed(instance, failure, definite=True), wait)
        nodes = self._nodes_of(instance, ctx)
        if instance.state == "Running" or nodes:
            # The node may be there before the cloud says that it has done.
            self._launcher.granted(instance, ctx)
        if instance.state == "Deleting":
            self._launcher.going(instance, ctx)
        # Until the cloud shows it as well, who deletes the claim has to know that there may be one.
        return _Look(claim, Observed(instance, nodes=nodes, definite=shown), _SILENCE if nodes else _POLL)

    def _nodes_of(self, instance: Instance, ctx: Context) -> tuple[Node, ...]:
        """Its nodes; the next one of them wakes its claim."""
        self._awaited.pop(ctx.key, None)
        if instance.state == "Deleting":
            return ()
        nodes: Iterable[Node] = ()
        if instance.provider_id:
            nodes = ctx.cache.list(Node, index=("providerID", instance.provider_id))
        elif instance.node_labels:
            self._awaited[ctx.key] = instance.node_labels
            nodes = (each for each in ctx.cache.list(Node, labels=instance.node_labels) if each.spec.provider_id)
        return tuple(each for each in nodes if not each.deleting)

    # -- once it has ---------------------------------------------------------------------------------------------

    async def _look_at_node(self, claim: NodeRequest, ctx: Context) -> _Look | None:
        """From registration on the node speaks for the claim; while it is silent, the cloud is asked, and until it
        shows the instance and has done what it was doing when the node joined."""
        self._awaited.pop(ctx.key, None)
        nodes = ctx.cache.list(Node, index=("providerID", claim.status.provider_id))
        seen = Observed(nodes=nodes)
        if any(node.deleting for node in nodes):
            live = await live_nodes(claim.status.provider_id, ctx)
            if any(node.deleting for node in live):
                await self._end(claim, "node_deleted", "its node was deleted", ctx)
                return None
        ready = any(is_true(node.status.conditions, "Ready") for node in nodes)
        if ready:
            self._missing.pop(ctx.key, None)
            if not {LAUNCHING_ANNOTATION, OPERATION_ANNOTATION} & claim.metadata.annotations.keys():
                return _Look(claim, seen)
        try:
            instance = await self._cloud.find(reference(claim))
        except InstanceNotFound:
            if ready:
                return _Look(claim, seen, _SILENCE)
            # A machine that boots anew is silent for a while, and so is its node; that of one that is gone is removed.
            if not await self._is_gone(claim, BLIP if nodes else _LAG, ctx):
                return _Look(claim, seen, _POLL if not nodes else _SILENCE)
            return await self._vanished(claim, seen, ctx)
        except CloudError as error:
            ctx.log.warning("the cloud refused", reason=error.reason, error=error.message)
            return _Look(claim, seen, error.retry_after or _SILENCE)
        self._missing.pop(ctx.key, None)
        if instance.state == "Deleting":
            await self._end(claim, "garbage_collected", "its instance is being deleted", ctx)
            return None
        if instance.state == "Failed":
            # The machine may be there all the same: a pool whose upgrade has failed says so.
            why = instance.error.message if instance.error is not None else "it does not say why"
            ctx.events.warning(claim, "InstanceFailed", f"the cloud reports the instance as failed: {why}")
        done = ready and not instance.operation
        return _Look(claim, Observed(instance, nodes=nodes, definite=True), None if done else _SILENCE)

    async def _is_gone(self, claim: NodeRequest, least: float, ctx: Context) -> bool:
        """Whether the instance, which the cloud does not know just now, is gone: believed once the cloud has said so
        for *least* seconds, and to another question, as what it shows may lag behind what it does."""
        now = ctx.clock.monotonic()
        if now - self._missing.setdefault(ctx.key, now) < least:
            return False
        if claim.status.provider_id:
            try:
                await self._cloud.get(claim.status.provider_id)
            except InstanceNotFound:
                return True
            except CloudError as error:
                ctx.log.warning("the cloud refused", reason=error.reason, error=error.message)
            return False
        return True

    async def _vanished(self, claim: NodeRequest, seen: Observed, ctx: Context) -> _Look | None:
        """End *claim*, whose instance the cloud does not know any more; unless what the cloud shows is not to be
        believed: it may have been asked about the wrong place."""
        try:
            instances = [each for each in await self._cloud.list() if each.claim_kind == self.kind.kind]
        except CloudError as error:
            return _Look(claim, seen, error.retry_after or _SILENCE)
        nodes = await ctx.client.list(Node, misfits=[])
        claims = [each for each in ctx.cache.list(self.kind) if is_managed(each, self._cloud.node_classes)]
        uids = frozenset(each.uid for each in claims)
        refusal = Inventory(self.kind, instances, nodes, claims, uids).contradiction()
        why_not = refusal[1] if refusal is not None else await self._trouble.why(nodes, ctx)
        if why_not is not None:
            # What sees all of them at once has the last word.
            ctx.log.warning("its instance is gone, which is left to the garbage collection", reason=why_not)
            return _Look(claim, seen, _SILENCE)
        await self._end(claim, "garbage_collected", "its instance is gone", ctx)
        return None

    # -- giving up -----------------------------------------------------------------------------------------------

    def _stage(self, claim: NodeRequest, ctx: Context) -> Stage | None:
        if is_true(claim.status.conditions, claim.initialized):
            nodes = ctx.cache.list(Node, index=("providerID", claim.status.provider_id))
            return None if nodes else "absence"
        return stage_of(claim)

    def _left(self, claim: NodeRequest, stage: Stage | None, ctx: Context) -> float | None:
        """Seconds that the stage may still take."""
        if stage is None:
            self._watches.forget(ctx.key)
            return None
        return self._watches.left(ctx.key, claim.uid, stage, ctx.clock.monotonic(), paused=self._trouble.known)

    async def _overdue(self, claim: NodeRequest, ctx: Context) -> bool:
        """Whether *claim* was given up, because the stage that it is in has taken too long."""
        stage = self._stage(claim, ctx)
        if stage is not None:
            await self._trouble.look(ctx)
        left = self._left(claim, stage, ctx)
        if stage is None or left is None or left > 0:
            return False
        # What is decided here is not to be undone: it rests on what is, and not on what was heard.
        nodes = await ctx.client.list(Node, misfits=[])
        why_not = await self._trouble.why(nodes, ctx)
        if why_not is not None:
            ctx.log.warning("a claim is overdue, which has to wait", stage=stage, reason=why_not)
            self._watches.forget(ctx.key)
            return False
        awaited = self._awaited.get(ctx.key)
        joined = [
            each
            for each in nodes
            if each.spec.provider_id
            and (each.spec.provider_id == claim.status.provider_id if awaited is None else _has(each, awaited))
        ]
        if len(joined) == 1:
            now = plan_claim(claim, Observed(nodes=joined), ctx.now()).status.conditions
            if stage != "initialization" or is_true(now, claim.initialized):
                return False  # the cache will hear of it
        why = f"{_OVERDUE[stage]} within {LIMITS[stage] / 60:.0f} minutes"
        await self._end(claim, _DISRUPTIONS[stage], why, ctx)
        return True

    async def _end(self, claim: NodeRequest, reason: Disruption, why: str, ctx: Context) -> None:
        """Delete the claim: it ends in order, and whoever needs another node asks for one. Only as it was read."""
        try:
            await ctx.client.delete(self.kind, ctx.key, uid=claim.uid, resource_version=claim.metadata.resource_version)
        except NotFound:
            return
        except Conflict as error:
            raise RetryAfter(1.0, f"{claim} has changed meanwhile") from error
        ctx.log.warning("claim deleted", reason=why)
        tell = telling.deadline_passed if reason in _DISRUPTIONS.values() else telling.collected
        tell(ctx.events, claim, why)
        self._metrics.disrupted(claim, reason)

    # -- writing -------------------------------------------------------------------------------------------------

    async def _write(self, look: _Look, plan: Plan, ctx: Context) -> NodeRequest:
        """Do what the plan says; the claim as it then is."""
        claim, early = look.claim, plan.status
        if plan.node_patch is not None:
            # By its provider id the node is found again, if we end between two writes: that goes first. That the node
            # has registered is said once it carries everything.
            new = plan.status.provider_id != claim.status.provider_id
            early = plan_claim(claim, replace(look.seen, nodes=()), ctx.now()).status if new else claim.status
            early = early.evolve(provider_id=plan.status.provider_id)
        after = await self._write_status(claim, early, ctx)
        changes: dict[str, Any] = {}
        if plan.labels != claim.metadata.labels:
            changes["labels"] = dict(plan.labels)
        if plan.annotations:
            changes["annotations"] = dict(plan.annotations)
        if changes:
            after = await ctx.client.patch(self.kind, ctx.key, {"metadata": {"uid": claim.uid, **changes}})
        if plan.node_patch is not None:
            await ctx.client.patch(Node, key_of(look.seen.nodes[0]), plan.node_patch)
            after = await self._write_status(after, plan.status, ctx)
        return after

    async def _write_status(self, claim: NodeRequest, status: NodeRequestStatus, ctx: Context) -> NodeRequest:
        have, want = (each.to_wire() for each in (claim.status, status))
        # What is empty, and was not there, is not written.
        changed = [key for key, value in want.items() if have.get(key) != value and (value or have.get(key))]
        patch: dict[str, Any] = {key: want[key] for key in changed}
        for name in ("capacity", "allocatable"):
            if name in patch:
                # A merge patch takes nothing out of a map unless it is told to.
                patch[name] = {**dict.fromkeys(have.get(name) or {}), **patch[name]}
        if not patch:
            return claim
        body = {"metadata": {"uid": claim.uid}, "status": patch}
        return await ctx.client.patch(self.kind, ctx.key, body, subresource="status")

    def _tell(self, before: NodeRequest, after: NodeRequest, ctx: Context) -> None:
        """What this pass has brought about."""
        if after.status.conditions and not before.status.conditions:
            self._metrics.created(after)
        told = (
            (after.launched, "Launched", f"instance {after.status.provider_id}".strip(), self._metrics.launched),
            (after.registered, "Registered", f"node {after.status.node_name}", self._metrics.registered),
            (after.initialized, "Initialized", f"node {after.status.node_name}", self._metrics.initialized),
        )
        for kind, reason, note, count in told:
            if is_true(after.status.conditions, kind) and not is_true(before.status.conditions, kind):
                ctx.events.normal(after, reason, note, action="Launch")
                count(after)


def _has(node: Node, labels: Mapping[str, str]) -> bool:
    return labels.items() <= node.metadata.labels.items()


def _refused(claim: NodeRequest, seen: Observed, ctx: Context) -> _Look:
    assert seen.error is not None
    wait = patience(claim, seen.error, ctx.now())
    say = ctx.log.warning if seen.definite or seen.silent else ctx.log.debug
    say("the cloud refused", reason=seen.error.reason, error=seen.error.message, retry_in=wait)
    return _Look(claim, seen, wait)


def _known(claim: NodeRequest) -> Instance:
    """The instance as the status remembers it."""
    labels = claim.metadata.labels
    return Instance(claim.name, claim.uid, "Running", labels.get(INSTANCE_TYPE_LABEL, ""), claim.status.provider_id)
