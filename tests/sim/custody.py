"""What must hold of a provisioner, whatever happens: every instance has its claim, every claim its instance, and nobody
destroys what somebody uses. Watched from outside: in the API server, in the cloud, and at the processes' transports.

Some invariants are judged at every moment, others once the faults are over; each has a name, by which a broken variant
of the provisioner is shown to be caught.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import TERMINATION_FINALIZER, NodeRequest
from kaito_api.meta import Resource, find_condition, is_true
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Stored
from kaito_ctrl.runtime.errors import CacheSyncTimeout, LeaseLost
from kaito_ctrl.runtime.transport import Request
from kaito_ctrl.testing import Run
from tests.sim.clouds import CloudWorld
from tests.sim.life import Life

__all__ = ["INVARIANTS", "NONSENSE", "Custody"]

READY = "a claim is ready, or says why not"
ONE = "a claim has one instance"
NEVER_TWO = "a claim never has two instances"
LEAKED = "no instance without a claim"
LET_GO = "nothing is let go before its instance is gone"
DESTROYED = "nobody destroys what is used"
FOREIGN = "what is somebody else's is not touched"
LEFT = "no node outlives its claim"
ENDS = "deletion ends"
QUIET = "no writes once converged"
RETRIES = "retries are bounded"
SILENCE = "no error goes unseen"
INVARIANTS = (READY, ONE, NEVER_TWO, LEAKED, LET_GO, DESTROYED, FOREIGN, LEFT, ENDS, QUIET, RETRIES, SILENCE)

NONSENSE = "Standard_Nonsense"
"""A type that no cloud has."""
BUSY = 1000
"""Requests of one process in one minute: with a handful of claims, more is a loop without a back-off."""
TOLERATED = 599.0
"""Seconds for which a node has to have been unhealthy before it may be replaced."""
DEADLINE = 899.0
"""Seconds of the shortest deadline there is."""
LONG = 4000.0
"""Seconds of calm after which every deadline has passed."""


@dataclass
class _Known:
    """A claim as it has been seen from outside."""

    name: str
    since: float
    asked: bool = False
    """Whether somebody else than the provisioner has deleted it."""
    stripped: bool = False
    """Whether somebody else has taken off the finalizer."""
    absent: float | None = None
    """Since when there is no Node of it, once there was one."""


class Custody:
    """Judges one life. Implements the network's ``Witness``."""

    def __init__(self, life: Life, server: ApiServer, cloud: CloudWorld, kind: type[NodeRequest]) -> None:
        self.life = life
        self.server = server
        self.cloud = cloud
        self.kind = kind
        self.quiet = False
        """Everything has converged, and nothing is to be written any more."""
        self.last_write = 0.0
        self.calm_since = 0.0
        self.foreign: set[str] = set()
        """Names of objects that are somebody else's."""
        self.foreign_instances: frozenset[str] = frozenset()
        self.taken: set[str] = set()
        """The uids of claims whose instances somebody else has deleted."""
        self.known: dict[str, _Known] = {}
        """By uid, claims that are gone among them."""
        self.leaked = 0
        """Instances whose claim was gone before they were made."""
        self.repaired = 0
        """Claims that the provisioner has deleted."""
        self._states: Mapping[str, str] = {}
        self._silent: dict[str, float] = {}
        """Since when each node is not Ready."""
        self._waived: frozenset[str] = frozenset()
        """The names of claims that are refused for ever: for them the cloud is asked ever again, with patience."""
        self._minutes: Counter[tuple[str, int]] = Counter()
        server.store.listen(self._committed)
        asyncio.get_running_loop().set_exception_handler(self._unseen)

    # -- at every moment -----------------------------------------------------------------------------------------

    def sent(self, process: str, request: Request) -> None:
        now = self._now
        minute = (process, int(now // 60))
        self._minutes[minute] += 1
        if self._minutes[minute] == BUSY:
            self.life.violate(RETRIES, f"{process} sends more than {BUSY} requests in one minute")
        if request.method != "GET" and "/leases" not in request.path and "/events" not in request.path:
            self.wrote(f"{process} {request.method} {request.path}")

    def arrived(self, process: str, request: Request, *, sent: float, awaited: bool) -> None:
        pass

    def answered(self, process: str, request: Request, status: int, body: bytes) -> None:
        pass

    def wrote(self, what: str) -> None:
        """A process is about to change something, in the cluster or in the cloud."""
        if not self._waived.isdisjoint(what.replace("/", " ").split()):
            return
        self.last_write = self._now
        if self.quiet:
            self.life.violate(QUIET, what)

    def ended(self, run: Run) -> None:
        """A process has ended."""
        if run.ending == "itself" and not isinstance(run.error, LeaseLost | CacheSyncTimeout):
            self.life.violate(SILENCE, f"{run.name} has ended by itself: {run.error!r}")

    def looked(self) -> None:
        """The cloud may have changed."""
        there = self.cloud.existing()
        for uid, times in Counter(each.uid for each in there if each.uid).items():
            if times > 1:
                self.life.violate(NEVER_TWO, f"{self._name(uid)} has {times}")
        for each in there:
            if not each.uid:
                continue
            before = self._states.get(each.uid)
            if before is None and self._claim(each.uid) is None:
                self.leaked += 1
            going = each.state == "Deleting" and before not in (None, "Deleting", "Failed")
            if going and each.uid not in self.taken and self._is_wanted(each.uid):
                self.life.violate(DESTROYED, f"the instance of {self._name(each.uid)}, which nobody has deleted")
        if missing := self.foreign_instances - {each.name for each in there if not each.uid}:
            self.life.violate(FOREIGN, f"instances {sorted(missing)}")
        self._states = {each.uid: each.state for each in there if each.uid}

    @property
    def busiest(self) -> int:
        return max(self._minutes.values(), default=0)

    def leaders(self) -> int:
        """How often the lease was taken."""
        leases = self.server.store.bucket("coordination.k8s.io", "leases").items
        lease = leases.get(("default", "kaito"))
        return 1 + int(lease.obj["spec"].get("leaseTransitions") or 0) if lease is not None else 0

    def _committed(self, bucket: Bucket, change: Change) -> None:
        if change.now.key[1] in self.foreign and bucket.plural in ("nodes", self.kind.plural):
            self.life.violate(FOREIGN, f"{bucket.plural} {change.now.key[1]}: {change.type}")
        elif bucket.plural == self.kind.plural:
            self._claim_changed(change)
        elif bucket.plural == "nodes":
            self._node_changed(change)

    def _claim_changed(self, change: Change) -> None:
        uid = change.now.uid
        if change.type == "ADDED":
            self.known[uid] = _Known(change.now.key[1], self._now)
        known = self.known[uid]
        if not _deleting(change.before) and (_deleting(change.now) or change.type == "DELETED") and not known.asked:
            self.repaired += 1
            if (used := self._used(change.before)) is not None:
                self.life.violate(DESTROYED, f"{known.name} is deleted: {used}")
        there = [each for each in self.cloud.existing() if each.uid == uid] if change.type == "DELETED" else []
        if there and not known.stripped:
            self.life.violate(LET_GO, f"{known.name} is gone, and there is {there[0]}")

    def _node_changed(self, change: Change) -> None:
        name, gone = change.now.key[1], change.type == "DELETED"
        if gone or is_true(Node.model_validate(change.now.obj).status.conditions, "Ready"):
            self._silent.pop(name, None)
        else:
            self._silent.setdefault(name, self._now)
        for uid in _owners(change.now) & self.known.keys():
            self.known[uid].absent = self._now if gone else None
        released = _held(change.before) and (gone or not _held(change.now))
        there = [each for each in self.cloud.existing() if name in each.nodes] if released else []
        if there and there[0].uid in self.known and not self.known[there[0].uid].stripped:
            self.life.violate(LET_GO, f"node {name} is let go, and there is {there[0]}")

    def _used(self, stored: Stored | None) -> str | None:
        """Why the provisioner may not delete that claim of itself; ``None`` if it may."""
        assert stored is not None
        claim, now = self.kind.model_validate(stored.obj), self._now
        known = self.known[claim.uid]
        there = [each for each in self.cloud.existing() if each.uid == claim.uid]
        if all(each.state in ("Deleting", "Failed") for each in there):
            return None
        nodes = [each for each in self._all(Node) if each.obj["spec"].get("providerID") == claim.status.provider_id]
        if not is_true(claim.status.conditions, claim.initialized):
            age = now - known.since
            if age >= DEADLINE or any(map(_deleting, nodes)):
                return None
            return f"it is {age:.0f} s old, and on its way"
        if not nodes:
            away = now - known.absent if known.absent is not None else 0.0
            return None if away >= DEADLINE else f"its node is away for {away:.0f} s"
        silent = [now - self._silent.get(each.key[1], now) for each in nodes]
        if any(_deleting(each) for each in nodes) or max(silent) >= TOLERATED:
            return None
        return f"its node is there, and not Ready for {max(silent):.0f} s"

    def _is_wanted(self, uid: str) -> bool:
        claim = self._claim(uid)
        return claim is not None and not claim.deleting

    def _unseen(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.life.violate(SILENCE, f"{context.get('message')}: {context.get('exception')!r}")

    # -- once the faults are over --------------------------------------------------------------------------------

    def unsettled(self) -> Iterator[tuple[str, str]]:
        """What is not yet as it has to become: the invariant, and what speaks against it."""
        there = Counter(each.uid for each in self.cloud.existing() if each.uid)
        claims = {stored.uid: self.kind.model_validate(stored.obj) for stored in self._all(self.kind)}
        ours = {uid: claim for uid, claim in claims.items() if claim.name not in self.foreign}
        self._waived = frozenset(claim.name for claim in ours.values() if self.refused(claim) is not None)
        for uid in there:
            if uid not in ours:
                yield LEAKED, f"that of {self._name(uid)}"
        nodes = {stored.key[1]: Node.model_validate(stored.obj) for stored in self._all(Node)}
        ready = {
            node.spec.provider_id
            for node in nodes.values()
            if not node.deleting and is_true(node.status.conditions, "Ready")
        }
        lost = [
            claim
            for claim in ours.values()
            if is_true(claim.status.conditions, claim.registered) and claim.status.provider_id not in ready
        ]
        braked = len(lost) > -(-len(ours) // 5)
        for uid, claim in ours.items():
            if claim.deleting:
                yield ENDS, f"{claim} is still there"
            elif (why := self.refused(claim)) is not None:
                launched = find_condition(claim.status.conditions, claim.launched)
                if launched is None or launched.reason != why or not launched.message:
                    yield READY, f"{claim} does not say {why}: {launched}"
                if there[uid]:
                    yield ONE, f"{claim}, which is refused, has one"
            elif claim in lost:
                if not braked or self._now - self.calm_since < LONG:
                    yield READY, f"{claim} has no node that is Ready"
            elif not is_true(claim.status.conditions, "Ready"):
                yield READY, f"{claim} is not: {find_condition(claim.status.conditions, 'Ready')}"
            elif there[uid] != 1:
                yield ONE, f"{claim} has {there[uid]}"
        uids = {uid for uid, claim in ours.items() if not claim.deleting}
        # A cloud that has made two machines for one claim keeps both for as long as the claim is there.
        second = {name for each in self.cloud.existing() if each.uid in uids for name in each.nodes}
        for stored in self._all(Node):
            if stored.key[1] not in self.foreign | second and not _owners(stored) & uids:
                yield LEFT, f"node {stored.key[1]} of {_owners(stored) or 'nobody'}"

    def left(self) -> list[str]:
        """What should not outlive the claims."""
        found = [f"{kind.plural} {stored.key[1]}" for kind in (self.kind, Node) for stored in self._all(kind)]
        mine = [each for each in found if each.partition(" ")[2] not in self.foreign]
        return [*mine, *(f"instance {each.name}" for each in self.cloud.existing() if each.uid)]

    def refused(self, claim: NodeRequest) -> str | None:
        """The reason that *claim* has to give for not being launched, ever."""
        if claim.name in self.foreign_instances:
            return "Conflict"
        types = claim.spec.values("node.kubernetes.io/instance-type")
        return "UnknownInstanceType" if types == (NONSENSE,) else None

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _name(self, uid: str) -> str:
        known = self.known.get(uid)
        return f"{known.name} ({uid})" if known is not None else uid

    def _claim(self, uid: str) -> NodeRequest | None:
        found = next((stored for stored in self._all(self.kind) if stored.uid == uid), None)
        return self.kind.model_validate(found.obj) if found is not None else None

    def _all(self, kind: type[Resource]) -> list[Stored]:
        resource = self.server.backend.registry.find(kind.group, kind.version, kind.plural)
        assert resource is not None
        return list(self.server.backend.bucket(resource).items.values())


def _deleting(stored: Stored | None) -> bool:
    return stored is not None and "deletionTimestamp" in stored.obj["metadata"]


def _held(stored: Stored | None) -> bool:
    return stored is not None and TERMINATION_FINALIZER in (stored.obj["metadata"].get("finalizers") or ())


def _owners(stored: Stored) -> set[str]:
    return {str(each["uid"]) for each in stored.obj["metadata"].get("ownerReferences") or ()}
