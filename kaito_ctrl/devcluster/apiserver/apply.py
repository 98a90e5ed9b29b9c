"""Server-side apply, and the ``managedFields`` that every write keeps.

The rules are those of structured-merge-diff: an applier owns exactly the fields it sets; applying a different value
to a field that somebody else owns is a conflict unless forced; a field that an applier stops setting goes, unless
somebody else owns it too; any other write takes what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_api.meta import rfc3339
from kaito_ctrl.devcluster.apiserver.errors import StatusError
from kaito_ctrl.devcluster.apiserver.fieldset import (
    FieldSet,
    compare,
    difference,
    fields_of,
    intersection,
    keyed_items,
    paths,
    remove,
    union,
)
from kaito_ctrl.devcluster.apiserver.schema import Schema
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["Writer", "apply", "merge", "track"]

_UNTRACKED_META = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generation",
        "managedFields",
        "name",
        "namespace",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes, through what: one entry of ``managedFields``."""

    manager: str
    operation: str
    api_version: str
    subresource: str = ""

    def owns(self, entry: Mapping[str, Any]) -> bool:
        return (
            entry.get("manager") == self.manager
            and entry.get("operation") == self.operation
            and entry.get("apiVersion") == self.api_version
            and entry.get("subresource", "") == self.subresource
        )

    def entry(self, fields: FieldSet, now: datetime) -> Obj:
        made: Obj = {
            "manager": self.manager,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": rfc3339(now),
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }
        if self.subresource:
            made["subresource"] = self.subresource
        return made


def _tracked(obj: Mapping[str, Any], skip: frozenset[str]) -> Obj:
    """*obj* without what nobody can own."""
    result = {key: value for key, value in obj.items() if key not in {"apiVersion", "kind", "metadata"} | skip}
    metadata = {key: value for key, value in obj.get("metadata", {}).items() if key not in _UNTRACKED_META}
    if metadata:
        result["metadata"] = metadata
    return result


def _entries(obj: Mapping[str, Any]) -> list[Obj]:
    return [entry for entry in obj["metadata"].get("managedFields") or () if entry]


def _without(entries: list[Obj], lost: FieldSet, mine: Obj | None, now: datetime) -> list[Obj]:
    """*entries* but for *mine*, with *lost* taken from each; those left with nothing go."""
    kept = []
    for entry in entries:
        if entry is mine:
            continue
        fields = entry.get("fieldsV1") or {}
        if intersection(fields, lost):
            left = difference(fields, lost)
            if left:
                kept.append({**entry, "fieldsV1": left, "time": rfc3339(now)})
        else:
            kept.append(entry)
    return kept


def _ordered(entries: list[Obj]) -> list[Obj]:
    """Appliers first, then by time: the order in which a real server lists them."""
    return sorted(entries, key=lambda e: (e["operation"] != "Apply", e.get("time", ""), e["manager"]))


def track(old: Obj | None, new: Obj, schema: Schema, writer: Writer, now: datetime, skip: frozenset[str]) -> list[Obj]:
    """The ``managedFields`` of *new*, written over *old* by something that is no apply. *skip*: keys not written."""
    given = new["metadata"].get("managedFields")
    if given is not None and not any(given):
        return []  # the documented way to reset them: a list of one empty entry
    entries = _entries(new) if given else (_entries(old) if old is not None else [])
    before = _tracked(old, skip) if old is not None else {}
    changed, removed = compare(before, _tracked(new, skip), schema)
    if not changed and not removed:
        return entries
    mine = next((entry for entry in entries if writer.owns(entry)), None)
    own = mine.get("fieldsV1") or {} if mine is not None else {}
    fields = difference(union(own, changed), removed)
    kept = _without(entries, union(changed, removed), mine, now)
    if fields:
        kept.append(mine if mine is not None and fields == own else writer.entry(fields, now))
    return _ordered(kept)


def merge(live: Any, applied: Any, schema: Schema) -> Any:
    """*applied* laid over *live*: maps and associative lists join, everything else is replaced."""
    if isinstance(live, dict) and isinstance(applied, dict) and not schema.map_atomic:
        result = dict(live)
        for key, value in applied.items():
            result[key] = merge(live[key], value, schema.child(key)) if key in live else value
        return result
    if isinstance(live, list) and isinstance(applied, list) and schema.list_type != "atomic":
        before, after = keyed_items(live, schema), keyed_items(applied, schema)
        if before is None or after is None:
            return applied
        element = schema.element()
        joined = [merge(item, after[key], element) if key in after else item for key, item in before.items()]
        return joined + [item for key, item in after.items() if key not in before]
    return applied


def apply(
    live: Obj,
    applied: Obj,
    schema: Schema,
    writer: Writer,
    now: datetime,
    *,
    force: bool,
    skip: frozenset[str] = frozenset(),
) -> tuple[Obj, FieldSet]:
    """*live* after *applied*, with its new ``managedFields``, and the fields now owned.

    Raises a 409 with a cause for every field that somebody else owns with another value, unless *force*.
    """
    entries = _entries(live)
    mine = next(
        (
            entry
            for entry in entries
            if entry.get("manager") == writer.manager
            and entry.get("operation") == "Apply"
            and entry.get("subresource", "") == writer.subresource
        ),
        None,
    )
    config = _tracked(applied, skip)
    fields = fields_of(config, schema)
    current = _tracked(live, skip)
    merged = merge(current, config, schema)
    others: FieldSet = {}
    for entry in entries:
        if entry is not mine:
            others = union(others, entry.get("fieldsV1") or {})
    dropped = difference(mine.get("fieldsV1") or {}, fields) if mine is not None else {}
    if dropped:
        merged = remove(merged, dropped, union(others, fields), schema)
    changed, removed = compare(current, merged, schema)
    found = _conflicts([entry for entry in entries if entry is not mine], changed)
    if found and not force:
        raise _conflict_error(found)
    kept = _without(entries, union(changed, removed), mine, now)
    if fields:
        same = mine is not None and mine.get("fieldsV1") == fields and mine.get("apiVersion") == writer.api_version
        kept.append(mine if same and mine is not None else writer.entry(fields, now))
    result = {**live, **{key: value for key, value in merged.items() if key != "metadata"}}
    for key in current:
        if key not in merged:
            result.pop(key, None)
    metadata = {key: value for key, value in live["metadata"].items() if key in _UNTRACKED_META}
    metadata.update(merged.get("metadata", {}))
    metadata["managedFields"] = _ordered(kept)
    result["metadata"] = metadata
    return result, fields


def _conflicts(entries: list[Obj], changed: FieldSet) -> list[tuple[str, str]]:
    """Pairs of who owns it and what it is."""
    found = []
    for entry in entries:
        owner = f'"{entry.get("manager")}"'
        if entry.get("subresource"):
            owner += f' with subresource "{entry["subresource"]}"'
        if entry.get("operation") == "Update":
            owner += f" using {entry.get('apiVersion')}"
        found += [(owner, path) for path in paths(intersection(entry.get("fieldsV1") or {}, changed))]
    return found


def _conflict_error(found: list[tuple[str, str]]) -> StatusError:
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {owner}", "field": path} for owner, path in found
    ]
    if len(found) == 1:
        owner, path = found[0]
        message = f"Apply failed with 1 conflict: conflict with {owner}: {path}"
    else:
        by_owner: dict[str, list[str]] = {}
        for owner, path in found:
            by_owner.setdefault(owner, []).append(path)
        groups = [
            f"conflicts with {owner}:\n" + "\n".join("- " + p for p in by_owner[owner]) for owner in sorted(by_owner)
        ]
        message = f"Apply failed with {len(found)} conflicts: " + "\n".join(groups)
    return StatusError(409, "Conflict", message, details={"causes": causes})
