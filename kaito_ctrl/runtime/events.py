"""Events about objects, told by controllers and written behind their backs.

Telling one (``ctx.events.normal(pod, "Scheduled", "...")``) is a plain call that never waits and never fails: it puts
the event into a bounded queue, from which :class:`EventRecorder` writes ``events.k8s.io/v1`` Events. An event is a
courtesy: one that cannot be written is counted and forgotten.

The same event again (about the same object, with the same type, reason, action and note) makes the first one a
series. Its count goes out at once when it begins, then every half hour while it goes on, and when it ends, after six
minutes of silence: client-go's rules, so that a hot loop costs the API server nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Protocol

from kaito_api.events import Event, EventSeries, EventType, ObjectReference
from kaito_api.meta import ObjectMeta, Resource
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Invalid,
    KubeError,
    NotFound,
    ServerError,
    TooManyRequests,
    TransportError,
    Unauthorized,
)
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.tokenbucket import TokenBucket

__all__ = ["DISCARD", "EventLimits", "EventMetrics", "EventRecorder", "EventSink"]

_NOTE_BYTES = 1024
_INSTANCE = 128
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


Tell = Callable[[EventType, "Resource | ObjectReference", str, str, str, "Resource | ObjectReference | None"], None]


@dataclass(frozen=True, slots=True)
class EventSink:
    """What a reconciler tells events to. Neither call waits, and neither raises."""

    tell: Tell = field(repr=False)

    def normal(
        self,
        regarding: Resource | ObjectReference,
        reason: str,
        note: str,
        *,
        action: str = "Reconcile",
        related: Resource | ObjectReference | None = None,
    ) -> None:
        """Something went as it should. *reason* is a word for machines (``Scheduled``), *action* what was done or
        tried, *note* a sentence for people (cut to 1,024 bytes); *related* a second object that took part in it."""
        self.tell("Normal", regarding, reason, note, action, related)

    def warning(
        self,
        regarding: Resource | ObjectReference,
        reason: str,
        note: str,
        *,
        action: str = "Reconcile",
        related: Resource | ObjectReference | None = None,
    ) -> None:
        """Something did not; otherwise as :meth:`normal`."""
        self.tell("Warning", regarding, reason, note, action, related)


DISCARD = EventSink(lambda *_: None)
"""For a worker that runs without a manager."""


class EventMetrics(Protocol):
    """Counts events; see :mod:`kaito_ctrl.runtime.metrics`."""

    def event_written(self) -> None: ...
    def event_dropped(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class EventLimits:
    """All times in seconds, all client-go's defaults where it has them."""

    queue: int = 1000
    """Events waiting to be written; when there are more, the oldest are dropped."""
    silence: float = 360.0
    """A series ends when nothing has been added to it for so long."""
    refresh: float = 1800.0
    """While a series goes on, its count is written no more often than this."""
    burst: int = 25
    """Events about one object at once; after that, one in each ``refill``."""
    refill: float = 300.0
    rate: float = 20.0
    """Events written in a second, of whatever object; ``rate_burst`` of them at once."""
    rate_burst: int = 100
    tries: int = 12
    """Attempts to write one event while the server cannot answer, ``retry_base`` apart and doubling."""
    retry_base: float = 1.0
    retry_cap: float = 30.0
    flush: float = 2.0
    """How long a stop may take to write what waits."""
    series: int = 4096
    """Series, and objects with a rate of their own, that are remembered at once."""


class _Key(NamedTuple):
    """What makes two events the same."""

    controller: str
    regarding: tuple[str, str, str, str]
    related: tuple[str, str, str, str] | None
    type: EventType
    reason: str
    action: str
    note: str


@dataclass(slots=True, eq=False)
class _Record:
    """One event, and its series."""

    key: _Key
    event: Event
    seen: datetime
    touched: float
    count: int = 1
    written: int = 0
    """The count that the server knows of; 0: it does not know the event."""
    written_at: float = 0.0
    queued: bool = False
    attempts: int = 0


@dataclass(slots=True, repr=False)
class EventRecorder:
    """Writes what its sinks are told: a runnable, to be ended after those who tell it things.

    *client* writes; when it is fenced and its lease is lost, what waits is dropped. *rng* gives the events their
    names, *instance* (a host name) tells the replicas of one controller apart.
    """

    client: Client
    clock: Clock
    rng: random.Random
    instance: str
    metrics: EventMetrics | None = None
    limits: EventLimits = EventLimits()
    _records: dict[_Key, _Record] = field(default_factory=dict, init=False)
    _queue: deque[_Record] = field(default_factory=deque, init=False)
    _due: list[tuple[float, int, _Record]] = field(default_factory=list, init=False)
    _serial: int = field(default=0, init=False)
    _buckets: dict[tuple[str, str, str, str], TokenBucket] = field(default_factory=dict, init=False)
    _pace: TokenBucket | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _ended: bool = field(default=False, init=False)

    def named(self, controller: str) -> EventSink:
        """A sink whose events are reported by *controller* (a qualified name, as labels have them)."""
        return EventSink(partial(self._told, controller))

    async def run(self, lifetime: Lifetime) -> None:
        """Until asked to stop; then what waits is written, for as long as ``limits.flush`` allows."""
        lifetime.started()
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._work(), name="events")
            await lifetime.wait_stopping()
            for record in tuple(self._records.values()):
                if record.count > record.written:
                    self._enqueue(record)
            self._stopping.set()
            self._wake.set()
            _, late = await asyncio.wait((writer,), timeout=self.limits.flush)
            if late:
                writer.cancel()
                for _ in self._queue:
                    self._dropped("shutdown")
            self._ended = True

    # -- telling ---------------------------------------------------------------------------------------------------

    def _told(self, controller: str, *told: Any) -> None:
        try:
            self._tell(controller, *told)
        except Exception:  # noqa: BLE001 - whatever somebody calls an event must not fail what it tells of
            logger().exception("event not recorded", told=repr(told))
            self._dropped("failed")

    def _tell(
        self,
        controller: str,
        type: EventType,  # noqa: A002 - the field's own name
        regarding: Resource | ObjectReference,
        reason: str,
        note: str,
        action: str,
        related: Resource | ObjectReference | None,
    ) -> None:
        if self._ended:
            self._dropped("shutdown")
            return
        about, beside = _reference(regarding), _reference(related) if related is not None else None
        identity = _identity(about)
        note = _cut(note)
        key = _Key(controller, identity, _identity(beside) if beside is not None else None, type, reason, action, note)
        moment, now = self.clock.now(), self.clock.monotonic()
        record = self._records.get(key)
        if record is not None and now - record.touched < self.limits.silence:
            record.count += 1
            record.seen, record.touched = moment, now
            # The beginning of a series is worth a write, and a token; what follows waits for its turn.
            if record.count == 2 and record.written == 1 and self._allowed(identity, now):
                self._enqueue(record)
            return
        if record is not None:
            self._close(record)
        if not self._allowed(identity, now):
            self._dropped("rate_limited")
            return
        event = Event(
            metadata=ObjectMeta(name=self._name(about.name), namespace=about.namespace or "default"),
            event_time=moment,
            regarding=about,
            reason=reason[:128],
            action=action[:128],
            note=note,
            type=type,
            reporting_controller=controller,
            reporting_instance=f"{controller}-{self.instance}"[:_INSTANCE],
            **({"related": beside} if beside is not None else {}),
        )
        record = self._records[key] = _Record(key, event, moment, now)
        self._watch(record)
        if len(self._records) > self.limits.series:
            self._close(next(iter(self._records.values())))
        self._enqueue(record)

    def _name(self, about: str) -> str:
        suffix = f"{self.rng.getrandbits(64):016x}"
        # Not every name may be part of an event's: "system:node" is a role, and no DNS subdomain.
        return f"{about[:200].rstrip('-.')}.{suffix}" if _SUBDOMAIN.fullmatch(about) else suffix

    def _allowed(self, identity: tuple[str, str, str, str], now: float) -> bool:
        bucket = self._buckets.get(identity)
        if bucket is None:
            if len(self._buckets) >= self.limits.series:
                self._buckets = {each: kept for each, kept in self._buckets.items() if not kept.full(now)}
            if len(self._buckets) >= self.limits.series:
                del self._buckets[next(iter(self._buckets))]
            bucket = self._buckets[identity] = TokenBucket(self.limits.burst, self.limits.refill, now)
        return bucket.take(now)

    def _enqueue(self, record: _Record) -> None:
        if record.queued:
            return
        record.queued = True
        self._queue.append(record)
        if len(self._queue) > self.limits.queue:
            oldest = self._queue.popleft()
            oldest.queued = False
            self._forget(oldest)
            self._dropped("queue_full")
        self._wake.set()

    def _forget(self, record: _Record) -> None:
        """If it was never written, the same event has to be a new one next time."""
        if record.written == 0 and self._records.get(record.key) is record:
            del self._records[record.key]

    def _dropped(self, reason: str) -> None:
        if self.metrics is not None:
            self.metrics.event_dropped(reason)

    # -- series ----------------------------------------------------------------------------------------------------

    def _watch(self, record: _Record) -> None:
        self._serial += 1
        due = record.touched + self.limits.silence
        if record.written and record.written_at + self.limits.refresh > self.clock.monotonic():
            due = min(due, record.written_at + self.limits.refresh)
        heapq.heappush(self._due, (due, self._serial, record))
        if len(self._due) > 2 * self.limits.series:
            self._due = [each for each in self._due if self._records.get(each[2].key) is each[2]]
            heapq.heapify(self._due)

    def _close(self, record: _Record) -> None:
        del self._records[record.key]
        if record.count > record.written:
            self._enqueue(record)

    def _look_after_series(self, now: float) -> float | None:
        """End those that have fallen silent, refresh those that go on; seconds until there is one to look at."""
        while self._due:
            due, _, record = self._due[0]
            if due > now:
                return due - now
            heapq.heappop(self._due)
            if self._records.get(record.key) is not record:
                continue
            if now >= record.touched + self.limits.silence:
                self._close(record)
                continue
            if record.count > record.written and now >= record.written_at + self.limits.refresh:
                self._enqueue(record)
            self._watch(record)
        return None

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            wait = self._look_after_series(self.clock.monotonic())
            if self._queue:
                await self._pause(self._until_paced())
                record = self._queue.popleft()
                record.queued = False
                await self._write(record)
            elif self._stopping.is_set():
                return
            else:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()

    def _until_paced(self) -> float:
        now = self.clock.monotonic()
        if self._pace is None:
            self._pace = TokenBucket(self.limits.rate_burst, 1.0 / self.limits.rate, now)
        wait = self._pace.wait(now)
        self._pace.take(now + wait)
        return wait

    async def _pause(self, seconds: float) -> None:
        """A stop cuts it short: there is little time then, and little to be saved."""
        if seconds > 0 and not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    async def _write(self, record: _Record) -> None:
        count, seen = record.count, record.seen
        try:
            await self._send(record, count, seen)
        except (TransportError, ServerError, TooManyRequests, Unauthorized, Conflict) as error:
            await self._retry(record, error)
            return
        except asyncio.CancelledError:
            self._dropped("shutdown")
            raise
        except Exception as error:  # noqa: BLE001 - nothing about an event may end the manager that this runs in
            # Refused for good: a namespace that is going away, no right to write events, a lease that is lost.
            say = logger().info
            say("event not written", reason=record.event.reason, about=record.event.regarding.name, error=str(error))
            self._drop(record, "refused" if isinstance(error, KubeError) else "failed")
            return
        now = self.clock.monotonic()
        self._failures = 0
        record.written, record.written_at, record.attempts = count, now, 0
        if self.metrics is not None:
            self.metrics.event_written()
        if count == 1 and record.count > 1 and self._allowed(_identity(record.event.regarding), now):
            self._enqueue(record)  # the series began while its first event was under way

    async def _send(self, record: _Record, count: int, seen: datetime) -> None:
        event = record.event
        series = EventSeries(count=count, last_observed_time=seen) if count > 1 else None
        if record.written:
            try:
                await self._count(event, series)
            except NotFound:
                # Events do not live long: an hour, by default. The series goes on under a new one.
                name = self._name(event.regarding.name)
                event = record.event = event.evolve(metadata=event.metadata.evolve(name=name))
            else:
                return
        try:
            await self._create(event, series)
        except Invalid:
            if event.metadata.namespace != "default" or event.regarding.namespace:
                raise
            # Old servers (1.20 for one) want the events of what has no namespace elsewhere than today's.
            record.event = event.evolve(metadata=event.metadata.evolve(namespace="kube-system"))
            await self._create(record.event, series)

    async def _create(self, event: Event, series: EventSeries | None) -> None:
        try:
            await self.client.create(event if series is None else event.evolve(series=series))
        except AlreadyExists:
            # An earlier attempt, the answer to which was lost: the name is nobody else's. It may have counted less.
            await self._count(event, series)

    async def _count(self, event: Event, series: EventSeries | None) -> None:
        if series is not None:
            key = ObjectKey(event.metadata.namespace or "", event.metadata.name)
            await self.client.patch_raw(Event, key, {"series": series.to_wire()})

    async def _retry(self, record: _Record, error: KubeError) -> None:
        if self._stopping.is_set():
            # The flush has an end of its own; until then every attempt is worth it.
            self._enqueue(record)
            await asyncio.sleep(0.25)
            return
        record.attempts += 1
        if record.attempts >= self.limits.tries:
            self._drop(record, "gave_up")
            return
        self._enqueue(record)
        self._failures += 1
        spread = 0.5 + self.rng.random() / 2
        delay = min(self.limits.retry_base * 2.0 ** min(self._failures - 1, 16), self.limits.retry_cap) * spread
        asked = error.retry_after if isinstance(error, ApiError) else None
        # One event's answer holds up all others: a day that a server asks for is not waited for.
        await self._pause(max(delay, min(asked or 0.0, self.limits.retry_cap)))

    def _drop(self, record: _Record, reason: str) -> None:
        record.attempts = 0
        self._forget(record)
        self._dropped(reason)


def _reference(obj: Resource | ObjectReference) -> ObjectReference:
    return obj if isinstance(obj, ObjectReference) else ObjectReference.of(obj)


def _identity(reference: ObjectReference) -> tuple[str, str, str, str]:
    return (reference.kind, reference.namespace, reference.name, reference.uid)


def _cut(note: str) -> str:
    raw = note.encode("utf-8", "replace")
    if len(raw) <= _NOTE_BYTES:
        return note
    return raw[: _NOTE_BYTES - 3].decode("utf-8", "ignore") + "..."
