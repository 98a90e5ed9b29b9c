"""Bodies in Kubernetes' protobuf, which newer ``kubectl`` sends for some built-in kinds; answers are always JSON.

The wire holds field numbers only: names and nesting come from the type tables. A field that the tables do not number is
newer than they are and is left out.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec

from kaito_ctrl.devcluster.apiserver.schema import Schema, builtin, type_table, wire_fields

__all__ = ["PROTOBUF", "decode_protobuf"]

PROTOBUF = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Wire = int | bytes


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Wire]]:
    """Number and raw value of every field. Raises ``ValueError`` or ``IndexError`` for a broken message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in {_FIXED64, _FIXED32}:
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"proto: illegal wireType {kind}")
        if at + size > len(data):
            raise ValueError("unexpected EOF")
        yield number, data[at : at + size]
        at += size


def _raw(value: Wire) -> bytes:
    if isinstance(value, int):
        raise ValueError("proto: wrong wireType for a message")
    return value


def _message(data: Wire) -> dict[int, Wire]:
    return dict(_fields(_raw(data)))


def _signed(value: Wire) -> int:
    if isinstance(value, bytes):
        raise ValueError("proto: wrong wireType for an integer")
    return value - (1 << 64) if value >= 1 << 63 else value


@cache
def _layout(name: str) -> dict[int, Any]:
    """Field number to name, or for what JSON shows inline to a layout of its own."""
    package, _, kind = name.partition(".")
    tree: dict[int, Any] = {}
    for field, path, _omitted in wire_fields(package, kind):
        node = tree
        for number in path[:-1]:
            node = node.setdefault(number, {})
        node[path[-1]] = field
    return tree


def _scalar(schema: Schema, value: Wire) -> Any:
    match schema.type, schema.format:
        case "string", "date-time":
            parts = _message(value)
            seconds, nanos = _signed(parts.get(1, 0)), _signed(parts.get(2, 0))
            # Go's zero time stands for none.
            if not parts or seconds < -62135596800 + 1:
                return None
            moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            return f"{moment}.{nanos // 1000:06d}Z" if schema.name == "microtime" else f"{moment}Z"
        case "string", "quantity":
            return _raw(_message(value).get(1, b"")).decode()
        case "string", "int-or-string":
            parts = _message(value)
            if _signed(parts.get(1, 0)) == 0:
                number = _signed(parts.get(2, 0)) & 0xFFFFFFFF
                return number - (1 << 32) if number >= 1 << 31 else number
            return _raw(parts.get(3, b"")).decode()
        case "string", "byte":
            return base64.b64encode(_raw(value)).decode()
        case "string", _:
            return _raw(value).decode()
        case "integer", _:
            return _signed(value)
        case "boolean", _:
            return bool(_signed(value))
        case "number", _:
            return struct.unpack("<d", _raw(value))[0]
        case _:
            raw = _message(value).get(1, b"")
            return msgspec.json.decode(_raw(raw)) if raw else None


def _value(schema: Schema, value: Wire) -> Any:
    if schema.type == "object" and schema.name and (schema.properties or not schema.additional):
        return _object(schema, _raw(value))
    return _scalar(schema, value)


def _object(schema: Schema, data: bytes) -> dict[str, Any]:
    result: dict[str, Any] = {}
    _fill(result, schema, data, _layout(schema.name))
    return {
        key: value
        for key, value in result.items()
        if value is not None and (value or key not in schema.omit_zero or isinstance(value, dict))
    }


def _fill(result: dict[str, Any], schema: Schema, data: bytes, layout: dict[int, Any]) -> None:
    for number, value in _fields(data):
        name = layout.get(number)
        if isinstance(name, dict):
            _fill(result, schema, _raw(value), name)
            continue
        if name is None or name not in schema.properties:
            continue
        field = schema.properties[name]
        if field.type == "array":
            result.setdefault(name, []).append(_value(field.element(), value))
        elif field.type == "object" and field.additional is not None and not field.properties:
            entry = _message(value)
            item = entry.get(2)
            extra = field.additional
            empty: Any = "" if extra.type == "string" else {}
            found = empty if item is None else _entry(extra, item)
            result.setdefault(name, {})[_raw(entry.get(1, b"")).decode()] = found
        else:
            result[name] = _value(field, value)


def _entry(schema: Schema, value: Wire) -> Any:
    if schema.type == "array":  # map[string]ExtraValue: a message that only holds the list
        return [_value(schema.element(), item) for _, item in _fields(_raw(value))]
    return _value(schema, value)


def decode_protobuf(body: bytes) -> dict[str, Any]:
    """The object in *body*, as JSON values. Raises ``ValueError`` or ``IndexError`` when it is none we know."""
    if not body.startswith(_MAGIC):
        raise ValueError("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    envelope = _message(body[len(_MAGIC) :])
    meta = _message(envelope.get(1, b""))
    api_version, kind = _raw(meta.get(1, b"")).decode(), _raw(meta.get(2, b"")).decode()
    return {"apiVersion": api_version, "kind": kind, **_object(_type_of(api_version, kind), _raw(envelope.get(2, b"")))}


def _type_of(api_version: str, kind: str) -> Schema:
    group = api_version.partition("/")[0] if "/" in api_version else ""
    for package in (
        f"{group.partition('.')[0]}{api_version.rpartition('/')[2].removeprefix('v1')}",
        group.partition(".")[0] or "core",
        "meta",
    ):
        if kind in type_table().get(package, {}):
            return builtin(f"{package}.{kind}")
    raise ValueError(f'no kind "{kind}" is registered for version "{api_version}" in protobuf')
