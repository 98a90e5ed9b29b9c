"""The content of one kind: entries, indexes, and never a step backwards.

An entry is a header, the object's bytes, and its typed view, decoded on first read. Readers get immutable objects,
so nothing is ever copied. Two writers feed a store: the watch, in the server's order, and the process's own writes,
whose answers are put in at once, so that no reader sees the world older than its own writes. An answer that the
watch has already passed is ignored; a watch event older than an entry is too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from kaito_api.meta import Resource
from kaito_ctrl.runtime.codec import Header, decode_header, strip_managed_fields
from kaito_ctrl.runtime.errors import DecodeError, NotCached
from kaito_ctrl.runtime.meta import ObjectKey, newer, parse_version

__all__ = ["Change", "Doubt", "Entry", "Indexer", "Store"]

R = TypeVar("R", bound=Resource)

_log = structlog.get_logger("kaito_ctrl")

Indexer = Callable[[R], Iterable[str]]
"""Maps an object to the values under which it is to be found."""


class Entry(Generic[R]):
    """One version of one object. Its header is always there; its typed view may fail to be."""

    __slots__ = ("_view", "header", "key", "kind", "raw")

    def __init__(self, kind: type[R], header: Header, raw: bytes) -> None:
        self.kind = kind
        self.key = ObjectKey(header.namespace or "", header.name)
        self.header = header
        self.raw = raw
        self._view: R | DecodeError | None = None

    @property
    def decodable(self) -> bool:
        """Whether :meth:`view` works."""
        if self._view is None:
            self._decode()
        return not isinstance(self._view, DecodeError)

    @property
    def failed(self) -> bool:
        """Whether :meth:`view` was tried, and does not work."""
        return isinstance(self._view, DecodeError)

    def view(self) -> R:
        """The object. Raises :class:`~kaito_ctrl.runtime.errors.DecodeError` when it does not fit its model."""
        if self._view is None:
            self._decode()
        if isinstance(self._view, DecodeError):
            raise self._view
        assert self._view is not None
        return self._view

    def _decode(self) -> None:
        try:
            self._view = self.kind.model_validate_json(self.raw)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors(include_url=False)
            )
            self._view = DecodeError(f"{self.kind.kind} {self.key} does not fit its model: {problems}", self.raw)
            # Whoever lists objects will not see this one, so somebody has to say it: once, for this version.
            _log.warning("undecodable object", kind=self.kind.kind, key=str(self.key), problems=problems)


@dataclass(frozen=True, slots=True)
class Change(Generic[R]):
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
    """Entries by key, by owner, and by declared indexes. Feeds listeners, in order, without awaiting anything."""

    def __init__(self, kind: type[R]) -> None:
        self.kind = kind
        self.synced = False
        self.version = ""
        """Everything up to this resourceVersion has been seen from the watch."""
        self.unreadable = 0
        """How often bytes came that are no object at all."""
        self._entries: dict[ObjectKey, Entry[R]] = {}
        self._owners: dict[str, set[ObjectKey]] = {}
        self._indexers: dict[str, Indexer[R]] = {}
        self._indexes: dict[str, dict[str, set[ObjectKey]]] = {}
        self._indexed: dict[ObjectKey, tuple[tuple[str, str], ...]] = {}
        self._listeners: list[Listener[R]] = []
        self._seen: set[ObjectKey] | None = None
        self._buried: dict[str, str] = {}
        self._older: dict[ObjectKey, Entry[R]] = {}
        self._written: set[ObjectKey] = set()
        self._uncertain: dict[ObjectKey, int] = {}
        self._doubts = 0

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

    def listen(self, listener: Listener[R]) -> Callable[[], None]:
        """Hear of every change from now on, after a replay of the present content; returns what ends it."""
        for entry in tuple(self._entries.values()):
            listener(Change(entry.key, None, entry, initial=True))
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- reading -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._entries

    @property
    def undecodable(self) -> int:
        """How many of the present entries were read and did not fit their model."""
        return sum(entry.failed for entry in self._entries.values())

    def entry(self, key: ObjectKey) -> Entry[R] | None:
        """The entry of *key*, whether it can be decoded or not."""
        return self._entries.get(key)

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
        keys: Iterable[ObjectKey] = self._entries
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
            if entry.decodable:
                matching.append(entry)
        return tuple(entry.view() for entry in sorted(matching, key=lambda entry: entry.key))

    def uncertain(self) -> frozenset[ObjectKey]:
        """Keys whose last write had no answer; see :meth:`settle`."""
        return frozenset(self._uncertain)

    # -- the watch's side ----------------------------------------------------------------------------------------

    def begin_replace(self) -> None:
        self._seen = set()
        self._older.clear()
        self._written.clear()

    def upsert(self, raw: bytes, *, initial: bool) -> None:
        entry = self._read(raw)
        if entry is None:
            return
        if self._seen is not None:
            self._seen.add(entry.key)
        if not initial:
            self.version = entry.header.resource_version or self.version
        self._put(entry, initial=initial)

    def remove(self, raw: bytes) -> None:
        entry = self._read(raw)
        if entry is None:
            return
        self.version = entry.header.resource_version or self.version
        current = self._entries.get(entry.key)
        self._buried.pop(entry.header.uid, None)
        self._older.pop(entry.key, None)
        # A DELETED event may arrive after the answer to a create of the next object of that name.
        if current is not None and (
            current.header.uid == entry.header.uid
            or newer(entry.header.resource_version, current.header.resource_version)
        ):
            self._drop(current)

    def end_replace(self, version: str) -> None:
        seen, self._seen = self._seen or set(), None
        self._buried.clear()
        now, before = parse_version(version), parse_version(self.version)
        went_back = now is not None and before is not None and now < before
        for key, entry in tuple(self._entries.items()):
            listed = self._older.pop(key, None)
            if key in seen and listed is None:
                continue
            if went_back:
                # A restored etcd, or another cluster behind the address: its versions cannot be compared with ours.
                ours = key in self._written
            else:
                # What we ourselves wrote after the server took its list is newer than the list, not gone.
                ours = now is not None and newer(entry.header.resource_version, version)
            if ours:
                continue
            if listed is None:
                self._drop(entry)
            else:
                self._replace(entry, listed, initial=True)
        if went_back:
            for listed in self._older.values():
                self._replace(None, listed, initial=True)
        self._older.clear()
        self._written.clear()
        self.version = version
        self.synced = True

    def advance(self, version: str) -> None:
        self.version = version or self.version

    # -- our own writes ------------------------------------------------------------------------------------------

    def wrote(self, raw: bytes) -> None:
        """The answer to one of our writes."""
        entry = self._take(raw)
        if entry is not None:
            self._uncertain.pop(entry.key, None)

    def deleted(self, key: ObjectKey, uid: str) -> None:
        """The server says that the object is gone."""
        self._uncertain.pop(key, None)
        entry = self._entries.get(key)
        if entry is not None and uid in ("", entry.header.uid):
            self._bury(entry)

    def doubt(self, key: ObjectKey) -> None:
        """A write to *key* may or may not have happened."""
        self._doubts += 1
        self._uncertain[key] = self._doubts

    def ask(self, key: ObjectKey) -> Doubt[R]:
        """To be called right before the live read that is to settle *key*; give the result to :meth:`settle`."""
        return Doubt(key, self._uncertain.get(key, 0), self._entries.get(key))

    def settle(self, doubt: Doubt[R], raw: bytes | None) -> None:
        """What a live read made after the doubtful write says of the key; ``None``: there is no such object."""
        self.dismiss(doubt)
        entry = self._entries.get(doubt.key)
        if raw is not None:
            self._take(raw)
        elif entry is not None and entry is doubt.entry:
            # Another entry has come in during the read, which may be younger than the answer: then the watch decides.
            self._bury(entry)

    def dismiss(self, doubt: Doubt[R]) -> None:
        """Let go of *doubt*, but not of one that arose since."""
        if self._uncertain.get(doubt.key) == doubt.writes:
            del self._uncertain[doubt.key]

    # -- inside --------------------------------------------------------------------------------------------------

    def _read(self, raw: bytes) -> Entry[R] | None:
        try:
            header = decode_header(raw)
        except ValueError:
            self.unreadable += 1
            return None
        return Entry(self.kind, header, strip_managed_fields(raw))

    def _take(self, raw: bytes) -> Entry[R] | None:
        entry = self._read(raw)
        if entry is None or not self.synced:
            return None
        # The watch has been past this version: what it said about the key is at least as new.
        if not self.version or newer(entry.header.resource_version, self.version):
            if self._seen is not None:
                self._written.add(entry.key)
            self._put(entry)
        return entry

    def _put(self, entry: Entry[R], *, initial: bool = False) -> None:
        old = self._entries.get(entry.key)
        known = old.header if old is not None else None
        buried = entry.header.uid in self._buried
        self._older.pop(entry.key, None)
        if not buried and (known is None or newer(entry.header.resource_version, known.resource_version)):
            self._replace(old, entry, initial=initial)
        elif initial and (
            known is None or (known.uid, known.resource_version) != (entry.header.uid, entry.header.resource_version)
        ):
            # Against what we know; at its end, the list's own version tells which of the two is right.
            self._older[entry.key] = entry

    def _replace(self, old: Entry[R] | None, entry: Entry[R], *, initial: bool) -> None:
        if old is not None:
            self._unindex(old)
        self._entries[entry.key] = entry
        self._index(entry)
        self._tell(Change(entry.key, old, entry, initial=initial))

    def _bury(self, entry: Entry[R]) -> None:
        # Events from before the deletion may still be under way: they must not raise the dead.
        self._buried[entry.header.uid] = entry.header.resource_version
        self._drop(entry)

    def _drop(self, entry: Entry[R]) -> None:
        del self._entries[entry.key]
        self._unindex(entry)
        self._tell(Change(entry.key, entry, None))

    def _tell(self, change: Change[R]) -> None:
        for listener in tuple(self._listeners):
            listener(change)

    def _index(self, entry: Entry[R]) -> None:
        for owner in entry.header.owner_references or ():
            self._owners.setdefault(owner.uid, set()).add(entry.key)
        if self._indexers and entry.decodable:
            pairs = tuple(self._values(entry))
            self._indexed[entry.key] = pairs
            for name, value in pairs:
                self._indexes[name].setdefault(value, set()).add(entry.key)

    def _values(self, entry: Entry[R]) -> Iterator[tuple[str, str]]:
        for name, indexer in self._indexers.items():
            try:
                values = tuple(indexer(entry.view()))
            except Exception:  # noqa: BLE001 - somebody else's function must not end the watch that feeds this store
                _log.exception("index function failed", kind=self.kind.kind, index=name, key=str(entry.key))
                continue
            for value in values:
                yield name, value

    def _unindex(self, entry: Entry[R]) -> None:
        for owner in entry.header.owner_references or ():
            _discard(self._owners, owner.uid, entry.key)
        for name, value in self._indexed.pop(entry.key, ()):
            _discard(self._indexes[name], value, entry.key)


def _discard(index: dict[str, set[ObjectKey]], value: str, key: ObjectKey) -> None:
    keys = index.get(value)
    if keys is not None:
        keys.discard(key)
        if not keys:
            del index[value]
