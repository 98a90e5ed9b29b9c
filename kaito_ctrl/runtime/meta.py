"""Names for things: the key of an object, and where a kind lives under an API server's root."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote

from kaito_api.meta import Resource

__all__ = ["ObjectKey", "address", "collection_path", "key_of", "newer", "object_path", "parse_version"]


class ObjectKey(NamedTuple):
    """Namespace and name; the namespace of a cluster-scoped object is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def key_of(obj: Resource) -> ObjectKey:
    """The key of *obj*."""
    return ObjectKey(obj.metadata.namespace or "", obj.metadata.name)


def address(kind: type[Resource], name: str, namespace: str | None) -> ObjectKey:
    """The key under which *name* is found; without the namespace, if the kind has none.

    Raises ``ValueError`` when a namespaced kind is addressed without a namespace, which a server would answer with a
    puzzling 404 or 405, and a cache with nothing.
    """
    if kind.namespaced and not namespace:
        raise ValueError(f"{kind.kind} {name!r} is namespaced: say in which namespace")
    return ObjectKey(namespace or "" if kind.namespaced else "", name)


def collection_path(kind: type[Resource], namespace: str | None = None) -> str:
    """``/apis/kaito.sh/v1alpha1/namespaces/default/workspaces``; without a namespace, the one across all of them."""
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    if namespace and kind.namespaced:
        return f"{root}/namespaces/{quote(namespace, safe='')}/{kind.plural}"
    return f"{root}/{kind.plural}"


def object_path(kind: type[Resource], key: ObjectKey, subresource: str | None = None) -> str:
    """The path of one object, or of a subresource of it.

    Raises ``ValueError`` like :func:`address`, and for an empty name.
    """
    key = address(kind, key.name, key.namespace)
    if not key.name:
        raise ValueError(f"a {kind.kind} is addressed by name, and the name is empty")
    path = f"{collection_path(kind, key.namespace)}/{quote(key.name, safe='')}"
    return f"{path}/{subresource}" if subresource else path


def parse_version(version: str) -> int | None:
    """A resourceVersion as a number, ``None`` where the server uses opaque ones.

    Within one kind they are comparable integers on every kube-apiserver (KEP-5504 makes it a promise).
    """
    return int(version) if version.isascii() and version.isdigit() else None


def newer(candidate: str, than: str) -> bool:
    """Whether resourceVersion *candidate* is later than *than*; opaque ones count as later when they differ."""
    left, right = parse_version(candidate), parse_version(than)
    if left is None or right is None:
        return candidate != than
    return left > right
