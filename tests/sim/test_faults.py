"""The faults themselves: what has left a process travels on, a paused process does not run, a stream can be trusted in
nothing. For those who embed the library these are the rules of the game."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.codec import decode_json, decode_list
from kaito_ctrl.runtime.errors import ApiError, Conflict, TransportError, Unauthorized
from kaito_ctrl.runtime.transport import Request
from kaito_ctrl.testing import (
    Fault,
    FaultyTransport,
    FixedPlan,
    Host,
    Livelock,
    Network,
    Process,
    RandomPlan,
    Run,
    Spot,
    VirtualClock,
    parse_faults,
    run_virtual,
)

KEY = ObjectKey("default", "x")
X = ConfigMap(metadata=ObjectMeta(name="x", namespace="default"), data={"a": "1"})
CONFIGMAPS = "/api/v1/namespaces/default/configmaps"


class World:
    """A server, a user with a perfect connection, and a process whose connection has the given faults."""

    def __init__(self, *faults: str, latency: float = 0.0) -> None:
        self.server = ApiServer(clock=VirtualClock(), rng=random.Random(1))
        self.network = Network(1, FixedPlan(parse_faults(" ".join(faults))), latency=latency)
        self.user = Client(self.server.transport())
        self.transport = FaultyTransport(self.server.transport(), self.network, "a#0")
        self.client = Client(self.transport)

    async def lines(self, **query: str) -> AsyncIterator[dict[str, Any]]:
        pairs = (("watch", "true"), *query.items())
        async with await self.transport.send(Request("GET", CONFIGMAPS, pairs)) as response:
            async for chunk in response.chunks():
                for line in chunk.splitlines():
                    yield decode_json(line)


def virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


@virtually
async def test_a_refused_request_is_not_carried_out() -> None:
    world = World("refused=a#0/0")
    with pytest.raises(TransportError):
        await world.client.create(X)
    await world.client.create(X)


@virtually
async def test_a_lost_answer_hides_a_write_that_was_carried_out() -> None:
    world = World("lost=a#0/0")
    with pytest.raises(TransportError):
        await world.client.create(X)
    assert (await world.user.get(ConfigMap, "x", "default")).data == {"a": "1"}


@virtually
async def test_a_gateway_times_out_after_the_write() -> None:
    world = World("timeout=a#0/0")
    with pytest.raises(ApiError) as refused:
        await world.client.create(X)
    assert refused.value.code == 504
    await world.user.get(ConfigMap, "x", "default")


@virtually
async def test_throttling_says_for_how_long() -> None:
    world = World("throttled=a#0/0+3")
    with pytest.raises(ApiError) as refused:
        await world.client.create(X)
    assert (refused.value.code, refused.value.retry_after) == (429, 3.0)


@virtually
async def test_a_conflict_is_a_real_write_of_somebody_else() -> None:
    world = World("conflict=a#0/0")
    made = await world.user.create(X)
    version = made.metadata.resource_version
    with pytest.raises(Conflict):
        await world.client.patch(ConfigMap, KEY, {"metadata": {"resourceVersion": version}, "data": {"a": "2"}})
    found = await world.user.get(ConfigMap, "x", "default")
    assert (found.data, found.metadata.annotations) == ({"a": "1"}, {"disturbed-by": "a#0/0"})


@virtually
async def test_who_gives_up_does_not_call_back_what_has_left() -> None:
    world = World("slow=a#0/0+60")
    with pytest.raises(TransportError, match="no answer within 30 s"):
        await world.client.create(X)
    assert now() == 30.0
    assert not await world.user.list(ConfigMap, "default", fields="metadata.name=x")
    await world.network.settle()
    assert now() == 60.0
    await world.user.get(ConfigMap, "x", "default")


@virtually
async def test_what_a_killed_process_has_sent_is_carried_out() -> None:
    world = World("slow=a#0/0+5")
    process = Process("a#0")
    sending = process.start(world.client.create(X))
    await asyncio.sleep(1)
    world.transport.dead = True
    sending.cancel()
    with pytest.raises(TransportError, match="killed"):
        await world.transport.send(Request("GET", CONFIGMAPS))
    await world.network.settle()
    await world.user.get(ConfigMap, "x", "default")


@virtually
async def test_a_paused_process_sends_late_and_finds_its_timers_due() -> None:
    world = World("pause=a#0/0+40")
    process, ticks = Process("a#0"), list[float]()

    async def tick() -> None:
        for _ in range(3):
            await asyncio.sleep(10)
            ticks.append(now())

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(tick())
            group.create_task(world.client.create(X))

    await asyncio.wait([process.start(work())], timeout=39)
    assert not ticks
    assert not await world.user.list(ConfigMap, "default", fields="metadata.name=x")
    await asyncio.sleep(30)
    assert ticks == [40.0, 50.0, 60.0]
    await world.user.get(ConfigMap, "x", "default")
    assert not process.tasks


@virtually
async def test_a_timer_that_is_cancelled_during_a_pause_does_not_fire() -> None:
    process, fired = Process("a#0"), list[str]()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        later = loop.call_later(5, fired.append, "cancelled")
        loop.call_later(4, later.cancel)
        await asyncio.sleep(20)

    task = process.start(work())
    await asyncio.sleep(1)
    process.pause_for(9)
    await task
    assert not fired


@virtually
async def test_a_stale_list_is_an_older_snapshot_of_a_real_server() -> None:
    world = World("stale=a#0/0+1")
    await world.user.create(X)
    await world.user.delete(ConfigMap, KEY)
    answer = await world.transport.send(Request("GET", CONFIGMAPS, (("resourceVersion", "0"),)))
    _, items = decode_list(await answer.read())
    assert any(b'"name":"x"' in item for item in items)
    answer = await world.transport.send(Request("GET", CONFIGMAPS, (("resourceVersion", "0"),)))
    _, items = decode_list(await answer.read())
    assert not any(b'"name":"x"' in item for item in items)


@virtually
async def test_several_changes_are_seen_as_the_last_one() -> None:
    world = World("coalesce=a#0/0~0+30")
    await world.user.create(X)
    events, seen = world.lines(fieldSelector="metadata.name=x"), list[tuple[str, str]]()

    async def watch() -> None:
        async for event in events:
            seen.append((event["type"], event["object"]["metadata"]["uid"]))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(1)
    await world.user.delete(ConfigMap, KEY)
    again = await world.user.create(X.evolve(data={"a": "3"}))
    await asyncio.sleep(60)
    assert seen[1:] == [("MODIFIED", again.uid)]
    watching.cancel()
    await asyncio.wait([watching])


@virtually
async def test_a_stream_can_end_with_410_and_fall_silent() -> None:
    world = World("expired=a#0/0~0", "silent=a#0/1~0")
    await world.user.create(X)
    assert [event["type"] async for event in world.lines()] == ["ERROR"]
    silent = world.lines()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(silent), 3600)
    assert world.transport.streams == 0
    assert world.server.backend.watches == 0


class Idle:
    """A program that does nothing until it is stopped, and takes its time to."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        await self._stopped.wait()
        await asyncio.sleep(2)

    def stop(self) -> None:
        self._stopped.set()


@virtually
async def test_a_host_starts_its_program_again() -> None:
    world = World()
    runs: list[Run] = []
    host = Host("a", world.network, lambda _: world.server.transport(), lambda *_: Idle(), ended=runs.append)
    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(host.run(until))
        await asyncio.sleep(10)
        host.strike(Fault("crash-at", "a@10", 5.0))
        await asyncio.sleep(10)
        host.strike(Fault("pause-at", "a@20", 20.0))
        host.strike(Fault("stop-at", "a@20", 0.0))
        await asyncio.sleep(30)
        until.set()
    assert [(run.name, run.ending, run.seconds) for run in runs] == [
        ("a#0", "crash", 0.0),
        ("a#1", "stop", 2.0),
        ("a#2", "stop", 2.0),
    ]
    assert not any(run.left for run in runs)


@virtually
async def test_a_window_outlasts_the_process_that_it_began_in() -> None:
    world = World()
    host = Host("a", world.network, lambda _: world.server.transport(), lambda *_: Idle())
    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(host.run(until))
        await asyncio.sleep(1)
        host.strike(Fault("expire-at", "a@1", 60.0))
        host.strike(Fault("crash-at", "a@1", 1.0))
        await asyncio.sleep(10)
        assert host.current is not None
        with pytest.raises(Unauthorized):
            await Client(host.current.transport).get(ConfigMap, "x", "default")
        until.set()


def test_what_is_drawn_for_a_place_depends_on_no_other_place() -> None:
    rates = {"lost": 0.5}
    one, other = RandomPlan(1, rates), RandomPlan(1, rates)
    spots = [Spot(f"a#0/{number}", "write") for number in range(50)]
    for spot in spots:
        one.at(spot)
    for spot in reversed(spots):
        other.at(spot)
    assert 0 < len(one.faults) < 50
    assert sorted(map(str, one.faults)) == sorted(map(str, other.faults))


def test_faults_print_as_they_are_read() -> None:
    faults = [Fault("lost", "a#0/12"), Fault("lag", "b#3/1~7", 0.125), Fault("jump-at", "a@12.500", -86400.0)]
    assert parse_faults(" ".join(map(str, faults))) == faults
    with pytest.raises(ValueError, match="is no fault"):
        parse_faults("earthquake=a#0/1")


def test_doing_the_same_for_ever_in_no_time_is_found() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="without any time passing"):
        run_virtual(spin())
