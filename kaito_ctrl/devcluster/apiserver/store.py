"""The storage: objects by kind, one global resourceVersion, and a bounded log of what happened to each kind.

Promises: an object's dict never changes once stored (writers build new ones, sharing what they keep), so readers
share it without copying; its JSON is encoded once and goes out to every list and watch; every commit raises the one
counter by one and is appended to its kind's log before anybody else runs. Everything here is synchronous: between
two awaits a caller sees one consistent state.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

__all__ = ["Bucket", "Change", "EventType", "Key", "Obj", "Store", "Stored", "encode"]

Obj = dict[str, Any]
Key = tuple[str, str]
"""Namespace ("" for cluster scope) and name; sorts the way a list is ordered."""
EventType = Literal["ADDED", "MODIFIED", "DELETED"]

encode = msgspec.json.Encoder().encode


@dataclass(slots=True, eq=False)
class Stored:
    """One version of one object, in its storage version. Never mutated."""

    key: Key
    obj: Obj
    rv: int
    raw: bytes
    views: dict[object, tuple[Obj, bytes]] = field(default_factory=dict)
    """The same object as other resources show it, made when first asked for."""

    @property
    def uid(self) -> str:
        uid: str = self.obj["metadata"]["uid"]
        return uid

    @property
    def labels(self) -> dict[str, str]:
        return self.obj["metadata"].get("labels") or {}


@dataclass(slots=True, eq=False)
class Change:
    """One entry of a log. ``now`` is the last state for DELETED; ``before`` is absent for ADDED."""

    rv: int
    type: EventType
    now: Stored
    before: Stored | None


class Bucket:
    """All objects of one kind, and their recent history."""

    def __init__(self, group: str, plural: str, history: int) -> None:
        self.group = group
        self.plural = plural
        self.items: dict[Key, Stored] = {}
        self._order: list[Key] = []
        self._history = history
        self._log: list[Change] = []
        self._rvs: list[int] = []
        self._floor = 0
        # In order: a set of events is woken in the order of their addresses, which differs from run to run.
        self._wakers: dict[asyncio.Event, None] = {}

    @property
    def floor(self) -> int:
        """The resourceVersion before which events are gone: a watch from an older one has expired."""
        extra = len(self._rvs) - self._history
        return self._rvs[extra - 1] if extra > 0 else self._floor

    def compact(self, rv: int) -> None:
        """Forget the events up to *rv*."""
        cut = bisect_right(self._rvs, rv)
        del self._log[:cut], self._rvs[:cut]
        self._floor = max(self._floor, rv)

    def keys(self, namespace: str = "") -> list[Key]:
        """Keys in order; those of one namespace when given."""
        if not namespace:
            return self._order
        low = bisect_right(self._order, (namespace, ""))
        return self._order[low : bisect_right(self._order, (namespace, "\U0010ffff"))]

    def since(self, rv: int, limit: int | None = None) -> list[Change]:
        """The changes after *rv*, oldest first; the first *limit* of them if given."""
        start = bisect_right(self._rvs, rv)
        return self._log[start : None if limit is None else start + limit]

    def snapshot(self, rv: int) -> dict[Key, Stored]:
        """The objects as they were at *rv*; the caller has checked that *rv* is not below the floor."""
        items = dict(self.items)
        for change in reversed(self.since(rv)):
            if change.before is None:
                items.pop(change.now.key, None)
            else:
                items[change.now.key] = change.before
        return items

    def subscribe(self) -> asyncio.Event:
        """An event that is set at every change until ``unsubscribe``."""
        waker = asyncio.Event()
        self._wakers[waker] = None
        return waker

    def unsubscribe(self, waker: asyncio.Event) -> None:
        self._wakers.pop(waker, None)

    @property
    def watchers(self) -> int:
        return len(self._wakers)

    def wake(self) -> None:
        """Make every watcher look again."""
        for waker in self._wakers:
            waker.set()

    def append(self, change: Change) -> None:
        """Record a change and make it the present."""
        key = change.now.key
        if change.type == "DELETED":
            del self.items[key]
            self._order.remove(key) if len(self._order) < 64 else self._drop(key)
        else:
            if key not in self.items:
                insort(self._order, key)
            self.items[key] = change.now
        self._log.append(change)
        self._rvs.append(change.rv)
        # Trimmed in halves, so that trimming costs nothing per event.
        if len(self._log) > 2 * self._history + 16:
            extra = len(self._log) - self._history
            self._floor = self._rvs[extra - 1]
            del self._log[:extra], self._rvs[:extra]
        self.wake()

    def _drop(self, key: Key) -> None:
        del self._order[bisect_right(self._order, key) - 1]


class Store:
    """Every bucket, and the counter they share."""

    def __init__(self, history: int) -> None:
        self._history = history
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._listeners: list[Callable[[Bucket, Change], None]] = []
        self.rv = 0

    def bucket(self, group: str, plural: str) -> Bucket:
        """The bucket of a kind; made when first asked for."""
        found = self._buckets.get((group, plural))
        if found is None:
            found = self._buckets[group, plural] = Bucket(group, plural, self._history)
        return found

    def buckets(self) -> Iterator[Bucket]:
        yield from list(self._buckets.values())

    def listen(self, listener: Callable[[Bucket, Change], None]) -> Callable[[], None]:
        """Call *listener* synchronously after every commit, until the returned function is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def put(self, bucket: Bucket, key: Key, obj: Obj) -> Stored:
        """Commit *obj*, whose metadata must be a dict of its own: the new resourceVersion is written into it."""
        before = bucket.items.get(key)
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        now = Stored(key, obj, self.rv, encode(obj))
        self._commit(bucket, Change(self.rv, "ADDED" if before is None else "MODIFIED", now, before))
        return now

    def remove(self, bucket: Bucket, key: Key, final: Obj | None = None) -> Stored:
        """Commit the deletion; returns the last state (*final*, if given), at the deletion's own resourceVersion."""
        before = bucket.items[key]
        state = before.obj if final is None else final
        self.rv += 1
        obj = {**state, "metadata": {**state["metadata"], "resourceVersion": str(self.rv)}}
        last = Stored(key, obj, self.rv, encode(obj))
        self._commit(bucket, Change(self.rv, "DELETED", last, before))
        return last

    def _commit(self, bucket: Bucket, change: Change) -> None:
        bucket.append(change)
        for listener in self._listeners:
            listener(bucket, change)
