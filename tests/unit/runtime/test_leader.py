"""Leader election in virtual time, against a real API server: one leader at a time, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.coordination import Lease as LeaseObject
from kaito_api.coordination import LeaseSpec
from kaito_api.core import ConfigMap, Namespace
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Lease, Metrics, ObjectKey
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import KubeError, LeaseLost, NotFound, TransportError
from kaito_ctrl.runtime.leader import Elector
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import VirtualClock, VirtualTimeLoop, run_virtual

KEY = ObjectKey("default", "it")
LEASE = Lease("it", namespace="default")


class Line(Transport):
    """A connection on which things go wrong as told, and which keeps what was sent."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.sent: list[str] = []
        self.cut = False
        """Nothing gets through."""
        self.mute = False
        """Requests are carried out, and their answers lost."""
        self.dying = False
        """Like mute, once; from then on nothing is heard any more."""
        self.garbled = False
        """Requests are carried out, and something else is answered, as by a proxy."""
        self.delay = 0.0
        """Seconds until a request reaches the server."""
        self.closed = False

    async def send(self, request: Request) -> Response:
        self.sent.append(request.method)
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.cut:
            raise TransportError("connection refused")
        response = await self._inner.send(request)
        if (self.mute or self.dying) and request.method != "GET":
            self.delay = 1e6 if self.dying else self.delay
            await response.aclose()
            raise TransportError("connection reset")
        if self.garbled:
            await response.aclose()
            return Response.of(200, b"<html>welcome</html>")
        return response

    async def aclose(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Skewed:
    """A wall clock that is wrong, and a monotonic one that began at another time."""

    wrong_by: timedelta
    began: float
    right: VirtualClock = field(default_factory=VirtualClock)

    def now(self) -> datetime:
        return self.right.now() + self.wrong_by

    def monotonic(self) -> float:
        return self.right.monotonic() + self.began


class Frozen:
    """A wall clock that stands still."""

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class Candidate:
    """One of several processes."""

    elector: Elector
    line: Line
    metrics: Metrics
    lifetime: Lifetime = field(default_factory=Lifetime)
    task: asyncio.Task[None] = field(init=False)

    @property
    def leads(self) -> bool:
        return self.elector.leads

    async def stop(self) -> None:
        self.lifetime.stop()
        await asyncio.wait([self.task])

    async def until_lost(self) -> LeaseLost:
        await asyncio.wait([self.task])
        error = self.task.exception()
        assert isinstance(error, LeaseLost)
        return error


def metric(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"name": "it"})


class World:
    """An API server, and candidates for one Lease on it, of which never two may lead."""

    def __init__(self) -> None:
        self.server = ApiServer(clock=VirtualClock(), rng=random.Random(1))
        self.client = Client(self.server.transport(), "user")
        self.candidates: list[Candidate] = []
        self.doubles = 0

    def candidate(
        self, name: str, *, lease: Lease = LEASE, clock: Clock | None = None, seed: int | None = None
    ) -> Candidate:
        line, metrics = Line(self.server.transport()), Metrics()
        rng = random.Random(seed if seed is not None else len(self.candidates))
        elector = Elector(lease, line, name, clock=clock or VirtualClock(), rng=rng, metrics=metrics)
        made = Candidate(elector, line, metrics)
        made.task = asyncio.create_task(elector.run(made.lifetime), name=name)
        self.candidates.append(made)
        return made

    async def leader(self, name: str) -> Candidate:
        made = self.candidate(name)
        await made.lifetime.wait_started()
        return made

    async def record(self) -> LeaseSpec:
        return (await self.client.get(LeaseObject, "it", "default")).spec

    async def oversee(self) -> None:
        while True:
            if sum(each.leads for each in self.candidates) > 1:
                self.doubles += 1
            await asyncio.sleep(0.1)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    overseer = asyncio.create_task(made.oversee())
    try:
        yield made
    finally:
        overseer.cancel()
        for each in made.candidates:
            each.task.cancel()
        await asyncio.wait([overseer, *(each.task for each in made.candidates)])
        await made.server.aclose()
    assert made.doubles == 0, "two led at once"


def virtual(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """A test in virtual time, in a world where two leaders are a failure."""

    async def main() -> None:
        async with asyncio.timeout(3600), world() as made:
            await test(made)

    def run() -> None:
        run_virtual(main())

    run.__name__ = test.__name__
    return run


def now() -> float:
    return asyncio.get_running_loop().time()


def stall(seconds: float) -> None:
    """The event loop stands still: time passes, and nothing runs."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop._jumping.now += seconds


@contextmanager
def timed() -> Iterator[list[float]]:
    took, began = [0.0], now()
    yield took
    took[0] = now() - began


# -- the record ----------------------------------------------------------------------------------------------------


@virtual
async def test_the_record_is_the_one_that_client_go_writes(world: World) -> None:
    await world.leader("a")
    raw = await world.client.get_raw(LeaseObject, KEY)
    assert b'"holderIdentity":"a"' in raw
    assert b'"leaseDurationSeconds":15' in raw
    assert b'"acquireTime":"2026-01-01T00:00:00.000000Z"' in raw
    assert b'"renewTime":"2026-01-01T00:00:00.000000Z"' in raw
    assert b'"leaseTransitions":0' in raw


@virtual
async def test_a_renewal_moves_the_renew_time_alone_and_needs_no_read(world: World) -> None:
    leader = await world.leader("a")
    before = await world.record()
    leader.line.sent.clear()
    await asyncio.sleep(9)
    after = await world.record()
    assert after.renew_time == before.renew_time + timedelta(seconds=8)  # type: ignore[operator]
    assert after.evolve(renew_time=None) == before.evolve(renew_time=None)
    assert leader.line.sent == ["PUT"] * 4
    assert metric(leader.metrics, "leader_election_slowpath_total") == 0


@virtual
async def test_fields_that_we_do_not_know_stay(world: World) -> None:
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "it", "labels": {"team": "x"}},
        "spec": {"strategy": "OldestEmulationVersion", "leaseTransitions": 4},
    }
    await world.client.request("POST", "/apis/coordination.k8s.io/v1/namespaces/default/leases", body=body)
    leader = await world.leader("a")
    lease = await world.client.get(LeaseObject, "it", "default")
    assert lease.metadata.labels == {"team": "x"}
    assert lease.spec.lease_transitions == 5
    assert b"OldestEmulationVersion" in await world.client.get_raw(LeaseObject, KEY)
    await leader.stop()
    released = await world.record()
    assert (released.holder_identity, released.lease_duration_seconds, released.lease_transitions) == ("", 1, 5)


# -- fail-over -----------------------------------------------------------------------------------------------------


@virtual
async def test_a_release_lets_the_next_one_in_at_its_next_look(world: World) -> None:
    first = await world.leader("a")
    second = world.candidate("b")
    await asyncio.sleep(20)
    assert not second.leads
    await first.stop()
    with timed() as took:
        await second.lifetime.wait_started()
    assert took[0] <= 2 * 2.2
    assert (await world.record()).lease_transitions == 1


@virtual
async def test_a_release_is_one_request_and_is_repeated_if_somebody_touched_the_lease(world: World) -> None:
    for touched, sent in ((False, ["PUT"]), (True, ["PUT", "GET", "PUT"])):
        leader = await world.leader("a")
        if touched:
            await world.client.patch(LeaseObject, KEY, {"metadata": {"labels": {"x": "y"}}})
        leader.line.sent.clear()
        await leader.stop()
        assert leader.line.sent == sent
        assert (await world.record()).holder_identity == ""


@virtual
async def test_nobody_elses_lease_is_released(world: World) -> None:
    leader = await world.leader("a")
    await world.client.patch(LeaseObject, KEY, {"spec": {"holderIdentity": "b"}})
    await leader.stop()
    assert (await world.record()).holder_identity == "b"


@virtual
async def test_a_leader_that_dies_is_replaced_after_its_lease_and_no_sooner(world: World) -> None:
    first = await world.leader("a")
    second = world.candidate("b")
    await asyncio.sleep(30)
    first.line.cut = True
    last_renewal = (await world.record()).renew_time
    assert last_renewal is not None
    with contextlib.suppress(LeaseLost):
        await first.task
    await second.lifetime.wait_started()
    gap = (VirtualClock().now() - last_renewal).total_seconds()
    # The candidate sees the last renewal at its next look (4.4 s at most), waits for the duration, and looks once more.
    assert 15 <= gap <= 15 + 2 * 2.2 + 2


@virtual
async def test_of_candidates_that_start_at_the_same_instant_one_leads(world: World) -> None:
    candidates = [world.candidate(f"c{number}") for number in range(5)]
    await asyncio.sleep(120)
    assert sum(each.leads for each in candidates) == 1


@virtual
async def test_leadership_lasts(world: World) -> None:
    first, second = await world.leader("a"), world.candidate("b")
    await asyncio.sleep(3000)
    assert first.leads
    assert not second.leads


@virtual
async def test_clocks_may_disagree(world: World) -> None:
    first = world.candidate("a", clock=Skewed(timedelta(days=-1), 5000.0))
    await first.lifetime.wait_started()
    second = world.candidate("b", clock=Skewed(timedelta(days=1), 0.0))
    await asyncio.sleep(60)
    assert first.leads
    assert not second.leads
    first.line.cut = True
    await first.until_lost()
    await second.lifetime.wait_started()


@virtual
async def test_a_holder_whose_wall_clock_stands_still_is_seen_to_renew(world: World) -> None:
    leader = world.candidate("a", clock=Frozen())
    await leader.lifetime.wait_started()
    second = world.candidate("b")
    await asyncio.sleep(120)
    assert leader.leads
    assert not second.leads


@virtual
async def test_a_lease_of_another_implementation_is_respected_and_taken_over_when_it_lapses(world: World) -> None:
    spec = {
        "holderIdentity": "go-manager_1",
        "leaseDurationSeconds": 30,
        "acquireTime": "2020-01-01T00:00:00.000000Z",
        "renewTime": "2020-01-01T00:00:00.000000Z",
        "leaseTransitions": 2,
    }
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "it", "namespace": "default"},
        "spec": spec,
    }
    await world.client.request("POST", "/apis/coordination.k8s.io/v1/namespaces/default/leases", body=body)
    candidate = world.candidate("a")
    with timed() as took:
        await candidate.lifetime.wait_started()
    # By its own times it lapsed years ago; by those it states, and our clock, 30 s after we first saw it.
    assert 30 <= took[0] <= 32
    assert (await world.record()).lease_transitions == 3


# -- losing it -----------------------------------------------------------------------------------------------------


@virtual
async def test_a_leader_that_cannot_renew_steps_down_before_its_lease_lapses(world: World) -> None:
    leader = await world.leader("a")
    await asyncio.sleep(7)
    leader.line.cut = True
    with timed() as took:
        error = await leader.until_lost()
    assert took[0] < 10
    assert "not renewed for 10 s" in str(error)
    assert "connection refused" in str(error)
    assert not leader.leads
    assert metric(leader.metrics, "leader_election_master_status") == 0


@virtual
async def test_an_api_server_that_is_away_for_a_while_costs_nothing(world: World) -> None:
    leader = await world.leader("a")
    leader.line.cut = True
    await asyncio.sleep(7)
    leader.line.cut = False
    await asyncio.sleep(60)
    assert leader.leads


@virtual
async def test_lost_answers_to_renewals_do_not_count_and_do_no_harm(world: World) -> None:
    leader = await world.leader("a")
    leader.line.mute = True
    await asyncio.sleep(6)
    leader.line.mute = False
    await asyncio.sleep(10)
    assert leader.leads
    assert metric(leader.metrics, "leader_election_slowpath_total") >= 1  # type: ignore[operator]
    leader.line.mute = True
    await leader.until_lost()


@virtual
async def test_a_candidate_whose_answer_was_lost_finds_itself_the_holder(world: World) -> None:
    candidate = world.candidate("a")
    candidate.line.mute = True
    await asyncio.sleep(1)
    assert (await world.record()).holder_identity == "a"
    assert not candidate.leads
    candidate.line.mute = False
    await asyncio.sleep(5)
    assert candidate.leads


@virtual
async def test_a_candidate_that_may_hold_the_lease_without_knowing_releases_it(world: World) -> None:
    candidate = world.candidate("a")
    candidate.line.mute = True
    await asyncio.sleep(1)
    candidate.line.mute = False
    await candidate.stop()
    assert (await world.record()).holder_identity == ""


@virtual
async def test_somebody_elses_label_on_the_lease_does_not_end_leadership(world: World) -> None:
    leader = await world.leader("a")
    await world.client.patch(LeaseObject, KEY, {"metadata": {"labels": {"x": "y"}}})
    await asyncio.sleep(20)
    assert leader.leads
    assert (await world.client.get(LeaseObject, "it", "default")).metadata.labels == {"x": "y"}
    assert metric(leader.metrics, "leader_election_slowpath_total") == 1


@pytest.mark.parametrize("holder", ["b", ""])
def test_a_record_that_no_longer_names_the_leader_ends_its_leadership(holder: str) -> None:
    @virtual
    async def test(world: World) -> None:
        leader = await world.leader("a")
        await world.client.patch(LeaseObject, KEY, {"spec": {"holderIdentity": holder}})
        with timed() as took:
            error = await leader.until_lost()
        assert took[0] <= 2
        assert ("held by b" if holder else "released by somebody else") in str(error)
        assert (await world.record()).holder_identity == holder

    test()


@virtual
async def test_a_lease_that_is_deleted_is_made_again_by_its_holder(world: World) -> None:
    first, second = await world.leader("a"), world.candidate("b")
    await asyncio.sleep(10)
    await world.client.delete(LeaseObject, KEY)
    await asyncio.sleep(30)
    assert first.leads
    assert not second.leads
    assert (await world.record()).holder_identity == "a"


@virtual
async def test_an_event_loop_that_stands_still_makes_the_leader_step_down(world: World) -> None:
    leader = await world.leader("a")
    await asyncio.sleep(5)
    stall(8)
    error = await leader.until_lost()
    assert "stood still for" in str(error)


@virtual
async def test_a_short_stall_is_forgiven(world: World) -> None:
    leader = await world.leader("a")
    await asyncio.sleep(5)
    stall(4)
    await asyncio.sleep(20)
    assert leader.leads


@virtual
async def test_after_a_stall_the_fence_is_closed_before_anybody_notices(world: World) -> None:
    leader, second = await world.leader("a"), world.candidate("b")
    await asyncio.sleep(30)
    fenced = Client(world.server.transport(), "a", fence=leader.elector.fence)
    stall(40)
    # No task has run since; the other one may have taken over while this process stood still.
    assert not leader.leads
    with pytest.raises(LeaseLost, match="refused"):
        await fenced.delete(ConfigMap, ObjectKey("default", "x"))
    await leader.until_lost()
    await second.lifetime.wait_started()


# -- the fence -----------------------------------------------------------------------------------------------------


def config_map(name: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"))


class Heard:
    """Implements ``client.Observer``."""

    def __init__(self) -> None:
        self.doubts: list[str] = []

    def reading(self, kind: type[Any], key: ObjectKey) -> Callable[[bytes | None], None]:
        return lambda _: None

    def wrote(self, kind: type[Any], key: ObjectKey, raw: bytes) -> None: ...

    def deleted(self, kind: type[Any], key: ObjectKey, uid: str) -> None: ...

    def uncertain(self, kind: type[Any], key: ObjectKey) -> None:
        self.doubts.append(key.name)


@virtual
async def test_a_fenced_client_writes_only_while_it_leads_and_always_reads(world: World) -> None:
    candidate = world.candidate("a")
    heard = Heard()
    client = Client(world.server.transport(), "a", heard, candidate.elector.fence)
    with pytest.raises(LeaseLost):
        await client.create(config_map("early"))
    await candidate.lifetime.wait_started()
    await client.create(config_map("x"))
    await candidate.stop()
    for write in (
        lambda: client.create(config_map("y")),
        lambda: client.apply(config_map("y")),
        lambda: client.patch(ConfigMap, ObjectKey("default", "x"), {"data": {"a": "b"}}),
        lambda: client.delete(ConfigMap, ObjectKey("default", "x")),
        lambda: client.request("POST", "/api/v1/namespaces/default/configmaps", body=config_map("y").to_wire()),
        lambda: client.named("b").delete(ConfigMap, ObjectKey("default", "x")),
    ):
        with pytest.raises(LeaseLost):
            await write()
    assert [each.name for each in await client.list(ConfigMap, "default") if each.name in "xy"] == ["x"]
    assert heard.doubts == [], "what was refused leaves no doubt"


@virtual
async def test_a_write_that_hangs_is_given_up_when_the_lease_ends_and_leaves_a_doubt(world: World) -> None:
    leader = await world.leader("a")
    line, heard = Line(world.server.transport()), Heard()
    client = Client(line, "a", heard, leader.elector.fence)
    line.delay, leader.line.cut = 25.0, True
    with timed() as took, pytest.raises(LeaseLost, match="may or may not"):
        await client.create(config_map("x"))
    assert took[0] <= 10
    assert heard.doubts == ["x"]
    await asyncio.sleep(60)
    with pytest.raises(NotFound):
        await client.get(ConfigMap, "x", "default")


@virtual
async def test_a_slow_write_may_outlive_many_renewals(world: World) -> None:
    leader = await world.leader("a")
    line = Line(world.server.transport())
    line.delay = 28.0
    await Client(line, "a", None, leader.elector.fence).create(config_map("x"))
    assert leader.leads


@virtual
async def test_a_write_in_flight_is_given_up_at_once_when_another_holder_is_seen(world: World) -> None:
    leader = await world.leader("a")
    line = Line(world.server.transport())
    line.delay = 8.0
    writing = asyncio.create_task(Client(line, "a", None, leader.elector.fence).create(config_map("x")))
    await asyncio.sleep(0.5)
    await world.client.patch(LeaseObject, KEY, {"spec": {"holderIdentity": "b"}})
    with timed() as took, pytest.raises(LeaseLost):
        await writing
    assert took[0] <= 2


@virtual
async def test_a_time_out_of_the_callers_own_is_not_taken_for_the_leases(world: World) -> None:
    leader = await world.leader("a")
    line = Line(world.server.transport())
    line.delay = 5.0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await Client(line, "a", None, leader.elector.fence).create(config_map("x"))


# -- around it -----------------------------------------------------------------------------------------------------


@virtual
async def test_what_was_forfeited_is_not_released_and_lapses(world: World) -> None:
    first, second = await world.leader("a"), world.candidate("b")
    await asyncio.sleep(5)
    first.elector.forfeit()
    assert not first.leads
    await first.stop()
    assert (await world.record()).holder_identity == "a"
    with timed() as took:
        await second.lifetime.wait_started()
    assert took[0] > 10


@virtual
async def test_a_renewal_on_its_way_does_not_open_a_fence_that_was_closed_for_good(world: World) -> None:
    leader = await world.leader("a")
    leader.line.delay = 1.0
    await asyncio.sleep(2.5)
    assert leader.leads
    leader.elector.forfeit()
    await asyncio.sleep(1)
    assert not leader.leads


@virtual
async def test_a_process_that_outlives_its_lease_is_not_healthy(world: World) -> None:
    leader = await world.leader("a")
    await asyncio.sleep(100)
    assert leader.elector.check() is None
    leader.line.cut = True
    await leader.until_lost()
    assert leader.elector.check() is None
    await asyncio.sleep(60)
    assert "lapsed" in (leader.elector.check() or "")


@virtual
async def test_a_candidate_that_may_not_or_cannot_goes_on_trying(world: World) -> None:
    candidate = world.candidate("a", lease=Lease("it", namespace="later"))
    await asyncio.sleep(60)
    assert not candidate.task.done()
    assert not candidate.leads
    await world.client.create(Namespace(metadata=ObjectMeta(name="later")))
    await candidate.lifetime.wait_started()


@virtual
async def test_a_standby_is_healthy_however_long_it_waits(world: World) -> None:
    await world.leader("a")
    standby = world.candidate("b")
    await asyncio.sleep(600)
    assert standby.elector.check() is None
    assert metric(standby.metrics, "leader_election_master_status") == 0


def test_the_election_has_a_connection_of_its_own_where_it_can_have_one() -> None:
    async def main() -> None:
        server = ApiServer(clock=VirtualClock(), rng=random.Random(1))
        busy, own = Line(server.transport()), Line(server.transport())
        busy.delay = 1000.0

        async def dial() -> Transport:
            return own

        elector = Elector(LEASE, busy, "a", clock=VirtualClock(), rng=random.Random(1), metrics=Metrics(), dial=dial)
        lifetime = Lifetime()
        task = asyncio.create_task(elector.run(lifetime))
        await asyncio.sleep(60)
        assert elector.leads
        lifetime.stop()
        await task
        assert busy.sent == []
        assert own.closed

    run_virtual(main())


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ({"duration": 10}, "must be longer than renew_deadline"),
        ({"renew_deadline": 2.4}, "must be longer than 1.2 retry periods"),
        ({"duration": 0, "renew_deadline": -1.0}, "at least 1"),
    ],
)
def test_times_that_are_not_safe_together_are_refused(times: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Lease("it", **times)


def test_outside_of_a_pod_the_namespace_has_to_be_said() -> None:
    async def main() -> None:
        server = ApiServer(clock=VirtualClock(), rng=random.Random(1))
        with pytest.raises(KubeError, match="say where the Lease 'it' lives"):
            Elector(Lease("it"), server.transport(), "a", clock=VirtualClock(), rng=random.Random(1), metrics=Metrics())

    run_virtual(main())


@virtual
async def test_an_answer_that_is_no_object_is_a_failed_attempt_and_ends_nothing(world: World) -> None:
    candidate = world.candidate("a")
    line = candidate.line
    line.garbled = True
    await asyncio.sleep(30)
    assert not candidate.leads
    line.garbled = False
    await candidate.lifetime.wait_started()
    line.garbled = True
    await asyncio.sleep(5)
    assert candidate.leads
    line.garbled = False
    await asyncio.sleep(60)
    assert candidate.leads
    await candidate.stop()
