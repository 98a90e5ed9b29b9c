"""JSON merge patch (RFC 7386) and JSON patch (RFC 6902), copy-on-write: the patched value is never changed."""

from __future__ import annotations

from typing import Any

__all__ = ["PatchError", "json_patch", "merge_patch"]


class PatchError(ValueError):
    """The patch does not apply. ``malformed`` tells a patch that makes no sense from one that does not fit."""

    def __init__(self, message: str, *, malformed: bool = False) -> None:
        super().__init__(message)
        self.malformed = malformed


def merge_patch(target: Any, patch: Any) -> Any:
    """*target* with *patch* merged in; ``null`` removes a key."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merge_patch(result.get(key), value)
        else:
            result[key] = value
    return result


def _pointer(text: Any) -> list[str]:
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise PatchError(f"invalid JSON pointer {text!r}", malformed=True)
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(token: str, length: int, path: str) -> int:
    try:
        index = int(token)
    except ValueError:
        raise PatchError(f'invalid array index "{token}" in path "{path}"') from None
    if index < 0:
        index += length
    if not 0 <= index < length:
        raise PatchError(f'Invalid index referenced: "{path}"')
    return index


def _get(value: Any, path: list[str], text: str, op: str) -> Any:
    for token in path:
        if isinstance(value, dict):
            if token not in value:
                raise PatchError(f"{op} operation does not apply: doc is missing path: {text}: missing value")
            value = value[token]
        elif isinstance(value, list):
            value = value[_index(token, len(value), text)]
        else:
            raise PatchError(f"{op} operation does not apply: doc is missing path: {text}: missing value")
    return value


def _edit(value: Any, path: list[str], op: str, text: str, new: Any) -> Any:
    """*value* with *new* put at *path*, or that place removed; every container on the way is copied."""
    if not path:
        return new
    token, rest = path[0], path[1:]
    if isinstance(value, dict):
        copy = dict(value)
        if (rest or op != "add") and token not in value:
            what = "missing value" if not rest else "missing path"
            raise PatchError(f"{op} operation does not apply: doc is missing key: {text}: {what}")
        if rest:
            copy[token] = _edit(value[token], rest, op, text, new)
        elif op == "remove":
            del copy[token]
        else:
            copy[token] = new
        return copy
    if isinstance(value, list):
        items = list(value)
        if rest:
            index = _index(token, len(items), text)
            items[index] = _edit(items[index], rest, op, text, new)
        elif op == "add":
            items.insert(len(items) if token == "-" else _index(token, len(items) + 1, text), new)
        elif op == "remove":
            del items[_index(token, len(items), text)]
        else:
            items[_index(token, len(items), text)] = new
        return items
    raise PatchError(f"{op} operation does not apply: doc is missing path: {text}: missing value")


def json_patch(target: Any, operations: Any) -> Any:
    """*target* after all *operations*. Raises :class:`PatchError` at the first that fails."""
    if not isinstance(operations, list):
        raise PatchError("cannot unmarshal object into Go value of type jsonpatch.Patch", malformed=True)
    value = target
    for operation in operations:
        if not isinstance(operation, dict) or "op" not in operation or "path" not in operation:
            raise PatchError("a JSON patch operation needs op and path", malformed=True)
        op, text = operation["op"], operation["path"]
        path = _pointer(text)
        match op:
            case "add" | "replace":
                if "value" not in operation:
                    raise PatchError(f"{op} operation has no value", malformed=True)
                value = _edit(value, path, op, text, operation["value"])
            case "remove":
                value = _edit(value, path, op, text, None)
            case "test":
                if _get(value, path, text, op) != operation.get("value"):
                    raise PatchError(f"testing value {text} failed: test failed")
            case "copy" | "move":
                source = _pointer(operation.get("from"))
                moved = _get(value, source, text, op)
                if op == "move":
                    value = _edit(value, source, "remove", text, None)
                value = _edit(value, path, "add", text, moved)
            case _:
                raise PatchError(f"Unexpected kind: {op}")
    return value
