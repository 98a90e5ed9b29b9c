"""Tables: what ``kubectl get`` prints, made by the server.

Here are the form of the answer and the printers that need no knowledge of a kind; those of the built-in kinds are in
``printers``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kaito_ctrl.devcluster.apiserver.jsonpath import compile_path
from kaito_ctrl.devcluster.apiserver.kinds import Column, Printer
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.runtime.clock import Clock

__all__ = ["AGE", "NAME", "CustomPrinter", "NameAge", "age", "human_duration", "partial", "table"]

NAME = Column("Name", "string", "name", "Name must be unique within a namespace.")
AGE = Column("Age", "string", "", "CreationTimestamp is a timestamp representing the server time of creation.")


def human_duration(seconds: float) -> str:
    """A duration in at most three digits' worth of units, the way ``kubectl get`` shows ages."""
    total = int(seconds)
    if total < -1:
        return "<invalid>"
    if total < 0:
        return "0s"
    if total < 120:
        return f"{total}s"
    minutes = total // 60
    if minutes < 10:
        return f"{minutes}m{total % 60}s" if total % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = minutes // 60
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    years = days // 365
    if days < 8 * 365:
        return f"{years}y{days % 365}d" if days % 365 else f"{years}y"
    return f"{years}y"


def age(timestamp: Any, clock: Clock) -> str:
    """How long ago *timestamp* (RFC 3339) was; ``<unknown>`` when it is absent."""
    if not isinstance(timestamp, str) or not timestamp:
        return "<unknown>"
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return "<unknown>"
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return human_duration((clock.now() - moment).total_seconds())


class NameAge:
    """NAME and AGE: for kinds that say nothing more."""

    columns: tuple[Column, ...] = (NAME, AGE)

    def cells(self, obj: Obj, clock: Clock) -> list[Any]:
        metadata = obj["metadata"]
        return [metadata["name"], age(metadata.get("creationTimestamp"), clock)]


class CustomPrinter:
    """The ``additionalPrinterColumns`` of a CRD version. A value that is missing is an empty cell."""

    def __init__(self, declared: Sequence[Mapping[str, Any]]) -> None:
        self._cells = []
        columns = [NAME]
        for item in declared:
            columns.append(
                Column(
                    item["name"],
                    item["type"],
                    item.get("format", ""),
                    item.get("description")
                    or "Custom resource definition column (in JSONPath format): " + item["jsonPath"],
                    item.get("priority", 0),
                )
            )
            self._cells.append((item["type"], compile_path(item["jsonPath"])))
        if not declared:
            columns.append(AGE)
            self._cells.append(("date", compile_path(".metadata.creationTimestamp")))
        self.columns: tuple[Column, ...] = tuple(columns)

    def cells(self, obj: Obj, clock: Clock) -> list[Any]:
        return [obj["metadata"]["name"], *(_cell(kind, path(obj), clock) for kind, path in self._cells)]


def _cell(kind: str, found: list[Any], clock: Clock) -> Any:
    if not found or found[0] is None:
        return None
    value = found[0]
    match kind:
        case "date":
            return age(value, clock)
        case "integer":
            try:
                return int(value)
            except (TypeError, ValueError):
                return None
        case "number":
            try:
                return float(value)
            except (TypeError, ValueError):
                return None
        case "boolean":
            return value if isinstance(value, bool) else None
        case _:
            if len(found) > 1 or isinstance(value, list):
                return ",".join(_text(item) for item in (found if len(found) > 1 else value))
            return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_text(child)}" for key, child in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_text(child) for child in value) + "]"
    return str(value)


def partial(obj: Obj, version: str) -> Obj:
    """``PartialObjectMetadata`` of *obj*."""
    return {"kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{version}", "metadata": obj["metadata"]}


def table(
    printer: Printer,
    items: Iterable[Obj],
    metadata: Mapping[str, Any],
    clock: Clock,
    *,
    include: str = "Metadata",
    version: str = "v1",
    headers: bool = True,
) -> Obj:
    """A Table of *items*; *include* says what each row carries: ``None``, ``Metadata`` or ``Object``."""
    rows = []
    for obj in items:
        row: Obj = {"cells": printer.cells(obj, clock)}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = partial(obj, version)
        else:
            row["object"] = None
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": dict(metadata),
        "columnDefinitions": [column.definition() for column in printer.columns] if headers else [],
        "rows": rows,
    }
