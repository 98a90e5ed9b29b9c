"""Node repair: which nodes are replaced, when, and what keeps them from it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from kaito_api.core import Node
from kaito_api.events import Event
from kaito_api.karpenter import TERMINATION_TIMESTAMP_ANNOTATION, Machine, NodeClaim, NodeRequest
from kaito_api.meta import rfc3339
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.reconcilers.machine.health import HealthController
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import VirtualClock, run_virtual
from kaito_provisioner import RepairPolicy
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.unit.reconcilers.livefleet import LiveFleet, served

TOLERATION = 600.0
GPU = "AcceleratedHardwareReady"


class Judged(SimCloud):
    """A cloud that minds broken GPUs, too, and sooner."""

    def repair_policies(self) -> tuple[RepairPolicy, ...]:
        ready = tuple(RepairPolicy("Ready", status, TOLERATION) for status in ("False", "Unknown"))
        return (*ready, RepairPolicy(GPU, "False", 300.0))


@dataclass
class Way:
    """A way to the server that notes what is written of claims, and can hold back what watches say."""

    inner: Transport
    writes: list[str] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, request: Request) -> Response:
        if request.method != "GET" and "karpenter.sh" in request.path:
            self.writes.append(f"{request.method} {request.path.rpartition('/')[2]}")
        response = await self.inner.send(request)
        if ("watch", "true") in request.query:
            return Response(response.status, response.headers, self._held(response), close=response.aclose)
        return response

    async def _held(self, response: Response) -> AsyncIterator[bytes]:
        async for chunk in response.chunks():
            await self.told.wait()
            yield chunk

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass(kw_only=True)
class Bench(LiveFleet):
    """A cluster with one controller."""

    server: ApiServer
    local: VirtualClock
    """The controller's wall clock."""
    way: Way
    metrics: ClaimMetrics
    running: asyncio.Task[None] | None = None
    manager: Manager | None = None

    async def fleet(self, *names: str) -> None:
        """Initialized claims with Ready nodes, beside a node of the cluster's own."""
        await self.node("system", "")
        await self.report("system", "True")
        for name in names:
            await self.member(name)

    async def member(self, name: str, *, initialized: bool = True, **metadata: Any) -> None:
        uid = await self.claim(name, **metadata)
        await self.joined(name, initialized=initialized)
        await self.node(name, uid)
        await self.report(name, "True")

    async def start(self) -> None:
        """The controller's process, anew."""
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait((self.running,))
        cluster = Cluster(self.way, clock=self.local, rng=random.Random(3))
        cloud = Judged([SimInstanceType("small", 1)], now=self.clock.now)
        self.manager = Manager(cluster, drain=1.0)
        self.metrics = ClaimMetrics(self.kind)
        self.manager.add(HealthController(cloud, self.kind, self.metrics))
        self.running = asyncio.create_task(self.manager.run())
        await self.manager.wait_ready()
        await asyncio.sleep(1)

    async def claims(self) -> list[str]:
        return await self.names(self.kind)

    async def until_gone(self, name: str, within: float) -> float:
        """Seconds until the claim is not there."""
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(within):
            while name in await self.claims():
                await asyncio.sleep(1)
        return asyncio.get_running_loop().time() - began

    async def told(self) -> set[tuple[str, str, str]]:
        await asyncio.sleep(2)
        events = await self.user.list(Event)
        return {(each.regarding.kind, each.reason, each.note) for each in events}


def bench(test: Callable[[Bench], Awaitable[None]], *, kind: type[NodeRequest] = Machine) -> None:
    """Play *test* in virtual time."""

    async def main() -> None:
        truth = VirtualClock()
        async with served(truth) as server:
            way = Way(server.transport(user="health"))
            way.told.set()
            world = Bench(
                user=Client(server.transport()),
                clock=truth,
                kind=kind,
                server=server,
                local=VirtualClock(),
                way=way,
                metrics=ClaimMetrics(kind),
            )
            try:
                await test(world)
            finally:
                if world.running is not None and world.manager is not None:
                    world.manager.stop()
                    await asyncio.wait((world.running,))

    run_virtual(main())


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_node_that_is_not_ready_for_too_long_is_replaced(status: str, kind: type[NodeRequest]) -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a", "b")
        await world.start()
        await world.report("a", status)
        world.way.writes.clear()
        assert TOLERATION <= await world.until_gone("a", 700.0) < TOLERATION * 1.1 + 5
        assert world.way.writes == ["PATCH a", "DELETE a"], "first the moment from which nothing is waited for"
        assert await world.claims() == ["b"]
        told = await world.told()
        note = f"Unhealthy, Ready={status} for more than 600 s"
        assert (kind.kind, "Disrupted", f"Disrupting {kind.kind}: {note}") in told
        assert ("Node", "Disrupted", f"Disrupting Node: {note}") in told
        labels = {"condition": "ready", "capacity_type": "", "image_id": "", _pool(kind): ""}
        name = f"karpenter_{kind.plural}_unhealthy_disrupted_total"
        assert world.metrics.registry.get_sample_value(name, labels) == 1.0

    bench(test, kind=kind)


def _pool(kind: type[NodeRequest]) -> str:
    return "provisioner" if kind is Machine else "nodepool"


def test_the_moment_from_which_nothing_is_waited_for_is_on_the_claim_before_it_goes() -> None:
    async def test(world: Bench) -> None:
        await world.fleet()
        earlier = rfc3339(world.clock.now() - timedelta(hours=1))
        later = rfc3339(world.clock.now() + timedelta(hours=10))
        given = {"plain": None, "early": earlier, "late": later, "odd": "tomorrow"}
        for name, moment in given.items():
            annotations = {TERMINATION_TIMESTAMP_ANNOTATION: moment} if moment else {}
            await world.member(name, annotations=annotations, finalizers=["example.org/kept"])
        # A fleet that is large enough for all of them to go.
        for number in range(16):
            await world.member(f"more{number}")
        for name in given:
            await world.report(name, "Unknown")
        await world.start()
        began = world.clock.now()
        await asyncio.sleep(700)
        found = {}
        for name in given:
            claim = await world.user.get(Machine, name)
            assert claim.deleting
            found[name] = claim.metadata.annotations[TERMINATION_TIMESTAMP_ANNOTATION]
        assert found["early"] == earlier
        for name in ("plain", "late", "odd"):
            assert rfc3339(began) < found[name] <= rfc3339(world.clock.now())

    bench(test)


def test_a_node_that_recovers_in_time_is_not_replaced_and_neither_is_one_that_does_so_again_and_again() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        for _ in range(10):
            await world.report("a", "Unknown")
            await asyncio.sleep(500)
            await world.report("a", "True")
            await asyncio.sleep(50)
        assert await world.claims() == ["a"]
        assert world.way.writes == []

    bench(test)


def test_two_of_three_are_an_outage_until_one_comes_back() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a", "b", "c")
        await world.start()
        await world.report("a", "Unknown")
        await world.report("b", "Unknown")
        await asyncio.sleep(6 * 3600)
        assert await world.claims() == ["a", "b", "c"]
        note = "2 of 3 nodes are unhealthy (a, b), more than the 1 that may be at once"
        told = await world.told()
        assert ("Machine", "NodeRepairBlocked", note) in told
        assert ("Node", "NodeRepairBlocked", note) in told
        assert world.way.writes == []
        await world.report("b", "True")
        assert await world.until_gone("a", 400.0) < 335.0
        assert await world.claims() == ["b", "c"]

    bench(test)


def test_nothing_is_replaced_while_no_node_of_the_cluster_is_ready() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        for name in ("a", "system"):
            await world.report(name, "Unknown")
        await asyncio.sleep(6 * 3600)
        assert await world.claims() == ["a"]
        await world.report("system", "True")
        await world.until_gone("a", 400.0)

    bench(test)


def test_one_after_the_other_is_replaced_as_the_ones_before_are_gone() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("b", "c", "d", "e")
        await world.member("a", finalizers=["karpenter.sh/termination"])
        await world.start()
        await world.report("a", "Unknown")
        await asyncio.sleep(700)
        assert (await world.user.get(Machine, "a")).deleting
        await world.report("b", "Unknown")
        await asyncio.sleep(3600)
        assert "b" in await world.claims(), "a's end takes its time"
        await world.strip("a")
        await world.until_gone("b", 400.0)

    bench(test)


def test_the_earliest_deadline_of_a_nodes_conditions_counts() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        await world.report("a", "Unknown")
        await asyncio.sleep(100)
        await world.report("a", "Unknown", others={GPU: "False"})
        assert 300.0 <= await world.until_gone("a", 400.0) < 335.0
        notes = [note for _, reason, note in await world.told() if reason == "Disrupted"]
        assert any(f"{GPU}=False for more than 300 s" in note for note in notes)

    bench(test)


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_wall_clock_that_jumps_makes_nothing_older_or_younger(hours: float) -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        await world.report("a", "Unknown")
        await asyncio.sleep(60)
        world.local.jump(hours * 3600)
        assert 540.0 <= await world.until_gone("a", 700.0) < 640.0

    bench(test)


@pytest.mark.parametrize("hours", [-10, 10])
def test_a_kubelet_whose_clock_is_wrong_is_given_its_time(hours: float) -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        await world.report("a", "False", since=world.clock.now() + timedelta(hours=hours))
        assert TOLERATION <= await world.until_gone("a", 700.0) < 665.0

    bench(test)


@pytest.mark.parametrize("off", [-10, 0, 10])
def test_what_began_before_the_process_did_has_to_be_seen_for_its_whole_toleration(off: float) -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        world.local.jump(off * 3600)
        await world.report("a", "Unknown", since=world.clock.now() - timedelta(hours=10))
        await world.start()
        assert TOLERATION - 5 <= await world.until_gone("a", 700.0) < 665.0

    bench(test)


def test_nodes_that_come_back_after_their_cluster_was_stopped_are_not_replaced() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("gpu")
        await world.report("gpu", "Unknown")
        await asyncio.sleep(3600)
        await world.start()  # the system nodes, and this process, are there first
        await asyncio.sleep(240)
        await world.report("gpu", "True")
        await asyncio.sleep(3600)
        assert await world.claims() == ["gpu"]

    bench(test)


def test_claims_that_are_not_managed_not_initialized_or_on_their_way_out_are_left_alone() -> None:
    async def test(world: Bench) -> None:
        await world.fleet()
        await world.member("theirs", labels={"karpenter.sh/provisioner-name": "gpu"})
        await world.member("new", initialized=False)
        await world.member("going", finalizers=["karpenter.sh/termination"])
        await world.user.delete(Machine, ObjectKey("", "going"))
        for number in range(12):
            await world.member(f"more{number}")
        await world.start()
        for name in ("theirs", "new", "going"):
            await world.report(name, "Unknown")
        await asyncio.sleep(3600)
        assert {"theirs", "new", "going"} <= set(await world.claims())
        assert world.way.writes == []

    bench(test)


def test_a_node_that_the_cache_does_not_know_to_have_recovered_is_not_replaced() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        await world.report("a", "Unknown")
        await asyncio.sleep(500)
        world.way.told.clear()
        await world.report("a", "True")
        await asyncio.sleep(600)
        assert await world.claims() == ["a"]
        assert world.way.writes == []
        world.way.told.set()
        await asyncio.sleep(3600)
        assert await world.claims() == ["a"]

    bench(test)


def test_an_illness_that_ended_unseen_and_came_again_begins_anew() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        await world.report("a", "Unknown")
        await asyncio.sleep(400)
        world.way.told.clear()
        await world.report("a", "True")
        await asyncio.sleep(10)
        await world.report("a", "Unknown")
        world.way.told.set()
        assert TOLERATION <= await world.until_gone("a", 700.0) < 665.0

    bench(test)


def test_a_node_that_recovers_between_the_two_writes_of_its_repair_is_not_drained_by_force_one_day() -> None:
    async def test(world: Bench) -> None:
        await world.fleet()
        await world.member("a", annotations={TERMINATION_TIMESTAMP_ANNOTATION: rfc3339(world.clock.now())})
        await world.start()
        await asyncio.sleep(5)
        assert TERMINATION_TIMESTAMP_ANNOTATION not in (await world.user.get(Machine, "a")).metadata.annotations
        assert world.way.writes == ["PATCH a"]

    bench(test)


def test_a_node_object_that_somebody_deletes_is_not_ours_to_mend() -> None:
    async def test(world: Bench) -> None:
        await world.fleet("a")
        await world.start()
        await world.report("a", "Unknown")
        await asyncio.sleep(300)
        await world.user.delete(Node, ObjectKey("", "a"))
        await asyncio.sleep(3600)
        assert await world.claims() == ["a"]
        assert world.way.writes == []

    bench(test)
