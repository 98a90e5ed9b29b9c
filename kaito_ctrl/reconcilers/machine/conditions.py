"""A claim's conditions, in the dialect of its kind: two ways to put down the same verdicts.

NodeClaims follow Karpenter's operator library (``awslabs/operatorpkg``, ``status``). Whatever is not there yet begins
as Unknown at the object's creation; a transition time moves with the status alone; every condition says which
generation it is about; the list is in the order of the transitions, with ``Ready`` at its end, which names the
dependents that are not True, the latest first.

Machines follow knative (``knative.dev/pkg/apis``) as Karpenter v0.29 used it. What is awaited is False and not Unknown;
a transition time moves with any change; the list is in the order of the types; ``Ready`` says what the dependent said
that was marked last, unless that is True and another one is not.

Both give the same tuple for the same input, so who has said everything before writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from kaito_api.karpenter import Machine, NodeRequest
from kaito_api.meta import Condition, ConditionStatus, find_condition
from kaito_ctrl.runtime.conditions import AWAITING

__all__ = ["READY", "Verdict", "conclude"]

READY = "Ready"
_AWAITING_MESSAGE = "object is awaiting reconciliation"
_EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of one condition. ``Waiting`` is "not yet", as the kind's dialect spells it."""

    type: str
    word: Literal["True", "False", "Waiting"]
    reason: str = ""
    message: str = ""


def conclude(claim: NodeRequest, verdicts: Iterable[Verdict], now: datetime) -> tuple[Condition, ...]:
    """The conditions of *claim* once *verdicts*, at most one on each condition, are put down in their order. Pure."""
    now = now.replace(microsecond=0)
    return _knative(claim, verdicts, now) if isinstance(claim, Machine) else _operatorpkg(claim, verdicts, now)


def _dependents(claim: NodeRequest) -> tuple[str, str, str]:
    return claim.launched, claim.registered, claim.initialized


def _latest_first(conditions: Iterable[Condition]) -> list[Condition]:
    """By their last transitions; those of one moment stay in their order."""
    return sorted(conditions, key=lambda each: each.last_transition_time or _EVER, reverse=True)


# -- NodeClaim -----------------------------------------------------------------------------------------------------


def _operatorpkg(claim: NodeRequest, verdicts: Iterable[Verdict], now: datetime) -> tuple[Condition, ...]:
    present = claim.status.conditions
    # The root first: so the others begin at the same moment.
    for kind in (READY, *_dependents(claim)):
        if find_condition(present, kind) is None:
            present = _set(claim, present, Verdict(kind, "Waiting", AWAITING, _AWAITING_MESSAGE), now)
    for each in verdicts:
        present = _set(claim, present, each, now)
    return present


def _set(claim: NodeRequest, present: tuple[Condition, ...], verdict: Verdict, now: datetime) -> tuple[Condition, ...]:
    generation, kind = claim.metadata.generation, verdict.type
    status: ConditionStatus = "Unknown" if verdict.word == "Waiting" else verdict.word
    old = find_condition(present, kind)
    if old is None:
        # One that Ready goes by has been what it is since there is the object.
        known = kind in (READY, *_dependents(claim))
        since = (claim.metadata.creation_timestamp or now) if known else now
    else:
        since = (old.last_transition_time or now) if old.status == status else now
    new = Condition(
        type=kind,
        status=status,
        reason=verdict.reason or (kind if status == "True" else AWAITING),
        message=verdict.message,
        observed_generation=generation,
        last_transition_time=since,
    )
    if new == old:
        return present
    others = [each for each in present if each.type != kind]
    if claim.deleting:
        # Deletion is a generation of its own, and nothing has changed by it.
        others = [each.evolve(observed_generation=generation) for each in others]
    ordered = sorted((*others, new), key=lambda each: (each.type == READY, each.last_transition_time or now))
    if kind == READY:
        return tuple(ordered)
    return _set(claim, tuple(ordered), _root(claim, ordered), now)


def _root(claim: NodeRequest, present: Sequence[Condition]) -> Verdict:
    generation, dependents = claim.metadata.generation, _dependents(claim)
    lacking = [
        each
        for each in present
        if each.type in dependents and (each.status != "True" or each.observed_generation != generation)
    ]
    if not lacking:
        return Verdict(READY, "True")
    lacking.sort(
        key=lambda each: each.last_transition_time.timestamp() if each.last_transition_time else 0, reverse=True
    )
    message = ", ".join(f"{each.type}={each.status}" for each in lacking)
    if any(each.status == "False" and each.observed_generation == generation for each in lacking):
        return Verdict(READY, "False", "UnhealthyDependents", message)
    return Verdict(READY, "Waiting", "ReconcilingDependents", message)


# -- Machine -------------------------------------------------------------------------------------------------------


def _knative(claim: NodeRequest, verdicts: Iterable[Verdict], now: datetime) -> tuple[Condition, ...]:
    before, dependents = claim.status.conditions, _dependents(claim)
    present = before
    for each in verdicts:
        status: ConditionStatus = "True" if each.word == "True" else "False"
        present = _mark(present, each.type, status, each.reason, each.message, now)
        if each.type not in dependents:
            continue
        told = Condition(type=READY, status=status, reason=each.reason, message=each.message)
        if status == "True":
            told = _unhappy(present, dependents) or Condition(type=READY, status="True")
        present = _mark(present, READY, told.status, told.reason, told.message, now)
    # On the way Ready may have been something else, which nobody has seen.
    was = find_condition(before, READY)
    return tuple(
        each.evolve(last_transition_time=was.last_transition_time)
        if was is not None and each.type == READY and _says(was, each.status, each.reason, each.message)
        else each
        for each in present
    )


def _mark(
    present: tuple[Condition, ...], kind: str, status: ConditionStatus, reason: str, message: str, now: datetime
) -> tuple[Condition, ...]:
    old = find_condition(present, kind)
    if old is not None and _says(old, status, reason, message):
        return present
    # Like knative's, a reason and a message that are empty are not there.
    words = {name: text for name, text in (("reason", reason), ("message", message)) if text}
    new = Condition.model_validate({"type": kind, "status": status, "last_transition_time": now, **words})
    return tuple(sorted((*(each for each in present if each.type != kind), new), key=lambda each: each.type))


def _unhappy(present: Sequence[Condition], dependents: Sequence[str]) -> Condition | None:
    """What Ready has to say instead of True: False is worse than Unknown, and among equals the latest counts."""
    known = _latest_first(each for each in present if each.type in dependents)
    for word in ("False", "Unknown"):
        for each in known:
            if each.status == word:
                return each
    return Condition(type=READY, status="Unknown") if len(known) < len(dependents) else None


def _says(condition: Condition, status: ConditionStatus, reason: str, message: str) -> bool:
    return (condition.status, condition.reason, condition.message) == (status, reason, message)
