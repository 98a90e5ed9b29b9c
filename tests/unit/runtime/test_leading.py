"""Managers that contend for a Lease, in virtual time: who reconciles, when, and what becomes of those who lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from kaito_api.coordination import Lease as LeaseObject
from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Context, Controller, Lease, Manager, ObjectKey, Result
from kaito_ctrl.runtime.errors import LeaseLost, ShutdownTimeout
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.transport import Transport
from kaito_ctrl.testing import Process, VirtualClock, run_virtual
from tests.unit.runtime.test_leader import KEY, Line
from tests.unit.runtime.test_manager import Failing, Stubborn


class Marking(Controller[ConfigMap]):
    """Writes its replica's name into every object that is labelled ``mark``."""

    name = "marking"
    kind = ConfigMap

    def __init__(self, replica: str, *, slow: float = 0.0) -> None:
        self.replica = replica
        self.slow = slow
        self.calls = 0
        self.ends: list[str] = []

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        if "mark" not in obj.metadata.labels:
            return Result.done()
        self.calls += 1
        try:
            await asyncio.sleep(self.slow)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            with pytest.raises(LeaseLost):
                await ctx.client.patch(ConfigMap, ctx.key, {"data": {"last": "words"}})
            with pytest.raises(LeaseLost):
                ctx.check_leading()
            raise
        ctx.check_leading()
        await ctx.client.patch(ConfigMap, ctx.key, {"data": {"by": self.replica}})
        self.ends.append("done")
        return Result.done()


class Replica:
    """A manager with one controller, as a process of its own."""

    def __init__(self, server: ApiServer, name: str, *, slow: float = 0.0, drain: float = 20.0) -> None:
        self.name = name
        self.line = Line(server.transport(user=name))
        self.own = Line(server.transport(user=name))
        self.clock = VirtualClock()
        lease = Lease("it", namespace="default", identity=name)
        cluster = Cluster(self.line, clock=self.clock, rng=random.Random(name), dial=self._dial)
        self.manager = Manager(cluster, leader=lease, drain=drain)
        self.controller = Marking(name, slow=slow)
        self.manager.add(self.controller)
        self.process = Process(name)

    async def _dial(self) -> Transport:
        return self.own

    def start(self) -> asyncio.Task[None]:
        self.task = self.process.start(self.manager.run())
        return self.task

    async def stop(self) -> None:
        self.manager.stop()
        await self.task

    async def until_lost(self) -> None:
        await asyncio.wait([self.task])
        assert isinstance(self.task.exception(), LeaseLost)


def virtual(test: Callable[[ApiServer, Client], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        server = ApiServer(clock=VirtualClock(), rng=random.Random(1))
        try:
            async with asyncio.timeout(3600):
                await test(server, Client(server.transport(), "user"))
        finally:
            await server.aclose()

    def run() -> None:
        run_virtual(main())

    run.__name__ = test.__name__
    return run


async def marked(client: Client, name: str) -> ObjectKey:
    labels = {"mark": "me"}
    await client.create(ConfigMap(metadata=ObjectMeta(name=name, namespace="default", labels=labels)))
    return ObjectKey("default", name)


async def mark(client: Client, name: str) -> str | None:
    return (await client.get(ConfigMap, name, "default")).data.get("by")


@virtual
async def test_the_leader_works_and_the_standby_is_ready_with_a_warm_cache(server: ApiServer, client: Client) -> None:
    await marked(client, "x")
    first, second = Replica(server, "a"), Replica(server, "b")
    first.start()
    await first.manager.wait_leading()
    second.start()
    await second.manager.wait_ready()
    await asyncio.sleep(30)
    assert await mark(client, "x") == "a"
    assert (first.manager.leading, second.manager.leading) == (True, False)
    assert second.manager.ready
    assert second.manager.cluster.cache.get(ConfigMap, "x", "default") is not None
    assert second.controller.calls == 0
    await second.stop()
    await first.stop()


@virtual
async def test_a_clean_stop_hands_over_at_once(server: ApiServer, client: Client) -> None:
    first, second = Replica(server, "a"), Replica(server, "b")
    first.start()
    await first.manager.wait_leading()
    second.start()
    await second.manager.wait_ready()
    began = asyncio.get_running_loop().time()
    await first.stop()
    assert first.own.closed
    await second.manager.wait_leading()
    assert asyncio.get_running_loop().time() - began <= 4.5
    await marked(client, "x")
    await asyncio.sleep(1)
    assert await mark(client, "x") == "b"
    await second.stop()


@virtual
async def test_the_lease_is_held_until_the_last_reconcile_has_ended(server: ApiServer, client: Client) -> None:
    first, second = Replica(server, "a", slow=15.0), Replica(server, "b")
    first.start()
    await first.manager.wait_leading()
    second.start()
    await marked(client, "x")
    await asyncio.sleep(1)
    first.manager.stop()
    await asyncio.sleep(13)
    assert not second.manager.leading
    await first.task
    assert first.controller.ends == ["done"]
    await second.manager.wait_leading()
    await asyncio.sleep(1)
    assert await mark(client, "x") == "b"
    await second.stop()


@virtual
async def test_a_lost_lease_cancels_what_led_at_once_and_ends_the_manager(server: ApiServer, client: Client) -> None:
    first = Replica(server, "a", slow=1000.0)
    first.start()
    await first.manager.wait_leading()
    await marked(client, "x")
    await asyncio.sleep(1)
    await client.patch(LeaseObject, KEY, {"spec": {"holderIdentity": "b"}})
    began = asyncio.get_running_loop().time()
    await first.until_lost()
    assert asyncio.get_running_loop().time() - began <= 2.1
    assert first.controller.ends == ["cancelled"]
    assert (await client.get(ConfigMap, "x", "default")).data == {}
    assert (await client.get(LeaseObject, "it", "default")).spec.holder_identity == "b"
    with pytest.raises(LeaseLost):
        await first.manager.wait_ready()


@virtual
async def test_a_lease_that_is_lost_during_the_drain_ends_the_drain(server: ApiServer, client: Client) -> None:
    first = Replica(server, "a", slow=1000.0, drain=500.0)
    first.start()
    await first.manager.wait_leading()
    await marked(client, "x")
    await asyncio.sleep(1)
    first.manager.stop()
    await asyncio.sleep(60)
    assert not first.task.done()
    first.own.cut = True
    began = asyncio.get_running_loop().time()
    await first.until_lost()
    assert asyncio.get_running_loop().time() - began <= 10.1
    assert first.controller.ends == ["cancelled"]


@virtual
async def test_a_paused_leader_is_replaced_and_writes_nothing_when_it_runs_again(
    server: ApiServer, client: Client
) -> None:
    first, second = Replica(server, "a", slow=5.0), Replica(server, "b", slow=5.0)
    first.start()
    await first.manager.wait_leading()
    second.start()
    await second.manager.wait_ready()
    await asyncio.sleep(10)
    await marked(client, "x")
    await asyncio.sleep(1)
    first.process.pause_for(60)
    await second.manager.wait_leading()
    await asyncio.sleep(6)
    assert await mark(client, "x") == "b"
    await first.until_lost()
    assert first.controller.calls == 1
    assert await mark(client, "x") == "b"
    assert second.manager.leading
    await second.stop()


@virtual
async def test_a_fence_that_was_closed_for_a_moment_costs_no_reconcile(server: ApiServer, client: Client) -> None:
    first = Replica(server, "a", slow=1.0)
    first.start()
    await first.manager.wait_leading()
    await marked(client, "x")
    await asyncio.sleep(0.5)
    elector = first.manager.elector
    assert elector is not None
    # As after a stall in which the answer to a renewal has come, and other tasks run before the one that waits for it.
    until = asyncio.get_running_loop().time() + elector.fence.remaining()
    elector.fence.open(0.0)
    asyncio.get_running_loop().call_later(0.501, elector.fence.open, until)
    await asyncio.sleep(2.5)
    assert first.controller.calls >= 1
    assert await mark(client, "x") == "a"
    await first.stop()


@virtual
async def test_renewals_go_on_while_the_main_connection_is_stuck(server: ApiServer, client: Client) -> None:
    first = Replica(server, "a")
    first.start()
    await first.manager.wait_leading()
    first.line.delay = 10_000.0
    await asyncio.sleep(300)
    assert first.manager.leading
    first.task.cancel()
    await asyncio.wait([first.task])


@virtual
async def test_a_failing_body_releases_the_lease(server: ApiServer, client: Client) -> None:
    first = Replica(server, "a")
    first.manager.add_runnable(Failing(up=True), leader=True)
    with pytest.raises(OSError, match="address in use"):
        await first.start()
    assert (await client.get(LeaseObject, "it", "default")).spec.holder_identity == ""


@virtual
async def test_a_lease_is_not_released_while_something_that_led_still_runs(server: ApiServer, client: Client) -> None:
    first = Replica(server, "a", drain=1.0)
    stubborn = Stubborn()
    first.manager.add_runnable(stubborn, leader=True)
    first.start()
    await first.manager.wait_leading()
    first.manager.stop()
    with pytest.raises(ShutdownTimeout, match="Stubborn"):
        await first.task
    assert (await client.get(LeaseObject, "it", "default")).spec.holder_identity == "a"
    assert not first.manager.leading
    stubborn.free.set()
    await asyncio.sleep(1)


class Noting(Controller[ConfigMap]):
    name = "noting"
    kind = ConfigMap
    needs_leader = False

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        ctx.check_leading()
        if "mark" in obj.metadata.labels and "noted" not in obj.data:
            await ctx.client.patch(ConfigMap, ctx.key, {"data": {"noted": "yes"}})
        return Result.done()


@virtual
async def test_what_needs_no_leader_runs_on_the_standby_and_is_not_fenced(server: ApiServer, client: Client) -> None:
    await client.request(
        "POST",
        "/apis/coordination.k8s.io/v1/namespaces/default/leases",
        body={"metadata": {"name": "it"}, "spec": {"holderIdentity": "other", "leaseDurationSeconds": 3600}},
    )
    standby = Replica(server, "b")
    standby.manager.add(Noting())
    standby.start()
    await standby.manager.wait_ready()
    await marked(client, "x")
    await asyncio.sleep(1)
    assert (await client.get(ConfigMap, "x", "default")).data == {"noted": "yes"}
    await standby.stop()
    assert standby.controller.calls == 0


@virtual
async def test_a_manager_that_is_stopped_while_it_stands_by_never_leads(server: ApiServer, client: Client) -> None:
    first, second = Replica(server, "a"), Replica(server, "b")
    first.start()
    await first.manager.wait_leading()
    second.start()
    await second.manager.wait_ready()
    second.manager.stop()
    first.manager.stop()
    await asyncio.gather(first.task, second.task)
    with pytest.raises(RuntimeError, match="stopped"):
        await second.manager.wait_leading()
    record = (await client.get(LeaseObject, "it", "default")).spec
    assert (record.holder_identity, record.lease_transitions) == ("", 0)


class Leader:
    """A runnable that notes whether two of it ever ran at once."""

    running = 0

    async def run(self, lifetime: Lifetime) -> None:
        Leader.running += 1
        assert Leader.running == 1
        lifetime.started()
        try:
            await lifetime.wait_stopping()
        finally:
            Leader.running -= 1


@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_network_does_two_never_lead(seed: int) -> None:
    @virtual
    async def test(server: ApiServer, client: Client) -> None:
        rng = random.Random(seed)
        Leader.running = 0
        led: set[int] = set()

        async def life(number: int) -> None:
            for generation in range(100):
                replica = Replica(server, f"{number}-{generation}", drain=1.0)
                replica.manager.add_runnable(Leader(), leader=True)
                task = replica.start()
                while not task.done():
                    await asyncio.sleep(rng.uniform(0, 20))
                    led.update({number} if replica.manager.leading else ())
                    if rng.random() < 0.1:
                        replica.manager.stop()
                    replica.own.cut = rng.random() < 0.3
                    replica.own.mute = rng.random() < 0.3
                    replica.own.delay = rng.choice((0.0, 0.0, 0.5, 4.0, 8.0))
                error = task.exception()
                assert error is None or isinstance(error, LeaseLost)

        lives = [asyncio.create_task(life(number)) for number in range(3)]
        await asyncio.wait(lives, timeout=2000)
        assert not [each.exception() for each in lives if each.done()]
        assert led == {0, 1, 2}
        for each in lives:
            each.cancel()
        await asyncio.wait(lives)
        left = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    test()
