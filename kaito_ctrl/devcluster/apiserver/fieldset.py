"""Sets of field paths, in the very form of ``fieldsV1``: nested dicts keyed ``f:name``, ``k:{"name":"x"}``, ``v:"x"``.

A node without children is a member; one with children is a member only if it has ``"."``. Sets are never changed:
every operation returns a new one and may share parts of its inputs. The root is never a member.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from kaito_ctrl.devcluster.apiserver.schema import Schema

__all__ = ["FieldSet", "compare", "difference", "fields_of", "intersection", "item_key", "paths", "remove", "union"]

FieldSet = dict[str, Any]

_MEMBER = "."


def _is_member(node: FieldSet) -> bool:
    return not node or _MEMBER in node


def _children(node: FieldSet) -> FieldSet:
    if _MEMBER in node:
        return {key: child for key, child in node.items() if key != _MEMBER}
    return node


def _build(member: bool, children: FieldSet) -> FieldSet | None:
    if not children:
        return {} if member else None
    return {_MEMBER: {}, **children} if member else children


def _union(a: FieldSet, b: FieldSet) -> FieldSet:
    if a is b:
        return a
    children = _union_children(_children(a), _children(b))
    return _build(_is_member(a) or _is_member(b), children) or {}


def _union_children(a: FieldSet, b: FieldSet) -> FieldSet:
    result = dict(a)
    for key, child in b.items():
        have = result.get(key)
        result[key] = child if have is None else _union(have, child)
    return result


def union(a: FieldSet, b: FieldSet) -> FieldSet:
    """What is in either."""
    return _union_children(a, b)


def intersection(a: FieldSet, b: FieldSet) -> FieldSet:
    """What is in both."""
    result: FieldSet = {}
    for key, left in a.items():
        right = b.get(key)
        if right is None or key == _MEMBER:
            continue
        member = _is_member(left) and _is_member(right)
        node = _build(member, intersection(_children(left), _children(right)))
        if node is not None:
            result[key] = node
    return result


def difference(a: FieldSet, b: FieldSet) -> FieldSet:
    """What is in *a* but not in *b*."""
    result: FieldSet = {}
    for key, left in a.items():
        if key == _MEMBER:
            continue
        right = b.get(key)
        if right is None:
            result[key] = left
            continue
        member = _is_member(left) and not _is_member(right)
        node = _build(member, difference(_children(left), _children(right)))
        if node is not None:
            result[key] = node
    return result


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """The members as text: ``.spec.containers[name="x"].image``."""
    for key, child in fields.items():
        if key == _MEMBER:
            continue
        here = prefix + _segment(key)
        if _is_member(child):
            yield here
        yield from paths(_children(child), here)


def _segment(key: str) -> str:
    tag, rest = key[0], key[2:]
    if tag == "f":
        return "." + rest
    if tag == "k":
        keys: dict[str, Any] = msgspec.json.decode(rest)
        return "[" + ",".join(f"{name}={msgspec.json.encode(value).decode()}" for name, value in keys.items()) + "]"
    return f"[={rest}]" if tag == "v" else f"[{rest}]"


def item_key(item: Any, schema: Schema) -> str | None:
    """The path element of one item of an associative list; ``None`` when it lacks its keys."""
    if schema.list_type == "set":
        return "v:" + msgspec.json.encode(item).decode()
    if not isinstance(item, dict):
        return None
    keys = {}
    for name in sorted(schema.list_keys):
        value = item.get(name)
        if value is None:
            # Ports default to TCP before they are compared, and so do their keys.
            default = schema.element().child(name).default
            value = default if default is not None else ("TCP" if name == "protocol" else None)
        if value is not None:
            keys[name] = value
    return "k:" + msgspec.json.encode(keys).decode() if keys else None


def keyed_items(items: Any, schema: Schema) -> dict[str, Any] | None:
    """A list's items by path element; ``None`` when the list must be taken as a whole."""
    result: dict[str, Any] = {}
    for item in items:
        key = item_key(item, schema)
        if key is None or key in result:
            return None
        result[key] = item
    return result


def _collect(value: Any, schema: Schema, *, containers: bool) -> FieldSet:
    """The node of *value*: its leaves; with *containers* maps are members too, as for fields that were just added."""
    if isinstance(value, dict) and value and not schema.map_atomic:
        children = {
            "f:" + key: _collect(child, schema.child(key), containers=containers) for key, child in value.items()
        }
        member = containers and not schema.properties
        return _build(member, children) or {}
    if isinstance(value, list) and value and schema.list_type != "atomic":
        items = keyed_items(value, schema)
        if items is None:
            return {}
        if schema.list_type == "set":
            nodes: FieldSet = {key: {} for key in items}
        else:
            element = schema.element()
            nodes = {
                key: {_MEMBER: {}, **_collect(item, element, containers=containers)} for key, item in items.items()
            }
        return _build(containers, nodes) or {}
    return {}


def fields_of(obj: Mapping[str, Any], schema: Schema) -> FieldSet:
    """The fields that an applied configuration sets."""
    return {"f:" + key: _collect(child, schema.child(key), containers=False) for key, child in obj.items()}


def compare(old: Any, new: Any, schema: Schema) -> tuple[FieldSet, FieldSet]:
    """What *new* sets differently from *old*, and what it no longer has."""
    changed: FieldSet = {}
    removed: FieldSet = {}
    for key in new.keys() | old.keys():
        if key not in old:
            changed["f:" + key] = _collect(new[key], schema.child(key), containers=True)
        elif key not in new:
            removed["f:" + key] = _collect(old[key], schema.child(key), containers=True)
        else:
            _compare_into("f:" + key, old[key], new[key], schema.child(key), changed, removed)
    return changed, removed


def _compare_into(path: str, old: Any, new: Any, schema: Schema, changed: FieldSet, removed: FieldSet) -> None:
    if old is new or (old == new and type(old) is type(new)):
        return
    if isinstance(old, dict) and isinstance(new, dict) and not schema.map_atomic:
        if old and new:
            inner_changed, inner_removed = compare(old, new, schema)
            if inner_changed:
                changed[path] = inner_changed
            if inner_removed:
                removed[path] = inner_removed
            return
        if new:
            changed[path] = _children(_collect(new, schema, containers=True))
        else:
            removed[path] = _children(_collect(old, schema, containers=True))
        return
    if isinstance(old, list) and isinstance(new, list) and schema.list_type != "atomic":
        before, after = keyed_items(old, schema), keyed_items(new, schema)
        if before is not None and after is not None:
            _compare_items(path, before, after, schema, changed, removed)
            return
    changed[path] = _collect(new, schema, containers=True)


def _compare_items(
    path: str, before: dict[str, Any], after: dict[str, Any], schema: Schema, changed: FieldSet, removed: FieldSet
) -> None:
    element = schema.element()
    inner_changed: FieldSet = {}
    inner_removed: FieldSet = {}
    for key, item in after.items():
        if key not in before:
            inner_changed[key] = {_MEMBER: {}, **_collect(item, element, containers=True)}
        else:
            _compare_into(key, before[key], item, element, inner_changed, inner_removed)
    for key, item in before.items():
        if key not in after:
            inner_removed[key] = {_MEMBER: {}, **_collect(item, element, containers=True)}
    if schema.list_type == "set":
        inner_changed = {key: {} for key in inner_changed}
        inner_removed = {key: {} for key in inner_removed}
    if inner_changed:
        changed[path] = inner_changed
    if inner_removed:
        removed[path] = inner_removed


def remove(value: Any, fields: FieldSet, kept: FieldSet, schema: Schema) -> Any:
    """*value* without the members of *fields*; a container stays as long as *kept* owns something in it."""
    if isinstance(value, dict):
        result = dict(value)
        for path, node in fields.items():
            key = path[2:]
            if path == _MEMBER or key not in result:
                continue
            if _is_member(node) and path not in kept:
                del result[key]
                continue
            smaller = remove(result[key], _children(node), kept.get(path, {}), schema.child(key))
            if smaller in ({}, []) and result[key] not in ({}, []) and path not in kept:
                del result[key]
            else:
                result[key] = smaller
        return result
    if isinstance(value, list) and schema.list_type != "atomic":
        items = keyed_items(value, schema)
        if items is None:
            return value
        left = []
        for key, item in items.items():
            node = fields.get(key)
            if node is None:
                left.append(item)
            elif not (_is_member(node) and key not in kept):
                left.append(remove(item, _children(node), kept.get(key, {}), schema.element()))
        return left
    return value
