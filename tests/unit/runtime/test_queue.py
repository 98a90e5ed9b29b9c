"""The work queue: merging, order, back-off, and that no wake-up is lost."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_ctrl.runtime.queue import LOW, NORMAL, Queue, RetryPolicy


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock | None = None, **options: object) -> Queue[str]:
    return Queue(rng=random.Random(1), clock=clock, **options)  # type: ignore[arg-type]


async def take(queue: Queue[str]) -> str:
    async with asyncio.timeout(1):
        key, _ = await queue.get()
    return key


async def test_a_key_waits_once_however_often_it_is_added() -> None:
    queue = make()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 1
    assert await take(queue) == "a"
    assert len(queue) == 0


async def test_keys_come_in_the_order_in_which_they_were_added() -> None:
    queue = make()
    for key in "cab":
        queue.add(key)
    assert [await take(queue) for _ in range(3)] == ["c", "a", "b"]


async def test_higher_priority_goes_first_and_a_merge_keeps_the_higher() -> None:
    queue = make()
    queue.add("low", priority=LOW)
    queue.add("both", priority=LOW)
    queue.add("normal", priority=NORMAL)
    queue.add("both", priority=NORMAL)
    assert [await take(queue) for _ in range(3)] == ["normal", "both", "low"]


async def test_a_key_in_work_is_handed_out_again_afterwards_and_not_before() -> None:
    queue = make()
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await take(queue) == "a"


async def test_a_delayed_key_comes_when_it_is_due_and_an_earlier_add_wins() -> None:
    clock = Clock()
    queue = make(clock)
    queue.add("a", after=60)
    queue.add("b", after=60)
    assert queue.idle
    queue.add("b")
    assert await take(queue) == "b"
    clock.now = 61
    assert await take(queue) == "a"


async def test_what_waits_too_long_is_lifted_over_urgent_work() -> None:
    clock = Clock()
    queue = make(clock, aging=30.0)
    queue.add("old", priority=LOW)
    clock.now = 31
    queue.add("urgent")
    assert await take(queue) == "old"


async def test_a_backlog_that_has_waited_too_long_shares_with_urgent_work_and_does_not_precede_it() -> None:
    clock = Clock()
    queue = make(clock)
    for number in range(100):
        queue.add(f"listed-{number}", priority=LOW)
    clock.now += 60
    for number in range(3):
        queue.add(f"urgent-{number}")
    taken = [await take(queue) for _ in range(8)]
    assert sorted(each for each in taken if each.startswith("urgent")) == ["urgent-0", "urgent-1", "urgent-2"]
    assert [each for each in taken if each.startswith("listed")] == [f"listed-{number}" for number in range(5)]


async def test_failures_double_the_delay_and_success_resets_it() -> None:
    queue = make(retry=RetryPolicy(base=1.0, cap=5.0, jitter=0.0))
    assert [queue.retry("a") for _ in range(4)] == [1.0, 2.0, 4.0, 5.0]
    assert queue.failures("a") == 4
    queue.forget("a")
    assert queue.retry("a") == 1.0


async def test_a_retry_can_be_asked_to_wait_longer_than_its_back_off_and_never_shorter() -> None:
    queue = make(retry=RetryPolicy(base=1.0, cap=5.0, jitter=0.0))
    assert [queue.retry("a", least=1.5) for _ in range(3)] == [1.5, 2.0, 4.0]


async def test_cancelling_a_get_loses_no_key() -> None:
    queue = make()
    waiting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await take(queue) == "a"


async def test_rest_is_when_nothing_is_worked_on() -> None:
    queue = make()
    await queue.rest()
    queue.add("a")
    await take(queue)
    resting = asyncio.ensure_future(queue.rest())
    await asyncio.sleep(0)
    assert not resting.done()
    queue.done("a")
    await resting


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from([0.0, 1.0, 5.0])),
        st.tuples(st.just("take"), st.just(""), st.just(0.0)),
        st.tuples(st.just("done"), st.just(""), st.just(0.0)),
        st.tuples(st.just("wait"), st.just(""), st.sampled_from([0.5, 2.0, 10.0])),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(operations)
def test_no_wake_up_is_lost_and_no_key_is_out_twice(steps: list[tuple[str, str, float]]) -> None:
    async def run() -> None:
        clock = Clock()
        queue = make(clock)
        owed: set[str] = set()
        out: list[str] = []
        for what, key, seconds in steps:
            match what:
                case "add":
                    queue.add(key, after=seconds)
                    owed.add(key)
                case "wait":
                    clock.now += seconds
                case "take" if not queue.idle and len(queue):
                    key = await take(queue)
                    assert key not in out
                    out.append(key)
                    owed.discard(key)
                case "done" if out:
                    queue.done(out.pop())
        for key in out:
            queue.done(key)
        clock.now += 100
        while not queue.idle:
            key = await take(queue)
            owed.discard(key)
            queue.done(key)
        assert owed == set()

    asyncio.run(run())


async def test_what_is_lifted_over_and_over_leaves_nothing_behind() -> None:
    clock = Clock()
    queue = make(clock)
    queue.add("patient", priority=LOW)
    for _ in range(1000):
        queue.add("busy", priority=LOW)
        queue.add("busy", priority=NORMAL)
        queue.done(await take(queue))
    assert sum(map(len, queue._ready.values())) + len(queue._fifo) < 300
    assert await take(queue) == "patient"


async def test_the_order_within_a_priority_is_that_of_arrival_there() -> None:
    queue = make(Clock())
    for key in ("a", "b", "c"):
        queue.add(key, priority=LOW)
    queue.add("c", priority=NORMAL)
    queue.add("d", priority=NORMAL)
    queue.add("a", priority=NORMAL)
    assert [held.key for held in queue.contents()] == ["c", "d", "a", "b"]
    assert [await take(queue) for _ in range(4)] == ["c", "d", "a", "b"]


async def test_a_key_that_is_woken_before_its_time_leaves_nothing_behind() -> None:
    clock = Clock()
    queue = make(clock)
    queue.add("patient", after=60.0)
    for _ in range(1000):
        queue.add("busy", after=3600.0)
        queue.add("busy")
        queue.done(await take(queue))
    assert len(queue._delayed) < 300
    queue.add("busy", after=3600.0)
    clock.now += 3601
    assert [await take(queue) for _ in range(2)] == ["patient", "busy"]


class Told:
    """Implements ``queue.QueueMetrics``."""

    def __init__(self) -> None:
        self.adds = 0

    def added(self) -> None:
        self.adds += 1

    def retried(self) -> None: ...

    def queued_for(self, seconds: float) -> None: ...

    def worked_for(self, seconds: float) -> None: ...


async def test_a_key_counts_as_added_once_for_each_time_that_it_becomes_ready() -> None:
    clock, told = Clock(), Told()
    queue = make(clock, metrics=told)
    queue.add("a")
    queue.add("a")
    assert told.adds == 1
    await take(queue)
    queue.add("a")
    queue.add("a")
    queue.done("a")
    assert told.adds == 2
    await take(queue)
    queue.add("a", after=5.0)
    queue.done("a")
    assert told.adds == 2
    clock.now += 6
    await take(queue)
    assert told.adds == 3
