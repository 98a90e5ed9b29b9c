"""A claim's end, in order: its node is closed and deleted, drained, and its volumes are detached; its instance is
deleted until the cloud says that it is gone; then the node is let go, and with that the claim.

Each pass looks at what there is and takes the steps that are open, so it does not matter where the last one was broken
off. What a pass cannot do it says on the claim (conditions ``Drained``, ``VolumesDetached``, ``InstanceTerminating``)
and in events, and comes back.

Nothing is let go on one look. That there is no instance counts when the cloud has accepted its deletion before;
otherwise it is doubted for as long as :mod:`kaito_ctrl.reconcilers.machine.absence` says.

The deadline after which pods are no longer asked is the claim's annotation ``karpenter.sh/nodeclaim-termination-
timestamp``; for a NodeClaim with a ``terminationGracePeriod`` it is written first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kaito_api.core import Node
from kaito_api.karpenter import (
    OPERATION_ANNOTATION,
    TERMINATION_TIMESTAMP_ANNOTATION,
    NodeClaim,
    NodeRequest,
)
from kaito_api.meta import find_condition, is_true, rfc3339
from kaito_ctrl.reconcilers.machine import telling
from kaito_ctrl.reconcilers.machine.absence import SECOND_LOOK, doubt, moment
from kaito_ctrl.reconcilers.machine.apitime import ApiTime
from kaito_ctrl.reconcilers.machine.drain import Drained, drain, silence
from kaito_ctrl.reconcilers.machine.eviction import Evictions
from kaito_ctrl.reconcilers.machine.goduration import seconds_of
from kaito_ctrl.reconcilers.machine.launch import reference
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.reconcilers.machine.nodes import NodeIdentity, close, release
from kaito_ctrl.reconcilers.machine.record import ClaimRecord
from kaito_ctrl.reconcilers.machine.salvage import salvage
from kaito_ctrl.reconcilers.machine.volumes import attached
from kaito_ctrl.runtime import Context, Result
from kaito_ctrl.runtime.errors import DecodeError, Forbidden
from kaito_provisioner import CloudError, CloudProvider, Instance
from kaito_provisioner import NotFound as InstanceNotFound

__all__ = ["DRAINED", "INSTANCE_TERMINATING", "VOLUMES_DETACHED", "Termination", "live_nodes"]

DRAINED, VOLUMES_DETACHED, INSTANCE_TERMINATING = "Drained", "VolumesDetached", "InstanceTerminating"
_STALE = 30.0
"""Seconds after a deletion was accepted in which the instance may still be shown as it was before."""
_POLL = 5.0
"""Seconds until a cloud that does not answer is asked again."""
_REFUSED = (15.0, 60.0)
"""Seconds until a deletion that was refused is asked for again, at first and at last."""
_ASKED = (1.0, 3600.0)
"""Seconds for which a cloud puts us off, at least and at most."""
_TEXT = 800


async def live_nodes(provider_id: str, ctx: Context) -> tuple[Node, ...]:
    """The nodes of that provider id that the cache knows of, each read live."""
    return await NodeIdentity(provider_id).known(ctx)


@dataclass(slots=True)
class _Memory:
    """What one claim's passes remember. All of it may be lost: it then takes a little longer."""

    uid: str
    not_before: float = 0.0
    """The cloud is not asked again before, by the monotonic clock: our own writes wake us, and must not hurry it."""
    missing_since: float | None = None
    """When the cloud first said that there is no instance."""
    alive_at: float | None = None
    """When a node of it was Ready last although the cloud said so."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """By which the instance's node is known."""
    accepted: datetime | None = None
    """Since when the cloud is deleting the instance, for a claim that does not take our word for it."""


@dataclass(frozen=True, slots=True)
class _Sight:
    """The cloud's answer: the instance, or that there is none, or why it is not known."""

    instance: Instance | None = None
    refused: Result | None = None

    @property
    def going(self) -> bool:
        """Whether there is nothing left on which pods could end."""
        return self.refused is None and (self.instance is None or self.instance.state == "Deleting")


class Termination:
    """Ends claims against a cloud. One for all claims of a controller; *metrics* count what is done."""

    def __init__(self, cloud: CloudProvider, metrics: ClaimMetrics | None = None) -> None:
        self._cloud = cloud
        self._metrics = metrics
        self._evictions = Evictions(metrics)
        self._time = ApiTime()
        self._memories: dict[str, _Memory] = {}

    async def run(self, claim: NodeRequest, ctx: Context) -> Result:
        """One pass over *claim*, which was just read live and is being deleted.

        Done when nothing of it is left, neither in the cloud nor in the cluster: its finalizer may come off. Raises
        the client's errors, ``Conflict`` among them, and nothing of the cloud's.
        """
        memory = self._memories.get(claim.name)
        if memory is None or memory.uid != claim.uid:
            store = ctx.cache.store(type(claim))
            # Claims that went without us, because somebody took off the finalizer.
            for name in [name for name in self._memories if store.entry(ctx.key._replace(name=name)) is None]:
                del self._memories[name]
            memory = self._memories[claim.name] = _Memory(claim.uid)
        now = await self._time.now(ctx)
        result = await _Pass(self._cloud, self._metrics, self._evictions, memory, claim, ctx, now).run()
        if result == Result.done():
            self._memories.pop(claim.name, None)
        return result

    async def abandon(self, kind: type[NodeRequest], ctx: Context) -> Result:
        """Like :meth:`run`, for a claim that does not fit its model, with as much of it as can be read: what it has in
        the cloud costs money all the same. Raises ``DecodeError`` as well, if that is too little."""
        entry = ctx.cache.store(kind).entry(ctx.key)
        if entry is None:
            return Result.soon()
        try:
            claim = salvage(kind, entry.raw)
        except ValueError as error:
            raise DecodeError(f"{kind.kind} {ctx.key} is being deleted and cannot be read: {error}") from error
        return await self.run(claim, ctx)


class _Pass:
    """One pass over one claim."""

    def __init__(
        self,
        cloud: CloudProvider,
        metrics: ClaimMetrics | None,
        evictions: Evictions,
        memory: _Memory,
        claim: NodeRequest,
        ctx: Context,
        now: datetime,
    ) -> None:
        self._cloud = cloud
        self._metrics = metrics
        self._evictions = evictions
        self._memory = memory
        self._record = ClaimRecord(claim, ctx)
        self._ctx = ctx
        self._now = now
        """By the API server's clock: for what it dates, and for what is lost once its time is up."""
        self._deadline: datetime | None = None
        known = find_condition(claim.status.conditions, INSTANCE_TERMINATING)
        said = known.last_transition_time if known is not None and known.status == "True" else None
        self._accepted = said or memory.accepted
        """Since when the cloud is deleting the instance, as far as we know."""

    @property
    def _claim(self) -> NodeRequest:
        return self._record.claim

    async def run(self) -> Result:
        await self._set_deadline()
        result = await self._advance()
        if result != Result.done():
            await self._record.write()
        return result

    async def _advance(self) -> Result:
        # Without a provider id the cloud has to say first which node is meant.
        ask_first = self._accepted is not None or not self._claim.status.provider_id
        sight = await self._look() if ask_first else None
        nodes = await self._close_nodes()
        if sight is None and any(silence(node, self._now) is not None for node in nodes):
            sight = await self._look()
        if self._accepted is None and not (sight is not None and sight.going):
            wait = await self._empty(nodes)
            if wait is not None:
                return Result.retry_in(wait)
        if sight is None:
            sight = await self._look()
        if sight.refused is not None:
            return sight.refused
        if sight.instance is None:
            return await self._missing(nodes)
        return await self._delete(sight.instance)

    # -- the deadline --------------------------------------------------------------------------------------------

    async def _set_deadline(self) -> None:
        claim, deletion = self._claim, self._claim.metadata.deletion_timestamp
        self._deadline = moment(claim.metadata.annotations.get(TERMINATION_TIMESTAMP_ANNOTATION, ""))
        grace = claim.spec.termination_grace_period if isinstance(claim, NodeClaim) else None
        seconds = seconds_of(grace) if grace else None
        if self._deadline is not None or seconds is None or deletion is None:
            return
        try:
            self._deadline = deletion + timedelta(seconds=seconds)
        except OverflowError:
            return
        text = rfc3339(self._deadline)
        await self._record.annotate(TERMINATION_TIMESTAMP_ANNOTATION, text)
        telling.expiring(self._ctx.events, self._claim, text)

    # -- the nodes -----------------------------------------------------------------------------------------------

    @property
    def _identity(self) -> NodeIdentity:
        return NodeIdentity(self._claim.status.provider_id, self._memory.labels)

    async def _close_nodes(self) -> tuple[Node, ...]:
        nodes = await self._identity.known(self._ctx)
        if not nodes and self._accepted is None and self._put_off <= 0:
            # The instance is about to be deleted: nobody may be on it whom the cache has not seen yet.
            nodes = await self._identity.listed(self._ctx)
        for node in nodes:
            await close(node, self._ctx.client, holder=self._claim)
            if self._deadline is not None:
                telling.expiring(self._ctx.events, node, rfc3339(self._deadline))
        return nodes

    async def _empty(self, nodes: Sequence[Node]) -> float | None:
        """Have pods and volumes leave *nodes*: seconds until the next look, or ``None`` once they have."""
        if not nodes:
            return None
        try:
            states = [
                await drain(node, self._now, self._ctx, self._evictions, self._deadline, self._metrics)
                for node in nodes
            ]
        except Forbidden as error:
            # Nobody knows who is on it. That somebody has to see to, and will look for it here.
            self._record.say(DRAINED, "Waiting", "Forbidden", str(error)[:_TEXT])
            return self._pace(10.0)
        waiting = sum(len(state.waiting) for state in states)
        if waiting:
            self._record.say(DRAINED, "Waiting", "Draining", f"{waiting} {_pods(waiting)} waiting to be evicted")
            return 1.0 if any(state.moving for state in states) else self._pace(10.0)
        given_up = [state.node.name for state in states if state.given_up]
        if given_up:
            text = f"node {', '.join(given_up)} is not Ready, and its pods are given up"
            self._record.say(DRAINED, "False", "NodeNotReady", text)
        else:
            if self._metrics is not None and not is_true(self._claim.status.conditions, DRAINED):
                self._metrics.node_drained(self._claim)
            self._record.say(DRAINED, "True")
        return await self._detach(states)

    async def _detach(self, states: Sequence[Drained]) -> float | None:
        if self._deadline is not None and self._now >= self._deadline:
            text = "the termination deadline has passed; volumes are not waited for"
            self._record.say(VOLUMES_DETACHED, "False", "TerminationGracePeriodElapsed", text)
            return None
        awaited: list[str] = []
        for state in states:
            # Nobody on a silent node unmounts anything; its disks come off with the instance.
            if silence(state.node, self._now) is None:
                names = await attached(state.node, state.staying, self._ctx)
                awaited += names
                if names:
                    telling.awaiting_volumes(self._ctx.events, state.node, ", ".join(names[:5]))
        if awaited:
            text = f"waiting for {len(awaited)} of its volumes to be detached: {', '.join(awaited[:5])}"
            self._record.say(VOLUMES_DETACHED, "Waiting", "AwaitingVolumeDetachment", text)
            return self._pace(10.0)
        self._record.say(VOLUMES_DETACHED, "True")
        return None

    # -- the instance --------------------------------------------------------------------------------------------

    @property
    def _put_off(self) -> float:
        """Seconds until the cloud may be asked again."""
        return self._memory.not_before - self._ctx.clock.monotonic()

    def _put_off_by(self, seconds: float) -> Result:
        self._memory.not_before = self._ctx.clock.monotonic() + seconds
        return Result.retry_in(seconds)

    async def _look(self) -> _Sight:
        if self._put_off > 0:
            return _Sight(refused=Result.retry_in(self._put_off))
        try:
            # By the claim's uid, not by what the status says: the answer to the creation may have been lost.
            instance = await self._cloud.find(reference(self._claim))
        except InstanceNotFound:
            return _Sight()
        except CloudError as error:
            if self._accepted is None:
                self._record.say(INSTANCE_TERMINATING, "Waiting", error.reason, _text(error))
            return _Sight(refused=self._refused(error, _POLL))
        self._memory.missing_since = None
        self._memory.labels = instance.node_labels
        await self._adopt(instance)
        return _Sight(instance)

    async def _adopt(self, instance: Instance) -> None:
        """Keep what is known of the instance for when it is gone, and nobody else knows it any more."""
        await self._record.annotate(OPERATION_ANNOTATION, instance.operation)
        provider_id = instance.provider_id
        if not provider_id and not self._claim.status.provider_id and instance.node_labels:
            nodes = await self._identity.known(self._ctx)
            provider_id = next((each.spec.provider_id for each in nodes if each.spec.provider_id), "")
        if provider_id:
            await self._record.set_provider_id(provider_id)

    async def _delete(self, instance: Instance) -> Result:
        if instance.state == "Deleting":
            return self._awaited()
        if self._accepted is not None:
            if 0 <= (self._ctx.now() - self._accepted).total_seconds() < _STALE:
                return self._awaited()
            why = _text(instance.error) if instance.error is not None else f"it is {instance.state} again"
            text = f"the cloud has not deleted instance {instance.name}: {why}"[:_TEXT]
            reason = instance.error.reason if instance.error is not None else "DeletionFailed"
            self._record.say(INSTANCE_TERMINATING, "False", reason, text)
            self._memory.accepted = None
            telling.termination_failed(self._ctx.events, self._claim, text)
            return self._put_off_by(_wait(instance.error, _REFUSED[0]))
        self._ctx.check_leading()
        try:
            going = await self._cloud.delete(instance)
        except InstanceNotFound:
            return self._awaited()
        except CloudError as error:
            self._record.say(INSTANCE_TERMINATING, "False", error.reason, _text(error))
            return self._refused(error, self._patience())
        await self._record.annotate(OPERATION_ANNOTATION, going.operation)
        return self._awaited()

    def _awaited(self) -> Result:
        """The cloud is deleting it."""
        self._record.say(INSTANCE_TERMINATING, "True")
        if self._memory.accepted is None:
            self._memory.accepted = self._accepted or self._ctx.now()
        since = (self._ctx.now() - self._accepted).total_seconds() if self._accepted is not None else 0.0
        return Result.retry_in(min(max(since / 10.0, 1.0), _POLL))

    def _refused(self, error: CloudError, wait: float) -> Result:
        self._ctx.log.warning("the cloud refused", reason=error.reason, error=error.message)
        telling.termination_failed(self._ctx.events, self._claim, _text(error))
        return self._put_off_by(_wait(error, wait))

    async def _missing(self, nodes: Sequence[Node]) -> Result:
        """There is no instance; or so it seems."""
        if self._accepted is None:
            now = self._ctx.clock.monotonic()
            if self._memory.missing_since is None:
                self._memory.missing_since = now
            if ready := [node.name for node in nodes if silence(node, self._now) is None]:
                self._memory.alive_at = now
            alive = now - self._memory.alive_at if self._memory.alive_at is not None else None
            left = doubt(self._claim, now - self._memory.missing_since, alive)
            if left > 0:
                text = "the cloud shows no instance of it; looking again before it is let go"
                if ready:
                    text = (
                        f"the cloud shows no instance of it, and node {', '.join(ready)} is Ready: is it the right "
                        "cluster that the provisioner asks about, and has somebody changed the instance's tags?"
                    )
                self._record.say(INSTANCE_TERMINATING, "Waiting", "InstanceNotFound", text)
                return self._put_off_by(self._pace(60.0) if ready else min(left, SECOND_LOOK))
        return await self._let_go()

    async def _let_go(self) -> Result:
        """The instance is gone: so are its nodes."""
        ctx, now = self._ctx, self._ctx.now()
        for node in await self._identity.listed(ctx):
            await close(node, ctx.client)
            if await release(node, ctx.client) and self._metrics is not None:
                self._metrics.node_terminated(self._claim, node, now)
        if self._metrics is not None:
            if self._accepted is not None:
                self._metrics.instance_terminated(self._claim, (now - self._accepted).total_seconds())
            self._metrics.terminated(self._claim, now)
        return Result.done()

    # -- the claim -----------------------------------------------------------------------------------------------

    def _pace(self, most: float) -> float:
        """Seconds until the next look at something that takes long: the longer it has taken, the more."""
        since = self._claim.metadata.deletion_timestamp
        waited = (self._ctx.now() - since).total_seconds() if since is not None else 0.0
        return min(max(waited / 10.0, 1.0), most)

    def _patience(self) -> float:
        known = find_condition(self._claim.status.conditions, INSTANCE_TERMINATING)
        since = known.last_transition_time if known is not None else None
        waited = (self._ctx.now() - since).total_seconds() if since is not None else 0.0
        return min(max(waited / 4.0, _REFUSED[0]), _REFUSED[1])


def _pods(number: int) -> str:
    return "pod is" if number == 1 else "pods are"


def _wait(error: CloudError | None, otherwise: float) -> float:
    if error is None or error.retry_after is None:
        return otherwise
    return min(max(error.retry_after, _ASKED[0]), _ASKED[1])


def _text(error: CloudError) -> str:
    return (error.message + (f"; {error.fix}" if error.fix else ""))[:_TEXT]
