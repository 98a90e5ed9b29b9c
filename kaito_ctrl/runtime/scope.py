"""What of a kind is watched, and what of each object is kept: one declaration per kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from kaito_api.meta import Resource
from kaito_ctrl.runtime.codec import Header, Record, decode_header, encode_json, strip_managed_fields
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.selectors import label_matcher

__all__ = ["Scope", "Transform"]

Transform = Callable[[bytes], bytes]
"""An object's JSON to the JSON that is kept of it. Called once for each version of each object, and must be pure."""

_ALWAYS = ("apiVersion", "kind", "metadata")
_IDENTITY = frozenset({"metadata", *(f"metadata.{name}" for name in ("name", "namespace", "uid", "resourceVersion"))})

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_elements = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Scope:
    """Which objects of a kind are watched, and what is kept of them.

    *Which*: one namespace, several, or all (by default); and those that the selectors choose.

    *What*: everything but ``managedFields`` (by default); less of it, cheapest first: ``metadata_only`` asks the server
    for nothing else; ``keep`` and ``drop`` name fields by dotted paths (``status.phase``; a path goes through lists:
    ``spec.containers.env`` is that of every container), ``keep`` before ``drop``, and metadata is kept unless a part of
    it is dropped; ``transform`` is any function, and comes last. All that is seen of an object afterwards, its header
    included, is what is kept.

    ``compact`` keeps objects deflated: a fifth of the memory, and some 20 µs more for each look at one that is not kept
    decoded. For large kinds of which few objects are read. ``views`` is how many typed views are kept decoded; a
    reconciler that goes through more objects of the kind each time decodes the rest each time.

    Raises ``ValueError`` for a declaration that contradicts itself.
    """

    namespace: str | None = None
    labels: str = ""
    fields: str = ""
    namespaces: tuple[str, ...] = ()
    metadata_only: bool = False
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    transform: Transform | None = None
    compact: bool = False
    views: int = 256

    def __post_init__(self) -> None:
        if self.namespace and self.namespaces:
            raise ValueError("a scope has one namespace or several: give namespace or namespaces, not both")
        for name in ("namespaces", "keep", "drop"):
            values: object = getattr(self, name)
            if isinstance(values, str) or not all(part for each in getattr(self, name) for part in each.split(".")):
                raise ValueError(f"{name} is a tuple of names, without empty ones: {values!r}")
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if lost := _IDENTITY.intersection(self.drop):
            raise ValueError(f"an object is known by its metadata: {', '.join(sorted(lost))} cannot be dropped")
        if self.metadata_only and (self.keep or self.drop):
            raise ValueError("metadata_only keeps nothing to choose from: keep and drop do not go with it")

    def places(self, kind: type[Resource]) -> tuple[str | None, ...]:
        """The namespaces that are watched one by one; ``None`` stands for all of them together."""
        if not kind.namespaced:
            return (None,)
        return self.namespaces or (self.namespace or None,)

    def includes(self, kind: type[Resource], key: ObjectKey) -> bool:
        """Whether *key* lies in it, but for what the selectors say of its object: see :meth:`selects`."""
        return any(place in (None, key.namespace) for place in self.places(kind))

    def selects(self, header: Header) -> bool:
        """Whether the selectors choose an object of that header. False also where only the server knows."""
        matcher = label_matcher(self.labels) if not self.fields else None
        return matcher is not None and matcher(header.labels or {})

    def query(self) -> tuple[tuple[str, str], ...]:
        """The selectors as query parameters."""
        pairs = (("labelSelector", self.labels), ("fieldSelector", self.fields))
        return tuple((key, value) for key, value in pairs if value)

    def accept(self, *, listing: bool) -> str:
        """The media types to ask for. A server that does not know the first one answers with whole objects."""
        if not self.metadata_only:
            return "application/json"
        kind = "PartialObjectMetadataList" if listing else "PartialObjectMetadata"
        return f"application/json;as={kind};g=meta.k8s.io;v=v1,application/json"

    def shape(self) -> Callable[[Record], Record]:
        """What makes of a whole object what is kept of it. Raises nothing but ``RecursionError``."""
        keep = _tree((*self.keep, *_ALWAYS)) if self.keep else _tree(_ALWAYS) if self.metadata_only else None
        drop = _tree(self.drop) if self.drop else None
        transform = self.transform
        if keep is None and drop is None and transform is None:
            return lambda record: Record(record.header, strip_managed_fields(record.raw))
        changes_header = transform is not None or any(path.startswith("metadata.") for path in self.drop)

        def shape(record: Record) -> Record:
            kept = strip_managed_fields(record.raw)
            if keep is not None:
                kept = bytes(_kept(msgspec.Raw(kept), keep))
            if drop is not None:
                kept = bytes(_dropped(msgspec.Raw(kept), drop))
            if not changes_header:
                return Record(record.header, kept)
            try:
                if transform is not None:
                    kept = transform(kept)
                return _same(record, kept)
            except Exception:  # noqa: BLE001 - somebody else's function must not end the watch that feeds the store
                # What it was meant to take away must not stay: keep no more than what an object needs to exist.
                logger().exception("transform failed; only metadata is kept", name=record.header.name)
                return Record(
                    record.header, bytes(_kept(msgspec.Raw(strip_managed_fields(record.raw)), _tree(_ALWAYS)))
                )

        return shape


def _same(record: Record, kept: bytes) -> Record:
    """*kept* with its header. Raises ``ValueError`` when it is not the object of *record*."""
    was, now = record.header, decode_header(kept)
    if (was.name, was.namespace, was.uid, was.resource_version) != (
        now.name,
        now.namespace,
        now.uid,
        now.resource_version,
    ):
        raise ValueError("a transform must keep metadata.name, namespace, uid and resourceVersion")
    return Record(now, kept)


_Tree = Mapping[str, "_Tree | None"]
"""Paths by their parts; ``None`` ends one."""


def _tree(paths: tuple[str, ...]) -> _Tree:
    root: dict[str, _Tree | None] = {}
    for path in sorted(paths):
        *parents, last = path.split(".")
        node: dict[str, _Tree | None] | None = root
        for part in parents:
            child = node.setdefault(part, {}) if node is not None else None
            node = child if isinstance(child, dict) else None  # a shorter path names all of it already
        if node is not None:
            node[last] = None
    return root


def _kept(value: msgspec.Raw, tree: _Tree) -> msgspec.Raw:
    def keep(name: str, inner: msgspec.Raw) -> msgspec.Raw:
        below = tree[name]
        return inner if below is None else _kept(inner, below)

    return _each(value, keep, tree, others=False)


def _dropped(value: msgspec.Raw, tree: _Tree) -> msgspec.Raw:
    def drop(name: str, inner: msgspec.Raw) -> msgspec.Raw | None:
        below = tree[name]
        return None if below is None else _dropped(inner, below)

    return _each(value, drop, tree, others=True)


def _each(
    value: msgspec.Raw, change: Callable[[str, msgspec.Raw], msgspec.Raw | None], tree: _Tree, *, others: bool
) -> msgspec.Raw:
    """*value* with *change* applied to the members that *tree* names, itself or in each element of a list."""
    first = bytes(value)[:1]
    if first == b"[":
        return msgspec.Raw(encode_json([_each(each, change, tree, others=others) for each in _elements.decode(value)]))
    if first != b"{":
        return value
    changed = {}
    for name, inner in _members.decode(value).items():
        if name in tree:
            new = change(name, inner)
            if new is not None:
                changed[name] = new
        elif others:
            changed[name] = inner
    return msgspec.Raw(encode_json(changed))
