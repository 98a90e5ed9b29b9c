"""Node repair: a node that has been unhealthy for longer than its cloud tolerates is replaced.

Which conditions are bad, and for how long they are tolerated, the cloud says (``CloudProvider.repair_policies``). To
replace a node is to delete its claim, with the moment from which nothing is waited for written down first: nobody
answers for the pods of a dead node. Whoever needs a node asks for another. The brake of :mod:`.fleet` is on all of it:
many unhealthy nodes are an outage, and come back by themselves.

How long a condition has lasted is measured here, on a clock that does not jump, from the moment at which this process
saw it first. What had begun before counts from then, too: when a cluster that was stopped is started, its system nodes,
and this process on them, are back before the others, whose silence is as old as the stop. And the clocks by which
conditions are dated are wrong sometimes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from kaito_api.core import Node
from kaito_api.karpenter import TERMINATION_TIMESTAMP_ANNOTATION, Machine, NodeRequest
from kaito_api.meta import Condition, is_true, rfc3339
from kaito_ctrl.reconcilers.machine.fleet import held
from kaito_ctrl.reconcilers.machine.managed import concerns, is_managed
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.reconcilers.machine.telling import repair_blocked, repaired
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, watches
from kaito_ctrl.runtime.entry import Entry
from kaito_ctrl.runtime.errors import NotFound
from kaito_provisioner import CloudProvider, RepairPolicy

__all__ = ["HealthController"]

_BLOCKED = 300.0
"""Seconds between two attempts to replace a node while something holds that up."""
_REMEMBERED = 60.0
"""Seconds for which that is remembered: an outage of a thousand nodes is not to be counted a thousand times."""


@dataclass(frozen=True, slots=True)
class _Episode:
    """A bad condition, for as long as it stays as it is."""

    began: tuple[str, str, datetime | None]
    """What tells it from others of the same node: type, status, and when it says that it began."""
    seen: float
    """Since when this process knows, on the monotonic clock."""


def _claims_of(node: Node, _: Reader) -> Iterable[ObjectKey]:
    refs = node.metadata.owner_references
    return (ObjectKey("", ref.name) for ref in refs if ref.api_version.startswith(f"{Machine.group}/"))


class HealthController(Controller[NodeRequest]):
    """Replaces the unhealthy nodes of initialized claims. Those that never were have deadlines of their own."""

    name = "node.health"
    workers = 1
    sources = (watches(Node, _claims_of),)

    def __init__(
        self, cloud: CloudProvider, kind: type[NodeRequest] = Machine, metrics: ClaimMetrics | None = None
    ) -> None:
        self.kind = kind
        self._cloud = cloud
        self._metrics = metrics or ClaimMetrics(kind)
        self._episodes: dict[ObjectKey, dict[RepairPolicy, _Episode]] = {}
        """Of each node that is known. One that is healthy has none; one that is not here was never seen."""
        self._blocked: tuple[float, str | None] = (0.0, None)
        """Until when, on the monotonic clock, it is remembered that nothing may be replaced, and why."""

    def concerns(self, entry: Entry[NodeRequest]) -> bool:
        return concerns(entry, self._cloud.node_classes)

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        self._episodes.pop(key, None)

    async def reconcile(self, claim: NodeRequest, ctx: Context) -> Result:
        node = ctx.cache.get(Node, claim.status.node_name) if claim.status.node_name else None
        if node is None or not self._stands(claim, node):
            self._episodes.pop(ctx.key, None)
            return Result.done()
        episodes = self._watch(node, ctx)
        if not episodes:
            await self._absolve(claim, ctx)
            return Result.done()
        policy, due = min(
            ((policy, episode.seen + policy.toleration) for policy, episode in episodes.items()),
            key=lambda each: each[1],
        )
        remaining = due - ctx.clock.monotonic()
        if remaining > 0:
            return Result.retry_in(remaining)
        return await self._repair(claim, node, policy, ctx)

    def _stands(self, claim: NodeRequest, node: Node) -> bool:
        """Whether *claim* is done, *node* is its, and neither is on its way out."""
        return (
            is_true(claim.status.conditions, claim.initialized)
            and not claim.deleting
            and not node.deleting
            and node.spec.provider_id == claim.status.provider_id
        )

    def _watch(self, node: Node, ctx: Context) -> dict[RepairPolicy, _Episode]:
        """The bad conditions of *node*, and since when each counts."""
        known = self._episodes.get(ctx.key, {})
        episodes = {}
        for policy, condition in _bad(node, self._cloud.repair_policies()):
            began = (condition.type, condition.status, condition.last_transition_time)
            episode = known.get(policy)
            if episode is None or episode.began != began:
                episode = _Episode(began, ctx.clock.monotonic())
            episodes[policy] = episode
        self._episodes[ctx.key] = episodes
        return episodes

    async def _absolve(self, claim: NodeRequest, ctx: Context) -> None:
        """A node that has recovered between the two writes of its repair is not to be drained by force one day."""
        if TERMINATION_TIMESTAMP_ANNOTATION in claim.metadata.annotations:
            metadata = {"uid": claim.uid, "resourceVersion": claim.metadata.resource_version}
            patch = {"metadata": {**metadata, "annotations": {TERMINATION_TIMESTAMP_ANNOTATION: None}}}
            await ctx.client.patch(self.kind, ctx.key, patch)

    async def _repair(self, claim: NodeRequest, node: Node, policy: RepairPolicy, ctx: Context) -> Result:
        said = f"{policy.condition}={policy.status} for more than {policy.toleration:.0f} s"
        why = self._known_to_wait(ctx)
        if why is None:
            # What the cache knows is enough to wait; to act it has to be read live.
            nodes = await ctx.client.list(Node, misfits=[])
            claims = await ctx.client.list(self.kind, misfits=[])
            found_claim = next((each for each in claims if each.uid == claim.uid), None)
            found_node = next((each for each in nodes if each.uid == node.uid), None)
            if found_claim is None or found_node is None or not self._stands(found_claim, found_node):
                return Result.soon()
            if policy not in (each for each, _ in _bad(found_node, self._cloud.repair_policies())):
                return Result.soon()
            claim, node, why = found_claim, found_node, self._held(nodes, claims)
        if why is not None:
            ctx.log.warning("an unhealthy node is not replaced", node=node.name, condition=said, reason=why)
            repair_blocked(ctx.events, claim, node, why)
            return Result.retry_in(_BLOCKED)
        ctx.log.warning("replacing an unhealthy node", node=node.name, condition=said)
        await self._delete(claim, ctx)
        repaired(ctx.events, claim, node, said)
        self._metrics.unhealthy(claim, policy.condition, getattr(claim.status, "image_id", ""))
        return Result.done()

    def _known_to_wait(self, ctx: Context) -> str | None:
        """Why nothing may be replaced, as far as the cache knows, or knew a moment ago."""
        now = ctx.clock.monotonic()
        if now >= self._blocked[0]:
            why = self._held(ctx.cache.list(Node), ctx.cache.list(self.kind))
            self._blocked = (now + _REMEMBERED if why is not None else now, why)
        return self._blocked[1]

    def _held(self, nodes: Sequence[Node], claims: Iterable[NodeRequest]) -> str | None:
        ours = (each for each in claims if is_managed(each, self._cloud.node_classes))
        return held(nodes, ours, self._cloud.repair_policies())

    async def _delete(self, claim: NodeRequest, ctx: Context) -> None:
        """First the moment from which nothing is waited for, then the deletion: there is no drain in between."""
        with suppress(NotFound):
            now = await ctx.client.server_time()
            if not _expired(claim, now):
                annotations = {TERMINATION_TIMESTAMP_ANNOTATION: rfc3339(now)}
                metadata = {"uid": claim.uid, "resourceVersion": claim.metadata.resource_version}
                await ctx.client.patch(self.kind, ctx.key, {"metadata": {**metadata, "annotations": annotations}})
            ctx.check_leading()
            await ctx.client.delete(self.kind, ctx.key, uid=claim.uid)


def _bad(node: Node, policies: Sequence[RepairPolicy]) -> Iterable[tuple[RepairPolicy, Condition]]:
    for policy in policies:
        for condition in node.status.conditions:
            if (condition.type, condition.status) == (policy.condition, policy.status):
                yield policy, condition


def _expired(claim: NodeRequest, now: datetime) -> bool:
    """Whether nothing is waited for already, by an earlier word than ours."""
    try:
        moment = datetime.fromisoformat(claim.metadata.annotations.get(TERMINATION_TIMESTAMP_ANNOTATION, ""))
    except ValueError:
        return False
    return moment.tzinfo is not None and moment <= now
