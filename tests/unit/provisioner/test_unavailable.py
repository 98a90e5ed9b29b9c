"""What was refused rests, for all claims alike, and is tried again by one of them at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_provisioner.cloud import InsufficientCapacity, Offering, QuotaExceeded
from kaito_provisioner.unavailable import UnavailableOfferings, describe

A = Offering("Standard_A")
B = Offering("Standard_B", "spot", ("r-1", "r-2"))
NONE_LEFT = InsufficientCapacity("the region has none now")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> UnavailableOfferings:
    return UnavailableOfferings(monotonic=clock)


def test_what_was_never_refused_is_worth_trying(registry: UnavailableOfferings) -> None:
    assert registry.split([A, B]) == ((A, B), ())
    assert registry.attempt(A)
    assert registry.attempt(A), "and by everybody at once"


def test_a_refused_offering_rests_and_says_why(registry: UnavailableOfferings, clock: Clock) -> None:
    assert registry.refused(B, NONE_LEFT) == 60.0
    clock.now += 15
    ready, (resting,) = registry.split([A, B])
    assert ready == (A,)
    assert resting.seconds == 45.0
    assert str(resting) == "Standard_B (spot, in r-1, r-2): the region has none now"
    assert registry.split([A, B]).retry_after == 45.0
    assert not registry.attempt(B)


def test_an_attempt_that_came_to_nothing_gives_its_turn_back_and_forgets_no_refusal(
    registry: UnavailableOfferings, clock: Clock
) -> None:
    registry.refused(A, NONE_LEFT)
    clock.now += 60
    assert registry.attempt(A)
    assert not registry.attempt(A)
    registry.abandon(A)
    assert registry.split([A]) == ((A,), ())
    assert registry.attempt(A)
    assert registry.refused(A, NONE_LEFT) == 120.0
    registry.abandon(A)
    assert not registry.attempt(A), "whoever has no turn cannot give it back"


def test_the_rest_doubles_up_to_ten_minutes(registry: UnavailableOfferings, clock: Clock) -> None:
    rests = []
    for _ in range(2000):
        rests.append(registry.refused(A, NONE_LEFT))
        clock.now += rests[-1]
        assert registry.attempt(A)
    assert rests[:6] == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert set(rests[6:]) == {600.0}


def test_success_wipes_the_slate_clean(registry: UnavailableOfferings, clock: Clock) -> None:
    for _ in range(4):
        clock.now += registry.refused(A, NONE_LEFT)
        assert registry.attempt(A)
    registry.granted(A)
    assert registry.split([A]).ready == (A,)
    assert registry.refused(A, NONE_LEFT) == 60.0


def test_what_was_granted_before_the_refusal_says_nothing(registry: UnavailableOfferings, clock: Clock) -> None:
    registry.refused(A, NONE_LEFT)
    registry.granted(A)
    assert registry.split([A]).ready == ()
    clock.now += 60
    assert registry.attempt(A)
    assert registry.refused(A, NONE_LEFT) == 120.0


def test_refusals_of_calls_that_were_under_way_together_count_once(
    registry: UnavailableOfferings, clock: Clock
) -> None:
    assert [registry.refused(A, NONE_LEFT) for _ in range(100)] == [60.0] * 100
    clock.now += 60
    assert registry.attempt(A)
    assert registry.refused(A, NONE_LEFT) == 120.0


def test_after_the_rest_one_caller_tries_for_all(registry: UnavailableOfferings, clock: Clock) -> None:
    clock.now += registry.refused(A, NONE_LEFT)
    assert registry.split([A]).ready == (A,)
    assert [registry.attempt(A) for _ in range(5)] == [True, False, False, False, False]
    assert registry.split([A]).ready == ()


def test_a_caller_that_never_says_what_came_of_it_holds_the_others_up_for_a_time(
    registry: UnavailableOfferings, clock: Clock
) -> None:
    clock.now += registry.refused(A, NONE_LEFT)
    assert registry.attempt(A)
    clock.now += 119.0
    assert not registry.attempt(A)
    clock.now += 1.0
    assert registry.attempt(A)


def test_what_could_not_be_made_rests_until_it_is_out_of_the_way_of_the_next(
    registry: UnavailableOfferings, clock: Clock
) -> None:
    registry.refused(A, NONE_LEFT)
    for _ in range(30):
        clock.now += 6
        registry.keep(A)
    assert registry.split([A]).ready == ()
    clock.now += 60
    assert registry.split([A]).ready == (A,)


def test_what_never_gets_out_of_the_way_does_not_hold_the_others_up_for_ever(
    registry: UnavailableOfferings, clock: Clock
) -> None:
    registry.refused(A, NONE_LEFT)
    for _ in range(100):
        clock.now += 6
        registry.keep(A)
    assert registry.split([A]).ready == (A,)


def test_a_cloud_that_says_when_to_come_back_is_heard(registry: UnavailableOfferings) -> None:
    assert registry.refused(A, InsufficientCapacity("later", retry_after=3600.0)) == 3600.0
    assert registry.refused(B, InsufficientCapacity("later", retry_after=5.0)) == 60.0


def test_offerings_are_told_apart_by_type_capacity_type_and_zones_and_not_by_price(
    registry: UnavailableOfferings,
) -> None:
    registry.refused(Offering("a", "spot", ("r-1", "r-2"), price=1.0), NONE_LEFT)
    others = [Offering("a"), Offering("a", "spot"), Offering("a", "spot", ("r-1",)), Offering("b", "spot")]
    assert registry.split(others).ready == tuple(others)
    assert registry.split([Offering("a", "spot", ("r-2", "r-1"), price=2.0)]).ready == ()


def test_the_last_refusal_is_the_one_shown(registry: UnavailableOfferings) -> None:
    registry.refused(A, NONE_LEFT)
    registry.refused(A, QuotaExceeded("the quota is used up"))
    assert isinstance(registry.split([A]).waiting[0].error, QuotaExceeded)


def test_an_offering_reads_as_its_type_and_what_is_special_about_it() -> None:
    assert describe(A) == "Standard_A"
    assert describe(Offering("a", "spot")) == "a (spot)"


@given(st.integers(1, 100), st.lists(st.floats(0.0, 45.0), min_size=1, max_size=300))
def test_attempts_are_bounded_whatever_the_number_of_claims(claims: int, pauses: list[float]) -> None:
    clock = Clock()
    registry = UnavailableOfferings(monotonic=clock)
    registry.refused(A, NONE_LEFT)
    start, attempts = clock.now, 0
    for pause in pauses:
        clock.now += pause
        for _ in range(claims):
            if registry.split([A]).ready and registry.attempt(A):
                attempts += 1
                registry.refused(A, NONE_LEFT)
        hours = (clock.now - start) / 3600
        assert attempts <= 4 + 6 * hours + 1
