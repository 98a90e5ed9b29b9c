"""What is done about nodes that fall silent, one or many of them, and about instances and claims that lose each other:
the whole system, with workspaces that serve."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from kaito_api.core import Node
from kaito_api.events import Event
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.machine.fleet import BLIP
from kaito_provisioner import LaunchRequest, NotFound, Unavailable
from tests.scenarios.world import World, manifest, scenario

HOUR = 3600.0
NOTICED = 55.0
"""Seconds in which a silent kubelet is noticed: 40 s by the node life cycle controller, the rest by us."""
TOLERATED = 600.0 * 1.1
BLOCKED = 300.0 * 1.1
COLLECTED = 120.0 * 1.1
"""Seconds between two passes of the garbage collection, at most."""
UP = 220.0
"""Seconds from a machine's being asked for to its serving."""


@dataclass(frozen=True)
class Fleet:
    """Everything that an outage must not cost, by its identity."""

    claims: frozenset[str]
    nodes: frozenset[str]
    instances: frozenset[str]

    @classmethod
    async def of(cls, world: World) -> Fleet:
        claims = [each for each in await world.user.list(world.claims) if not each.deleting]
        nodes = [each for each in await world.user.list(Node) if not each.deleting]
        instances = [each for each in await world.cloud.list() if each.state == "Running"]
        return cls(
            frozenset(each.uid for each in claims),
            frozenset(each.uid for each in nodes),
            frozenset(each.provider_id for each in instances),
        )


async def _serving(world: World, *names: str) -> list[str]:
    """Workspaces that serve; their nodes, in the order of their names."""
    for name in names:
        await world.apply(manifest(name))
    for name in names:
        await world.until_ready(name)
    await asyncio.sleep(10)
    return [(await world.get(Workspace, name)).status.worker_nodes[0] for name in names]


async def _told(world: World, reason: str) -> list[Event]:
    return [each for each in await world.user.list(Event) if each.reason == reason]


@pytest.mark.parametrize("trouble", ["nothing else", "restarts", "no cloud either", "a cloud that has forgotten all"])
@scenario()
async def test_an_outage_of_all_nodes_for_an_hour_costs_no_node_and_afterwards_all_serve_again(
    world: World, trouble: str
) -> None:
    await _outage(world, trouble)


@scenario()
async def test_an_outage_of_all_gpu_nodes_beside_nodes_that_are_well_costs_no_node_either(world: World) -> None:
    await world.kubelet.add_node("system", labels={})
    await _outage(world, "nothing else")


@scenario(node_api="nodeclaim")
async def test_an_outage_of_all_nodes_costs_no_node_that_a_node_claim_asked_for(world: World) -> None:
    await _outage(world, "nothing else")


async def _outage(world: World, trouble: str) -> None:
    names = ("a", "b", "c", "d")
    await _serving(world, *names)
    await world.apply(manifest("two", count=2))
    await world.until_ready("two")
    await asyncio.sleep(10)
    before, creates = await Fleet.of(world), world.cloud.calls["create"]
    nodes = [each.name for each in await world.user.list(Node) if each.name != "system"]
    assert len(nodes) == 6
    for node in nodes:
        world.kubelet.fall_silent(node)
    began, real = world.now, world.cloud.list
    if trouble == "no cloud either":
        world.cloud.fault = lambda *_: Unavailable("the cloud does not answer")
    if trouble == "a cloud that has forgotten all":
        # As one says of another subscription, or of a resource group that was moved.
        world.cloud.fault = lambda call, _: NotFound("no such thing") if call in ("find", "get") else None
        world.cloud.list = _nothing  # type: ignore[method-assign]
    for _ in range(12):
        await asyncio.sleep(HOUR / 12)
        if trouble == "restarts":
            world.kill(down=30.0)
        for name in (*names, "two"):
            assert not await world.ready(name)
    world.cloud.fault = None
    world.cloud.list = real  # type: ignore[method-assign]
    assert await Fleet.of(world) == before
    for node in nodes:
        world.kubelet.fall_silent(node, silent=False)
    for name in (*names, "two"):
        await world.until_ready(name, within=200.0)
    await asyncio.sleep(HOUR)
    assert await Fleet.of(world) == before
    assert (world.cloud.calls["create"], len(world.machines)) == (creates, 6)
    assert not [each for each in world.writes if each.at > began and each.verb == "DELETE" and "/pods" not in each.path]


@scenario()
async def test_what_is_on_its_way_when_an_outage_begins_is_neither_given_up_nor_asked_for_again(world: World) -> None:
    names = ("a", "b", "c")
    await _serving(world, *names)
    world.cloud.joiner = _Nowhere()
    await world.apply(manifest("new"))
    await asyncio.sleep(120)
    assert len(world.machines) == 4
    nodes = [each.name for each in await world.user.list(Node)]
    for node in nodes:
        world.kubelet.fall_silent(node)
    await asyncio.sleep(2 * HOUR)
    assert len(world.machines) == 4
    assert [each.state for each in await world.cloud.list()] == ["Running"] * 4
    for node in nodes:
        world.kubelet.fall_silent(node, silent=False)
    world.cloud.joiner = world.kubelet
    # Its machine has missed its only chance to join: it is given up in its time, which begins anew.
    await world.until_ready("new", within=15 * 60 * 1.2 + 120 + UP)
    assert len(world.machines) == 5
    assert len(await world.cloud.list()) == 4
    assert all([await world.ready(name) for name in names])


@scenario()
async def test_one_dead_node_of_five_is_replaced_once_its_time_is_up(world: World) -> None:
    await _one_of_five(world)


@scenario(node_api="nodeclaim")
async def test_one_dead_node_of_five_node_claims_is_replaced_once_its_time_is_up(world: World) -> None:
    await _one_of_five(world)


async def _one_of_five(world: World) -> None:
    names = ("a", "b", "c", "d", "e")
    dead, *_ = await _serving(world, *names)
    before = await Fleet.of(world)
    world.kubelet.fall_silent(dead)
    await asyncio.sleep(500)
    assert await Fleet.of(world) == before, "most blips are shorter"

    async def moved() -> bool:
        return await world.ready("a") and (await world.get(Workspace, "a")).status.worker_nodes != (dead,)

    took = 500 + await world.until(moved, NOTICED + TOLERATED + UP - 500, "a serves from another node")
    assert took > 600
    await asyncio.sleep(120)
    after = await Fleet.of(world)
    assert len(after.claims & before.claims) == len(after.nodes & before.nodes) == 4
    assert len(after.claims) == len(after.nodes) == len(after.instances) == 5
    assert len(world.machines) == 6
    assert len(await world.cloud.list()) == 5, "what was replaced is not paid for any longer"
    assert [each.regarding.name for each in await _told(world, "Disrupted") if each.regarding.kind == "Node"] == [dead]
    assert all([await world.ready(name) for name in names])


@scenario()
async def test_two_dead_nodes_of_three_are_not_replaced_until_one_of_them_comes_back(world: World) -> None:
    names = ("a", "b", "c")
    first, second, _ = await _serving(world, *names)
    before = await Fleet.of(world)
    for node in (first, second):
        world.kubelet.fall_silent(node)
    await asyncio.sleep(3 * HOUR)
    assert await Fleet.of(world) == before
    blocked = await _told(world, "NodeRepairBlocked")
    assert {each.regarding.name for each in blocked} == {first, second}
    assert all("2 of 3 nodes are unhealthy" in each.note for each in blocked)
    world.kubelet.fall_silent(second, silent=False)
    await world.until_ready("b", within=200.0)

    async def moved() -> bool:
        return await world.ready("a") and (await world.get(Workspace, "a")).status.worker_nodes != (first,)

    await world.until(moved, BLOCKED + UP, "a serves from another node")
    assert len(world.machines) == 4
    assert all([await world.ready(name) for name in names])


@scenario()
async def test_an_instance_that_nobody_asked_for_is_gone_within_ten_minutes(world: World) -> None:
    await _serving(world, "a")
    before = await Fleet.of(world)
    request = LaunchRequest("stray", "uid-of-nobody", ("Standard_NC12s_v3",), labels={"kaito.sh/workspace": "gone"})
    await world.cloud.create(request)

    async def gone() -> bool:
        instances = [each.name for each in await world.cloud.list()]
        return "stray" not in instances and await world.find(Node, "stray") is None

    assert await world.until(gone, 600.0, "the instance and its node are gone") > 300.0
    assert await Fleet.of(world) == before
    assert await world.ready("a")


@pytest.mark.parametrize("names", ["a", "ab", "abcdef"])
@scenario()
async def test_an_instance_that_somebody_deletes_in_the_cloud_is_replaced_even_if_it_was_the_only_one(
    world: World, names: str
) -> None:
    await _serving(world, *names)
    [instance] = [each for each in await world.cloud.list() if each.name in await _node(world, "a")]
    await world.cloud.delete(instance)

    async def moved() -> bool:
        return await world.ready("a") and instance.name not in await _node(world, "a")

    await world.until(moved, NOTICED + BLIP + 2 * COLLECTED + UP, "a serves from another node")
    assert len(world.machines) == len(names) + 1
    await asyncio.sleep(HOUR)
    assert len(await world.cloud.list()) == len(await world.user.list(Node)) == len(names)


@scenario()
async def test_a_fleet_that_somebody_deletes_in_the_cloud_is_replaced_bit_by_bit(world: World) -> None:
    await world.kubelet.add_node("system", labels={})
    names = ("a", "b", "c", "d", "e", "f")
    await _serving(world, *names)
    for instance in await world.cloud.list():
        await world.cloud.delete(instance)

    async def replaced() -> bool:
        return all([await world.ready(name) for name in names])

    await asyncio.sleep(NOTICED + 30)
    assert not await replaced()
    await world.until(replaced, BLIP + len(names) * COLLECTED + UP, "all serve again")
    assert len(world.machines) == 2 * len(names)


class _Nowhere:
    """Instances boot, and their nodes never join."""

    async def join(self, *_: Any) -> None: ...
    async def leave(self, *_: Any) -> None: ...


async def _nothing() -> tuple[()]:
    return ()


async def _node(world: World, name: str) -> tuple[str, ...]:
    return (await world.get(Workspace, name)).status.worker_nodes
