"""Many claims at once on AKS, and none to be had: what it costs, what is said meanwhile, and how it goes on."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from tests.scenarios.aksworld import GPU, AksWorld, on_aks

OTHER = "Standard_NC24ads_A100_v4"
BURST, INTERVAL = 20, 60.0
"""AKS' limit on creations of agent pools: so many at once, then one in so many seconds."""


def answers(world: AksWorld, call: str) -> Counter[int]:
    """How the ARM has answered calls of that kind, by HTTP status."""
    return Counter(each.status for each in world.arm.requests.log if each.call == call)


@pytest.mark.timeout(300)
@on_aks()
async def test_a_hundred_claims_at_once_keep_to_the_limits_of_aks(world: AksWorld) -> None:
    names = [f"ws{index:09d}" for index in range(100)]
    for name in names:
        await world.ask(name)
    await asyncio.sleep(5)

    # As many as AKS takes at once are on their way; every other claim says where it stands in the queue.
    assert answers(world, "put") == {201: BURST}
    said = [await world.launched(name) for name in names]
    assert Counter(reason for reason, _ in said) == {"Launching": BURST, "Throttled": len(names) - BURST}
    places = sorted(int(text.split(" of ")[1].split()[0]) for reason, text in said if reason == "Throttled")
    assert places[-1] == len(names) - BURST

    # A cluster has a hundred pools at most, one of which is the system's.
    async def all_but_one() -> bool:
        return len(await world.ready()) == 99

    took = await world.until(all_but_one, 7200, "99 nodes are ready")
    assert took < (99 - BURST) * INTERVAL * 1.1 + 300
    [full] = set(names) - await world.ready()
    reason, text = await world.launched(full)
    assert reason == "ClusterFull"
    assert "100" in text
    assert world.created() == 99
    assert set(answers(world, "put")) == {201, 400}
    # One list for everybody each five seconds, of two pages at most; not a call per claim.
    assert set(world.arm.requests.counts) == {"put", "list"}
    assert world.arm.requests.counts["list"] < 2 * took / 5

    await asyncio.gather(*(world.delete(name) for name in names))
    await world.until_gone(900)
    assert answers(world, "delete") == {202: 99}


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
def test_an_hour_without_capacity_costs_few_creations_whatever_the_number_of_claims(kind: type[NodeRequest]) -> None:
    @on_aks(kind=kind)
    async def scene(world: AksWorld) -> None:
        names = [f"ws{index}" for index in range(10)]
        world.arm.capacity.limit(GPU, 0)
        for name in names:
            await world.ask(name)
        await asyncio.sleep(120)
        first = world.created()
        assert first <= len(names)  # what was under way when the first was refused
        for name in names:
            reason, text = await world.launched(name)
            assert reason in ("InsufficientCapacity", "InstanceDeleting"), text
        await asyncio.sleep(3600)
        assert world.created() - first <= 10
        assert len(world.arm.pools()) <= 1
        assert set(await world.claims()) == set(names)  # they wait, and say why
        for name in names:
            reason, text = await world.launched(name)
            assert reason in ("InsufficientCapacity", "Launching", "InstanceDeleting"), text
            assert any(what == "InsufficientCapacityError" for what, _ in await world.events(name))

        world.arm.capacity.lift()

        async def everybody() -> bool:
            return await world.ready() == set(names)

        await world.until(everybody, 600 + 900, "all are ready once there is capacity again")
        assert len(world.arm.pools()) == len(names)

    scene()


@on_aks()
async def test_the_next_instance_type_is_taken_where_the_first_is_not_to_be_had(world: AksWorld) -> None:
    world.arm.capacity.limit(GPU, 0)
    await world.ask("ws1", GPU, OTHER)

    async def ready() -> bool:
        return await world.ready() == {"ws1"}

    await world.until(ready, 900, "a node of the other type")
    [claim] = (await world.claims()).values()
    assert claim.metadata.labels["node.kubernetes.io/instance-type"] == OTHER
    assert world.created() == 2
    assert [pool.properties["vmSize"] for pool in world.arm.pools().values()] == [OTHER]
    told = await world.events("ws1")
    assert any(GPU in note for _, note in told), told
    assert any(OTHER in note for _, note in told), told


@on_aks()
async def test_a_daemon_that_is_killed_all_the_time_makes_one_pool_and_leaves_none(world: AksWorld) -> None:
    await world.ask("ws1")
    for _ in range(40):
        await asyncio.sleep(7)
        world.kill(down=1.0)

    async def ready() -> bool:
        return await world.ready() == {"ws1"}

    await world.until(ready, 600)
    assert world.created() == 1
    await world.delete("ws1")
    for _ in range(40):
        await asyncio.sleep(7)
        world.kill(down=1.0)
    await world.until_gone(900)
