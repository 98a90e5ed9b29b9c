"""Strategic merge patch: merge patch that knows lists with keys, by the schema's patch strategies.

Understands the directives ``$patch`` (replace, delete, merge), ``$setElementOrder/<list>``,
``$deleteFromPrimitiveList/<list>`` and ``$retainKeys``. Copy-on-write: the patched object is never changed.
"""

from __future__ import annotations

from typing import Any

from kaito_ctrl.devcluster.apiserver.patch import PatchError
from kaito_ctrl.devcluster.apiserver.schema import ANY, Schema

__all__ = ["strategic_patch"]

_ORDER = "$setElementOrder/"
_DROP = "$deleteFromPrimitiveList/"
_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"


def strategic_patch(target: Any, patch: Any, schema: Schema) -> Any:
    """*target* with *patch* merged in by *schema*. Raises :class:`PatchError` when the patch makes no sense."""
    if not isinstance(patch, dict):
        raise PatchError("cannot unmarshal a strategic merge patch that is not an object", malformed=True)
    return _merge_map(target if isinstance(target, dict) else {}, patch, schema)


def _merge_map(target: dict[str, Any], patch: dict[str, Any], schema: Schema) -> dict[str, Any]:
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {key: _clean(value) for key, value in patch.items() if key != _DIRECTIVE}
    if directive == "delete":
        return {}
    if directive not in {None, "merge"}:
        raise PatchError(f"Unknown patch type found: {directive}", malformed=True)
    result = dict(target)
    retain = patch.get(_RETAIN)
    if retain is not None:
        if not isinstance(retain, list):
            raise PatchError("invalid value for the directive $retainKeys", malformed=True)
        result = {key: value for key, value in result.items() if key in retain}
    orders: dict[str, list[Any]] = {}
    for key, value in patch.items():
        if key in {_DIRECTIVE, _RETAIN}:
            continue
        if key.startswith(_ORDER):
            orders[key[len(_ORDER) :]] = value
        elif key.startswith(_DROP):
            name = key[len(_DROP) :]
            if isinstance(result.get(name), list):
                result[name] = [item for item in result[name] if item not in value]
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_value(result.get(key), value, schema.child(key))
    for key, order in orders.items():
        if isinstance(result.get(key), list):
            result[key] = _reorder(result[key], order, target.get(key) or [], schema.child(key))
    return result


def _merge_value(old: Any, new: Any, schema: Schema) -> Any:
    if isinstance(new, dict):
        return _merge_map(old if isinstance(old, dict) else {}, new, schema)
    if isinstance(new, list) and schema.patch_merge:
        if schema.patch_key:
            return _merge_keyed(old if isinstance(old, list) else [], new, schema)
        merged = list(old) if isinstance(old, list) else []
        return merged + [item for item in new if item not in merged]
    return _clean(new)


def _merge_keyed(old: list[Any], new: list[Any], schema: Schema) -> list[Any]:
    key, element = schema.patch_key, schema.element()
    if any(isinstance(item, dict) and item.get(_DIRECTIVE) == "replace" for item in new):
        return [_clean(item) for item in new if item.get(_DIRECTIVE) != "replace" or len(item) > 1]
    result = list(old)
    for item in new:
        if not isinstance(item, dict):
            raise PatchError(f"map: {item!r} does not contain declared merge key: {key}", malformed=True)
        if key not in item:
            raise PatchError(f"map: {item} does not contain declared merge key: {key}", malformed=True)
        at = next((i for i, have in enumerate(result) if have.get(key) == item[key]), None)
        if item.get(_DIRECTIVE) == "delete":
            result = [have for have in result if have.get(key) != item[key]]
        elif at is None:
            result.append(_merge_map({}, item, element))
        else:
            result[at] = _merge_map(result[at], item, element)
    return result


def _reorder(items: list[Any], order: list[Any], before: list[Any], schema: Schema) -> list[Any]:
    """*items* in the patch's order; what the patch does not name stays next to its old neighbour."""
    key = schema.patch_key

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    wanted = [identity(item) for item in order]
    named = sorted((i for i in items if identity(i) in wanted), key=lambda i: wanted.index(identity(i)))
    rest = [i for i in items if identity(i) not in wanted]
    old = [identity(i) for i in before]
    result: list[Any] = []
    for item in named:
        here = identity(item)
        if here in old:
            while rest and identity(rest[0]) in old and old.index(identity(rest[0])) < old.index(here):
                result.append(rest.pop(0))
        result.append(item)
    return result + rest


def _clean(value: Any) -> Any:
    """*value* without directives and nulls: what a patch leaves where nothing was."""
    if isinstance(value, dict):
        return _merge_map({}, value, ANY)
    if isinstance(value, list):
        return [_clean(item) for item in value if not (isinstance(item, dict) and item.get(_DIRECTIVE) == "delete")]
    return value
