"""What the server serves: one :class:`Resource` per group, version and plural, and the registry that finds them.

A kind's own rules (defaults, validation, what an update may change) are its :class:`Strategy`. The registry's
``revision`` rises with every change, so that whatever is derived from it (discovery, OpenAPI) can be kept until then.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kaito_ctrl.devcluster.apiserver.conversion import Conversion
from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.meta import is_dns1123_subdomain
from kaito_ctrl.devcluster.apiserver.schema import ANY, Schema
from kaito_ctrl.devcluster.apiserver.store import Key, Obj, Store
from kaito_ctrl.runtime.clock import Clock, UidSource

__all__ = [
    "ALL_VERBS",
    "Column",
    "Environment",
    "IPAllocator",
    "Printer",
    "Registry",
    "Resource",
    "Scale",
    "Strategy",
    "metadata_fields",
]

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class IPAllocator(Protocol):
    """Hands out the cluster IPs of services."""

    def take(self, wanted: str = "") -> str:
        """Reserve *wanted*, or a free one. Raises ``ValueError`` saying why it cannot."""
        ...

    def release(self, address: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Environment:
    """What a strategy may look at besides its object."""

    clock: Clock
    rng: random.Random
    uids: UidSource
    store: Store
    addresses: IPAllocator


class Strategy:
    """The rules of one kind. The base has those of a kind without rules of its own.

    ``default`` and ``prepare_*`` may change the object they get: it is a private copy. ``validate*`` only look.
    """

    unconditional_update = True
    create_on_update = False
    generation = True
    """Whether ``metadata.generation`` is kept at all; most kinds without a controller do not."""
    graceful = False
    keeps_status = False
    """Whether a create may bring a status along; nodes do, because their kubelet makes them."""

    def name_errors(self, name: str) -> list[str]:
        return is_dns1123_subdomain(name)

    def default(self, obj: Obj) -> None:
        """Fill in what the caller left out."""

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        """Set what the server decides."""

    def prepare_update(self, new: Obj, old: Obj, env: Environment) -> None:
        """Carry over what an update cannot change silently."""

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        yield from ()

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        yield from ()

    def validate_status(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        yield from ()

    def spec_changed(self, new: Obj, old: Obj) -> bool:
        """Whether the generation must rise."""
        return bool(new.get("spec") != old.get("spec"))

    def grace(self, obj: Obj, asked: int | None) -> int:
        """Seconds an object of a graceful kind lives on after its deletion was asked for; 0: gone at once."""
        return 0

    def released(self, obj: Obj, env: Environment) -> None:
        """Called once the object is gone."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a kind keeps its replica counts: dotted paths, as a CRD spells them."""

    spec_path: str = ".spec.replicas"
    status_path: str = ".status.replicas"
    selector_path: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a Table."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0

    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        }


class Printer(Protocol):
    """Makes the rows of a Table."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    def cells(self, obj: Obj, clock: Clock) -> list[Any]:
        """One cell a column."""
        ...


def metadata_fields(obj: Mapping[str, Any]) -> dict[str, str]:
    """The field selectors that every kind has."""
    metadata = obj["metadata"]
    return {"metadata.name": metadata.get("name", ""), "metadata.namespace": metadata.get("namespace", "")}


Convert = Callable[[Obj], Obj]


@dataclass(slots=True, eq=False)
class Resource:
    """One served resource. ``storage`` names its bucket; several versions, and events of both groups, may share one."""

    group: str
    version: str
    kind: str
    plural: str
    printer: Printer
    singular: str = ""
    list_kind: str = ""
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    schema: Schema = ANY
    strategy: Strategy = field(default_factory=Strategy)
    status: bool = False
    scale: Scale | None = None
    subresources: tuple[str, ...] = ()
    fields: Callable[[Mapping[str, Any]], Mapping[str, str]] = metadata_fields
    selectable: frozenset[str] = frozenset()
    storage: tuple[str, str] = ("", "")
    storage_version: str = ""
    to_storage: Convert | None = None
    from_storage: Convert | None = None
    conversion: Conversion | None = None
    """How its objects get from the version they are stored in to this one; ``None``: there is only one."""
    custom: Any = None
    """The compiled version of a CustomResourceDefinition, for those that come from one."""
    virtual: bool = False
    """Answers a create and stores nothing (reviews)."""
    deprecated_warning: str = ""

    def __post_init__(self) -> None:
        self.singular = self.singular or self.kind.lower()
        self.list_kind = self.list_kind or self.kind + "List"
        if self.storage == ("", ""):
            self.storage = (self.group, self.plural)
        self.storage_version = self.storage_version or self.version
        self.selectable = self.selectable | {"metadata.name"} | ({"metadata.namespace"} if self.namespaced else set())

    @property
    def storage_prefix(self) -> str:
        """Where its objects lie in a real server's storage, which some errors show."""
        return f"{self.group}/{self.plural}" if self.custom is not None else self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def converts(self) -> bool:
        """Whether stored objects may look different when served under this version."""
        return self.from_storage is not None or self.conversion is not None

    def served(self, obj: Obj) -> Obj:
        """*obj* from the store, as this version shows it."""
        return self.from_storage(obj) if self.from_storage is not None else obj

    def stored(self, obj: Obj) -> Obj:
        """*obj* of this version, as the store keeps it."""
        return self.to_storage(obj) if self.to_storage is not None else obj

    def key(self, namespace: str, name: str) -> Key:
        return (namespace if self.namespaced else "", name)


class Registry:
    """Everything that is served."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], Resource] = {}
        self._by_kind: dict[tuple[str, str], Resource] = {}
        self._by_storage: dict[tuple[str, str], Resource] = {}
        self.revision = 0

    def add(self, resource: Resource) -> None:
        self._by_path[resource.group, resource.version, resource.plural] = resource
        self._by_kind[resource.api_version, resource.kind] = resource
        stored_so = resource.from_storage is None and resource.version == resource.storage_version
        if not resource.virtual and (stored_so or resource.storage not in self._by_storage):
            self._by_storage[resource.storage] = resource
        self.revision += 1

    def remove(self, group: str, plural: str) -> None:
        """Stop serving every version of it."""
        for path in [p for p in self._by_path if p[0] == group and p[2] == plural]:
            gone = self._by_path.pop(path)
            self._by_kind.pop((gone.api_version, gone.kind), None)
            self._by_storage.pop(gone.storage, None)
        self.revision += 1

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def stored(self) -> Iterator[Resource]:
        """One resource per bucket: the one in its storage version, if that is served."""
        yield from list(self._by_storage.values())

    def of_storage(self, group: str, plural: str) -> Resource | None:
        """The resource that shows a bucket in its storage version, or in another if that one is not served."""
        return self._by_storage.get((group, plural))

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        """The resource that serves *kind* in *api_version*."""
        return self._by_kind.get((api_version, kind))

    def groups(self) -> dict[str, dict[str, list[Resource]]]:
        """Group, version (preferred first), resources in order of their names; the core group is ""."""
        tree: dict[str, dict[str, list[Resource]]] = {}
        for resource in self._by_path.values():
            tree.setdefault(resource.group, {}).setdefault(resource.version, []).append(resource)
        return {
            group: {v: sorted(tree[group][v], key=lambda r: r.plural) for v in sorted(tree[group], key=version_order)}
            for group in tree
        }


def version_order(version: str) -> tuple[int, int, int, str]:
    """Sorts v2 before v1 before v1beta2 before v1alpha1 before anything else."""
    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if match is None:
        return (3, 0, 0, version)
    stage = {None: 0, "beta": 1, "alpha": 2}[match.group(2)]
    return (stage, -int(match.group(1)), -int(match.group(3) or 0), version)
