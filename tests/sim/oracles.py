"""What must hold of the runtime, whatever happens: watched from outside of it, at its transport, in the server, and in
the reconcilers that it calls.

Some invariants are judged at every moment, others once the faults are over; each has a name, by which a broken variant
of the runtime is shown to be caught.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from kaito_api.core import ConfigMap
from kaito_api.meta import Resource
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Stored
from kaito_ctrl.runtime import Manager, ObjectKey
from kaito_ctrl.runtime.codec import decode_header, decode_json
from kaito_ctrl.runtime.errors import CacheSyncTimeout, LeaseLost
from kaito_ctrl.runtime.transport import Request
from kaito_ctrl.testing import Host, Run
from tests.sim.life import Life
from tests.sim.operator import Outside, Seen, Ticket, Tier, Widget, part_name

__all__ = ["INVARIANTS", "Oracles", "Page"]

CACHE = "the cache equals the server"
ONCE = "a key is in one reconcile at a time"
WAKE = "no wake-up is lost"
FENCE = "one valid fence at a time"
FENCED = "no write without a valid fence"
OWN = "reads are never older than own writes"
DRAIN = "a stop is bounded"
LEAK = "nothing is left of a process"
DOUBLE = "children are never doubled"
DELETION = "deletion ends"
QUIET = "no writes once converged"
RETRIES = "retries are bounded"
OUTCOME = "the outcome is the wanted one"
SILENCE = "no error goes unseen"
INVARIANTS = (CACHE, ONCE, WAKE, FENCE, FENCED, OWN, DRAIN, LEAK, DOUBLE, DELETION, QUIET, RETRIES, OUTCOME, SILENCE)

KINDS: tuple[type[Resource], ...] = (Widget, Tier, ConfigMap, Ticket)
BUSY = 1000
"""Requests of one process in one minute: with a handful of objects, more is a loop without a back-off."""
TAKEOVER = 5.0
"""Seconds between the closing of a fence and the moment at which others may lead, for client-go's times."""


class Page:
    """The book of one run of a process."""

    def __init__(self, oracles: Oracles, name: str) -> None:
        self._oracles = oracles
        self.name = name
        self.working: Counter[tuple[str, ObjectKey]] = Counter()
        self.seen: dict[tuple[str, ObjectKey], Seen] = {}
        self.due: dict[tuple[str, ObjectKey], float] = {}
        self.written: dict[tuple[str, ObjectKey], tuple[str, int | None]] = {}
        """What the server has confirmed to this process: uid and version of each write, no version for a deletion."""
        self.abandoned = 0
        """Requests for tickets that nobody waited for any more when they were carried out."""
        self.manager: Manager | None = None

    def begins(self, controller: str, key: ObjectKey, seen: Seen) -> None:
        now = asyncio.get_running_loop().time()
        place = (controller, key)
        self.working[place] += 1
        if self.working[place] > 1:
            self._oracles.life.violate(ONCE, f"{controller} {key} in {self.name}")
        self.seen[place] = seen
        due = self.due.pop(place, None)
        if due is not None and now > due + 1.0:
            self._oracles.life.violate(WAKE, f"{controller} {key} was due at {due:.1f} s")
        self._oracles.reads(self)

    def ends(self, controller: str, key: ObjectKey, after: float | None) -> None:
        self.working[controller, key] -= 1
        if after is not None and self._oracles.calm:
            self.due[controller, key] = asyncio.get_running_loop().time() + after * 1.1

    def gone(self, controller: str, key: ObjectKey) -> None:
        self.seen.pop((controller, key), None)
        self.due.pop((controller, key), None)


class Oracles:
    """Judges one life. Implements the network's ``Witness``."""

    def __init__(self, life: Life, server: ApiServer, outside: Outside) -> None:
        self.life = life
        self.server = server
        self.outside = outside
        self.hosts: Sequence[Host] = ()
        self.calm = False
        """No faults any more, and everything has converged."""
        self.writes = 0
        """Requests other than reads, and other than about leases."""
        self.pages: dict[str, Page] = {}
        self._minutes: Counter[tuple[str, int]] = Counter()
        self._resources = {
            kind: server.backend.registry.find(kind.group, kind.version, kind.plural) for kind in (*KINDS,)
        }
        self._kinds = {kind.plural: kind for kind in KINDS}
        server.store.listen(self._committed)
        asyncio.get_running_loop().set_exception_handler(self._unseen)

    def page(self, process: str) -> Page:
        return self.pages.setdefault(process, Page(self, process))

    # -- at every moment -----------------------------------------------------------------------------------------

    def sent(self, process: str, request: Request) -> None:
        now = asyncio.get_running_loop().time()
        minute = (process, int(now // 60))
        self._minutes[minute] += 1
        if self._minutes[minute] == BUSY:
            self.life.violate(RETRIES, f"{process} sends more than {BUSY} requests in one minute")
        if not _changes_something(request):
            return
        self.writes += 1
        if self.calm:
            self.life.violate(QUIET, f"{process} {request.method} {request.path}")
        elector = self._elector(process)
        if elector is not None and not elector.leads:
            self.life.violate(FENCED, f"{process} {request.method} {request.path}")

    def arrived(self, process: str, request: Request, *, sent: float, awaited: bool) -> None:
        if request.method == "POST" and request.path.endswith("/tickets") and not awaited:
            self.page(process).abandoned += 1
        if not _changes_something(request):
            return
        leaders = [name for name in self.pages if (elector := self._elector(name)) is not None and elector.leads]
        if len(leaders) > 1:
            self.life.violate(FENCE, f"{leaders} lead at once")
        if leaders and process not in leaders:
            if asyncio.get_running_loop().time() - sent > TAKEOVER:
                self.life.late_writes += 1
            else:
                self.life.violate(FENCED, f"{process} {request.method} {request.path}, while {leaders} leads")

    def answered(self, process: str, request: Request, status: int, body: bytes) -> None:
        if not _changes_something(request) or status >= 300:
            return
        answer = decode_json(body)
        written = self.page(process).written
        if answer.get("kind") == "Status":
            details = answer["details"]
            for (plural, key), (uid, _) in tuple(written.items()):
                if uid == details.get("uid"):
                    written[plural, key] = (uid, None)
            return
        header = decode_header(body)
        plural = f"{answer['kind'].lower()}s"
        if plural in self._kinds:
            key = ObjectKey(header.namespace or "", header.name)
            written[plural, key] = (header.uid, int(header.resource_version))

    def reads(self, page: Page) -> None:
        """A reconcile begins to read."""
        if page.manager is None:
            return
        cache = page.manager.cluster.cache
        for (plural, key), (uid, version) in tuple(page.written.items()):
            entry = cache.store(self._kinds[plural]).entry(key)
            if version is None:
                if entry is not None and entry.uid == uid:
                    self.life.violate(OWN, f"{page.name} still sees {plural} {key}, which it has deleted")
            elif entry is None:
                there = self._stored(self._kinds[plural], key)
                if there is not None and there.uid == uid:
                    self.life.violate(OWN, f"{page.name} does not see {plural} {key}, which it wrote at {version}")
            elif entry.uid == uid and int(entry.version) < version:
                seen = entry.version
                self.life.violate(OWN, f"{page.name} sees {plural} {key} at {seen}, and wrote it at {version}")
            del page.written[plural, key]

    def ended(self, run: Run, bound: float) -> None:
        """A process has ended."""
        self.page(run.name).manager = None
        if run.ending == "stop" and run.seconds > bound + 0.001:
            self.life.violate(DRAIN, f"{run.name} took {run.seconds:.3f} s, and {bound} s were allowed")
        if run.ending == "itself" and not isinstance(run.error, LeaseLost | CacheSyncTimeout):
            self.life.violate(SILENCE, f"{run.name} has ended by itself: {run.error!r}")
        if run.left:
            self.life.violate(LEAK, f"tasks of {run.name}: {run.left}")
        if run.transport.streams:
            self.life.violate(LEAK, f"{run.transport.streams} open streams of {run.name}")
        if isinstance(run.program, Manager):
            cache = run.program.cluster.cache
            heard = [kind.plural for kind in cache.kinds if cache.store(kind)._listeners]
            if heard:
                self.life.violate(LEAK, f"listeners of {run.name} on {heard}")

    def _committed(self, bucket: Bucket, change: Change) -> None:
        if change.type != "ADDED" or bucket.plural != "tickets":
            return
        maker, owner = _maker(change.now), _owner(change.now)
        others = [
            stored
            for stored in bucket.items.values()
            if stored is not change.now and _owner(stored) == owner and _maker(stored) == maker
        ]
        # A request that was given up, and is carried out after all, can only be made harmless by a name that is known.
        if others and not self.page(maker).abandoned:
            self.life.violate(DOUBLE, f"{maker} has made {len(others) + 1} tickets for one widget")

    def _unseen(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.life.violate(SILENCE, f"{context.get('message')}: {context.get('exception')!r}")

    # -- once the faults are over --------------------------------------------------------------------------------

    def unsettled(self) -> list[tuple[str, str]]:
        """What is not yet as it has to become: the invariant, and what speaks against it."""
        return [*self._outcome(), *self._caches(), *self._wake_ups(), *self._at_work(), *self._overdue()]

    def remains(self) -> list[tuple[str, str]]:
        """What is still there after everything was deleted."""
        left = [f"{kind.plural} {stored.key}" for kind in (Widget, ConfigMap, Ticket) for stored in self._all(kind)]
        left += [f"outside {uid}" for uid in self.outside.held]
        return [(DELETION, ", ".join(left))] if left else []

    def _outcome(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        say = partial(self._say, found)
        widgets = {stored.uid: Widget.model_validate(stored.obj) for stored in self._all(Widget)}
        tiers = {stored.key[1]: Tier.model_validate(stored.obj) for stored in self._all(Tier)}
        parts: dict[str, dict[str, Any]] = defaultdict(dict)
        for stored in self._all(ConfigMap):
            parts[_owner(stored)][stored.key[1]] = stored.obj.get("data")
        tickets = Counter(_owner(stored) for stored in self._all(Ticket))
        for uid, widget in widgets.items():
            if widget.deleting:
                say(DELETION, f"{widget} is still there")
                continue
            price = tiers[widget.spec.tier].spec.price if widget.spec.tier in tiers else 0
            wanted = {part_name(widget, index): {"price": str(price)} for index in range(widget.spec.size)}
            status = {
                "ready": widget.spec.size,
                "price": price,
                "observedGeneration": widget.metadata.generation,
            }
            if parts[uid] != wanted:
                say(OUTCOME, f"the parts of {widget} are {parts[uid]}, not {wanted}")
            if widget.status.model_dump(by_alias=True) != status:
                say(OUTCOME, f"the status of {widget} is {widget.status}, not {status}")
            if tickets[uid] != 1:
                say(OUTCOME, f"{widget} has {tickets[uid]} tickets")
            if self.outside.held.get(uid) != float("inf"):
                say(OUTCOME, f"{widget} has nothing outside")
        for name, tier in tiers.items():
            users = sum(widget.spec.tier == name for widget in widgets.values())
            if tier.status.users != users:
                say(OUTCOME, f"{tier} has {tier.status.users} users, not {users}")
        for owner in sorted({*parts, *tickets, *self.outside.held} - set(widgets)):
            say(DELETION, f"of {owner or 'nobody'}, which is gone, something is left")
        return found

    @staticmethod
    def _say(found: list[tuple[str, str]], invariant: str, what: str) -> None:
        found.append((invariant, what))

    def _caches(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for manager, name in self._managers():
            for kind in manager.cluster.cache.kinds:
                store = manager.cluster.cache.store(kind)
                cached = {entry.key: int(entry.version) for entry in store.entries()}
                served = {ObjectKey(*stored.key): stored.rv for stored in self._all(kind)}
                if cached != served:
                    odd = dict(sorted(set(cached.items()) ^ set(served.items())))
                    found.append((CACHE, f"{kind.plural} in {name}: {odd}"))
            widgets = manager.cluster.cache.store(Widget)
            tiers = {widget.spec.tier for widget in widgets.select()} | {"t0", "t1", "t2"}
            for tier in sorted(tiers):
                indexed = [each.name for each in widgets.select(index=("tier", tier))]
                brute = [each.name for each in widgets.select() if each.spec.tier == tier]
                if indexed != brute:
                    found.append((CACHE, f"the index in {name} has {indexed} for {tier}, not {brute}"))
        return found

    def _at_work(self) -> list[tuple[str, str]]:
        busy = [
            (name, place) for _, name in self._managers() for place, times in self.page(name).working.items() if times
        ]
        return [(OUTCOME, f"a reconcile does not end: {busy}")] if busy else []

    def _overdue(self) -> list[tuple[str, str]]:
        now = asyncio.get_running_loop().time()
        pages = [self.page(name) for _, name in self._managers()]
        late = [(page.name, place) for page in pages for place, due in page.due.items() if now > due + 1.0]
        return [(WAKE, f"asked to be called again, and was not: {late}")] if late else []

    def _wake_ups(self) -> list[tuple[str, str]]:
        """The last reconcile of each key must have seen everything that it depends on as it now is."""
        leading = [(manager, name) for manager, name in self._managers() if manager.leading]
        if len(leading) != 1:
            return [(WAKE, f"{len(leading)} processes lead")]
        page = self.page(leading[0][1])
        wanted: dict[tuple[str, ObjectKey], dict[tuple[str, ObjectKey], str]] = {}
        tiers = {stored.key[1]: stored for stored in self._all(Tier)}
        for stored in tiers.values():
            wanted["tier", ObjectKey(*stored.key)] = {("tiers", ObjectKey(*stored.key)): str(stored.rv)}
        of = {}
        for stored in self._all(Widget):
            key, tier = ObjectKey(*stored.key), stored.obj["spec"].get("tier", "")
            of[stored.uid] = wanted["widget", key] = {("widgets", key): str(stored.rv)}
            if tier in tiers:
                of[stored.uid]["tiers", ObjectKey("", tier)] = str(tiers[tier].rv)
                wanted["tier", ObjectKey("", tier)]["widgets", key] = str(stored.rv)
        for kind in (ConfigMap, Ticket):
            for stored in self._all(kind):
                if (owner := of.get(_owner(stored))) is not None:
                    owner[kind.plural, ObjectKey(*stored.key)] = str(stored.rv)
        found = []
        for place in sorted({*wanted, *page.seen}):
            if wanted.get(place) != page.seen.get(place):
                what = f"{page.name} saw {page.seen.get(place)} of {place[0]} {place[1]}, and it is {wanted.get(place)}"
                found.append((WAKE, what))
        return found

    # -- inside --------------------------------------------------------------------------------------------------

    def _managers(self) -> list[tuple[Manager, str]]:
        return [
            (run.program, run.name)
            for host in self.hosts
            if (run := host.current) is not None and isinstance(run.program, Manager)
        ]

    def _elector(self, process: str) -> Any:
        manager = self.page(process).manager
        return manager.elector if manager is not None else None

    def _all(self, kind: type[Resource]) -> list[Stored]:
        resource = self._resources[kind]
        assert resource is not None
        return list(self.server.backend.bucket(resource).items.values())

    def _stored(self, kind: type[Resource], key: ObjectKey) -> Stored | None:
        resource = self._resources[kind]
        assert resource is not None
        return self.server.backend.bucket(resource).items.get((key.namespace, key.name))

    def leaders(self) -> int:
        """How often the lease was taken."""
        leases = self.server.store.bucket("coordination.k8s.io", "leases").items.values()
        return sum(1 + int(lease.obj["spec"].get("leaseTransitions") or 0) for lease in leases)

    @property
    def busiest(self) -> int:
        return max(self._minutes.values(), default=0)


def _changes_something(request: Request) -> bool:
    return request.method != "GET" and "/leases" not in request.path and "/events" not in request.path


def _owner(stored: Stored) -> str:
    owners = stored.obj["metadata"].get("ownerReferences") or [{}]
    return str(owners[0].get("uid", ""))


def _maker(stored: Stored) -> str:
    return str(stored.obj["spec"].get("maker", ""))
