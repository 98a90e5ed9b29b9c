"""From a request's body to an object that fits its kind.

Built-in kinds are decoded the way Go decodes into structs: unknown fields are dropped (and named, so that strict
validation can refuse them), ``null`` and empty optional lists and maps disappear, a wrong JSON type is a 400. The
result shares nothing with its input: what follows may change it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from kaito_ctrl.devcluster.apiserver.errors import StatusError, bad_request, unsupported_media_type
from kaito_ctrl.devcluster.apiserver.protobuf import PROTOBUF, decode_protobuf
from kaito_ctrl.devcluster.apiserver.scalars import canonical_quantity, canonical_time
from kaito_ctrl.devcluster.apiserver.schema import Schema
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["DecodeError", "decode_typed", "parse_body", "parse_yaml"]

_loads = msgspec.json.Decoder().decode
_ACCEPTED = "application/json, application/yaml, application/vnd.kubernetes.protobuf"


class _YamlLoader(yaml.SafeLoader):
    """Timestamps stay text, as JSON would have them."""


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, rx) for tag, rx in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(body: bytes) -> Any:
    """YAML or JSON text as plain values. Raises ``yaml.YAMLError`` or ``ValueError``."""
    if body.lstrip()[:1] == b"{":
        try:
            return _loads(body)
        except msgspec.DecodeError:
            pass
    return yaml.load(body, Loader=_YamlLoader)  # noqa: S506 -- a SafeLoader subclass


def parse_body(body: bytes | None, content_type: str, *, duplicates: list[str] | None = None) -> Any:
    """The body as plain values. With *duplicates*, keys that occur twice in one object are reported there."""
    media = content_type.split(";")[0].strip().lower()
    if not body:
        raise bad_request("the body of the request was empty")
    try:
        if media == PROTOBUF:
            return decode_protobuf(body)
        if media in {"application/yaml", "application/apply-patch+yaml"}:
            return parse_yaml(body)
        if media not in {"", "application/json"} and not media.endswith("+json"):
            raise unsupported_media_type(_ACCEPTED)
        if duplicates is not None:
            return _loads_reporting(body, duplicates)
        return _loads(body)
    except (msgspec.DecodeError, ValueError, IndexError, yaml.YAMLError) as error:
        if body.lstrip()[:1] not in b"{[" and media in {"", "application/json"}:
            raise bad_request(
                "couldn't get version/kind; json parse error: invalid character looking for beginning of value"
            ) from error
        raise bad_request(f"error decoding: {error}") from error


class _Keys(dict[str, Any]):
    """An object that remembers which of its keys came twice."""

    twice: list[str]


def _loads_reporting(body: bytes, duplicates: list[str]) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> _Keys:
        found = _Keys(items)
        found.twice = []
        if len(found) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    found.twice.append(key)
                seen.add(key)
        return found

    value = json.loads(body, object_pairs_hook=pairs)

    def walk(node: Any, path: str) -> None:
        if isinstance(node, _Keys):
            duplicates.extend(f"{path}.{key}".lstrip(".") for key in node.twice)
            for key, child in node.items():
                walk(child, f"{path}.{key}")
        elif isinstance(node, list):
            for index, child in enumerate(node):
                walk(child, f"{path}[{index}]")

    walk(value, "")
    return value


class DecodeError(ValueError):
    """A value has a JSON type that its field cannot hold; the text is Go's."""


_JSON_NAMES = {str: "string", bool: "bool", int: "number", float: "number", dict: "object", list: "array"}


def _go_type(schema: Schema) -> str:
    match schema.type:
        case "string":
            return {"date-time": "v1.Time", "quantity": "resource.Quantity", "byte": "[]uint8"}.get(
                schema.format, "string"
            )
        case "integer":
            return "int32" if schema.format == "int32" else "int64"
        case "boolean":
            return "bool"
        case "number":
            return "float64"
        case "array":
            return "[]" + _go_type(schema.element())
        case _:
            if schema.additional is not None and not schema.properties:
                return "map[string]" + _go_type(schema.additional)
            return "v1." + (schema.name.rpartition(".")[2] or "Object")


def _wrong(schema: Schema, value: Any, owner: str, path: str) -> DecodeError:
    found = _JSON_NAMES.get(type(value), "value")
    if found == "number" and schema.type == "integer":
        found = f"number {value}"
    return DecodeError(f"json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {_go_type(schema)}")


def decode_typed(schema: Schema, value: Any, unknown: list[str], *, complete: bool = True) -> Obj:
    """A fresh object with only what *schema* knows; paths of dropped fields go to *unknown*. Raises ``DecodeError``.

    A required string or number that is missing is its zero value afterwards, as it is in Go, unless the object is only
    a part of one (*complete* is false): then it says nothing.
    """
    result = _decode(schema, value, "", schema.name.rpartition(".")[2], unknown, complete)
    assert isinstance(result, dict)
    return result


def _decode(schema: Schema, value: Any, path: str, owner: str, unknown: list[str], complete: bool) -> Any:
    kind = schema.type
    if kind == "object":
        if not isinstance(value, dict):
            raise _wrong(schema, value, owner, path)
        return _decode_object(schema, value, path, owner, unknown, complete)
    if kind == "array":
        if not isinstance(value, list):
            raise _wrong(schema, value, owner, path)
        element = schema.element()
        return [
            _decode(element, item, f"{path}[{index}]", owner, unknown, complete)
            for index, item in enumerate(value)
            if item is not None or not element.type
        ]
    if kind == "string":
        if isinstance(value, str):
            return _canonical(schema, value) if schema.format in _CANONICAL else value
        if schema.format == "int-or-string" and isinstance(value, int) and not isinstance(value, bool):
            return value
        if schema.format == "quantity" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return _canonical(schema, str(value))
        raise _wrong(schema, value, owner, path)
    if kind == "integer":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise _wrong(schema, value, owner, path)
        return int(value)
    if kind == "number":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(schema, value, owner, path)
        return value
    if kind == "boolean":
        if not isinstance(value, bool):
            raise _wrong(schema, value, owner, path)
        return value
    return copy_json(value)


def _decode_object(
    schema: Schema, value: Mapping[str, Any], path: str, owner: str, unknown: list[str], complete: bool
) -> Obj:
    result: Obj = {}
    if not schema.properties:
        if schema.additional is None:
            return {key: copy_json(child) for key, child in value.items()}
        extra = schema.additional
        for key, child in value.items():
            if child is None and extra.type == "string":
                result[key] = ""
            elif child is not None:
                result[key] = _decode(extra, child, f"{path}.{key}" if path else key, owner, unknown, complete)
        return result
    owner = schema.name.rpartition(".")[2] or owner
    for key, child in value.items():
        node = schema.properties.get(key)
        here = f"{path}.{key}" if path else key
        if node is None:
            unknown.append(here)
            continue
        if child is None:
            continue
        decoded = _decode(node, child, here, owner, unknown, complete)
        if not decoded and key not in schema.required and _omitted(schema, key, node, decoded):
            continue
        result[key] = decoded
    if complete:
        for key in schema.required:
            if key not in result:
                node = schema.properties[key]
                if node.format in _PLAIN and node.type in _ZEROS:
                    result[key] = _ZEROS[node.type]
    return result


_CANONICAL = frozenset({"byte", "date-time", "quantity"})
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n]")


def _canonical(schema: Schema, value: str) -> str:
    try:
        if schema.format == "byte":
            base64.b64decode(value, validate="\n" not in value and "\r" not in value)
            return value
        if schema.format == "quantity":
            return canonical_quantity(value)
        return canonical_time(value, micro=schema.name == "microtime")
    except ValueError as error:
        if schema.format == "byte":
            wrong = _NOT_BASE64.search(value)
            where = wrong.start() if wrong is not None else len(value)
            raise DecodeError(f"illegal base64 data at input byte {where}") from error
        raise DecodeError(str(error)) from error


_PLAIN = frozenset({"", "int32", "int64", "double"})
_ZEROS: Mapping[str, Any] = {"string": "", "integer": 0, "number": 0, "boolean": False}


def _omitted(owner: Schema, key: str, schema: Schema, value: Any) -> bool:
    """Whether Go leaves out this empty *value*; an empty struct (``emptyDir: {}``) means something."""
    plain_map = schema.type == "object" and not schema.properties and schema.additional is not None
    return schema.type == "array" or plain_map or (key in owner.omit_zero and not isinstance(value, dict))


def copy_json(value: Any) -> Any:
    """A copy that shares no container with *value*."""
    if isinstance(value, dict):
        return {key: copy_json(child) for key, child in value.items()}
    if isinstance(value, list):
        return [copy_json(child) for child in value]
    return value


def not_handled(kind: str, version: str, why: str) -> StatusError:
    """The 400 for a body that cannot become *kind*."""
    return bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {why}')
