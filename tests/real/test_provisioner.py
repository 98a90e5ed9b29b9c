"""The provisioner on a real kube-apiserver and a local Azure, which both live on while it dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kaito_ctrl.testing.envtest import envtest
from tests.real.kills import Kill, rounds, world_on

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("node_api", ["machine"])
async def test_one_pool_per_claim_and_none_after_it_wherever_the_provisioner_is_killed(
    binaries: Path, tmp_path: Path, node_api: str
) -> None:
    async def killed(after: bool) -> list[Kill]:
        folder = tmp_path / ("after" if after else "before")
        folder.mkdir()
        async with envtest("real", binaries=binaries) as api, world_on(api, folder, node_api=node_api) as world:
            return [kill async for kill in rounds(world, after=after)]

    # Most of it is waiting: a cluster and a cloud for each half.
    before, after = await asyncio.gather(killed(after=False), killed(after=True))
    for kills in (before, after):
        struck = {kill.doing: [each.step for each in kills if each.doing == kill.doing and each.step] for kill in kills}
        assert len(struck["create"]) >= 8, struck
        assert len(struck["delete"]) >= 8, struck
        assert any(step.startswith("PUT ") and "/agentPools/" in step for step in struck["create"]), struck
        assert any(step.startswith("DELETE ") and "/agentPools/" in step for step in struck["delete"]), struck
