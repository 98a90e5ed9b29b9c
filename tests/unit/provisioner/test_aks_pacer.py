"""The queue in front of a limit of the service's."""

from __future__ import annotations

import random
import re

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


def turned_away(pacer: Pacer, key: str) -> Throttled:
    with pytest.raises(Throttled) as error:
        pacer.take(key)
    return error.value


def waits(pacer: Pacer, key: str) -> float:
    """The seconds that *key* is told it has to wait."""
    error = turned_away(pacer, key)
    told = re.search(r"(?:(\d+) min )?(\d+) s to go$", error.message)
    assert told is not None
    assert error.retry_after is not None
    seconds = float(told[1] or 0) * 60 + float(told[2])
    assert error.retry_after <= max(seconds, 0.5)
    return seconds


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
    pacer.take("b")
    assert waits(pacer, "c") == 60


def test_a_turn_is_kept_for_who_comes_a_little_late(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    assert [waits(pacer, each) for each in "bc"] == [60, 120]
    clock.now += 60 + 20
    waits(pacer, "c")
    pacer.take("b")


def test_a_turn_that_nobody_comes_for_is_the_next_ones_and_the_place_is_kept(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    assert [waits(pacer, each) for each in "bc"] == [60, 120]
    clock.now += 60 + 40
    pacer.take("c")
    waits(pacer, "d")
    assert waits(pacer, "b") == 60
    clock.now += 60
    waits(pacer, "d")
    pacer.take("b")


def test_whoever_does_not_come_back_at_all_loses_the_place(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    waits(pacer, "gone")
    assert waits(pacer, "b") == 120
    clock.now += 60 + 301
    pacer.take("b")
    assert len(pacer) == 0


@pytest.mark.parametrize("seed", range(20))
def test_however_late_and_early_they_come_none_is_forgotten_and_no_token_wasted(clock: Clock, seed: int) -> None:
    rng = random.Random(seed)
    start = clock.now
    pacer = Pacer(clock, burst=20, interval=60)
    due = {f"k{n}": clock.now for n in range(100)}
    passed: list[float] = []
    while due:
        key = min(due, key=due.__getitem__)
        clock.now = max(clock.now, due[key])
        try:
            pacer.take(key)
        except Throttled as error:
            wait = error.retry_after or 0.0
            due[key] = clock.now + wait * rng.uniform(0.5, 1.1) + rng.uniform(0.01, 5)
        else:
            passed.append(clock.now - start)
            del due[key]
    assert len(passed) == 100
    assert passed[-1] < 80 * 60 * 1.05 + 60
    for count, at in enumerate(passed, start=1):
        assert count <= 20 + at / 60 + 1e-3  # and never more than the service takes


def test_whoever_leaves_makes_room_at_once(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    waits(pacer, "b")
    waits(pacer, "c")
    pacer.leave("b")
    assert waits(pacer, "c") == 60


def test_whoever_has_long_to_wait_looks_in_meanwhile(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    told = [turned_away(pacer, str(each)).retry_after for each in range(100)]
    assert told[:5] == [60, 60, 60, 60, 75]
    assert told[-1] == 600


def test_whoever_is_late_by_a_tenth_of_the_time_keeps_the_place(clock: Clock) -> None:
    pacer = Pacer(clock, burst=1, interval=60)
    pacer.take("a")
    places = [str(each) for each in range(50)]
    again = {each: clock.now + 1.1 * (turned_away(pacer, each).retry_after or 0) for each in places}
    passed = []
    while again:
        key, clock.now = min(again.items(), key=lambda each: each[1])
        try:
            pacer.take(key)
        except Throttled as error:
            again[key] = clock.now + 1.1 * (error.retry_after or 0)
        else:
            del again[key]
            passed.append(key)
    assert passed == places
    assert clock.now - Clock.now < 51 * 60 + 120


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
