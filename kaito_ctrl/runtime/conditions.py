"""Conditions as values: set some, keep the rest, and move a transition time only when a status moves.

Pure functions on tuples of :class:`~kaito_api.meta.Condition`, under Kubernetes' rules: one condition per type;
``lastTransitionTime`` says since when the status has been what it is; ``observedGeneration`` says which spec it is
about, so that a condition about an older one is no knowledge about this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from kaito_api.meta import Condition, ConditionStatus

__all__ = ["AWAITING", "current", "is_true", "merge", "put", "remove", "root"]

AWAITING = "AwaitingReconciliation"
"""The reason of what is not known yet, or no longer."""


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


def remove(present: Iterable[Condition], *kinds: str) -> tuple[Condition, ...]:
    """*present* without these types."""
    return tuple(each for each in present if each.type not in kinds)


def current(conditions: Iterable[Condition], kind: str, *, generation: int | None = None) -> Condition:
    """What is known of *kind*: its condition; or one that is Unknown, if there is none or it is about an older spec
    than *generation*. A condition that does not say which spec it is about is taken for current."""
    found = next((each for each in conditions if each.type == kind), None)
    if found is None:
        return Condition(type=kind, status="Unknown", reason=AWAITING, message="not reconciled yet")
    observed = found.observed_generation
    if generation is None or observed is None or observed >= generation:
        return found
    message = f"generation {generation} is not reconciled yet; {found.status} was about generation {observed}"
    return found.evolve(status="Unknown", reason=AWAITING, message=message)


def is_true(conditions: Iterable[Condition], kind: str, *, generation: int | None = None) -> bool:
    """Whether *kind* is True, and about *generation* at least, if that is given."""
    return current(conditions, kind, generation=generation).status == "True"


def root(
    conditions: Iterable[Condition],
    dependents: Sequence[str],
    *,
    generation: int,
    now: datetime,
    kind: str = "Ready",
) -> Condition:
    """The condition that sums up *dependents*: True if all of them are (for this generation), else what the worst of
    them is. False is worse than Unknown; among equals the order of *dependents* decides.

    Its reason is the worst one's, its message names all that are not True, the worst first. To be merged like others.
    """
    known = tuple(conditions)
    states = [current(known, each, generation=generation) for each in dependents]
    lacking = [each for each in states if each.status == "False"] + [
        each for each in states if each.status == "Unknown"
    ]
    if not lacking:
        return put(kind, "True", kind, "", generation=generation, now=now)
    worst = lacking[0]
    message = "; ".join(f"{each.type}={each.status}: {each.message or each.reason}" for each in lacking)
    return put(
        kind, worst.status, worst.reason or f"{worst.type}{worst.status}", message, generation=generation, now=now
    )
