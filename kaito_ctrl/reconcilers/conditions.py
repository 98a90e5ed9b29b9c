"""Conditions as a value: set some, keep the rest, and move a transition time only when a status moves."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from kaito_api.meta import Condition, ConditionStatus

__all__ = ["merge", "put"]


def put(kind: str, status: ConditionStatus, reason: str, message: str, *, generation: int, now: datetime) -> Condition:
    """A condition as it would be if it had just changed."""
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=now.replace(microsecond=0),
    )


def merge(present: Iterable[Condition], wanted: Iterable[Condition]) -> tuple[Condition, ...]:
    """*present* with *wanted* put in. A condition whose status is unchanged keeps its transition time; one that is not
    wanted stays as it is; new ones come last."""
    fresh = {each.type: each for each in wanted}
    merged = []
    for old in present:
        new = fresh.pop(old.type, None)
        if new is None:
            merged.append(old)
        elif new.status == old.status and old.last_transition_time is not None:
            merged.append(new.evolve(last_transition_time=old.last_transition_time))
        else:
            merged.append(new)
    return (*merged, *fresh.values())
