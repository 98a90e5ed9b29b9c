"""The work queue: keys, never objects; each at most once waiting and at most once in work.

A key that is added while it waits is merged (the higher priority and the earlier time win); one that is added while
it is worked on is handed out again afterwards, so that no wake-up is lost. Failures come back after a delay that
doubles. Everything happens on one event loop, so there are no locks: each method leaves the queue consistent before
it returns.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

__all__ = ["LOW", "NORMAL", "Held", "Queue", "QueueMetrics", "RetryPolicy"]

K = TypeVar("K", bound=Hashable)

NORMAL = 0
LOW = -100
"""For what is known without any event: the first content, a relist, a periodic tick."""


class QueueMetrics(Protocol):
    """What the queue reports; names follow client-go's workqueue metrics."""

    def added(self) -> None: ...
    def retried(self) -> None: ...
    def queued_for(self, seconds: float) -> None: ...
    def worked_for(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds after the n-th failure in a row: ``base * 2 ** n`` up to ``cap``, spread by ``jitter`` both ways."""

    base: float = 0.005
    cap: float = 300.0
    jitter: float = 0.1

    def delay(self, failures: int, rng: random.Random) -> float:
        """The delay after that many earlier failures."""
        spread = 1.0 + self.jitter * (2.0 * rng.random() - 1.0)
        return min(self.base * 2.0 ** min(failures, 64), self.cap) * spread


@dataclass(frozen=True, slots=True)
class Held(Generic[K]):
    """What a queue holds of one key, for people who ask; all times in seconds."""

    key: K
    state: Literal["working", "ready", "delayed"]
    priority: int | None
    """``None`` while it is worked on."""
    age: float
    """Since it was handed out, became ready, or was added."""
    due: float
    """Until it is handed out again at the earliest; 0 for what is ready, or worked on and not wanted again."""
    failures: int
    again: bool = False
    """Added while it was worked on."""


@dataclass(slots=True)
class _Item:
    priority: int
    due: float
    serial: int
    ready: bool
    added: float


class Queue(Generic[K]):
    """Hands out keys by priority, then in order of arrival. A key that waits longer than ``aging`` seconds is lifted
    to the front, so that a stream of urgent work cannot starve the rest."""

    def __init__(
        self,
        *,
        rng: random.Random,
        retry: RetryPolicy | None = None,
        aging: float = 30.0,
        metrics: QueueMetrics | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._rng = rng
        self._retry = retry or RetryPolicy()
        self._aging = aging
        self._metrics = metrics
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._items: dict[K, _Item] = {}
        self._ready: list[tuple[int, int, K]] = []
        self._fifo: deque[tuple[K, _Item]] = deque()
        self._delayed: list[tuple[float, int, K]] = []
        self._working: dict[K, float] = {}
        self._again: dict[K, tuple[int, float]] = {}
        self._failures: dict[K, int] = {}
        self._serial = itertools.count()
        self._depth = 0
        self._changed = asyncio.Event()
        self._rest = asyncio.Event()
        self._rest.set()

    def __len__(self) -> int:
        """Keys that are ready now; delayed ones do not count, as in client-go."""
        return self._depth

    @property
    def idle(self) -> bool:
        """Whether nothing is ready and nothing is being worked on."""
        self._promote(self._clock())
        return not self._working and not self._depth

    @property
    def working(self) -> tuple[K, ...]:
        """The keys that are handed out and not yet done."""
        return tuple(self._working)

    def ages(self) -> tuple[float, ...]:
        """How long each key that is worked on has been so, in seconds."""
        if not self._working:
            return ()  # also when no loop runs any more, and so no clock
        now = self._clock()
        return tuple(now - began for began in self._working.values())

    def contents(self) -> Iterator[Held[K]]:
        """Everything it holds: what is worked on, then what is ready as it will be handed out, then what is delayed."""
        now = self._clock()
        self._promote(now)
        for key, began in self._working.items():
            _, due = self._again.get(key, (NORMAL, now))
            yield Held(key, "working", None, now - began, max(due - now, 0.0), self.failures(key), key in self._again)
        items = sorted(self._items.items(), key=lambda each: (-each[1].priority, each[1].serial))
        for key, item in items:
            if item.ready:
                yield Held(key, "ready", item.priority, now - item.added, 0.0, self.failures(key))
        for key, item in sorted(items, key=lambda each: each[1].due):
            if not item.ready:
                yield Held(key, "delayed", item.priority, now - item.added, item.due - now, self.failures(key))

    def failures(self, key: K) -> int:
        """How often *key* failed in a row."""
        return self._failures.get(key, 0)

    def add(self, key: K, *, after: float = 0.0, priority: int = NORMAL) -> None:
        """Hand out *key*, not before *after* seconds from now."""
        now = self._clock()
        due = now + max(after, 0.0)
        if self._metrics is not None and after <= 0:
            self._metrics.added()
        if key in self._working:
            if key in self._again:
                known_priority, known_due = self._again[key]
                priority, due = max(priority, known_priority), min(due, known_due)
            self._again[key] = (priority, due)
            return
        self._put(key, priority, due, now)

    def retry(self, key: K, *, priority: int = NORMAL, least: float = 0.0) -> float:
        """Hand out *key* again after its back-off, but not before *least*; return that delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = max(self._retry.delay(failures, self._rng), least)
        if self._metrics is not None:
            self._metrics.retried()
        self.add(key, after=delay, priority=priority)
        return delay

    def forget(self, key: K) -> None:
        """*key* succeeded: its next failure starts at the first delay again."""
        self._failures.pop(key, None)

    async def get(self) -> tuple[K, int]:
        """The next key and its priority; call :meth:`done` afterwards. Cancelling loses no key."""
        while True:
            now = self._clock()
            wait = self._promote(now)
            taken = self._pop(now)
            if taken is not None:
                return taken
            self._changed.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The work on *key* has ended; what was added meanwhile is due now."""
        now = self._clock()
        began = self._working.pop(key)
        if not self._working:
            self._rest.set()
        if self._metrics is not None:
            self._metrics.worked_for(now - began)
        again = self._again.pop(key, None)
        if again is not None:
            self._put(key, *again, now)
        self._changed.set()

    async def rest(self) -> None:
        """Until nothing is being worked on."""
        await self._rest.wait()

    def _put(self, key: K, priority: int, due: float, now: float) -> None:
        item = self._items.get(key)
        if item is None:
            item = self._items[key] = _Item(priority, due, -1, False, now)
        else:
            if item.ready and priority <= item.priority:
                return
            if not item.ready and due >= item.due and priority <= item.priority:
                return
            item.priority = max(item.priority, priority)
            item.due = min(item.due, due)
        item.serial = next(self._serial)
        # Heap entries of an earlier serial are stale from here on, and are skipped when they surface.
        if item.ready or item.due <= now:
            self._make_ready(key, item, now)
        else:
            heapq.heappush(self._delayed, (item.due, item.serial, key))
        self._changed.set()

    def _make_ready(self, key: K, item: _Item, now: float) -> None:
        if not item.ready:
            item.ready, item.added = True, now
            self._depth += 1
            self._fifo.append((key, item))
        heapq.heappush(self._ready, (-item.priority, item.serial, key))

    def _promote(self, now: float) -> float | None:
        """Move what is due to the ready heap; return the seconds until the next delayed key, if there is one."""
        while self._delayed:
            due, serial, key = self._delayed[0]
            item = self._items.get(key)
            if item is None or item.serial != serial or item.ready:
                heapq.heappop(self._delayed)
            elif due <= now:
                heapq.heappop(self._delayed)
                self._make_ready(key, item, now)
            else:
                return due - now
        return None

    def _pop(self, now: float) -> tuple[K, int] | None:
        items, fifo, ready = self._items, self._fifo, self._ready
        while fifo and items.get(fifo[0][0]) is not fifo[0][1]:
            fifo.popleft()
        if not fifo:
            ready.clear()  # whatever is ready is in both
            return None
        key, item = fifo[0]
        if now - item.added > self._aging:
            fifo.popleft()
        else:
            while True:
                _, serial, key = heapq.heappop(ready)
                found = items.get(key)
                if found is not None and found.serial == serial and found.ready:
                    item = found
                    break
        del items[key]
        self._working[key] = now
        self._rest.clear()
        self._depth -= 1
        if self._metrics is not None:
            self._metrics.queued_for(now - item.added)
        return key, item.priority
