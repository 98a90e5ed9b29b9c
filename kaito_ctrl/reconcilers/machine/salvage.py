"""Reading what can be read of an object that does not fit its model: for its end, part of the truth is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from kaito_api.meta import Model, Resource
from kaito_ctrl.runtime.codec import decode_json

__all__ = ["salvage"]

R = TypeVar("R", bound=Resource)


def salvage(kind: type[R], raw: bytes) -> R:
    """The object with each field of its metadata, spec and status that is what it should be, and without the others;
    of a list, with each such element. Raises ``ValueError`` if it cannot even be addressed: by name, uid, and
    namespace if it has one."""
    try:
        obj = kind.model_validate_json(raw)
    except ValidationError:
        found = decode_json(raw)
        parts = {name: _part(kind, name, found.get(name)) for name in ("metadata", "spec", "status")}
        obj = kind.model_validate({name: part for name, part in parts.items() if part is not None})
    if not obj.name or not obj.uid or (kind.namespaced and not obj.namespace):
        raise ValueError(f"a {kind.kind} whose name, namespace or uid cannot be read")
    return obj


def _part(kind: type[Resource], name: str, value: Any) -> Any:
    field = kind.model_fields.get(name)
    model = field.annotation if field is not None else None
    if not isinstance(model, type) or not issubclass(model, Model):
        return value  # not modelled at all
    if not isinstance(value, Mapping):
        return None
    kept: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, list):
            inner = [each for each in inner if _fits(model, key, [each])]
        if _fits(model, key, inner):
            kept[key] = inner
    return kept


def _fits(model: type[Model], key: str, value: Any) -> bool:
    try:
        model.model_validate({key: value})
    except ValidationError:
        return False
    return True
