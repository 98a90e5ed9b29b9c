"""One finalizer on the objects of one kind: put on before anything else is done, taken off last.

Both writes hold only for the object as it was read. Deletion is irreversible, so what it rests on is read live, and
"gone" is believed only of a server that says so of the object itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from kaito_api.meta import Resource
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.errors import Conflict, NotFound, RetryAfter
from kaito_ctrl.runtime.meta import ObjectKey, key_of
from kaito_ctrl.runtime.store import Entry

__all__ = ["Finalizer"]

R = TypeVar("R", bound=Resource)

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Finalizer(Generic[R]):
    """The finalizer *name* on objects of *kind*."""

    name: str
    kind: type[R]
    client: Client

    def holds(self, entry: Entry[R]) -> bool:
        """Whether the object cannot go before we let it."""
        return self.name in (entry.header.finalizers or ())

    async def add(self, obj: R) -> R:
        """Put it on; the object as it then is. Raises ``Conflict`` when somebody has written meanwhile."""
        # The list is replaced as a whole, so it must be the one that we read: hence the lock on resourceVersion.
        metadata = {
            "finalizers": [*obj.metadata.finalizers, self.name],
            "resourceVersion": obj.metadata.resource_version,
            "uid": obj.uid,
        }
        return await self.client.patch(self.kind, key_of(obj), {"metadata": metadata})

    async def read(self, key: ObjectKey, uid: str) -> Entry[R] | None:
        """The object of that uid, live, if it is being deleted and waits for us; else ``None``."""
        try:
            raw = await self.client.get_raw(self.kind, key)
        except NotFound as error:
            if not error.of_object:
                raise
            return None
        live = Entry.of(self.kind, raw)
        waits = live.header.uid == uid and live.header.deletion_timestamp is not None and self.holds(live)
        return live if waits else None

    async def remove(self, live: Entry[R]) -> None:
        """Take it off; nobody else's is touched. Raises ``RetryAfter`` when the object keeps changing."""
        obj: Entry[R] | None = live
        for _ in range(_ATTEMPTS):
            if obj is None:
                return
            metadata = {
                "finalizers": [each for each in obj.header.finalizers or () if each != self.name],
                "resourceVersion": obj.header.resource_version,
                "uid": obj.header.uid,
            }
            try:
                await self.client.patch_raw(self.kind, obj.key, {"metadata": metadata})
            except NotFound as error:
                if not error.of_object:
                    raise
                return
            except Conflict:
                # Somebody wrote meanwhile, most often our own last status write; only our own entry is ours to remove.
                obj = await self.read(obj.key, obj.header.uid)
            else:
                return
        raise RetryAfter(1.0, f"{self.kind.kind} {live.key} keeps changing while its finalizer comes off")
