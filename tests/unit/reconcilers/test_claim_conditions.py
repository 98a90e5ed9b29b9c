"""A claim's conditions: what Karpenter's two generations of claims say, and when they say it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.meta import Condition, find_condition
from kaito_ctrl.reconcilers.machine.conditions import Verdict, conclude

BORN = datetime(2026, 1, 1, tzinfo=UTC)
NOW = BORN + timedelta(minutes=1)
KINDS: tuple[type[NodeRequest], ...] = (Machine, NodeClaim)


def claim(kind: type[NodeRequest], conditions: tuple[Condition, ...] = (), **metadata: Any) -> NodeRequest:
    raw = {"metadata": {"name": "ws1", "uid": "u", "generation": 1, "creationTimestamp": BORN.isoformat(), **metadata}}
    made = kind.model_validate(raw)
    return made.evolve(status=made.status.evolve(conditions=conditions))


def of(conditions: tuple[Condition, ...], kind: str) -> Condition:
    found = find_condition(conditions, kind)
    assert found is not None
    return found


def words(conditions: tuple[Condition, ...]) -> list[tuple[str, str, str, str]]:
    return [(each.type, each.status, each.reason, each.message) for each in conditions]


def dependents(kind: type[NodeRequest]) -> tuple[str, str, str]:
    return kind.launched, kind.registered, kind.initialized


# -- NodeClaim, as awslabs/operatorpkg has it ----------------------------------------------------------------------


def test_what_nobody_has_said_of_a_nodeclaim_is_unknown_since_it_was_created() -> None:
    told = conclude(claim(NodeClaim), (), NOW)
    awaiting = ("Unknown", "AwaitingReconciliation", "object is awaiting reconciliation")
    assert words(told) == [
        ("Launched", *awaiting),
        ("Registered", *awaiting),
        ("Initialized", *awaiting),
        ("Ready", "Unknown", "ReconcilingDependents", "Launched=Unknown, Registered=Unknown, Initialized=Unknown"),
    ]
    assert {each.last_transition_time for each in told} == {BORN}
    assert {each.observed_generation for each in told} == {1}


def test_a_nodeclaims_ready_names_what_lacks_the_latest_first() -> None:
    first = conclude(claim(NodeClaim), [Verdict("Launched", "True")], NOW)
    assert of(first, "Launched").reason == "Launched"
    assert of(first, "Ready").message == "Registered=Unknown, Initialized=Unknown"
    refused = Verdict("Registered", "False", "MultipleNodesFound", "two")
    second = conclude(claim(NodeClaim, first), [refused], NOW + timedelta(minutes=1))
    assert [each.type for each in second] == ["Initialized", "Launched", "Registered", "Ready"]
    ready = of(second, "Ready")
    assert (ready.status, ready.reason, ready.message) == (
        "False",
        "UnhealthyDependents",
        "Registered=False, Initialized=Unknown",
    )
    verdicts = [Verdict("Registered", "True"), Verdict("Initialized", "True")]
    third = conclude(claim(NodeClaim, second), verdicts, NOW + timedelta(minutes=2))
    assert words(third) == [(kind, "True", kind, "") for kind in ("Launched", "Registered", "Initialized", "Ready")]


def test_a_nodeclaims_true_about_an_older_generation_is_not_healthy() -> None:
    old = conclude(claim(NodeClaim), [Verdict(each, "True") for each in dependents(NodeClaim)], NOW)
    told = conclude(claim(NodeClaim, old, generation=2), [Verdict("Launched", "True")], NOW + timedelta(minutes=1))
    ready = of(told, "Ready")
    assert (ready.status, ready.message) == ("Unknown", "Registered=True, Initialized=True")
    assert of(told, "Launched").last_transition_time == NOW


def test_a_deleted_nodeclaim_does_not_lose_its_readiness_to_the_generation_of_its_deletion() -> None:
    old = conclude(claim(NodeClaim), [Verdict(each, "True") for each in dependents(NodeClaim)], NOW)
    going = claim(NodeClaim, old, generation=2, deletionTimestamp=NOW.isoformat())
    told = conclude(going, [Verdict("InstanceTerminating", "True")], NOW + timedelta(minutes=1))
    assert of(told, "Ready").status == "True"
    assert {each.observed_generation for each in told} == {2}
    assert of(told, "InstanceTerminating").last_transition_time == NOW + timedelta(minutes=1)


def test_what_changes_nothing_of_a_nodeclaim_does_not_look_at_ready_again() -> None:
    told = conclude(claim(NodeClaim), [Verdict("Launched", "True")], NOW)
    wrong = tuple(each.evolve(status="True", reason="Odd") if each.type == "Ready" else each for each in told)
    assert conclude(claim(NodeClaim, wrong), [Verdict("Launched", "True")], NOW + timedelta(hours=1)) == wrong


# -- Machine, as knative has it ------------------------------------------------------------------------------------


def test_what_a_machine_waits_for_is_false_and_ready_says_it() -> None:
    told = conclude(claim(Machine), [Verdict("MachineLaunched", "Waiting", "LaunchFailed", "no quota")], NOW)
    assert words(told) == [
        ("MachineLaunched", "False", "LaunchFailed", "no quota"),
        ("Ready", "False", "LaunchFailed", "no quota"),
    ]
    assert {each.observed_generation for each in told} == {None}


def test_a_machines_transition_time_moves_with_any_change() -> None:
    first = conclude(claim(Machine), [Verdict("MachineLaunched", "Waiting", "Throttled", "place 5")], NOW)
    later = NOW + timedelta(minutes=1)
    again = conclude(claim(Machine, first), [Verdict("MachineLaunched", "Waiting", "Throttled", "place 4")], later)
    assert {each.last_transition_time for each in again} == {later}


def test_a_machine_with_something_true_is_unknown_until_all_is_said() -> None:
    told = conclude(claim(Machine), [Verdict("MachineLaunched", "True")], NOW)
    assert words(told) == [("MachineLaunched", "True", "", ""), ("Ready", "Unknown", "", "")]
    assert "reason" not in told[0].to_wire()


def test_a_machines_ready_keeps_what_is_still_false() -> None:
    verdicts = [
        Verdict("MachineLaunched", "Waiting", "LaunchFailed", "m"),
        Verdict("MachineRegistered", "Waiting", "MachineNotLaunched", "Machine not launched"),
    ]
    told = conclude(claim(Machine), verdicts, NOW)
    after = conclude(claim(Machine, told), [Verdict("MachineLaunched", "True")], NOW + timedelta(minutes=1))
    assert of(after, "Ready").reason == "MachineNotLaunched"


# -- both ----------------------------------------------------------------------------------------------------------


@st.composite
def lives(draw: st.DrawFn) -> tuple[type[NodeRequest], list[tuple[int, list[Verdict]]]]:
    """Passes over one claim: seconds after the one before, and what is said."""
    kind = draw(st.sampled_from(KINDS))
    verdict = st.builds(
        Verdict,
        st.sampled_from((*dependents(kind), "Drained")),
        st.sampled_from(("True", "False", "Waiting")),
        st.sampled_from(("NodeNotFound", "LaunchFailed")),
        st.sampled_from(("", "m")),
    )
    said = st.lists(verdict, min_size=1, max_size=4, unique_by=lambda each: each.type)
    return kind, draw(st.lists(st.tuples(st.integers(0, 90), said), min_size=1, max_size=6))


@given(lives())
def test_conditions_keep_their_dialects_rules(life: tuple[type[NodeRequest], list[tuple[int, list[Verdict]]]]) -> None:
    kind, passes = life
    present: tuple[Condition, ...] = ()
    now = NOW
    for seconds, verdicts in passes:
        now += timedelta(seconds=seconds)
        told = conclude(claim(kind, present), verdicts, now)
        assert len({each.type for each in told}) == len(told)
        for verdict in verdicts:
            waiting = "False" if kind is Machine else "Unknown"
            assert of(told, verdict.type).status == (waiting if verdict.word == "Waiting" else verdict.word)
        known = [each for each in told if each.type in dependents(kind)]
        words_of = {each.status for each in known}
        ready = of(told, "Ready") if known else None
        if ready is not None:
            complete = len(known) == 3
            assert (ready.status == "True") == (complete and words_of == {"True"})
            assert (ready.status == "False") == ("False" in words_of)
        if kind is Machine:
            assert [each.type for each in told] == sorted(each.type for each in told)
            if ready is not None and ready.status == "False":
                assert (ready.reason, ready.message) in {
                    (each.reason, each.message) for each in known if each.status == "False"
                }
        else:
            assert told[-1].type == "Ready"
            times = [each.last_transition_time or NOW for each in told[:-1]]
            assert times == sorted(times)
        for each in told:
            old = find_condition(present, each.type)
            if old is None or (old.status, old.reason, old.message) == (each.status, each.reason, each.message):
                assert old in (None, each)
            elif kind is Machine or old.status != each.status:
                assert each.last_transition_time == now
            elif each.type != "Ready":
                assert each.last_transition_time == old.last_transition_time
        # What is said is said: again, at whatever later time, it is no change.
        settled = conclude(claim(kind, told), verdicts, now + timedelta(seconds=1))
        assert conclude(claim(kind, settled), verdicts, now + timedelta(hours=1)) == settled
        present = told


@pytest.mark.parametrize("kind", KINDS)
def test_saying_everything_again_changes_nothing(kind: type[NodeRequest]) -> None:
    verdicts = [
        Verdict(kind.launched, "Waiting", "LaunchFailed", "no quota"),
        Verdict(kind.registered, "Waiting", "NodeNotFound", "Node not registered with cluster"),
        Verdict(kind.initialized, "Waiting", "NodeNotReady", "Node status is NotReady"),
    ]
    first = conclude(claim(kind), verdicts, NOW)
    assert conclude(claim(kind, first), verdicts, NOW + timedelta(hours=1)) == first
