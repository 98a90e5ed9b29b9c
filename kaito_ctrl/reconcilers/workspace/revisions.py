"""The history of what a workspace asked for, as ``ControllerRevision`` objects: ten of them, each said once. Pure.

The hash is the one that KAITO writes, for everything but pod templates (there it hashes Go's rendering of them):
SHA-256 over three lines of JSON (``resource``, ``inference``, ``tuning``), compact, in the order of the API's fields.
So a workspace that KAITO has made keeps its history.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kaito_api.apps import ControllerRevision
from kaito_api.meta import ObjectMeta
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import REVISION_ANNOTATION, REVISION_HASH_ANNOTATION, REVISION_OWNER_LABEL

__all__ = ["HISTORY", "Revisions", "plan_revisions", "revision_hash"]

HISTORY = 10
"""How many revisions are kept."""
_SECTIONS = ("resource", "inference", "tuning")


@dataclass(frozen=True, slots=True)
class Revisions:
    """``current`` is to be there; ``expired`` ones may go."""

    current: ControllerRevision
    hash: str
    expired: tuple[ControllerRevision, ...] = ()

    @property
    def annotations(self) -> dict[str, str]:
        """What the workspace itself says of its revision."""
        return {REVISION_HASH_ANNOTATION: self.hash, REVISION_ANNOTATION: str(self.current.revision)}


def revision_hash(ws: Workspace) -> str:
    """64 hex digits that follow from what *ws* asks for."""
    text = "".join(f"{_go_json(section)}\n" for section in _data(ws).values())
    return hashlib.sha256(text.encode()).hexdigest()


def plan_revisions(ws: Workspace, known: Sequence[ControllerRevision]) -> Revisions:
    """The revision of *ws* as it is now, among the *known* ones of it. What was asked for before keeps its number."""
    digest = revision_hash(ws)
    found = next((each for each in known if _hash_of(each) == digest), None)
    number = found.revision if found is not None else max((each.revision for each in known), default=0) + 1
    taken = {each.name for each in known if each is not found}
    length = 5
    while f"{ws.name}-{digest[:length]}" in taken:
        length += 1
    current = ControllerRevision(
        metadata=ObjectMeta(
            name=found.name if found is not None else f"{ws.name}-{digest[:length]}",
            namespace=ws.namespace,
            labels={REVISION_OWNER_LABEL: ws.name},
            annotations={REVISION_HASH_ANNOTATION: digest},
        ),
        data=_data(ws),
        revision=number,
    )
    others = sorted((each for each in known if each is not found), key=lambda each: each.revision)
    return Revisions(current, digest, tuple(others[: max(len(others) + 1 - HISTORY, 0)]))


def _hash_of(revision: ControllerRevision) -> str:
    return revision.metadata.annotations.get(REVISION_HASH_ANNOTATION, "")


def _data(ws: Workspace) -> dict[str, Any]:
    return {name: _section(getattr(ws, name)) for name in _SECTIONS}


def _section(section: Any) -> Any:
    if section is None:
        return None
    wire = section.to_wire()
    # In Go the preset's options are no pointer, and so never absent.
    if isinstance(wire.get("preset"), dict):
        wire["preset"].setdefault("presetOptions", {})
    return wire


def _go_json(value: Any) -> str:
    text = json.dumps(_sorted_maps(value), separators=(",", ":"), ensure_ascii=False)
    for character in "&<>":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _sorted_maps(value: Any, *, free: bool = False) -> Any:
    """Go writes the fields of a struct in their order, and the keys of a map in the alphabet's."""
    if isinstance(value, Mapping):
        items = sorted(value.items()) if free else value.items()
        return {
            key: _sorted_maps(inner, free=free or key in ("matchLabels", "template", "volumeSource"))
            for key, inner in items
        }
    if isinstance(value, list | tuple):
        return [_sorted_maps(inner, free=free) for inner in value]
    return value
