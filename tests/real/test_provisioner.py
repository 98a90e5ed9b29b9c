"""The provisioner on a real kube-apiserver and a local Azure, which both live on while it dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kaito_ctrl.testing.envtest import envtest
from tests.real.kills import Kill, World, changes_of_mind, rounds, world_on


@pytest.mark.timeout(600)
async def test_wherever_the_provisioner_is_killed_there_is_one_pool_per_claim_and_none_after_it(
    binaries: Path, tmp_path: Path
) -> None:
    async def killed(name: str, ways: Callable[[World], AsyncIterator[Kill]]) -> list[Kill]:
        folder = tmp_path / name
        folder.mkdir()
        async with envtest("real", binaries=binaries) as api, world_on(api, folder) as world:
            return [kill async for kill in ways(world) if kill.step]

    # Most of it is waiting: a cluster and a cloud for each.
    before, after, given_up = await asyncio.gather(
        killed("before", lambda world: rounds(world, after=False)),
        killed("after", lambda world: rounds(world, after=True)),
        killed("given-up", changes_of_mind),
    )
    for kills in (before, after, given_up):
        assert any(kill.step.startswith("PUT ") and "/agentPools/" in kill.step for kill in kills), kills
    for kills in (before, after):
        assert any(kill.step.startswith("DELETE ") and "/agentPools/" in kill.step for kill in kills), kills
        for doing in ("create", "delete"):
            assert sum(kill.doing == doing for kill in kills) >= 8, kills
