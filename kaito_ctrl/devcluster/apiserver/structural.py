"""Structural schemas at work: pruning, defaulting and validation of custom resources.

``prune`` and ``fill_defaults`` work in place on an object the caller owns. ``validate`` only looks, and reports every
problem at once, worded as the real server words it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from kaito_ctrl.devcluster.apiserver.decode import copy_json
from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.formats import has_format
from kaito_ctrl.devcluster.apiserver.schema import ANY, Schema
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["compile_pattern", "fill_defaults", "prune", "type_name", "validate"]

_EMBEDDED = frozenset({"apiVersion", "kind", "metadata"})


def prune(obj: Obj, schema: Schema, *, root: bool = True) -> list[str]:
    """Drop what *schema* does not know, in place; returns the paths that were dropped."""
    dropped: list[str] = []
    _prune(obj, schema, "", dropped, keep=_EMBEDDED if root else frozenset())
    return dropped


def _prune(value: Any, schema: Schema, path: str, dropped: list[str], keep: frozenset[str] = frozenset()) -> None:
    if isinstance(value, dict):
        if schema.embedded:
            keep = keep | _EMBEDDED
        for key in list(value):
            here = f"{path}.{key}" if path else key
            child = schema.properties.get(key)
            if key in keep and (not path or child is None or schema.embedded):
                continue
            if child is None:
                child = schema.additional
            if child is None:
                if schema.preserve or schema is ANY:
                    continue
                dropped.append(here)
                del value[key]
            elif child is not ANY:
                _prune(value[key], child, here, dropped)
    elif isinstance(value, list) and schema.items is not None:
        for index, item in enumerate(value):
            _prune(item, schema.items, f"{path}[{index}]", dropped)


def fill_defaults(value: Any, schema: Schema) -> None:
    """Set every default that *schema* has for what is missing, in place; a ``null`` that may not be one goes."""
    if isinstance(value, dict):
        for key, child in schema.properties.items():
            if key in value:
                if value[key] is None and not child.nullable:
                    if child.default is not None:
                        value[key] = copy_json(child.default)
                    elif child.type or child.int_or_string:
                        del value[key]
            elif child.default is not None:
                value[key] = copy_json(child.default)
            if key in value and isinstance(value[key], (dict, list)):
                fill_defaults(value[key], child)
        if schema.additional is not None and schema.additional is not ANY:
            for key, item in value.items():
                if key not in schema.properties:
                    fill_defaults(item, schema.additional)
    elif isinstance(value, list) and schema.items is not None:
        for item in value:
            fill_defaults(item, schema.items)


def type_name(value: Any) -> str:
    """The JSON schema type of *value*."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


@lru_cache(maxsize=512)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """*pattern* in Go's syntax, as far as Python's differs where CRDs use it. Raises ``re.error``."""
    text = pattern.replace(r"\z", r"\Z")
    for name, chars in (
        ("alpha", "A-Za-z"),
        ("digit", "0-9"),
        ("alnum", "A-Za-z0-9"),
        ("lower", "a-z"),
        ("upper", "A-Z"),
    ):
        text = text.replace(f"[:{name}:]", chars)
    # In Go `$` is the end of the text; in Python it also matches before a last newline.
    text = re.sub(r"(?<!\\)((?:\\\\)*)\$(?=\)|\||$)", lambda m: m.group(1) + r"\Z", text)
    return re.compile(text)


def validate(value: Any, schema: Schema, path: str = "") -> Iterator[FieldError]:
    """Everything in *value* that breaks *schema*."""
    source = schema.raw
    if not source:
        return
    if value is None:
        if schema.nullable:
            return
        if schema.type or schema.int_or_string:
            yield _wrong_type(path, schema.type or "integer,string", "null")
            return
    found = type_name(value)
    if schema.int_or_string:
        if found not in {"integer", "string"}:
            yield _wrong_type(path, "integer,string", found)
            return
    elif schema.type and found != schema.type and not (schema.type == "number" and found == "integer"):
        yield _wrong_type(path, schema.type, found)
        return
    if "enum" in source and value not in source["enum"]:
        yield FieldError.unsupported(path, value, source["enum"])
    if isinstance(value, str):
        yield from _validate_string(value, schema, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _validate_number(value, source, path)
    elif isinstance(value, list):
        yield from _validate_list(value, schema, path)
    elif isinstance(value, dict):
        yield from _validate_object(value, schema, path)
    yield from _validate_logic(value, source, path)


def _wrong_type(path: str, wanted: str, found: str) -> FieldError:
    shown = path or "<nil>"
    return FieldError.type_invalid(shown, found, f'{path} in body must be of type {wanted}: "{found}"'.lstrip())


def _validate_string(value: str, schema: Schema, path: str) -> Iterator[FieldError]:
    source = schema.raw
    if "maxLength" in source and len(value) > source["maxLength"]:
        yield FieldError.too_long(path, source["maxLength"])
    if "minLength" in source and len(value) < source["minLength"]:
        yield FieldError.invalid(path, value, f"{path} in body should be at least {source['minLength']} chars long")
    if source.get("pattern") and not compile_pattern(source["pattern"]).search(value):
        yield FieldError.invalid(path, value, f"{path} in body should match '{source['pattern']}'")
    if schema.format and not has_format(schema.format, value):
        yield FieldError.invalid(path, value, f'{path} in body must be of type {schema.format}: "{value}"')


def _validate_number(value: float, source: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    if "minimum" in source:
        least, exclusive = source["minimum"], source.get("exclusiveMinimum")
        if value < least or (exclusive and value == least):
            word = "greater than" if exclusive else "greater than or equal to"
            yield FieldError.invalid(path, value, f"{path} in body should be {word} {least}")
    if "maximum" in source:
        most, exclusive = source["maximum"], source.get("exclusiveMaximum")
        if value > most or (exclusive and value == most):
            word = "less than" if exclusive else "less than or equal to"
            yield FieldError.invalid(path, value, f"{path} in body should be {word} {most}")
    if source.get("multipleOf") and not math.isclose(value % source["multipleOf"], 0.0, abs_tol=1e-9):
        yield FieldError.invalid(path, value, f"{path} in body should be a multiple of {source['multipleOf']}")


def _validate_list(value: list[Any], schema: Schema, path: str) -> Iterator[FieldError]:
    source = schema.raw
    count = len(value)
    if "maxItems" in source and count > source["maxItems"]:
        yield FieldError("FieldValueTooMany", path, count, f"must have at most {source['maxItems']} items")
    if "minItems" in source and count < source["minItems"]:
        yield FieldError.invalid(path, count, f"{path} in body should have at least {source['minItems']} items")
    if schema.items is not None:
        for index, item in enumerate(value):
            yield from validate(item, schema.items, f"{path}[{index}]")
    if schema.list_type in {"set", "map"}:
        seen: set[bytes] = set()
        for index, item in enumerate(value):
            identity: Any = item
            if schema.list_type == "map":
                if not isinstance(item, dict):
                    continue
                identity = {key: item.get(key, schema.element().child(key).default) for key in schema.list_keys}
            mark = msgspec.json.encode(identity)
            if mark in seen:
                yield FieldError.duplicate(f"{path}[{index}]", identity)
            seen.add(mark)


def _validate_object(value: Mapping[str, Any], schema: Schema, path: str) -> Iterator[FieldError]:
    source = schema.raw
    prefix = f"{path}." if path else ""
    for key in schema.required:
        if key not in value:
            yield FieldError.required(prefix + key)
    count = len(value)
    if "maxProperties" in source and count > source["maxProperties"]:
        yield FieldError("FieldValueTooMany", path, count, f"must have at most {source['maxProperties']} items")
    if "minProperties" in source and count < source["minProperties"]:
        yield FieldError.invalid(
            path, count, f"{path} in body should have at least {source['minProperties']} properties"
        )
    for key, item in value.items():
        child = schema.properties.get(key) or schema.additional
        if child is not None:
            yield from validate(item, child, prefix + key)


@lru_cache(maxsize=2048)
def _logic_schema(text: bytes) -> Schema:
    from kaito_ctrl.devcluster.apiserver.schema import from_openapi

    return from_openapi(msgspec.json.decode(text))


def _fits(value: Any, source: Mapping[str, Any], path: str) -> list[FieldError]:
    return list(validate(value, _logic_schema(msgspec.json.encode(source)), path))


def _composite(path: str, what: str) -> FieldError:
    """An error of a whole schema belongs to no field, and shows no value."""
    return FieldError.invalid("<nil>", "", f'"{path}" must {what}')


def _validate_logic(value: Any, source: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    parts = source.get("allOf") or ()
    tries = [_fits(value, part, path) for part in parts]
    for errors in tries:
        yield from errors
    if any(tries):
        none = ". None validated" if all(tries) else ""
        yield _composite(path, f"validate all the schemas (allOf){none}")
    options = source.get("anyOf")
    # The two types of an int-or-string were checked with the type.
    if options and not (source.get("x-kubernetes-int-or-string") and all(o.keys() == {"type"} for o in options)):
        tries = [_fits(value, part, path) for part in options]
        if all(tries):
            yield _composite(path, "validate at least one schema (anyOf)")
            yield from min(tries, key=len)
    options = source.get("oneOf")
    if options:
        tries = [_fits(value, part, path) for part in options]
        good = sum(not errors for errors in tries)
        if good != 1:
            found = "Found none valid" if not good else f"Found {good} valid alternatives"
            yield _composite(path, f"validate one and only one schema (oneOf). {found}")
            if not good:
                yield from min(tries, key=len)
    refused = source.get("not")
    if refused and not _fits(value, refused, path):
        yield _composite(path, "not validate the schema (not)")
