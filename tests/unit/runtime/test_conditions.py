"""Conditions: what moves a transition time, what is stale, and what sums up others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.meta import Condition, ConditionStatus
from kaito_ctrl.runtime.conditions import AWAITING, current, is_true, merge, put, remove, root

THEN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = THEN + timedelta(hours=1)
STATUSES: tuple[ConditionStatus, ...] = ("True", "False", "Unknown")


def a(
    kind: str, status: ConditionStatus, *, generation: int = 1, at: datetime = THEN, why: str = "Because"
) -> Condition:
    return put(kind, status, why, f"{kind} is {status}", generation=generation, now=at)


def test_an_unchanged_status_keeps_its_transition_time_and_takes_all_else() -> None:
    (merged,) = merge([a("Ready", "True")], [a("Ready", "True", generation=2, at=NOW, why="Still")])
    assert (merged.last_transition_time, merged.observed_generation, merged.reason) == (THEN, 2, "Still")


def test_a_changed_status_moves_it() -> None:
    (merged,) = merge([a("Ready", "True")], [a("Ready", "False", at=NOW)])
    assert merged.last_transition_time == NOW


def test_a_condition_without_a_time_gets_one() -> None:
    (merged,) = merge([Condition(type="Ready", status="True")], [a("Ready", "True", at=NOW)])
    assert merged.last_transition_time == NOW


def test_what_is_not_wanted_stays_and_what_is_new_comes_last() -> None:
    merged = merge([a("A", "True"), a("B", "True")], [a("C", "True"), a("B", "False", at=NOW)])
    assert [(each.type, each.status) for each in merged] == [("A", "True"), ("B", "False"), ("C", "True")]
    assert merged[0] == a("A", "True")


def test_times_have_the_resolution_of_the_wire() -> None:
    made = a("Ready", "True", at=NOW + timedelta(microseconds=7))
    assert Condition.model_validate_json(made.model_dump_json(by_alias=True)) == made


conditions = st.builds(a, st.sampled_from("ABC"), st.sampled_from(STATUSES), generation=st.integers(1, 3))
lists = st.lists(conditions, unique_by=lambda each: each.type).map(tuple)


@given(lists, lists)
def test_merging_again_changes_nothing(present: tuple[Condition, ...], wanted: tuple[Condition, ...]) -> None:
    merged = merge(present, wanted)
    assert merge(merged, wanted) == merged
    later = tuple(each.evolve(last_transition_time=NOW) for each in wanted)
    assert merge(merged, later) == merged
    assert len({each.type for each in merged}) == len(merged)


def test_conditions_are_removed_by_type() -> None:
    assert remove((a("A", "True"), a("B", "True"), a("C", "True")), "A", "C", "D") == (a("B", "True"),)


def test_a_condition_about_an_older_spec_is_not_known_any_more() -> None:
    known = (a("Ready", "True", generation=1),)
    assert is_true(known, "Ready", generation=1)
    assert not is_true(known, "Ready", generation=2)
    stale = current(known, "Ready", generation=2)
    assert (stale.status, stale.reason) == ("Unknown", AWAITING)
    assert "generation 2" in stale.message


def test_without_a_generation_either_way_the_status_counts() -> None:
    assert is_true((a("Ready", "True"),), "Ready")
    assert is_true((Condition(type="Ready", status="True"),), "Ready", generation=9)


def test_what_is_missing_is_unknown() -> None:
    assert current((), "Ready").status == "Unknown"
    assert not is_true((), "Ready")


def ready(*known: Condition, generation: int = 1) -> Condition:
    return root(known, ("A", "B", "C"), generation=generation, now=NOW)


def test_all_true_is_ready() -> None:
    found = ready(a("A", "True"), a("B", "True"), a("C", "True"), a("D", "False"))
    assert (found.type, found.status, found.reason, found.observed_generation) == ("Ready", "True", "Ready", 1)


@pytest.mark.parametrize(
    ("b", "c", "status", "reason", "message"),
    [
        ("Unknown", "False", "False", "CFailed", "C=False: C is False; B=Unknown: B is Unknown"),
        ("False", "False", "False", "BFailed", "B=False: B is False; C=False: C is False"),
        ("Unknown", "True", "Unknown", "BFailed", "B=Unknown: B is Unknown"),
    ],
)
def test_the_worst_decides(b: ConditionStatus, c: ConditionStatus, status: str, reason: str, message: str) -> None:
    found = ready(a("A", "True"), a("B", b, why="BFailed"), a("C", c, why="CFailed"))
    assert (found.status, found.reason, found.message) == (status, reason, message)


def test_what_is_stale_or_missing_makes_it_unknown() -> None:
    found = ready(a("A", "True", generation=2), a("B", "True", generation=1), generation=2)
    assert (found.status, found.reason) == ("Unknown", AWAITING)
    assert found.message.startswith("B=Unknown")
    assert "C=Unknown" in found.message


def test_it_is_merged_like_any_other() -> None:
    before = merge((a("A", "True"), a("B", "True"), a("C", "True")), (root((), (), generation=1, now=THEN),))
    after = merge(before, (ready(*before),))
    assert after == before
