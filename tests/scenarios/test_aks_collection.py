"""What nobody asks for any more on AKS: pools whose claim is gone, and claims whose pool is."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kaito_api.core import Node
from kaito_api.karpenter import NodeClaim
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.errors import NotFound
from tests.scenarios.aksworld import AksWorld, on_aks


async def _up(world: AksWorld, *names: str) -> None:
    for name in names:
        await world.ask(name)

    async def ready() -> bool:
        return await world.ready() == set(names)

    await world.until(ready, 1800, "all are ready")


async def _strip(world: AksWorld, name: str) -> None:
    """Somebody deletes the claim, and takes its finalizer off while nobody runs that could clean up after it."""
    world.kill(down=30.0)
    key = ObjectKey("", name)
    with suppress(NotFound):
        await world.user.delete(world.kind, key)
        await world.user.patch(world.kind, key, {"metadata": {"finalizers": None}})


@on_aks()
async def test_a_pool_whose_claim_was_stripped_away_goes_and_so_does_its_node(world: AksWorld) -> None:
    await _collected(world)


@on_aks(kind=NodeClaim)
async def test_a_pool_whose_node_claim_was_stripped_away_goes_and_so_does_its_node(world: AksWorld) -> None:
    await _collected(world)


async def _collected(world: AksWorld) -> None:
    await _up(world, "ws1", "ws2")
    await _strip(world, "ws2")
    assert set(world.arm.pools()) == {"ws1", "ws2"}

    async def gone() -> bool:
        nodes = await world.user.list(Node)
        return set(world.arm.pools()) == {"ws1"} and len(nodes) == 1

    assert await world.until(gone, 1200, "pool and node are gone") > 30.0
    assert await world.ready() == {"ws1"}


@on_aks()
async def test_a_pool_whose_claim_is_stripped_away_while_it_is_made_goes_too(world: AksWorld) -> None:
    await _up(world, "ws1")
    await world.ask("ws2")
    await asyncio.sleep(30)
    await _strip(world, "ws2")
    assert "ws2" in world.arm.pools()

    async def gone() -> bool:
        nodes = await world.user.list(Node)
        return set(world.arm.pools()) == {"ws1"} and len(nodes) == 1

    await world.until(gone, 1800, "pool and node are gone")
