"""JSONPath as CRD printer columns and selectable fields use it.

``.a.b``, ``['a.b']``, ``.a\\.b``, ``[0]``, ``[-1]``, ``[1:3]``, ``[*]``, ``.*``, ``..name`` and filters
``[?(@.type=="Ready")]`` with ``== != < <= > >=`` or bare existence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

__all__ = ["JSONPathError", "compile_path", "find"]

Step = Callable[[Any], Iterator[Any]]


class JSONPathError(ValueError):
    """The text is no JSONPath."""


_FIELD = re.compile(r"(?:[^\\.\[\]\s]|\\.)+")
_FILTER = re.compile(r"^\s*(.+?)\s*(?:(==|!=|<=|>=|<|>)\s*(.+?)\s*)?$")


def _field(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _every(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _deep(value: Any) -> Iterator[Any]:
    yield value
    for child in _every(value):
        yield from _deep(child)


def _slice(text: str) -> Step:
    if ":" in text:
        parts = [int(part) if part else None for part in text.split(":")]
        chosen = slice(*parts)

        def many(value: Any) -> Iterator[Any]:
            if isinstance(value, list):
                yield from value[chosen]

        return many
    index = int(text)

    def one(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= index < len(value):
            yield value[index]

    return one


def _literal(text: str) -> Any:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text in {"true", "false"}:
        return text == "true"
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        raise JSONPathError(f"unrecognized value {text!r} in filter") from None


def _holds(left: Any, operator: str, right: Any) -> bool:
    if operator == "==":
        return bool(left == right)
    if operator == "!=":
        return bool(left != right)
    try:
        return {
            "<": lambda: left < right,
            "<=": lambda: left <= right,
            ">": lambda: left > right,
            ">=": lambda: left >= right,
        }[operator]() is True
    except TypeError:
        return False


def _filter(text: str) -> Step:
    match = _FILTER.match(text)
    if match is None or not match.group(1).startswith("@"):
        raise JSONPathError(f"unsupported filter {text!r}")
    left = compile_path(match.group(1)[1:])
    operator, literal = match.group(2), match.group(3)
    right = _literal(literal) if operator else None

    def step(value: Any) -> Iterator[Any]:
        for item in value if isinstance(value, list) else ():
            found = left(item)
            if (found and not operator) or (operator and any(_holds(have, operator, right) for have in found)):
                yield item

    return step


def _closing(text: str, at: int) -> int:
    """The index of the bracket that closes the one before *at*; quotes hide brackets."""
    depth, quote = 1, ""
    for index in range(at, len(text)):
        char = text[index]
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
            if not depth:
                return index
    raise JSONPathError("unterminated array")


def _steps(text: str) -> list[Step]:
    steps: list[Step] = []
    at = 0
    while at < len(text):
        char = text[at]
        if text.startswith("..", at):
            steps.append(_deep)
            at += 1 if text[at + 2 : at + 3] == "[" else 2
            if text[at : at + 1] == ".":
                at += 1
            match = _FIELD.match(text, at)
            if match:
                steps.append(_field(re.sub(r"\\(.)", r"\1", match.group())))
                at = match.end()
        elif char == ".":
            at += 1
            if text[at : at + 1] == "*":
                steps.append(_every)
                at += 1
                continue
            match = _FIELD.match(text, at)
            if match is None:
                if at == len(text):
                    break
                if text[at] == "[":
                    continue
                raise JSONPathError(f"unexpected {text[at:]!r}")
            steps.append(_field(re.sub(r"\\(.)", r"\1", match.group())))
            at = match.end()
        elif char == "[":
            end = _closing(text, at + 1)
            inner = text[at + 1 : end].strip()
            if inner == "*":
                steps.append(_every)
            elif inner.startswith("?(") and inner.endswith(")"):
                steps.append(_filter(inner[2:-1]))
            elif inner[:1] in {"'", '"'}:
                steps.append(_field(inner[1:-1]))
            elif re.fullmatch(r"-?\d*(:-?\d*){0,2}", inner) and inner:
                steps.append(_slice(inner))
            else:
                raise JSONPathError(f"invalid array index {inner}")
            at = end + 1
        else:
            match = _FIELD.match(text, at)
            if match is None:
                raise JSONPathError(f"unexpected {text[at:]!r}")
            steps.append(_field(re.sub(r"\\(.)", r"\1", match.group())))
            at = match.end()
    return steps


@lru_cache(maxsize=1024)
def compile_path(text: str) -> Callable[[Any], list[Any]]:
    """A function that gives everything *text* finds in a value. Raises :class:`JSONPathError`."""
    text = text.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    if text.startswith("$"):
        text = text[1:]
    steps = _steps(text)

    def run(value: Any) -> list[Any]:
        found = [value]
        for step in steps:
            found = [child for item in found for child in step(item)]
        return found

    return run


def find(text: str, value: Any) -> list[Any]:
    """Everything that the path *text* finds in *value*."""
    return compile_path(text)(value)
