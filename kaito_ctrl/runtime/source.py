"""What wakes a controller: sources, the predicates that filter them, and the indexes that they need.

A source turns a change of some object into the keys of the objects to reconcile. Changes are hints: which of them
are seen is up to the network, so a reconciler never learns what happened, only that it should look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kaito_api.meta import Resource
from kaito_ctrl.runtime.cache import Reader
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.store import Change, Indexer

__all__ = [
    "EVERY_CLUSTER",
    "Predicate",
    "Source",
    "annotations_changed",
    "by_label",
    "generation_changed",
    "labels_changed",
    "owns",
    "reads",
    "watches",
]

R = TypeVar("R", bound=Resource)

EVERY_CLUSTER = "*"
"""For a source's ``cluster``: each of the manager's extra clusters."""

Predicate = Callable[[Change[Any]], bool]
"""Whether a change is worth waking anybody. It sees headers for free, and views at the cost of decoding them."""

Route = Callable[[Change[Any], Reader], Iterable[ObjectKey]]


@dataclass(frozen=True, slots=True)
class Source:
    """One watched kind, where its changes lead, and how it is cached."""

    kind: type[Resource]
    route: Route | None
    when: Predicate | None = None
    scope: Scope | None = None
    indexes: Mapping[str, Indexer[Any]] = field(default_factory=dict)
    cluster: str | None = None
    """The extra cluster that it is watched on; ``None``: the manager's own."""

    def keys(self, change: Change[Any], cache: Reader) -> Iterable[ObjectKey]:
        """Whom *change* wakes."""
        if self.route is None or (self.when is not None and not self.when(change)):
            return ()
        return self.route(change, cache)


@dataclass(frozen=True, slots=True)
class Owned:
    """The declaration that :func:`owns` makes; the controller's own kind completes it."""

    child: type[Resource]
    when: Predicate | None
    scope: Scope | None
    indexes: Mapping[str, Indexer[Any]]

    def bind(self, owner: type[Resource]) -> Source:
        """The source for controllers of *owner*."""
        group = owner.group

        def route(change: Change[Any], _: Reader) -> Iterable[ObjectKey]:
            keys = set()
            for entry in (change.old, change.new):
                for ref in (entry.header.owner_references or ()) if entry is not None else ():
                    if ref.controller and ref.kind == owner.kind and _group(ref.api_version) == group:
                        namespace = entry.key.namespace if owner.namespaced and entry is not None else ""
                        keys.add(ObjectKey(namespace, ref.name))
            return keys

        return Source(self.child, route, self.when, self.scope, self.indexes)


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]


def owns(
    child: type[Resource],
    *,
    when: Predicate | None = None,
    scope: Scope | None = None,
    indexes: Mapping[str, Indexer[Any]] | None = None,
) -> Owned:
    """Changes of *child* wake the object that controls it (its owner reference with ``controller: true``)."""
    return Owned(child, when, scope, indexes or {})


def watches(
    kind: type[R],
    to: Callable[[R, Reader], Iterable[ObjectKey]],
    *,
    when: Predicate | None = None,
    scope: Scope | None = None,
    indexes: Mapping[str, Indexer[R]] | None = None,
    cluster: str | None = None,
) -> Source:
    """Changes of *kind* wake what *to* maps the object to, before and after the change. Undecodable versions wake
    nobody.

    With *cluster*, they are changes on that extra cluster, or on all of them (``EVERY_CLUSTER``); *to* is given the
    cache of the one on which it happened. The keys are always of the manager's own cluster.
    """

    def route(change: Change[Any], cache: Reader) -> Iterable[ObjectKey]:
        keys: set[ObjectKey] = set()
        for entry in (change.old, change.new):
            # Decoded once: where no more views are kept, each look at one makes it anew.
            obj = entry.view_or_none() if entry is not None else None
            if obj is not None:
                keys.update(to(obj, cache))
        return keys

    return Source(kind, route, when, scope, indexes or {}, cluster)


def reads(
    kind: type[R],
    *,
    scope: Scope | None = None,
    indexes: Mapping[str, Indexer[R]] | None = None,
    cluster: str | None = None,
) -> Source:
    """*kind* is cached for reading; its changes wake nobody. *cluster* as for :func:`watches`."""
    return Source(kind, None, None, scope, indexes or {}, cluster)


def by_label(name: str, namespace: str | None = None) -> Callable[[Resource, Reader], Iterable[ObjectKey]]:
    """For :func:`watches`: the value of label *name* is the key's name; its namespace is the value of label
    *namespace*, or without that the object's own."""

    def to(obj: Resource, _: Reader) -> Iterable[ObjectKey]:
        labels = obj.metadata.labels
        if name not in labels or (namespace is not None and namespace not in labels):
            return ()
        return (ObjectKey(labels[namespace] if namespace else obj.metadata.namespace or "", labels[name]),)

    return to


def generation_changed(change: Change[Any]) -> bool:
    """The spec changed, or the object is new or gone. Drops changes of status, labels and annotations."""
    return (
        change.old is None
        or change.new is None
        or change.old.header.generation != change.new.header.generation
        or change.old.header.uid != change.new.header.uid
        or change.old.header.deletion_timestamp != change.new.header.deletion_timestamp
    )


def labels_changed(change: Change[Any]) -> bool:
    """The labels changed, or the object is new or gone."""
    return change.old is None or change.new is None or change.old.header.labels != change.new.header.labels


def annotations_changed(change: Change[Any]) -> bool:
    """The annotations changed, or the object is new or gone."""
    return change.old is None or change.new is None or change.old.header.annotations != change.new.header.annotations
