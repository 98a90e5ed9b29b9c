"""The content of one kind: entries by key, by owner, and by declared indexes.

Readers get immutable objects, so nothing is ever copied. What feeds a store, and never a step backwards, is in
:mod:`kaito_ctrl.runtime.feed`; how an object is kept, in :mod:`kaito_ctrl.runtime.entry`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from kaito_api.meta import Resource
from kaito_ctrl.runtime.codec import Record, decode_record
from kaito_ctrl.runtime.entry import Entry, Form
from kaito_ctrl.runtime.errors import DecodeError, NotCached
from kaito_ctrl.runtime.feed import Feed
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.meta import ObjectKey, parse_version
from kaito_ctrl.runtime.scope import Scope

__all__ = ["Change", "Doubt", "Entry", "Indexer", "Store"]

R = TypeVar("R", bound=Resource)


Indexer = Callable[[R], Iterable[str]]
"""Maps an object to the values under which it is to be found."""


class Change(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """What happened to one key: ``old`` is ``None`` at its first sight, ``new`` at its end."""

    key: ObjectKey
    old: Entry[R] | None
    new: Entry[R] | None
    initial: bool = False
    """Part of the first content, or of a relist: nothing may have happened to the object at all."""


Listener = Callable[[Change[R]], None]


@dataclass(frozen=True, slots=True)
class Doubt(Generic[R]):
    """What was known of a doubtful key just before it was read live: the answer is weighed against that."""

    key: ObjectKey
    writes: int
    entry: Entry[R] | None


class Store(Generic[R]):
    """The content of *kind* within *scope*. Tells listeners of each change, in order, without awaiting anything."""

    def __init__(self, kind: type[R], scope: Scope | None = None) -> None:
        self.kind = kind
        self.bytes = 0
        """What the kept bytes of all entries add up to."""
        self.limit(scope or Scope())
        self._entries: dict[ObjectKey, Entry[R]] = {}
        self._owners: dict[str, set[ObjectKey]] = {}
        self._namespaces: dict[str, set[ObjectKey]] | None = None
        self._indexers: dict[str, Indexer[R]] = {}
        self._indexes: dict[str, dict[str, set[ObjectKey]]] = {}
        self._indexed: dict[ObjectKey, tuple[tuple[str, str], ...]] = {}
        self._listeners: tuple[Listener[R], ...] = ()
        self._uncertain: dict[ObjectKey, int] = {}
        self._doubts = 0

    def limit(self, scope: Scope) -> None:
        """Have it hold what *scope* says; only before anything has been fed to it."""
        self.scope = scope
        self.form = Form(self.kind, scope)
        self._feeds = {place: Feed(self, place) for place in scope.places(self.kind)}

    # -- declaring -----------------------------------------------------------------------------------------------

    def add_index(self, name: str, indexer: Indexer[R]) -> None:
        """Make objects findable by what *indexer* says. Raises ``ValueError`` for another function of that name."""
        if self._indexers.get(name, indexer) is not indexer:
            raise ValueError(f"index {name!r} of {self.kind.kind} is declared twice, with different functions")
        self._indexers[name] = indexer
        self._indexes.setdefault(name, {})
        for entry in self._entries.values():
            self._unindex(entry)
            self._index(entry)

    def listen(self, listener: Listener[R], *, replay: bool = True) -> Callable[[], None]:
        """Hear of every change from now on, after a replay of the present content in one go; returns what ends it.

        For a large content see :meth:`replay`, which holds up nobody.
        """
        if replay:
            for entry in tuple(self._entries.values()):
                listener(Change(entry.key, None, entry, True))
        self._listeners = (*self._listeners, listener)

        def end() -> None:
            rest = list(self._listeners)
            rest.remove(listener)
            self._listeners = tuple(rest)

        return end

    async def replay(self, listener: Listener[R], *, max_slice: float = 0.002) -> None:
        """Tell *listener* of the present content, as first sights, in slices of *max_slice* seconds.

        Meant for one that listens already: what changes between two slices it may hear of before its first sight.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        for key in tuple(self._entries):
            entry = self._entries.get(key)
            if entry is None:
                continue
            listener(Change(key, None, entry, True))
            if clock() - began > max_slice:
                await asyncio.sleep(0)
                began = clock()

    # -- being fed -----------------------------------------------------------------------------------------------

    @property
    def feeds(self) -> tuple[Feed[R], ...]:
        """One for each namespace that is watched by itself."""
        return tuple(self._feeds.values())

    def feed(self, namespace: str | None = None) -> Feed[R]:
        """The feed of *namespace*; ``None``: the only one. Raises ``KeyError`` when there is no such one."""
        if namespace is None and len(self._feeds) == 1:
            return self.feeds[0]
        return self._feeds[namespace]

    def _feed_of(self, key: ObjectKey) -> Feed[R] | None:
        return self._feeds.get(None) or self._feeds.get(key.namespace)

    @property
    def synced(self) -> bool:
        """Whether every feed has brought its full content."""
        return all(feed.synced for feed in self._feeds.values())

    @property
    def version(self) -> str:
        """Everything up to this resourceVersion has been seen from the watch, or from the slowest of them."""
        return min((feed.version for feed in self._feeds.values()), key=lambda each: parse_version(each) or 0)

    @property
    def unreadable(self) -> int:
        """How often something came that is no object with usable metadata."""
        return sum(feed.unreadable for feed in self._feeds.values())

    # -- reading -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._entries

    @property
    def undecodable(self) -> int:
        """How many of the present entries were read and did not fit their model."""
        misfits = self.form.misfits
        misfits.intersection_update(
            [key for key in misfits if (entry := self._entries.get(key)) is not None and entry.failed]
        )
        return len(misfits)

    def entry(self, key: ObjectKey) -> Entry[R] | None:
        """The entry of *key*, whether it can be decoded or not."""
        return self._entries.get(key)

    def keys_except(self, seen: AbstractSet[ObjectKey], namespace: str | None) -> AbstractSet[ObjectKey]:
        """The keys, of one namespace or of all (``None``), that are not in *seen*."""
        present = self._entries.keys() if namespace is None or len(self._feeds) == 1 else self._within(namespace)
        return present - seen

    def entries(self) -> Iterable[Entry[R]]:
        """All entries, in no particular order."""
        return self._entries.values()

    def get(self, key: ObjectKey) -> R | None:
        """The object, or ``None``. Raises ``DecodeError``."""
        entry = self._entries.get(key)
        return entry.view() if entry is not None else None

    def select(
        self,
        *,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        owner_uid: str | None = None,
        index: tuple[str, str] | None = None,
    ) -> tuple[R, ...]:
        """The objects that fulfil every given condition, ordered by key; undecodable ones are left out.

        Raises :class:`~kaito_ctrl.runtime.errors.NotCached` for an index that nobody declared.
        """
        keys: Iterable[ObjectKey] = self._entries if namespace is None else self._within(namespace)
        if owner_uid is not None:
            keys = self._owners.get(owner_uid, ())
        if index is not None:
            name, value = index
            if name not in self._indexes:
                raise NotCached(f"{self.kind.kind} has no index {name!r}; declared: {sorted(self._indexes) or 'none'}")
            found = self._indexes[name].get(value, set())
            keys = found if owner_uid is None else found & set(keys)
        matching: list[Entry[R]] = []
        for key in keys:
            entry = self._entries[key]
            if namespace is not None and key.namespace != namespace:
                continue
            if labels:
                present = entry.header.labels or {}
                if any(present.get(name) != value for name, value in labels.items()):
                    continue
            matching.append(entry)
        matching.sort(key=_key)
        return tuple([view for entry in matching if (view := entry.view_or_none()) is not None])

    def uncertain(self) -> frozenset[ObjectKey]:
        """Keys whose last write had no answer; see :meth:`settle`."""
        return frozenset(self._uncertain)

    # -- our own writes ------------------------------------------------------------------------------------------

    def wrote(self, raw: bytes) -> None:
        """The answer to one of our writes."""
        record = _record(raw)
        key = self._take(record) if record is not None else None
        if key is not None:
            self._uncertain.pop(key, None)

    def deleted(self, key: ObjectKey, uid: str) -> None:
        """The server says that the object is gone."""
        self._uncertain.pop(key, None)
        entry = self._entries.get(key)
        if entry is not None and uid in ("", entry.uid):
            self._bury(entry)

    def doubt(self, key: ObjectKey) -> None:
        """A write to *key* may or may not have happened."""
        self._doubts += 1
        self._uncertain[key] = self._doubts

    def ask(self, key: ObjectKey) -> Doubt[R]:
        """To be called right before the live read that is to settle *key*; give the result to :meth:`settle`."""
        return Doubt(key, self._uncertain.get(key, 0), self._entries.get(key))

    def settle(self, doubt: Doubt[R], raw: bytes | None) -> None:
        """What a live read made after :meth:`ask` says of the key; ``None``: there is no such object.

        Raises ``DecodeError``, and leaves the doubt, when *raw* is not that object.
        """
        record = _record(raw) if raw is not None else None
        if raw is not None and (record is None or record.header.name != doubt.key.name):
            raise DecodeError(f"what the server says of {self.kind.kind} {doubt.key} is no such object", raw)
        self.dismiss(doubt)
        entry = self._entries.get(doubt.key)
        if record is not None:
            self._take(record)
        elif entry is not None and entry is doubt.entry:
            # Another entry has come in during the read, which may be younger than the answer: then the watch decides.
            self._bury(entry)

    def dismiss(self, doubt: Doubt[R]) -> None:
        """Let go of *doubt*, but not of one that arose since."""
        if self._uncertain.get(doubt.key) == doubt.writes:
            del self._uncertain[doubt.key]

    # -- for its feeds -------------------------------------------------------------------------------------------

    def replace(self, old: Entry[R] | None, entry: Entry[R], *, initial: bool) -> None:
        """Have *entry* stand where *old* stood."""
        self.bytes += len(entry.packed)
        if old is not None:
            self.bytes -= len(old.packed)
            self._unindex(old)
            self.form.release(old)
        elif self._namespaces is not None:
            self._namespaces.setdefault(entry.key.namespace, set()).add(entry.key)
        self._entries[entry.key] = entry
        self._index(entry)
        self._tell(Change(entry.key, old, entry, initial))

    def drop(self, entry: Entry[R]) -> None:
        """Have *entry* stand no more."""
        self.bytes -= len(entry.packed)
        del self._entries[entry.key]
        if self._namespaces is not None:
            _discard(self._namespaces, entry.key.namespace, entry.key)
        self._unindex(entry)
        self.form.release(entry)
        self._tell(Change(entry.key, entry, None))

    # -- inside --------------------------------------------------------------------------------------------------

    def _within(self, namespace: str) -> AbstractSet[ObjectKey]:
        if self._namespaces is None:
            # Made when somebody first asks: of most kinds nobody does, and each key in it takes memory.
            self._namespaces = {}
            for key in self._entries:
                self._namespaces.setdefault(key.namespace, set()).add(key)
        return self._namespaces.get(namespace, frozenset())

    def _take(self, record: Record) -> ObjectKey | None:
        key = ObjectKey(record.header.namespace or "", record.header.name)
        feed = self._feed_of(key)
        if feed is None or not feed.synced:
            return None
        # What the selectors leave out, or only the server can judge, comes from the watch alone.
        if key in self._entries or self.scope.selects(record.header):
            feed.wrote(record)
        return key

    def _bury(self, entry: Entry[R]) -> None:
        feed = self._feed_of(entry.key)
        assert feed is not None  # nothing else can have brought it
        feed.bury(entry)

    def _tell(self, change: Change[R]) -> None:
        for listener in self._listeners:
            listener(change)

    def _index(self, entry: Entry[R]) -> None:
        for uid in entry.owners:
            self._owners.setdefault(uid, set()).add(entry.key)
        if self._indexers:
            # Of a kind with more objects than views are kept of, indexing must not take the room for all of them.
            view = self.form.decode(entry, keep=len(self._entries) <= self.scope.views)
            if isinstance(view, DecodeError):
                return
            pairs = tuple(self._values(entry.key, view))
            self._indexed[entry.key] = pairs
            for name, value in pairs:
                self._indexes[name].setdefault(value, set()).add(entry.key)

    def _values(self, key: ObjectKey, view: R) -> Iterator[tuple[str, str]]:
        for name, indexer in self._indexers.items():
            try:
                values = tuple(indexer(view))
            except Exception:  # noqa: BLE001 - somebody else's function must not end the watch that feeds this store
                logger().exception("index function failed", kind=self.kind.kind, index=name, key=str(key))
                continue
            for value in values:
                yield name, value

    def _unindex(self, entry: Entry[R]) -> None:
        for uid in entry.owners:
            _discard(self._owners, uid, entry.key)
        for name, value in self._indexed.pop(entry.key, ()):
            _discard(self._indexes[name], value, entry.key)


def _record(raw: bytes) -> Record | None:
    """An object as a server answers with it: it has a name, and a version."""
    try:
        record = decode_record(raw)
    except ValueError:
        return None
    return record if record.header.name and record.header.resource_version else None


def _key(entry: Entry[R]) -> ObjectKey:
    return entry.key


def _discard(index: dict[str, set[ObjectKey]], value: str, key: ObjectKey) -> None:
    keys = index.get(value)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[value]
