"""One manager and several clusters, in virtual time: what is spread over them converges, and one that is away harms
nobody but itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import pytest
from prometheus_client import generate_latest

from kaito_api.core import ConfigMap, Namespace
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import (
    EVERY_CLUSTER,
    Client,
    Cluster,
    Context,
    Controller,
    Lease,
    Manager,
    Metrics,
    ObjectKey,
    Reader,
    Result,
    by_label,
    reads,
    watches,
)
from kaito_ctrl.runtime.errors import KubeError, LeaseLost, NotCached, NotFound
from kaito_ctrl.testing import VirtualClock, run_virtual
from tests.unit.runtime.test_leader import Line

ORIGIN = "spread-from"


def config_map(name: str, labels: Mapping[str, str] | None = None, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default", labels=labels or {}), data=data)


class Spread(Controller[ConfigMap]):
    """Copies every ConfigMap that is labelled ``to: a,b`` to those clusters."""

    name = "spread"
    kind = ConfigMap
    sources = (watches(ConfigMap, by_label(ORIGIN), cluster=EVERY_CLUSTER),)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.problems: dict[str, str] = {}

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        self.calls.append(obj.name)
        result = Result.done()
        for name in filter(None, obj.metadata.annotations.get("to", "").split(",")):
            try:
                member = await ctx.cluster(name)
                present = member.cache.get(ConfigMap, obj.name, "default")
                if present is None or present.data != obj.data:
                    await member.client.apply(config_map(obj.name, {ORIGIN: obj.name}, **obj.data))
                    written = member.cache.get(ConfigMap, obj.name, "default")
                    assert written is not None
                    assert written.data == obj.data
                self.problems.pop(name, None)
            except KubeError as error:
                self.problems[name] = f"{type(error).__name__}: {error}"
                result = Result.soon()
        return result


def original(name: str, to: str, **data: str) -> ConfigMap:
    made = config_map(name, None, **data)
    return made.evolve(metadata=made.metadata.evolve(annotations={"to": to}))


@dataclass
class Site:
    """An API server, the manager's connection to it, and ours."""

    server: ApiServer
    line: Line
    client: Client
    cluster: Cluster


def site(name: str) -> Site:
    server = ApiServer(clock=VirtualClock(), rng=random.Random(name))
    line = Line(server.transport(user="manager"))
    cluster = Cluster(line, clock=VirtualClock(), rng=random.Random(name))
    return Site(server, line, Client(server.transport(), "user"), cluster)


class Fleet:
    """A hub, two members, and a manager that is not running yet."""

    def __init__(self, *, leader: Lease | None = None) -> None:
        self.hub, self.east, self.west = (site(name) for name in ("hub", "east", "west"))
        clusters = {"east": self.east.cluster, "west": self.west.cluster}
        self.manager = Manager(self.hub.cluster, leader=leader, clusters=clusters, drain=1.0)
        self.controller = Spread()
        self.manager.add(self.controller)

    async def start(self) -> None:
        self.task = asyncio.create_task(self.manager.run())
        await self.manager.wait_leading()

    async def aclose(self) -> None:
        self.manager.stop()
        await asyncio.wait([self.task])
        for each in (self.hub, self.east, self.west):
            await each.server.aclose()

    async def data(self, where: Site, name: str) -> dict[str, str] | None:
        try:
            return dict((await where.client.get(ConfigMap, name, "default")).data)
        except NotFound:
            return None


def virtual(test: Callable[[Fleet], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        fleet = Fleet()
        async with asyncio.timeout(3600):
            await test(fleet)
            await fleet.aclose()

    def run() -> None:
        run_virtual(main())

    run.__name__ = test.__name__
    return run


@virtual
async def test_objects_go_to_the_clusters_that_they_name_and_are_kept_there(fleet: Fleet) -> None:
    await fleet.hub.client.create(original("x", "east,west", a="1"))
    await fleet.hub.client.create(original("y", "west", b="2"))
    await fleet.start()
    await asyncio.sleep(1)
    assert await fleet.data(fleet.east, "x") == {"a": "1"}
    assert await fleet.data(fleet.west, "x") == {"a": "1"}
    assert await fleet.data(fleet.east, "y") is None
    assert await fleet.data(fleet.west, "y") == {"b": "2"}
    copy = await fleet.west.client.get(ConfigMap, "y", "default")
    assert copy.metadata.labels == {ORIGIN: "y"}
    # A change in a member wakes what it leads back to, on the hub.
    await fleet.west.client.delete(ConfigMap, ObjectKey("default", "y"))
    await fleet.east.client.patch(ConfigMap, ObjectKey("default", "x"), {"data": {"a": "vandal"}})
    await asyncio.sleep(1)
    assert await fleet.data(fleet.west, "y") == {"b": "2"}
    assert await fleet.data(fleet.east, "x") == {"a": "1"}


@virtual
async def test_a_converged_fleet_is_left_alone(fleet: Fleet) -> None:
    await fleet.hub.client.create(original("x", "east,west", a="1"))
    await fleet.start()
    await asyncio.sleep(5)
    lines = [each.line for each in (fleet.hub, fleet.east, fleet.west)]
    sent = [list(each.sent) for each in lines]
    await asyncio.sleep(250)
    assert [each.sent for each in lines] == sent


def test_clusters_may_share_their_metrics() -> None:
    async def main() -> None:
        metrics = Metrics()
        servers = {name: ApiServer(clock=VirtualClock(), rng=random.Random(name)) for name in ("", "east")}
        hub, east = (
            Cluster(server.transport(), clock=VirtualClock(), rng=random.Random(1), metrics=metrics, name=name)
            for name, server in servers.items()
        )
        manager = Manager(hub, clusters={"east": east})
        manager.add(Spread())
        await Client(servers["east"].transport()).create(config_map("x"))
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            await manager.wait_ready()
            text = generate_latest(metrics.registry).decode()
            manager.stop()
        for server in servers.values():
            await server.aclose()
        counted = [line for line in text.splitlines() if line.startswith("kaito_ctrl_cache_objects{")]
        assert len(counted) == 2
        assert any('"east"' in line for line in counted)

    run_virtual(main())


@virtual
async def test_a_member_that_is_down_at_the_start_delays_nobody_and_is_served_when_it_comes(fleet: Fleet) -> None:
    fleet.east.line.cut = True
    await fleet.hub.client.create(original("x", "east,west", a="1"))
    began = asyncio.get_running_loop().time()
    await fleet.start()
    assert asyncio.get_running_loop().time() - began < 5
    assert fleet.manager.ready
    await asyncio.sleep(1)
    assert await fleet.data(fleet.west, "x") == {"a": "1"}
    assert "ClusterUnavailable" in fleet.controller.problems["east"]
    assert "configmaps (connection refused)" in fleet.controller.problems["east"]
    fleet.east.line.cut = False
    await asyncio.sleep(60)
    assert await fleet.data(fleet.east, "x") == {"a": "1"}
    assert fleet.controller.problems == {}


@virtual
async def test_a_member_that_never_answers_is_waited_for_only_so_long(fleet: Fleet) -> None:
    fleet.east.line.delay = 10_000.0
    await fleet.hub.client.create(original("x", "west", a="1"))
    began = asyncio.get_running_loop().time()
    await fleet.start()
    assert asyncio.get_running_loop().time() - began <= 120
    await asyncio.sleep(1)
    assert await fleet.data(fleet.west, "x") == {"a": "1"}


@virtual
async def test_a_member_that_goes_away_while_running_does_not_hold_up_the_others(fleet: Fleet) -> None:
    await fleet.start()
    fleet.east.line.cut = True
    await fleet.hub.client.create(original("x", "east,west", a="1"))
    await fleet.hub.client.create(original("y", "west", b="2"))
    await asyncio.sleep(2)
    assert await fleet.data(fleet.west, "x") == {"a": "1"}
    assert await fleet.data(fleet.west, "y") == {"b": "2"}
    assert "east" in fleet.controller.problems
    fleet.east.line.cut = False
    await asyncio.sleep(120)
    assert await fleet.data(fleet.east, "x") == {"a": "1"}


@virtual
async def test_a_write_whose_answer_was_lost_is_settled_on_that_cluster_before_it_is_used_again(fleet: Fleet) -> None:
    await fleet.start()
    fleet.east.line.mute = True
    await fleet.hub.client.create(original("x", "east,west", a="1"))
    await asyncio.sleep(0.5)
    assert await fleet.data(fleet.west, "x") == {"a": "1"}
    fleet.east.line.mute = False
    fleet.east.line.sent.clear()
    await asyncio.sleep(60)
    assert fleet.controller.problems == {}
    assert await fleet.data(fleet.east, "x") == {"a": "1"}


@virtual
async def test_a_member_that_falls_silent_with_a_write_in_doubt_is_given_up_soon(fleet: Fleet) -> None:
    await fleet.start()
    fleet.east.line.dying = True
    await fleet.hub.client.create(original("x", "east", a="1"))
    await asyncio.sleep(1)
    assert await fleet.data(fleet.east, "x") == {"a": "1"}
    await fleet.hub.client.create(original("y", "east,west", b="2"))
    await asyncio.sleep(12)
    assert await fleet.data(fleet.west, "y") == {"b": "2"}
    assert "no answer within 10 s" in fleet.controller.problems["east"]


class Asking(Controller[ConfigMap]):
    """Asks for what it may not have."""

    name = "asking"
    kind = ConfigMap
    sources = (reads(Namespace, cluster="east"),)

    def __init__(self) -> None:
        self.raised: list[Exception] = []
        self.namespaces: list[str] = []

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        if obj.name != "x":
            return Result.done()
        east = await ctx.cluster("east")
        self.namespaces = [each.name for each in east.cache.list(Namespace)]
        for ask in (
            lambda: ctx.cluster("north"),
            lambda: self.look(ctx.cache),
            lambda: self.enter_and_look(ctx),
        ):
            try:
                await ask()
            except (KubeError, ValueError) as error:
                self.raised.append(error)
        return Result.done()

    async def look(self, cache: Reader) -> Iterable[Namespace]:
        return cache.list(Namespace)

    async def enter_and_look(self, ctx: Context) -> Iterable[Namespace]:
        return (await ctx.cluster("west")).cache.list(Namespace)


@virtual
async def test_each_cluster_caches_what_was_declared_for_it(fleet: Fleet) -> None:
    asking = Asking()
    fleet.manager.add(asking)
    await fleet.hub.client.create(config_map("x"))
    await fleet.start()
    await asyncio.sleep(1)
    assert "default" in asking.namespaces
    unknown, here, west = asking.raised
    assert isinstance(unknown, ValueError)
    assert "no cluster is called 'north'; this manager has: east, west" in str(unknown)
    assert isinstance(here, NotCached)
    assert isinstance(west, NotCached)


@virtual
async def test_what_is_declared_on_a_cluster_that_is_not_there_is_refused(fleet: Fleet) -> None:
    class Lost(Controller[ConfigMap]):
        name = "lost"
        kind = ConfigMap
        sources = (reads(ConfigMap, cluster="north"),)

    with pytest.raises(ValueError, match=r"'lost' watches ConfigMap on cluster 'north'.*it has: east, west"):
        fleet.manager.add(Lost())
    with pytest.raises(ValueError, match="before the first controller"):
        fleet.manager.add_cluster("north", fleet.east.cluster)
    with pytest.raises(ValueError, match="taken"):
        Manager(fleet.hub.cluster, clusters={"*": fleet.east.cluster})
    await fleet.start()


def test_a_lost_lease_closes_every_cluster() -> None:
    async def main() -> None:
        fleet = Fleet(leader=Lease("it", namespace="default", identity="a"))
        await fleet.start()
        client = fleet.manager.client("x", cluster="east")
        await client.create(config_map("before"))
        fleet.hub.line.cut = True
        await asyncio.wait([fleet.task])
        assert isinstance(fleet.task.exception(), LeaseLost)
        with pytest.raises(LeaseLost):
            await client.create(config_map("after"))
        assert await fleet.data(fleet.east, "before") == {}
        await fleet.aclose()

    run_virtual(main())
