"""Writes of the built-in controllers: the least that makes a difference, and nothing when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from kaito_api.meta import Condition, Model, Resource
from kaito_ctrl.runtime import Client, key_of

__all__ = ["merge_patch", "patch_status", "settled"]

R = TypeVar("R", bound=Resource)
C = TypeVar("C", bound=Condition)
_EMPTY: tuple[Any, ...] = (0, "", [], {})


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) from *old* to *new*: empty when they are equal; lists are replaced whole."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif isinstance(value, Mapping) and isinstance(old[key], Mapping):
            inner = merge_patch(old[key], value)
            if inner:
                patch[key] = inner
        elif old[key] != value:
            patch[key] = value
    return patch


async def patch_status(client: Client, obj: R, status: Model) -> bool:
    """Bring the status of *obj* to *status* with at most one write; returns whether there was one.

    Fields that the model does not name stay as they are on the server.
    """
    old, new = getattr(obj, "status").to_wire(), status.to_wire()  # noqa: B009 - kinds with a status have one
    # A count of zero that the server never had is no news: most encodings leave it out.
    patch = merge_patch(old, {key: value for key, value in new.items() if key in old or value not in _EMPTY})
    if not patch:
        return False
    await client.patch(type(obj), key_of(obj), {"status": patch, "metadata": {"uid": obj.uid}}, subresource="status")
    return True


def settled(known: tuple[C, ...], wanted: C) -> C:
    """*wanted* with the transition time of the known condition of its type, if the status is the same."""
    old = next((each for each in known if each.type == wanted.type), None)
    if old is None or old.status != wanted.status or old.last_transition_time is None:
        return wanted
    return wanted.evolve(last_transition_time=old.last_transition_time)
