"""One view of an object's schema, whatever it came from: the built-in type table, or a CustomResourceDefinition.

A :class:`Schema` says what a node is and how its parts merge (list and map types, patch keys). Decoding, strategic
merge, server-side apply and OpenAPI all walk it. ``ANY`` is the node that knows nothing: everything under it is kept,
lists are atomic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

import msgspec

__all__ = ["ANY", "OBJECT_META", "Schema", "builtin", "from_openapi", "type_table", "wire_fields"]


class Schema:
    """One node. ``type`` is the JSON schema type, or "" when unknown; equality is identity."""

    __slots__ = (
        "additional",
        "default",
        "embedded",
        "format",
        "int_or_string",
        "items",
        "list_keys",
        "list_type",
        "map_atomic",
        "name",
        "nullable",
        "omit_zero",
        "patch_key",
        "patch_merge",
        "preserve",
        "properties",
        "raw",
        "required",
        "retain_keys",
        "type",
    )

    def __init__(self, kind: str = "", format: str = "", name: str = "") -> None:  # noqa: A002
        self.type = kind
        self.format = format
        self.name = name
        self.properties: dict[str, Schema] = {}
        self.required: tuple[str, ...] = ()
        self.additional: Schema | None = None
        self.items: Schema | None = None
        self.list_type = "atomic"
        self.list_keys: tuple[str, ...] = ()
        self.map_atomic = False
        self.patch_merge = False
        self.patch_key = ""
        self.retain_keys = False
        self.preserve = False
        self.int_or_string = False
        self.embedded = False
        self.nullable = False
        self.omit_zero: frozenset[str] = frozenset()
        self.default: Any = None
        self.raw: Mapping[str, Any] = {}

    def child(self, key: str) -> Schema:
        """The schema of the value under *key*; ``ANY`` when nothing is known of it."""
        found = self.properties.get(key)
        if found is not None:
            return found
        return self.additional or ANY

    def element(self) -> Schema:
        """The schema of a list's items."""
        return self.items or ANY

    @property
    def untyped(self) -> bool:
        return not self.type and not self.int_or_string and not self.properties

    def __repr__(self) -> str:
        return f"Schema({self.name or self.type or 'any'})"


ANY: Final = Schema()

_SCALARS = {
    "string": ("string", ""),
    "int": ("integer", "int32"),
    "int64": ("integer", "int64"),
    "number": ("number", "double"),
    "boolean": ("boolean", ""),
    "time": ("string", "date-time"),
    "microtime": ("string", "date-time"),
    "bytes": ("string", "byte"),
    "quantity": ("string", "quantity"),
    "intorstr": ("string", "int-or-string"),
}


@cache
def type_table() -> dict[str, dict[str, dict[str, str]]]:
    """The built-in types: package, type, field, notation. ``name!`` is required; see ``_parse`` for the notation."""
    raw = resources.files(__package__).joinpath("builtin_types.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, dict[str, dict[str, str]]])


_compiled: dict[str, Schema] = {}


def builtin(name: str) -> Schema:
    """The schema of a built-in type, as ``package.Type``: ``core.Pod``."""
    found = _compiled.get(name)
    if found is not None:
        return found
    package, _, kind = name.partition(".")
    fields = type_table()[package][kind]
    node = Schema("object", name=name)
    # Registered before its fields are read: JSONSchemaProps refers to itself.
    _compiled[name] = node
    required = []
    for key, notation in fields.items():
        if key == "*":
            node.map_atomic = notation == "atomic"
            continue
        field = key.rstrip("!")
        if field != key:
            required.append(field)
        node.properties[field] = _parse(notation)
    node.required = tuple(required)
    node.omit_zero = frozenset(name for name, _, omitted in wire_fields(package, kind) if omitted)
    return node


@cache
def _wire_table() -> dict[str, dict[str, str]]:
    raw = resources.files(__package__).joinpath("builtin_protos.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, dict[str, str]])


def wire_fields(package: str, kind: str) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """A type's fields as Go and protobuf see them: name, where in the message, and whether a zero is left out.

    Where is a path of field numbers: what JSON shows inline may be a message of its own.
    """
    for entry in _wire_table().get(package, {}).get(kind, "").split():
        name, _, number = entry.partition("=")
        if name.startswith("+"):
            for inner, path, omitted in wire_fields(package, name[1:]):
                yield inner, (int(number), *path), omitted
        else:
            yield name, (int(number.rstrip("?")),), number.endswith("?")


def _parse(notation: str) -> Schema:
    """``[]T`` is a list, ``{}T`` a map, ``@package.Type`` a reference; flags follow after ``|``."""
    expression, *flags = notation.split("|")
    if expression.startswith("[]"):
        node = Schema("array")
        node.items = _parse(expression[2:])
    elif expression.startswith("{}"):
        node = Schema("object")
        node.additional = _parse(expression[2:])
    elif expression.startswith("@"):
        if not flags:
            return builtin(expression[1:])
        target = builtin(expression[1:])
        node = Schema("object", name=target.name)
        node.properties, node.required, node.map_atomic = target.properties, target.required, target.map_atomic
        node.omit_zero = target.omit_zero
    elif expression == "any":
        return ANY
    else:
        kind, form = _SCALARS[expression]
        node = Schema(kind, form)
        if expression == "microtime":
            node.name = "microtime"
    for flag in flags:
        name, _, argument = flag.partition("=")
        if name == "map":
            node.list_type, node.list_keys = "map", tuple(argument.split(","))
        elif name == "set":
            node.list_type = "set"
        elif name == "atomic":
            node.map_atomic = node.type == "object"
        elif name == "patch":
            strategies, _, node.patch_key = argument.partition(":")
            node.patch_merge = "merge" in strategies.split(",")
            node.retain_keys = "retainKeys" in strategies
            # Without an explicit list type, a merge key makes the list associative for server-side apply too.
            if node.type == "array" and node.list_type == "atomic" and "atomic" not in flags and node.patch_merge:
                node.list_type = "map" if node.patch_key else "set"
                node.list_keys = (node.patch_key,) if node.patch_key else ()
    return node


OBJECT_META: Final = builtin("meta.ObjectMeta")


def from_openapi(source: Mapping[str, Any]) -> Schema:
    """The schema of one ``openAPIV3Schema`` node, with everything under it."""
    node = Schema(str(source.get("type", "")), str(source.get("format", "")))
    node.raw = source
    node.nullable = bool(source.get("nullable"))
    node.preserve = bool(source.get("x-kubernetes-preserve-unknown-fields"))
    node.int_or_string = bool(source.get("x-kubernetes-int-or-string"))
    node.embedded = bool(source.get("x-kubernetes-embedded-resource"))
    node.default = source.get("default")
    node.required = tuple(source.get("required") or ())
    for key, child in (source.get("properties") or {}).items():
        node.properties[key] = from_openapi(child)
    extra = source.get("additionalProperties")
    if isinstance(extra, Mapping):
        node.additional = from_openapi(extra)
    elif extra is True:
        node.additional = ANY
    if isinstance(source.get("items"), Mapping):
        node.items = from_openapi(source["items"])
    node.list_type = str(source.get("x-kubernetes-list-type") or "atomic")
    node.list_keys = tuple(source.get("x-kubernetes-list-map-keys") or ())
    node.map_atomic = source.get("x-kubernetes-map-type") == "atomic"
    if node.embedded:
        node.properties.setdefault("apiVersion", Schema("string"))
        node.properties.setdefault("kind", Schema("string"))
        node.properties["metadata"] = OBJECT_META
    return node
