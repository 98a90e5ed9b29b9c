"""The queue in front of a limit of the service's."""

from __future__ import annotations

import pytest

from kaito_provisioner.aks.pacer import Pacer
from kaito_provisioner.cloud import Throttled


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def waits(pacer: Pacer, key: str) -> float:
    with pytest.raises(Throttled) as error:
        pacer.take(key)
    assert error.value.retry_after is not None
    return error.value.retry_after


def test_a_burst_passes_at_once_and_the_rest_one_by_one(clock: Clock) -> None:
    pacer = Pacer(clock, burst=2, interval=60)
    pacer.take("a")
    pacer.take("b")
    assert [waits(pacer, each) for each in "cde"] == [60, 120, 180]
    clock.now += 60
    pacer.take("c")
    assert [waits(pacer, each) for each in "de"] == [60, 120]


def test_whoever_comes_back_too_early_keeps_the_place(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    waits(pacer, "b")
    clock.now += 30
    assert waits(pacer, "c") == 90
    assert waits(pacer, "b") == 30
    clock.now += 30
    assert waits(pacer, "c") == 60
    pacer.take("b")


def test_whoever_does_not_come_back_loses_the_place_after_a_while(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60, grace=60)
    pacer.take("a")
    waits(pacer, "gone")
    assert waits(pacer, "b") == 120
    clock.now += 120
    # Its minute has come and its grace is not over: there are two tokens by now, one for each.
    waits(pacer, "c")
    clock.now += 1
    pacer.take("b")
    assert len(pacer) == 1


def test_whoever_leaves_makes_room_at_once(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    waits(pacer, "b")
    waits(pacer, "c")
    pacer.leave("b")
    assert waits(pacer, "c") == 60


def test_tokens_are_saved_up_to_the_burst_and_no_further(clock: Clock) -> None:
    pacer = Pacer(clock, burst=3, interval=60)
    for key in "abc":
        pacer.take(key)
    clock.now += 3600
    for key in "abc":
        pacer.take(key)
    assert waits(pacer, "d") == 60


def test_a_refusal_by_the_service_empties_the_bucket_and_puts_the_refused_first(clock: Clock) -> None:
    pacer = Pacer(clock, burst=20, interval=60)
    with pytest.raises(Throttled), pacer.turn("a"):
        raise Throttled("not now", retry_after=90)
    assert waits(pacer, "b") == 150
    assert waits(pacer, "a") == 90
    clock.now += 90
    assert waits(pacer, "b") == 60
    pacer.take("a")


def test_a_long_pause_of_the_services_saves_nothing_up(clock: Clock) -> None:
    pacer = Pacer(clock, burst=20, interval=60)
    pacer.take("a")
    pacer.refused("a", 600)
    clock.now += 600
    pacer.take("a")
    assert waits(pacer, "b") == 60


def test_what_did_not_reach_the_service_is_given_back(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.give_back()
    pacer.take("a")
    pacer.give_back()
    pacer.take("a")
    assert waits(pacer, "b") == 60


def test_the_place_and_the_time_are_told(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    waits(pacer, "b")
    with pytest.raises(Throttled, match=r"^2 of 2 in the queue for AKS's limit on requests, 2 min 0 s to go$") as error:
        pacer.take("c")
    assert error.value.fix
