"""Fields that nobody knows: the API server drops them, and a typo with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from kaito_api.crd import crd
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.validation.problem import Problem, did_you_mean

__all__ = ["unknown_fields"]


def unknown_fields(raw: Mapping[str, Any]) -> tuple[Problem, ...]:
    """The fields of a Workspace in plain JSON that its schema does not have, as ``kubectl apply`` refuses them."""
    return tuple(_unknown(raw, _schema(), ""))


@cache
def _schema() -> Mapping[str, Any]:
    schema: Mapping[str, Any] = crd(Workspace)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _unknown(value: Any, schema: Mapping[str, Any], path: str) -> Iterator[Problem]:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(item, schema.get("items", {}), f"{path}[{index}]")
        return
    properties = schema.get("properties")
    if not isinstance(value, Mapping) or properties is None:
        return
    for name, inner in value.items():
        field = f"{path}.{name}" if path else str(name)
        if name in properties:
            yield from _unknown(inner, properties[name], field)
        else:
            yield Problem(field, "unknown field", did_you_mean(get_close_matches(str(name), properties)) or "remove it")
