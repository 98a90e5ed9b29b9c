"""Garbage collection, both ways: instances that no claim asks for, and claims that no instance stands behind.

Everything is read live at each pass, and nothing has to be remembered from one to the next. The instances are listed
before the claims, so that whatever was made meanwhile has a claim in the list. What looks like garbage is asked about
once more, by itself, right before it is destroyed. Ages are by the API server's clock. Of a fleet no more than a fifth
goes in one pass; and if what the cloud shows contradicts what the cluster shows, nothing does.

What cannot be deleted or let go is told of in events, and keeps nothing else. A pass ends early when the cloud wants to
be left alone, when the lease is lost, or when what there is cannot be read; for all that there is a next one.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeRequest
from kaito_api.meta import ObjectMeta
from kaito_ctrl.reconcilers.machine.drain import silence
from kaito_ctrl.reconcilers.machine.fleet import BLIP, by_provider_id, share
from kaito_ctrl.reconcilers.machine.inventory import Inventory
from kaito_ctrl.reconcilers.machine.launch import reference
from kaito_ctrl.reconcilers.machine.managed import is_managed
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics, GcOutcome
from kaito_ctrl.reconcilers.machine.nodes import close, release
from kaito_ctrl.reconcilers.machine.telling import collected, collection_refused, termination_failed
from kaito_ctrl.runtime import Client, ObjectKey, key_of
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.codec import decode_header
from kaito_ctrl.runtime.errors import DecodeError, KubeError, LeaseLost, NotFound
from kaito_ctrl.runtime.events import DISCARD, EventSink
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.logs import logger
from kaito_provisioner import ClaimRef, CloudError, CloudProvider, Instance, Throttled
from kaito_provisioner import Conflict as InstanceBusy
from kaito_provisioner import NotFound as InstanceNotFound

__all__ = ["GarbageCollection"]

_EVERY = 120.0
"""Seconds from the end of a pass to the next, give or take a tenth: Karpenter's figure."""
_AGE = 300.0
"""Seconds that an instance has to have been there for before it is taken to be nobody's."""
_PASS = 300.0
"""Seconds after which a pass is given up."""
_TEXT = 800
"""Characters of why in an event."""


class GarbageCollection:
    """Runs the passes, on the leader: *client* has to be fenced."""

    name = "garbagecollection"

    def __init__(
        self,
        cloud: CloudProvider,
        client: Client,
        kind: type[NodeRequest] = Machine,
        *,
        clock: Clock,
        rng: random.Random,
        events: EventSink = DISCARD,
        metrics: ClaimMetrics | None = None,
        every: float = _EVERY,
    ) -> None:
        self._cloud = cloud
        self._client = client
        self._kind = kind
        self._clock = clock
        self._rng = rng
        self._events = events
        self._metrics = metrics or ClaimMetrics(kind)
        self._every = every
        self._log = logger().bind(controller=self.name, kind=kind.kind)
        self._seen: dict[str, float] = {}
        """When a leaked instance was seen first, by its claim's uid, on the monotonic clock. It may be lost."""
        self._stubborn: set[str] = set()
        """The claims' uids of leaked instances that could not be deleted: their turn is after the others'."""

    async def run(self, lifetime: Lifetime) -> None:
        """Until asked to stop."""
        lifetime.started()
        while not lifetime.is_stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every * (0.9 + 0.2 * self._rng.random())):
                    await lifetime.wait_stopping()
            if not lifetime.is_stopping:
                await self.collect()

    async def collect(self) -> GcOutcome:
        """One pass. Whatever goes wrong in it is logged and counted."""
        outcome: GcOutcome = "failed"
        try:
            async with asyncio.timeout(_PASS):
                outcome = await self._pass()
        except CloudError as error:
            self._log.warning("the cloud refused; the next pass goes on", reason=error.reason, error=error.message)
        except LeaseLost as error:
            self._log.info("the pass ends", reason=str(error))
        except (KubeError, TimeoutError) as error:
            self._log.warning("the pass failed; the next one goes on", error=f"{type(error).__name__}: {error}")
        except Exception:  # noqa: BLE001 - a backend's defect must not end the process
            self._log.exception("the pass failed; the next one goes on")
        self._metrics.collected(outcome)
        return outcome

    async def _pass(self) -> GcOutcome:
        found = await self._read()
        if await self._asked_after(found.unlisted()):
            found = await self._read()
        if (refusal := found.contradiction()) is not None:
            claim, why = refusal
            self._log.error("refuses to collect", claim=claim.name if claim is not None else None, reason=why)
            if claim is not None:
                collection_refused(self._events, claim, why)
            return "refused"
        failures = _Failures(self._log)
        for node, name, uid in found.left():
            with failures.of(functools.partial(termination_failed, self._events, node), node=node.name):
                await self._let_go(node, ClaimRef(name, uid, node.spec.provider_id))
        budget = share(max(len(found.instances), len(found.claims)))
        for instance in await self._ripe(found.leaked()):
            if budget:
                budget -= await self._collect_instance(instance, found.nodes_of(instance), failures)
        forsaken = found.forsaken()
        if forsaken and (why_not := found.held()) is not None:
            self._log.warning("claims without an instance are kept for now", claims=len(forsaken), reason=why_not)
            return "failed" if failures.any else "held"
        known = by_provider_id(found.nodes)
        for claim in forsaken:
            if budget:
                tell = functools.partial(termination_failed, self._events, claim)
                with failures.of(tell, claim=claim.name):
                    budget -= await self._delete_claim(claim, known.get(claim.status.provider_id, ()))
        return "failed" if failures.any else "done"

    async def _read(self) -> Inventory:
        """The instances first, and the claims last: for whatever has an instance, or a node, had a claim before."""
        instances = [each for each in await self._cloud.list() if each.claim_kind == self._kind.kind]
        # A node that does not fit its model is not one that has joined for us.
        nodes = await self._client.list(Node, misfits=[])
        misfits: list[DecodeError] = []
        claims = await self._client.list(self._kind, misfits=misfits)
        uids = {each.uid for each in claims} | {decode_header(each.raw).uid for each in misfits}
        ours = [each for each in claims if is_managed(each, self._cloud.node_classes)]
        return Inventory(self._kind, instances, nodes, ours, frozenset(uids))

    async def _asked_after(self, claims: Sequence[NodeRequest]) -> bool:
        """Whether the cloud knows an instance of any of *claims* after all. There are instances that a cloud can tell
        to be a claim's only when it is asked for that claim's: those that another provisioner has made."""
        known = False
        for claim in claims:
            with suppress(InstanceNotFound):
                await self._cloud.find(reference(claim))
                known = True
        return known

    async def _ripe(self, leaked: Sequence[Instance]) -> list[Instance]:
        """Those of *leaked* that have been there for long enough; the oldest first, but those that could not be
        deleted last."""
        now = self._clock.monotonic()
        self._seen = {each.claim_uid: self._seen.get(each.claim_uid, now) for each in leaked}
        self._stubborn &= self._seen.keys()
        if not leaked:
            return []
        server = await self._client.server_time()
        ages = [(_age(each, server, now - self._seen[each.claim_uid]), each) for each in leaked]
        ripe = [(age, each) for age, each in ages if age >= _AGE]
        ripe.sort(key=lambda pair: (pair[1].claim_uid in self._stubborn, -pair[0], pair[1].name))
        return [each for _, each in ripe]

    async def _collect_instance(self, listed: Instance, nodes: Sequence[Node], failures: _Failures) -> bool:
        """Delete an instance whose claim is not there; whether it is, or may be, on its way out by that."""

        def tell(why: str) -> None:
            # Of the claim that it was made for: that is where somebody who misses it would look.
            claim = self._kind(metadata=ObjectMeta(name=listed.name, uid=listed.claim_uid))
            told: list[Node | NodeRequest] = [claim, *nodes]
            for about in told:
                termination_failed(self._events, about, f"instance {listed.name} has no claim, and stays: {why}")

        done = False
        with failures.of(tell, instance=listed.name):
            done = await self._delete_instance(listed, nodes)
        if failures.last:
            self._stubborn.add(listed.claim_uid)
        return done or failures.ambiguous

    async def _delete_instance(self, listed: Instance, nodes: Sequence[Node]) -> bool:
        """Delete an instance whose claim is not there; whether that was so, and it was not being deleted already."""
        ref = ClaimRef(listed.name, listed.claim_uid, listed.provider_id, listed.operation)
        if await self._exists(ref):
            self._log.error("a claim is there that the list of claims lacks", claim=ref.name, uid=ref.uid)
            return False
        try:
            instance = await self._cloud.find(ref)
        except InstanceNotFound:
            return False
        if instance.state == "Deleting":
            return False
        self._log.warning("deleting an instance that has no claim", instance=instance.name, claim_uid=ref.uid)
        for node in nodes:
            # One that has not registered names no claim by which it could be let go: it is not held.
            await close(node, self._client)
        self._check_leading()
        try:
            await self._cloud.delete(instance)
        except InstanceNotFound:
            pass
        except InstanceBusy as error:
            # That is no failure; but it may be so for long.
            self._log.warning("it is busy", instance=instance.name, error=error.message)
            return False
        self._metrics.leaked()
        return True

    async def _delete_claim(self, listed: NodeRequest, nodes: Sequence[Node]) -> bool:
        """Delete a claim whose instance is not there; whether that was so."""
        try:
            claim = await self._client.get(self._kind, listed.name)
        except NotFound:
            return False
        if claim.uid != listed.uid or claim.deleting:
            return False
        if nodes:
            server = await self._client.server_time()
            if any((silence(node, server) or 0.0) < BLIP for node in nodes):
                return False
        with suppress(InstanceNotFound):
            await self._cloud.find(reference(claim))
            return False
        why = "its instance is gone"
        self._log.warning("deleting a claim", claim=claim.name, reason=why)
        with suppress(NotFound):
            await self._client.delete(self._kind, key_of(claim), uid=claim.uid)
        collected(self._events, claim, why)
        self._metrics.disrupted(claim, "garbage_collected")
        return True

    async def _let_go(self, node: Node, ref: ClaimRef) -> None:
        """Take our finalizer off what is left of a node whose claim and instance are both gone, and delete it."""
        if await self._exists(ref):
            return
        with suppress(InstanceNotFound):
            await self._cloud.find(ref)
            return
        self._log.warning("letting go of a node that has neither claim nor instance", node=node.name)
        await close(node, self._client)
        await release(node, self._client)

    async def _exists(self, ref: ClaimRef) -> bool:
        """Whether the claim is there, whatever it says, and whether or not it can be read."""
        try:
            raw = await self._client.get_raw(self._kind, ObjectKey("", ref.name))
        except NotFound as error:
            if not error.of_object:
                raise
            return False
        return decode_header(raw).uid == ref.uid

    def _check_leading(self) -> None:
        if self._client.fence is not None:
            self._client.fence.check()


class _Failures:
    """What could not be done in a pass, and keeps nothing else from being done."""

    def __init__(self, log: Any) -> None:
        self.any = False
        self.last = False
        """Whether what was tried last has failed."""
        self.ambiguous = False
        """And whether it may have been done all the same."""
        self._log = log

    @contextmanager
    def of(self, tell: Callable[[str], None], **about: str) -> Iterator[None]:
        """Bear what goes wrong within with what it is *about*, and *tell* why; unless everything else would, too."""
        self.last = self.ambiguous = False
        try:
            yield
        except (Throttled, LeaseLost):
            raise
        except (CloudError, KubeError) as error:
            self.any = self.last = True
            self.ambiguous = isinstance(error, CloudError) and error.ambiguous
            why = f"{error.message}; {error.fix}".removesuffix("; ") if isinstance(error, CloudError) else str(error)
            self._log.warning("it stays for now", error=f"{type(error).__name__}: {why}", **about)
            tell(why[:_TEXT])


def _age(instance: Instance, server: datetime, seen: float) -> float:
    """For how many seconds *instance* has been there: since it was made, if it says so, but since it was *seen* first
    at least. Some clouds' instances know of their creation only what a daemon with a wrong clock told them."""
    return max(seen, (server - instance.created).total_seconds()) if instance.created is not None else seen
