"""The functions and methods that CEL expressions may call: the standard ones, and Kubernetes' additions."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from kaito_api.quantity import parse_quantity

__all__ = ["FUNCTIONS", "METHODS", "CelError", "equal", "kind_of"]


class CelError(ValueError):
    """An expression has no value: a missing key, a wrong type, an index out of range."""


_KINDS: dict[type, str] = {
    bool: "bool",
    int: "int",
    float: "double",
    str: "string",
    bytes: "bytes",
    list: "list",
    dict: "map",
    type(None): "null_type",
    datetime: "google.protobuf.Timestamp",
    timedelta: "google.protobuf.Duration",
}


def kind_of(value: Any) -> str:
    """The name of a value's CEL type."""
    return _KINDS.get(type(value), "dyn")


def equal(left: Any, right: Any) -> bool:
    """CEL's ``==``: numbers compare across types, a bool is no number."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    return bool(left == right)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise CelError(f"no such overload: expected string, got {kind_of(value)}")
    return value


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CelError(f"no such overload: expected list, got {kind_of(value)}")
    return value


def _size(value: Any) -> int:
    if not isinstance(value, (str, list, dict, bytes)):
        raise CelError("no such overload: size()")
    return len(value)


def _matches(value: Any, pattern: Any) -> bool:
    from kaito_ctrl.devcluster.apiserver.structural import compile_pattern

    try:
        return compile_pattern(_text(pattern)).search(_text(value)) is not None
    except re.error as error:
        raise CelError(f"error parsing regexp: {error}") from error


def _int(value: Any) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp())
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise CelError("no such overload: int()")
    try:
        return int(value)
    except ValueError as error:
        raise CelError(f"type conversion error from '{kind_of(value)}' to 'int'") from error


def _double(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise CelError("no such overload: double()")
    try:
        return float(value)
    except ValueError as error:
        raise CelError("type conversion error from 'string' to 'double'") from error


def _string(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}s"
    if isinstance(value, (int, str)):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    raise CelError("no such overload: string()")


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in {"true", "True", "TRUE", "t", "1"}:
        return True
    if value in {"false", "False", "FALSE", "f", "0"}:
        return False
    raise CelError("type conversion error from 'string' to 'bool'")


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    text = _text(value).lstrip("+-")
    if text != "0" and not re.fullmatch(f"({_DURATION.pattern})+", text):
        raise CelError("type conversion error from 'string' to 'google.protobuf.Duration'")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    return timedelta(seconds=-seconds if value.startswith("-") else seconds)


def _timestamp(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    try:
        return datetime.fromisoformat(_text(value))
    except ValueError as error:
        raise CelError("type conversion error from 'string' to 'google.protobuf.Timestamp'") from error


def _is_quantity(value: Any) -> bool:
    try:
        parse_quantity(_text(value))
    except ValueError:
        return False
    return True


def _is_url(value: Any) -> bool:
    parts = urlsplit(_text(value))
    return bool(parts.scheme and (parts.netloc or parts.path))


def _substring(value: Any, start: int, end: int | None = None) -> str:
    text = _text(value)
    stop = len(text) if end is None else end
    if not 0 <= start <= stop <= len(text):
        raise CelError(f"index out of range: {start if not 0 <= start <= len(text) else stop}")
    return text[start:stop]


def _index_of(value: Any, part: Any, start: int = 0) -> int:
    if isinstance(value, list):
        return next((at for at, item in enumerate(value) if equal(item, part)), -1)
    return _text(value).find(_text(part), start)


def _last_index_of(value: Any, part: Any) -> int:
    if isinstance(value, list):
        return next((at for at in range(len(value) - 1, -1, -1) if equal(value[at], part)), -1)
    return _text(value).rfind(_text(part))


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    return _text(value).replace(old, new, count)


def _split(value: Any, separator: str, count: int = -1) -> list[str]:
    text = _text(value)
    if count == 0:
        return []
    if not separator:
        return list(text)
    return text.split(separator, count - 1 if count > 0 else -1)


def _join(value: Any, separator: str = "") -> str:
    return separator.join(_text(item) for item in _items(value))


def _char_at(value: Any, index: int) -> str:
    text = _text(value)
    if not 0 <= index <= len(text):
        raise CelError(f"index out of range: {index}")
    return text[index : index + 1]


def _find(value: Any, pattern: str) -> str:
    from kaito_ctrl.devcluster.apiserver.structural import compile_pattern

    found = compile_pattern(pattern).search(_text(value))
    return found.group() if found else ""


def _find_all(value: Any, pattern: str, limit: int = -1) -> list[str]:
    from kaito_ctrl.devcluster.apiserver.structural import compile_pattern

    found = [match.group() for match in compile_pattern(pattern).finditer(_text(value))]
    return found if limit < 0 else found[:limit]


def _least(value: Any) -> Any:
    if not _items(value):
        raise CelError("min called on empty list")
    return min(value)


def _most(value: Any) -> Any:
    if not _items(value):
        raise CelError("max called on empty list")
    return max(value)


def _sorted(value: Any) -> bool:
    items = _items(value)
    return all(a <= b for a, b in pairwise(items))


def _distinct(value: Any) -> list[Any]:
    found: list[Any] = []
    for item in _items(value):
        if not any(equal(item, have) for have in found):
            found.append(item)
    return found


Entry = tuple[tuple[int, ...], Callable[..., Any]]

FUNCTIONS: dict[str, Entry] = {
    "size": ((1,), _size),
    "int": ((1,), _int),
    "uint": ((1,), _int),
    "double": ((1,), _double),
    "string": ((1,), _string),
    "bool": ((1,), _bool),
    "bytes": ((1,), lambda value: _text(value).encode()),
    "dyn": ((1,), lambda value: value),
    "type": ((1,), kind_of),
    "duration": ((1,), _duration),
    "timestamp": ((1,), _timestamp),
    "matches": ((2,), _matches),
    "quantity": ((1,), lambda value: parse_quantity(_text(value))),
    "isQuantity": ((1,), _is_quantity),
    "isURL": ((1,), _is_url),
}

METHODS: dict[str, Entry] = {
    "size": ((0,), _size),
    "matches": ((1,), _matches),
    "startsWith": ((1,), lambda value, part: _text(value).startswith(_text(part))),
    "endsWith": ((1,), lambda value, part: _text(value).endswith(_text(part))),
    "contains": ((1,), lambda value, part: _text(part) in _text(value)),
    "lowerAscii": ((0,), lambda value: _text(value).lower()),
    "upperAscii": ((0,), lambda value: _text(value).upper()),
    "trim": ((0,), lambda value: _text(value).strip()),
    "charAt": ((1,), _char_at),
    "substring": ((1, 2), _substring),
    "indexOf": ((1, 2), _index_of),
    "lastIndexOf": ((1,), _last_index_of),
    "replace": ((2, 3), _replace),
    "split": ((1, 2), _split),
    "join": ((0, 1), _join),
    "find": ((1,), _find),
    "findAll": ((1, 2), _find_all),
    "min": ((0,), _least),
    "max": ((0,), _most),
    "sum": ((0,), lambda value: sum(_items(value))),
    "isSorted": ((0,), _sorted),
    "distinct": ((0,), _distinct),
    "getSeconds": ((0,), lambda value: int(value.total_seconds())),
    "getMinutes": ((0,), lambda value: int(value.total_seconds() // 60)),
    "getHours": ((0,), lambda value: int(value.total_seconds() // 3600)),
    "isGreaterThan": ((1,), lambda left, right: left > right),
    "isLessThan": ((1,), lambda left, right: left < right),
    "compareTo": ((1,), lambda left, right: (left > right) - (left < right)),
}
