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

import msgspec

__all__ = ["LOW", "NORMAL", "Held", "Queue", "QueueMetrics", "RetryPolicy"]

K = TypeVar("K", bound=Hashable)

NORMAL = 0
LOW = -100
"""For what is known without any event: the first content, a relist, a periodic tick."""
_SLACK = 64
"""Places that nobody stands in any more, which a line may have before it is closed up."""


class QueueMetrics(Protocol):
    """What the queue reports; names follow client-go's workqueue metrics."""

    def added(self) -> None:
        """A key has become ready: what is merged into it counts no more, and what is delayed not yet."""
        ...

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


class _Item(msgspec.Struct, Generic[K], gc=False, eq=False):
    """A key that waits. It is of no concern to the garbage collector, which would walk one for each cached object."""

    key: K
    priority: int
    due: float
    added: float
    ready: bool = False
    serial: int = 0
    """Of its place among the delayed ones; its other places there are stale."""


class Queue(Generic[K]):
    """Hands out keys by priority, then in order of arrival. Every other key is one that has waited longer than
    ``aging`` seconds, if there is one: neither can a stream of urgent work starve the rest, nor a long backlog (the
    first listing of a large cluster) hold up what is urgent."""

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
        self._items: dict[K, _Item[K]] = {}
        self._ready: dict[int, deque[_Item[K]]] = {}
        """What is ready, by priority. An item whose priority has risen stays in its old place as well."""
        self._fifo: deque[_Item[K]] = deque()
        """All of it, by the time since which it is ready."""
        self._delayed: list[tuple[float, int, _Item[K]]] = []
        self._working: dict[K, float] = {}
        self._again: dict[K, tuple[int, float]] = {}
        self._failures: dict[K, int] = {}
        self._serial = itertools.count()
        self._depth = 0
        self._lifted = False
        """Whether the last key was handed out for its age."""
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
        for priority in sorted(self._ready, reverse=True):
            for item in self._ready[priority]:
                if self._stands(item, priority):
                    yield Held(item.key, "ready", priority, now - item.added, 0.0, self.failures(item.key))
        for item in sorted(self._items.values(), key=lambda each: each.due):
            if not item.ready:
                due = item.due - now
                yield Held(item.key, "delayed", item.priority, now - item.added, due, self.failures(item.key))

    def failures(self, key: K) -> int:
        """How often *key* failed in a row."""
        return self._failures.get(key, 0)

    def add(self, key: K, *, after: float = 0.0, priority: int = NORMAL) -> None:
        """Hand out *key*, not before *after* seconds from now."""
        now = self._clock()
        due = now + max(after, 0.0)
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
            item = self._items[key] = _Item(key, priority, due, now)
            if due <= now:
                self._make_ready(item, now)
            else:
                self._delay(item)
        elif item.ready:
            if priority <= item.priority:
                return
            item.priority = priority
            self._line_up(item)
        else:
            if due >= item.due and priority <= item.priority:
                return
            item.priority = max(item.priority, priority)
            item.due = min(item.due, due)
            if item.due <= now:
                self._make_ready(item, now)
            else:
                self._delay(item)
        self._changed.set()

    def _delay(self, item: _Item[K]) -> None:
        item.serial = next(self._serial)
        heapq.heappush(self._delayed, (item.due, item.serial, item))
        if len(self._delayed) > 2 * len(self._items) + _SLACK:
            # Keys that are woken again and again, and each time want to be looked at in an hour.
            self._delayed = [each for each in self._delayed if self._is_delayed(each[2], each[1])]
            heapq.heapify(self._delayed)

    def _is_delayed(self, item: _Item[K], serial: int) -> bool:
        """Whether *item* still waits in that place among the delayed ones."""
        return item.serial == serial and not item.ready

    def _make_ready(self, item: _Item[K], now: float) -> None:
        item.ready, item.added = True, now
        if self._metrics is not None:
            self._metrics.added()
        self._depth += 1
        self._fifo.append(item)
        if len(self._fifo) > 2 * self._depth + _SLACK:
            self._fifo = deque(each for each in self._fifo if self._items.get(each.key) is each)
        self._line_up(item)

    def _line_up(self, item: _Item[K]) -> None:
        line = self._ready.setdefault(item.priority, deque())
        line.append(item)
        if len(line) > 2 * self._depth + _SLACK:
            # What was lifted out of a line that nobody gets to has left its places there.
            self._ready[item.priority] = deque(each for each in line if self._stands(each, item.priority))

    def _stands(self, item: _Item[K], priority: int) -> bool:
        """Whether *item* is still to be handed out from the line of *priority*."""
        return item.priority == priority and self._items.get(item.key) is item

    def _promote(self, now: float) -> float | None:
        """Move what is due to the ready ones; return the seconds until the next delayed key, if there is one."""
        while self._delayed:
            due, serial, item = self._delayed[0]
            if not self._is_delayed(item, serial):
                heapq.heappop(self._delayed)
            elif due <= now:
                heapq.heappop(self._delayed)
                self._make_ready(item, now)
            else:
                return due - now
        return None

    def _pop(self, now: float) -> tuple[K, int] | None:
        items, fifo = self._items, self._fifo
        while fifo and items.get(fifo[0].key) is not fifo[0]:
            fifo.popleft()
        if not fifo:
            self._ready.clear()  # whatever is ready is in both
            return None
        self._lifted = not self._lifted and now - fifo[0].added > self._aging
        item = fifo[0] if self._lifted else self._most_urgent()
        del items[item.key]
        self._working[item.key] = now
        self._rest.clear()
        self._depth -= 1
        if self._metrics is not None:
            self._metrics.queued_for(now - item.added)
        return item.key, item.priority

    def _most_urgent(self) -> _Item[K]:
        """The first one of the highest priority; there is one."""
        while True:
            priority = max(self._ready)
            line = self._ready[priority]
            while line:
                item = line.popleft()
                if self._stands(item, priority):
                    return item
            del self._ready[priority]
