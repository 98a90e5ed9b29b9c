"""Events: told without waiting, written once, counted as a series, limited, and flushed at the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from kaito_api.core import ConfigMap, Node
from kaito_api.events import Event, ObjectReference
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Context, Controller, Manager, Metrics, Result
from kaito_ctrl.runtime.codec import encode_json
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.events import EventRecorder
from kaito_ctrl.runtime.fence import Fence
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import FaultyTransport, Network, RandomPlan, VirtualClock, run_virtual

POD = ObjectReference(api_version="v1", kind="Pod", namespace="default", name="web-0", uid="u-1")


@dataclass
class Wire:
    """The way to the server: counts the writes of events, and fails as told."""

    inner: Transport
    writes: list[str] = field(default_factory=list)
    fail: Callable[[Request], Response | None] = lambda _: None

    async def send(self, request: Request) -> Response:
        answer = self.fail(request)
        if answer is not None:
            return answer
        if request.method != "GET":
            self.writes.append(request.method)
        return await self.inner.send(request)

    async def aclose(self) -> None: ...


@dataclass
class World:
    server: ApiServer
    wire: Wire
    metrics: Metrics
    recorder: EventRecorder
    lifetime: Lifetime

    def tell(self, note: str = "Pulled the image", reason: str = "Pulled", about: ObjectReference = POD) -> None:
        self.recorder.named("kubelet").normal(about, reason, note, action="Pull")

    async def events(self) -> list[Event]:
        found = await Client(self.server.transport()).list(Event)
        return sorted(found, key=lambda each: (each.event_time, each.note))  # type: ignore[arg-type, return-value]

    async def only(self) -> Event:
        (event,) = await self.events()
        return event

    def dropped(self, reason: str) -> float | None:
        return self.metrics.registry.get_sample_value("kaito_ctrl_events_dropped_total", {"reason": reason})


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    clock = VirtualClock()
    server = ApiServer(clock=clock, rng=random.Random(1))
    wire, metrics, lifetime = Wire(server.transport()), Metrics(), Lifetime()
    fence = options.pop("fence", None)
    recorder = EventRecorder(
        Client(wire, fence=fence), clock=clock, rng=random.Random(2), instance="host-1", metrics=metrics, **options
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(recorder.run(lifetime))
        yield World(server, wire, metrics, recorder, lifetime)
        lifetime.stop()
    await server.aclose()


def in_virtual_time(body: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with world(**options) as made:
            await body(made)

    run_virtual(main())


def test_an_event_is_written_with_all_that_the_server_and_kubectl_want() -> None:
    async def body(w: World) -> None:
        w.recorder.named("kubelet").warning(POD, "BackOff", "Back-off restarting", action="Start", related=POD)
        await asyncio.sleep(1)
        event = await w.only()
        assert (event.regarding, event.related) == (POD, POD)
        assert (event.type, event.reason, event.action, event.note) == (
            "Warning",
            "BackOff",
            "Start",
            "Back-off restarting",
        )
        assert (event.reporting_controller, event.reporting_instance) == ("kubelet", "kubelet-host-1")
        assert event.event_time is not None
        assert event.series is None
        assert event.namespace == "default"
        assert event.name.startswith("web-0.")

    in_virtual_time(body)


def test_names_depend_on_the_seed_alone() -> None:
    names: list[str] = []

    async def body(w: World) -> None:
        w.tell()
        await asyncio.sleep(1)
        names.append((await w.only()).name)

    in_virtual_time(body)
    in_virtual_time(body)
    assert names[0] == names[1]


def test_an_object_of_the_cluster_has_its_events_in_default_and_a_name_that_fits_no_event_is_left_out() -> None:
    async def body(w: World) -> None:
        sink = w.recorder.named("kubelet")
        sink.normal(Node(metadata=ObjectMeta(name="n1", uid="u-n")), "Ready", "The node is ready")
        role = ObjectReference(
            api_version="rbac.authorization.k8s.io/v1", kind="ClusterRole", name="system:node", uid="u-r"
        )
        sink.normal(role, "Bound", "It was bound")
        await asyncio.sleep(1)
        bound, ready = await w.events()
        assert (ready.namespace, ready.regarding.namespace, ready.name[:3]) == ("default", "", "n1.")
        assert (bound.namespace, len(bound.name)) == ("default", 16)

    in_virtual_time(body)


def test_the_same_event_again_becomes_a_series_which_is_written_when_it_begins_and_when_it_ends() -> None:
    async def body(w: World) -> None:
        w.tell()
        await asyncio.sleep(1)
        w.tell()
        await asyncio.sleep(1)
        begun = (await w.only()).series
        assert begun is not None
        assert begun.count == 2
        for _ in range(40):
            await asyncio.sleep(1)
            w.tell()
        assert w.wire.writes == ["POST", "PATCH"]
        await asyncio.sleep(359)
        assert w.wire.writes == ["POST", "PATCH"]
        last = w.recorder.clock.now()
        await asyncio.sleep(2)
        ended = (await w.only()).series
        assert ended is not None
        assert ended.count == 42
        assert (last - ended.last_observed_time).total_seconds() == pytest.approx(359)
        assert w.wire.writes == ["POST", "PATCH", "PATCH"]

    in_virtual_time(body)


def test_a_series_that_goes_on_is_written_every_half_hour() -> None:
    async def body(w: World) -> None:
        written = []
        for minute in range(180):
            before = len(w.wire.writes)
            w.tell()
            await asyncio.sleep(60)
            if len(w.wire.writes) > before:
                written.append(minute)
        assert len(await w.events()) == 1
        apart = [late - early for early, late in pairwise(written[2:])]
        assert len(apart) >= 3
        assert set(apart) == {30}, written

    in_virtual_time(body)


def test_after_six_minutes_of_silence_the_same_is_a_new_event() -> None:
    async def body(w: World) -> None:
        w.tell()
        await asyncio.sleep(361)
        w.tell()
        await asyncio.sleep(1)
        first, second = await w.events()
        assert (first.series, second.series) == (None, None)
        assert first.name != second.name

    in_virtual_time(body)


def test_a_series_that_begins_while_its_first_event_is_under_way_is_written_all_the_same() -> None:
    async def body(w: World) -> None:
        slow = w.server.transport()

        class Slow:
            async def send(self, request: Request) -> Response:
                if request.method == "POST":
                    await asyncio.sleep(5)
                return await slow.send(request)

            async def aclose(self) -> None: ...

        w.wire.inner = Slow()
        w.tell()
        await asyncio.sleep(1)
        w.tell()
        await asyncio.sleep(10)
        series = (await w.only()).series
        assert series is not None
        assert series.count == 2

    in_virtual_time(body)


def test_a_series_outlives_its_event() -> None:
    async def body(w: World) -> None:
        client = Client(w.server.transport())
        w.tell()
        await asyncio.sleep(1)
        first = await w.only()
        await client.request("DELETE", f"/apis/events.k8s.io/v1/namespaces/default/events/{first.name}")
        w.tell()
        await asyncio.sleep(1)
        again = await w.only()
        assert again.name != first.name
        assert again.series is not None
        assert again.series.count == 2

    in_virtual_time(body)


def test_one_object_may_have_twenty_five_events_at_once_and_then_one_every_five_minutes() -> None:
    async def body(w: World) -> None:
        for number in range(40):
            w.tell(f"note {number}")
        w.tell("of another", about=POD.evolve(name="web-1", uid="u-2"))
        await asyncio.sleep(60)
        assert len(await w.events()) == 26
        assert w.dropped("rate_limited") == 15
        await asyncio.sleep(240)
        w.tell("one more")
        w.tell("and too many")
        await asyncio.sleep(1)
        assert len(await w.events()) == 27

    in_virtual_time(body)


def test_writing_keeps_a_pace_whatever_the_objects() -> None:
    async def body(w: World) -> None:
        for number in range(200):
            w.tell(about=POD.evolve(name=f"web-{number}", uid=f"u-{number}"))
        await asyncio.sleep(1)
        assert len(w.wire.writes) == pytest.approx(120, abs=2)
        await asyncio.sleep(10)
        assert len(w.wire.writes) == 200

    in_virtual_time(body)


def test_a_full_queue_drops_the_oldest_which_may_be_told_again() -> None:
    async def body(w: World) -> None:
        for number in range(1010):
            w.tell(about=POD.evolve(name=f"web-{number}", uid=f"u-{number}"))
        assert w.dropped("queue_full") == 10
        await asyncio.sleep(120)
        names = {event.regarding.name for event in await w.events()}
        assert len(names) == 1000
        assert "web-0" not in names
        w.tell(about=POD.evolve(name="web-0", uid="u-0"))
        await asyncio.sleep(1)
        assert "web-0" in {event.regarding.name for event in await w.events()}

    in_virtual_time(body)


def refuse(code: int, reason: str) -> Callable[[Request], Response]:
    body = {"kind": "Status", "code": code, "reason": reason, "message": "no"}
    return lambda _: Response.of(code, encode_json(body))


def break_off(_: Request) -> Response:
    raise TransportError("connection reset")


@pytest.mark.parametrize(
    "failure", [break_off, refuse(503, "ServiceUnavailable"), refuse(429, "TooManyRequests"), refuse(401, "")]
)
def test_a_server_that_is_away_is_waited_for_while_events_are_counted(failure: Callable[[Request], Response]) -> None:
    async def body(w: World) -> None:
        w.wire.fail = failure
        w.tell()
        w.tell("another")
        await asyncio.sleep(20)
        w.tell()
        w.wire.fail = lambda _: None
        await asyncio.sleep(60)
        first, second = await w.events()
        assert {first.note: first.series, second.note: second.series}["another"] is None
        assert sorted(each.series.count for each in (first, second) if each.series is not None) == [2]

    in_virtual_time(body)


def test_a_server_that_asks_for_a_day_is_asked_again_after_half_a_minute() -> None:
    answers = [Response.of(429, b"", {"retry-after": "86400"})]

    async def body(w: World) -> None:
        w.wire.fail = lambda request: answers.pop() if answers else None
        w.tell()
        await asyncio.sleep(31)
        await w.only()

    in_virtual_time(body)


def test_it_does_not_wait_for_ever() -> None:
    async def body(w: World) -> None:
        w.wire.fail = break_off
        w.tell()
        await asyncio.sleep(3600)
        assert w.dropped("gave_up") == 1
        w.wire.fail = lambda _: None
        w.tell()
        await asyncio.sleep(60)
        assert (await w.only()).series is None

    in_virtual_time(body)


def test_an_event_whose_answer_was_lost_is_not_written_twice() -> None:
    async def body(w: World) -> None:
        inner = w.server.transport()

        class Lossy:
            lost = False

            async def send(self, request: Request) -> Response:
                response = await inner.send(request)
                if not self.lost:
                    self.lost = True
                    await response.aclose()
                    raise TransportError("connection reset")
                return response

            async def aclose(self) -> None: ...

        w.wire.inner = Lossy()
        w.tell()
        await asyncio.sleep(60)
        assert w.wire.writes == ["POST", "POST"]
        assert (await w.only()).note == "Pulled the image"

    in_virtual_time(body)


def test_a_refusal_is_final_for_its_event_alone() -> None:
    async def body(w: World) -> None:
        w.tell(about=POD.evolve(namespace="nowhere"))
        w.tell("fine")
        await asyncio.sleep(1)
        assert w.dropped("refused") == 1
        assert (await w.only()).note == "fine"

    in_virtual_time(body)


def test_whoever_does_not_lead_any_more_writes_none() -> None:
    async def body(w: World) -> None:
        w.tell()
        await asyncio.sleep(10)
        assert w.wire.writes == []
        assert w.dropped("refused") == 1

    in_virtual_time(body, fence=Fence(VirtualClock(), "default/mine"))


def test_what_cannot_be_told_is_counted_and_never_raised() -> None:
    async def body(w: World) -> None:
        w.recorder.named("kubelet").normal("not an object", "Reason", "note")  # type: ignore[arg-type]
        assert w.dropped("failed") == 1

    in_virtual_time(body)


@pytest.mark.parametrize("letter", ["x", "é", "語", "🙂"])
def test_what_is_too_long_is_cut_to_what_the_server_takes(letter: str) -> None:
    async def body(w: World) -> None:
        recorder = w.recorder
        recorder.instance = "h" * 200
        w.tell(letter * 2000)
        await asyncio.sleep(1)
        event = await w.only()
        assert 1018 <= len(event.note.encode()) <= 1024
        assert event.note.endswith(letter + "...")
        assert len(event.reporting_instance) == 128

    in_virtual_time(body)


def test_a_stop_writes_what_waits_series_included() -> None:
    async def main() -> None:
        async with world() as w:
            w.tell()
            await asyncio.sleep(1)
            for _ in range(5):
                w.tell()
            await asyncio.sleep(1)
            w.tell()
            for number in range(300):
                w.tell(about=POD.evolve(name=f"web-{number}", uid=f"u-{number}-x"))
            began = asyncio.get_running_loop().time()
            w.lifetime.stop()
            await asyncio.sleep(0.5)
            found = await w.events()
        assert asyncio.get_running_loop().time() - began < 2
        assert len(found) == 301
        assert [event.series.count for event in found if event.series is not None] == [7]

    run_virtual(main())


def test_a_stop_takes_two_seconds_however_the_server_is() -> None:
    async def main() -> None:
        async with world() as w:
            w.wire.fail = break_off
            w.tell()
            w.tell("another")
            await asyncio.sleep(30)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began <= 2.0
        assert w.dropped("shutdown") == 2

    run_virtual(main())


def test_what_is_told_after_the_end_is_counted_as_dropped() -> None:
    async def body(w: World) -> None:
        w.tell()
        await asyncio.sleep(1)
        w.lifetime.stop()
        await asyncio.sleep(5)
        w.tell("too late")
        assert w.dropped("shutdown") == 1
        await w.only()

    in_virtual_time(body)


def test_a_series_ends_at_its_moment_whatever_is_lost_in_rounding() -> None:
    # Of a moment, a sum's rounding may fall one way and a difference's the other: it was over and not over, for ever.
    async def body(w: World) -> None:
        rng = random.Random(5)
        for number in range(100):
            w.tell(about=POD.evolve(name=f"web-{number}", uid=f"u-{number}"))
            await asyncio.sleep(400 + rng.random())
        assert len(await w.events()) == 100

    in_virtual_time(body)


def test_nothing_is_remembered_of_what_is_over() -> None:
    async def body(w: World) -> None:
        for number in range(50):
            w.tell(about=POD.evolve(name=f"web-{number}", uid=f"u-{number}"))
        await asyncio.sleep(400)
        assert not w.recorder._records
        assert not w.recorder._due

    in_virtual_time(body)


ROUGH = {
    "refused": 0.1,
    "throttled": 0.05,
    "error": 0.05,
    "unavailable": 0.05,
    "unauthorized": 0.05,
    "slow": 0.05,
    "broken": 0.05,
    "lost": 0.1,
    "conflict": 0.05,
}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_network_does_each_event_is_there_once_and_counted_right(seed: int) -> None:
    told: Counter[str] = Counter()

    async def body(w: World) -> None:
        rng = random.Random(seed)
        network = Network(seed, RandomPlan(seed, ROUGH, until=120))
        w.wire.inner = FaultyTransport(w.server.transport(), network, "recorder")
        for _ in range(60):
            note = f"note {rng.randrange(8)}"
            told[note] += 1
            w.tell(note)
            await asyncio.sleep(rng.expovariate(0.5))
        await asyncio.sleep(600)
        await network.settle()
        assert sum(network.struck.values()) > 0
        found = {event.note: event.series.count if event.series is not None else 1 for event in await w.events()}
        assert len(await w.events()) == len(told)
        assert found == told

    in_virtual_time(body)


class Teller(Controller[ConfigMap]):
    """Tells an event about each object, the last of them on its way out."""

    name = "teller"
    kind = ConfigMap

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        ctx.events.normal(obj, "Seen", "It was seen", action="Look")
        try:
            await asyncio.sleep(0.5)
        finally:
            ctx.events.warning(obj, "Left", "It was left")
        return Result.done()


def test_a_controller_tells_through_its_context_and_what_it_tells_last_is_written_too() -> None:
    async def main() -> None:
        clock = VirtualClock()
        server = ApiServer(clock=clock, rng=random.Random(1))
        manager = Manager(Cluster(server.transport(), clock=clock, rng=random.Random(1)))
        manager.add(Teller())
        await Client(server.transport()).create(ConfigMap(metadata=ObjectMeta(name="a", namespace="default")))
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            await manager.wait_ready()
            await asyncio.sleep(0.1)
            manager.stop()
        found = await Client(server.transport()).list(Event)
        assert {(each.type, each.reason, each.action, each.reporting_controller) for each in found} == {
            ("Normal", "Seen", "Look", "teller"),
            ("Warning", "Left", "Reconcile", "teller"),
        }
        await server.aclose()

    run_virtual(main())
