"""A Workspace for which the cloud has nothing: what it says meanwhile, what that costs, and how it goes on."""

from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from kaito_api.karpenter import Machine
from kaito_ctrl.cli.why import print_explanation, read_world
from kaito_ctrl.reconcilers.workspace.story import explain
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.testing import VirtualClock
from kaito_presets.catalogue import Catalogue
from kaito_presets.skus import SkuTable
from kaito_provisioner import Offering
from kaito_provisioner.sim.scarcity import Scarcity
from tests.scenarios.world import World, manifest, scenario

TYPE = Offering("Standard_NC12s_v3")
PER_HOUR = 11
"""The first refusal and, after rests of 1, 2, 4, 8 and then 10 minutes, one attempt each."""


async def why(world: World) -> str:
    """What ``kaito-ctrl why ws`` prints."""
    rules, now, text = Rules(Catalogue.builtin(), SkuTable.builtin("azure")), VirtualClock().now(), io.StringIO()
    seen = await read_world(world.user, ObjectKey("default", "ws"), rules)
    print_explanation(seen, explain(seen, now), now, Console(file=text, width=200), as_json=False)
    return text.getvalue()


@pytest.mark.parametrize("late", [False, True], ids=["refused at once", "found missing later"])
@pytest.mark.parametrize("what", ["capacity", "quota"])
@scenario()
async def test_an_hour_without_it_is_explained_at_once_and_costs_few_requests(
    world: World, what: str, late: bool
) -> None:
    world.cloud.scarce[TYPE] = Scarcity(what, late)  # type: ignore[arg-type]
    reason, words = {
        "capacity": ("InsufficientCapacity", "there is no Standard_NC12s_v3 to be had now"),
        "quota": ("QuotaExceeded", "the quota for Standard_NC12s_v3 is used up"),
    }[what]
    await world.apply(manifest())
    # The cloud takes a second for each call, and a while longer to find out later.
    await asyncio.sleep(120 if late else 8)

    row = await world.columns(wide=True)
    assert row["WORKSPACEREADY"] == "False"
    assert words in row["MESSAGE"]
    told = await why(world)
    assert words in told
    assert reason in told
    assert {"capacity": "another instance type", "quota": "more quota"}[what] in told
    assert reason in await world.events()

    await asyncio.sleep(3600)
    assert world.cloud.calls["create"] <= PER_HOUR
    assert len(world.machines) == 1  # the claim waits: it is not made again and again
    [claim] = await world.user.list(Machine)
    assert words in (await world.columns(wide=True))["MESSAGE"], claim

    del world.cloud.scarce[TYPE]
    await world.until_ready(within=600 + 300)
    assert len(await world.cloud.list()) == 1
    assert len(world.machines) == 1
    await world.settled()
