"""The OpenAPI version 2 document in protobuf, the only form that older ``kubectl`` accepts.

A writer for the few messages of gnostic's ``openapi.v2`` schema that the document needs. Field numbers are that
schema's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.store import encode

__all__ = ["encode_document"]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, value: Any) -> bytes:
    return _bytes(number, str(value).encode()) if value else b""


def _flag(number: int, value: Any) -> bytes:
    return _varint(number << 3) + b"\x01" if value else b""


def _integer(number: int, value: Any) -> bytes:
    return _varint(number << 3) + _varint(int(value)) if value else b""


def _double(number: int, value: Any) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", float(value)) if value else b""


def _named(number: int, name: str, value: bytes) -> bytes:
    return _bytes(number, _text(1, name) + _bytes(2, value))


def _any(value: Any) -> bytes:
    # JSON is YAML.
    return _bytes(2, encode(value))


def _extensions(number: int, source: Mapping[str, Any]) -> bytes:
    return b"".join(_named(number, key, _any(value)) for key, value in source.items() if key.startswith("x-"))


def _schema(source: Mapping[str, Any]) -> bytes:
    parts = [
        _text(1, source.get("$ref")),
        _text(2, source.get("format")),
        _text(3, source.get("title")),
        _text(4, source.get("description")),
        _double(7, source.get("maximum")),
        _double(9, source.get("minimum")),
        _integer(11, source.get("maxLength")),
        _integer(12, source.get("minLength")),
        _text(13, source.get("pattern")),
        _integer(14, source.get("maxItems")),
        _integer(15, source.get("minItems")),
    ]
    parts += [_text(19, name) for name in source.get("required") or ()]
    parts += [_bytes(20, _any(value)) for value in source.get("enum") or ()]
    extra = source.get("additionalProperties")
    if isinstance(extra, Mapping):
        parts.append(_bytes(21, _bytes(1, _schema(extra))))
    if source.get("type"):
        parts.append(_bytes(22, _text(1, source["type"])))
    if isinstance(source.get("items"), Mapping):
        parts.append(_bytes(23, _bytes(1, _schema(source["items"]))))
    if source.get("properties"):
        parts.append(_bytes(25, _schemas(source["properties"].items())))
    parts.append(_extensions(31, source))
    return b"".join(parts)


def _schemas(items: Iterable[tuple[str, Mapping[str, Any]]]) -> bytes:
    return b"".join(_named(1, name, _schema(source)) for name, source in items)


def _parameter(source: Mapping[str, Any]) -> bytes:
    query = _text(2, source["in"]) + _text(4, source["name"]) + _text(6, source["type"])
    # ParametersItem.parameter, Parameter.non_body_parameter, NonBodyParameter.query_parameter_sub_schema
    return _bytes(1, _bytes(2, _bytes(3, query)))


def _operation(source: Mapping[str, Any]) -> bytes:
    responses = b"".join(
        _named(1, code, _bytes(1, _text(1, response.get("description", ""))))
        for code, response in source["responses"].items()
    )
    return b"".join(
        [
            _text(5, source.get("operationId")),
            *(_text(7, media) for media in source.get("consumes") or ()),
            *(_bytes(8, _parameter(parameter)) for parameter in source.get("parameters") or ()),
            _bytes(9, responses),
            _extensions(13, source),
        ]
    )


_METHODS = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}


def _path(source: Mapping[str, Any]) -> bytes:
    return b"".join(_bytes(_METHODS[method], _operation(operation)) for method, operation in source.items())


def encode_document(document: Mapping[str, Any]) -> bytes:
    """*document*, a version 2 document as JSON values, in protobuf."""
    info = _text(1, document["info"]["title"]) + _text(2, document["info"]["version"])
    paths = b"".join(_named(2, path, _path(item)) for path, item in document["paths"].items())
    return b"".join(
        [
            _text(1, document["swagger"]),
            _bytes(2, info),
            _bytes(8, paths),
            _bytes(9, _schemas(document["definitions"].items())),
        ]
    )
