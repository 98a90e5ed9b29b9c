"""What several printers show: names, ages, labels, selectors, containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.table import age
from kaito_ctrl.runtime.clock import Clock

__all__ = ["containers_text", "created", "labels_text", "name_of", "selector_text"]


def created(obj: Obj, clock: Clock) -> str:
    return age(obj["metadata"].get("creationTimestamp"), clock)


def name_of(obj: Obj) -> str:
    name: str = obj["metadata"]["name"]
    return name


def labels_text(labels: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or "<none>"


def selector_text(selector: Mapping[str, Any] | None) -> str:
    if not selector:
        return "<none>"
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for term in selector.get("matchExpressions") or ():
        values = ",".join(term.get("values") or ())
        match term["operator"]:
            case "In":
                parts.append(f"{term['key']} in ({values})")
            case "NotIn":
                parts.append(f"{term['key']} notin ({values})")
            case "Exists":
                parts.append(term["key"])
            case _:
                parts.append("!" + term["key"])
    return ",".join(parts) or "<none>"


def containers_text(template: Mapping[str, Any]) -> tuple[str, str]:
    found = (template.get("spec") or {}).get("containers") or []
    return ",".join(c["name"] for c in found), ",".join(c.get("image", "") for c in found)
