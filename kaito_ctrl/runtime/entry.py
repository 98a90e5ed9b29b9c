"""One version of one object as a cache keeps it, and how that is made small.

An entry's identity is always at hand; its bytes, its header and its typed view may have to be made first. What costs
memory is shared where objects repeat each other (labels, owner references, namespaces), and an entry adds but one
object to what Python's garbage collector has to walk: its key. Typed views are what is large: that of a pod of 6 KB
takes some 50 KB and adds 170 objects to that walk. So a bounded number of them is kept, the first ones that are asked
for, until their entries are replaced; the others are decoded each time, which takes some 70 µs. To evict one for the
other would cost more than it saves: views that live for a while and then die are what full passes of the collector
come from.
"""

from __future__ import annotations

import zlib
from typing import Any, Generic, TypeVar

import msgspec
from msgspec.structs import force_setattr
from pydantic import ValidationError

from kaito_api.meta import Resource
from kaito_ctrl.runtime.codec import Header, Record, decode_header, decode_record
from kaito_ctrl.runtime.errors import DecodeError
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.scope import Scope

__all__ = ["Entry", "Form"]

R = TypeVar("R", bound=Resource)

_SHARED = 8192
"""Values that are remembered for sharing; then it begins anew, for values come and go with rollouts."""
_SAMPLES = 8
_WINDOW_BITS = 14
_MEMORY_LEVEL = 6
# A deflater is copied for each object. With this window it takes less than 128 KiB, from where on glibc asks the kernel
# for fresh pages each time, which takes longer than the compression.


class Entry(msgspec.Struct, Generic[R], gc=False, eq=False, weakref=False):
    """One version of one object; made by a :class:`Form`. Its header is always there; its typed view may fail to be.

    ``packed`` is as its form keeps bytes: read :attr:`raw`.
    """

    key: ObjectKey
    uid: str
    version: str
    owners: tuple[str, ...]
    """The uids of its owners."""
    form: Form[R]
    packed: bytes
    _header: Header | None = None
    _view: R | DecodeError | None = None
    _counts: bool = False
    """Whether its view is one of those that its form has room for."""
    _left: bool = False
    """Whether it is in no store any more: then it will not live long, and may keep its view."""

    @classmethod
    def of(cls, kind: type[R], raw: bytes) -> Entry[R]:
        """An entry of no cache. Raises ``ValueError`` when *raw* is no object with usable metadata."""
        return Form(kind).entry(decode_record(raw))

    @property
    def raw(self) -> bytes:
        """What is kept of the object, as JSON."""
        return self.form.unpack(self.packed)

    @property
    def header(self) -> Header:
        """The metadata that predicates and routing need; of a compact entry, decoded each time."""
        return self._header or decode_header(self.raw)

    @property
    def decodable(self) -> bool:
        """Whether :meth:`view` works."""
        return not isinstance(self._view or self.form.decode(self), DecodeError)

    @property
    def failed(self) -> bool:
        """Whether :meth:`view` was tried, and does not work."""
        return isinstance(self._view, DecodeError)

    def view(self) -> R:
        """The object. Raises :class:`~kaito_ctrl.runtime.errors.DecodeError` when it does not fit its model."""
        view = self._view or self.form.decode(self)
        if isinstance(view, DecodeError):
            raise view
        return view

    def view_or_none(self) -> R | None:
        """The object, or ``None`` when it does not fit its model."""
        view = self._view or self.form.decode(self)
        return None if isinstance(view, DecodeError) else view


class Form(Generic[R]):
    """How the objects of one kind are kept, as its *scope* says."""

    def __init__(self, kind: type[R], scope: Scope | None = None) -> None:
        scope = scope or Scope()
        self.kind = kind
        self.misfits: set[ObjectKey] = set()
        """Of which keys some version did not fit the model."""
        self._shape = scope.shape()
        self._deflate = _Deflate() if scope.compact else None
        self._shared: dict[Any, Any] = {}
        self._room = scope.views

    def entry(self, record: Record) -> Entry[R]:
        """The entry of a whole object. Raises nothing but ``RecursionError``, for one that is nested too deeply."""
        header, raw = self._shape(record)
        namespace = self._share(header.namespace or "")
        key = ObjectKey(namespace, header.name)
        owners: tuple[str, ...] = ()
        if header.owner_references:
            owners = self._share(tuple([owner.uid for owner in header.owner_references]))
        if self._deflate is not None:
            return Entry(key, header.uid, header.resource_version, owners, self, self._deflate.pack(raw))
        if header.namespace:
            force_setattr(header, "namespace", namespace)
        if header.owner_references:
            force_setattr(header, "owner_references", self._share(header.owner_references))
        if header.labels:
            force_setattr(header, "labels", self._share(header.labels, tuple(header.labels.items())))
        return Entry(key, header.uid, header.resource_version, owners, self, raw, header)

    def unpack(self, packed: bytes) -> bytes:
        """The bytes that were packed."""
        return packed if self._deflate is None else self._deflate.unpack(packed)

    def decode(self, entry: Entry[R], *, keep: bool = True) -> R | DecodeError:
        """The view of *entry*, made now, and kept there if there is room and *keep* is on."""
        raw = entry.raw
        try:
            view = self.kind.model_validate_json(raw)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
                for problem in error.errors(include_url=False)
            )
            failure = entry._view = DecodeError(f"{self.kind.kind} {entry.key} does not fit its model: {problems}", raw)
            self.misfits.add(entry.key)
            # Whoever lists objects will not see this one, so somebody has to say it: once, for this version.
            logger().warning("undecodable object", kind=self.kind.kind, key=str(entry.key), problems=problems)
            return failure
        if entry._left:
            entry._view = view
        elif keep and self._room:
            entry._view, entry._counts = view, True
            self._room -= 1
        return view

    def release(self, entry: Entry[R]) -> None:
        """*entry* has left its store."""
        entry._left = True
        if entry._counts:
            entry._counts = False
            self._room += 1

    def _share(self, value: Any, key: Any = None) -> Any:
        """The first value that was equal to *value*."""
        if len(self._shared) > _SHARED:
            self._shared.clear()
        return self._shared.setdefault(value if key is None else key, value)


class _Deflate:
    """Objects of one kind are much alike: the first ones are the dictionary of all that follow."""

    def __init__(self) -> None:
        self._samples: list[bytes] | None = []
        self._dictionary = b""
        self._deflater = self._new()

    def pack(self, raw: bytes) -> bytes:
        deflater = self._deflater.copy()
        packed = deflater.compress(raw) + deflater.flush()
        if self._samples is not None:
            self._samples.append(raw)
            if len(self._samples) >= _SAMPLES:
                self._dictionary = b"".join(self._samples)[-(1 << _WINDOW_BITS) :]
                self._samples, self._deflater = None, self._new()
        return packed

    def unpack(self, packed: bytes) -> bytes:
        # A stream says itself whether it needs the dictionary.
        return zlib.decompressobj(_WINDOW_BITS, zdict=self._dictionary).decompress(packed)

    def _new(self) -> zlib._Compress:
        return zlib.compressobj(6, wbits=_WINDOW_BITS, memLevel=_MEMORY_LEVEL, zdict=self._dictionary)
