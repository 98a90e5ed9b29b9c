"""The writing end of a store: what the watch and the process's own writes say, and which of them is right.

Never a step backwards: an event older than an entry is ignored, and so is the answer to a write that the watch has
already passed. A relist compares instead of clearing; only its end tells what is gone. Where versions themselves go
back (a restored etcd, another cluster behind the address), the list is right, save for what was written during it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from kaito_api.meta import Resource
from kaito_ctrl.runtime.codec import Record
from kaito_ctrl.runtime.entry import Entry
from kaito_ctrl.runtime.meta import ObjectKey, newer, parse_version

if TYPE_CHECKING:
    from kaito_ctrl.runtime.store import Store

__all__ = ["Feed"]

R = TypeVar("R", bound=Resource)


class Feed(Generic[R]):
    """Feeds a store with the objects of one namespace, or (``None``) with all of them.

    Implements :class:`~kaito_ctrl.runtime.watch.Sink`. Made by :meth:`~kaito_ctrl.runtime.store.Store.feed`.
    """

    def __init__(self, store: Store[R], namespace: str | None) -> None:
        self.namespace = namespace
        self.synced = False
        self.version = ""
        """Everything up to this resourceVersion has been seen from the watch."""
        self.unreadable = 0
        """How often something came that is no object with usable metadata."""
        self._store = store
        self._seen: set[ObjectKey] | None = None
        self._buried: set[str] = set()
        """The uids of what is gone, as the server has told us and the watch has not yet."""
        self._buried_since: set[str] = set()
        """Those since the full content began, which may be from before."""
        self._older: dict[ObjectKey, Entry[R]] = {}
        self._written: set[ObjectKey] = set()

    # -- the watch's side ----------------------------------------------------------------------------------------

    def begin_replace(self) -> None:
        """A full content begins: note what is seen from here on."""
        self._seen = set()
        self._buried_since.clear()
        self._older.clear()
        self._written.clear()

    def upsert(self, record: Record, *, initial: bool) -> None:
        """The object is there in this version; *initial*: part of a full content, and perhaps no news."""
        header = record.header
        if not initial:
            self.version = header.resource_version or self.version
        key = ObjectKey(header.namespace or "", header.name)
        known = self._store.entry(key)
        if known is not None and known.version == header.resource_version and known.uid == header.uid:
            # Nothing new, as most of a relist and each echo of our own writes: nothing is made of it.
            self._older.pop(key, None)
            if self._seen is not None:
                self._seen.add(known.key)
            return
        entry = self._entry(record)
        if entry is None:
            return
        if self._seen is not None:
            self._seen.add(entry.key)
        self._put(known, entry, initial=initial)

    def remove(self, record: Record) -> None:
        """The object is gone; *record* is its last state."""
        key = ObjectKey(record.header.namespace or "", record.header.name)
        uid, version = record.header.uid, record.header.resource_version
        self.version = version or self.version
        current = self._store.entry(key)
        self._buried.discard(uid)
        self._buried_since.discard(uid)
        self._older.pop(key, None)
        # A DELETED event may arrive after the answer to a create of the next object of that name.
        if current is not None and (current.uid == uid or newer(version, current.version)):
            self._store.drop(current)

    def end_replace(self, version: str) -> None:
        """The full content ends, as of *version*: what was not seen is gone."""
        store = self._store
        seen, self._seen = self._seen or set(), None
        self._buried = set(self._buried_since)
        now, before = parse_version(version), parse_version(self.version)
        went_back = now is not None and before is not None and now < before
        for key in sorted(store.keys_except(seen, self.namespace) | self._older.keys()):
            entry = store.entry(key)
            listed = self._older.pop(key, None)
            if entry is None:
                if went_back and listed is not None and listed.uid not in self._buried:
                    store.replace(None, listed, initial=True)
                continue
            # What we ourselves wrote after the server took its list is newer than the list, not gone.
            newer_than_list = now is not None and newer(entry.version, version)
            if key in self._written if went_back else newer_than_list:
                continue
            if listed is None:
                store.drop(entry)
            else:
                store.replace(entry, listed, initial=True)
        self._older.clear()
        self._written.clear()
        self.version = version
        self.synced = True

    def advance(self, version: str) -> None:
        """Everything up to *version* has been seen."""
        self.version = version or self.version

    def misread(self) -> None:
        """Something came that is no object with usable metadata."""
        self.unreadable += 1

    # -- our own writes ------------------------------------------------------------------------------------------

    def wrote(self, record: Record) -> None:
        """The answer to one of our writes."""
        if not self.synced:
            return
        # The watch has been past this version: what it said about the key is at least as new.
        if not self.version or newer(record.header.resource_version, self.version):
            entry = self._entry(record)
            if entry is None:
                return
            if self._seen is not None:
                self._written.add(entry.key)
            self._put(self._store.entry(entry.key), entry)

    def bury(self, entry: Entry[R]) -> None:
        """The server says that the object of *entry* is gone."""
        # Events from before the deletion may still be under way: they must not raise the dead.
        self._buried.add(entry.uid)
        if self._seen is not None:
            self._buried_since.add(entry.uid)
        self._store.drop(entry)

    # -- inside --------------------------------------------------------------------------------------------------

    def _entry(self, record: Record) -> Entry[R] | None:
        try:
            return self._store.form.entry(record)
        except RecursionError:
            # Its header could be read, from a few calls further up; somebody may look for just that depth.
            self.misread()
            return None

    def _put(self, known: Entry[R] | None, entry: Entry[R], *, initial: bool = False) -> None:
        if self._older:
            self._older.pop(entry.key, None)
        if entry.uid not in self._buried and (known is None or newer(entry.version, known.version)):
            self._store.replace(known, entry, initial=initial)
        elif initial:
            # Against what we know; at its end, the list's own version tells which of the two is right.
            self._older[entry.key] = entry
