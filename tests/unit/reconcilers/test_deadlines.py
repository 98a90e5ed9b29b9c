"""When a claim is given up and when it is not: stages that take too long, nodes that fall silent, instances that go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kaito_api.core import Node, NodeSpec
from kaito_api.meta import ObjectMeta
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.errors import NotFound
from kaito_provisioner import ClaimRef, Instance
from kaito_provisioner import NotFound as InstanceNotFound
from tests.unit.reconcilers.claimworld import Alone, alone

KEY = ObjectKey("", "ws1")
MINUTE = 60.0


async def ready(world: Alone, *names: str) -> None:
    for name in names or ("ws1",):
        await world.ask(name)
    for name in names or ("ws1",):
        await world.until_ready(name)


async def stays(world: Alone, seconds: float, name: str = "ws1") -> None:
    await asyncio.sleep(seconds)
    assert not (await world.get(name)).deleting


# -- stages --------------------------------------------------------------------------------------------------------


def joins_never(world: Alone) -> None:
    world.nodes.joining = False


def shows_no_gpus(world: Alone) -> None:
    world.nodes.gpus = "0"


def is_never_ready(world: Alone) -> None:
    world.nodes.ready = "False"


@pytest.mark.parametrize(
    ("spoil", "traits", "minutes"),
    [
        (joins_never, {"boot": 7200.0, "provider_ids": "never"}, 30),
        (joins_never, {}, 15),
        (shows_no_gpus, {}, 31),
        (is_never_ready, {}, 31),
    ],
)
def test_a_stage_that_takes_too_long_ends_the_claim_in_order(
    spoil: Callable[[Alone], None], traits: dict[str, Any], minutes: float
) -> None:
    @alone(**traits)
    async def life(world: Alone) -> None:
        spoil(world)
        await world.ask()
        await stays(world, minutes * MINUTE - 10)
        # A timer may be late by a tenth, so that what began together does not end together.
        await world.until_gone(within=minutes * 6 + 90)
        assert world.cloud.existing() == ()
        assert "DeadlineExceeded" in await world.events()
        assert [each.name for each in await world.user.list(Node)] == ["system"]

    life()


@pytest.mark.parametrize("hours", [6, -6])
def test_a_wall_clock_that_is_set_ends_no_machine_that_is_booting(hours: int) -> None:
    @alone(boot=800.0)
    async def life(world: Alone) -> None:
        uid = await world.ask()
        await asyncio.sleep(100)
        world.clock.jump(hours * 3600.0)
        await world.until_ready(within=800)
        assert (await world.get()).uid == uid

    life()


@alone()
async def test_deadlines_run_all_the_same_when_the_wall_clock_was_set_back(world: Alone) -> None:
    world.nodes.joining = False
    await world.ask()
    await asyncio.sleep(100)
    world.clock.jump(-6 * 3600.0)
    await world.until_gone(within=16 * MINUTE)


@alone()
async def test_no_deadline_runs_while_the_nodes_as_a_whole_are_in_trouble(world: Alone) -> None:
    names = ("ws1", "ws2", "ws3")
    await ready(world, *names)
    world.nodes.joining = False
    await world.ask("late")
    await asyncio.sleep(10 * MINUTE)
    for name in names:
        await world.nodes.report(name, "Unknown")
    await stays(world, 3600, "late")
    for name in names:
        await world.nodes.report(name, "True")
        assert not (await world.get(name)).deleting
    # It has all of its time again.
    await stays(world, 13 * MINUTE, "late")
    await world.until_gone("late", within=5 * MINUTE)


@alone()
async def test_a_node_that_the_cache_has_not_heard_of_saves_its_claim(world: Alone) -> None:
    world.nodes_are_told.clear()
    await world.ask()
    await stays(world, 20 * MINUTE)
    world.nodes_are_told.set()
    await world.until_ready(within=10)


@alone()
async def test_a_node_that_is_usable_without_the_cache_having_heard_of_it_saves_its_claim(world: Alone) -> None:
    world.nodes.ready = "False"
    await world.ask()

    async def registered() -> bool:
        return (await world.said(world.kind.registered))[0] == "True"

    await world.until(registered)
    world.nodes_are_told.clear()
    await world.nodes.report("ws1", "True")
    await stays(world, 40 * MINUTE)
    world.nodes_are_told.set()
    await world.until_ready(within=60)


# -- silence -------------------------------------------------------------------------------------------------------


@alone()
async def test_a_silent_node_whose_instance_is_there_is_left_alone(world: Alone) -> None:
    await ready(world)
    await world.nodes.report("ws1", "Unknown")
    await stays(world, 6 * 3600)
    before = world.cloud.calls["find"]
    await asyncio.sleep(3600)
    assert world.cloud.calls["find"] <= before + 61


@alone()
async def test_an_instance_that_is_gone_ends_its_claim(world: Alone) -> None:
    await ready(world)
    [instance] = world.cloud.existing()
    await world.cloud.delete(instance)
    await world.until_gone(within=90)
    assert "GarbageCollected" in await world.events()


@alone()
async def test_an_instance_is_gone_only_when_the_cloud_says_so_twice_and_to_two_questions(world: Alone) -> None:
    await ready(world)
    inner, forgetful = world.cloud.find, 1

    async def find(claim: ClaimRef) -> Instance:
        nonlocal forgetful
        if forgetful:
            forgetful -= 1
            raise InstanceNotFound("the list lags")
        return await inner(claim)

    world.cloud.find = find  # type: ignore[method-assign]
    await world.nodes.report("ws1", "Unknown")
    await stays(world, 300)
    forgetful = 10**6
    await stays(world, 3600)


@alone()
async def test_an_instance_that_is_reported_as_failed_is_warned_of_only(world: Alone) -> None:
    await ready(world)
    inner = world.cloud.find

    async def find(claim: ClaimRef) -> Instance:
        return replace(await inner(claim), state="Failed")

    world.cloud.find = find  # type: ignore[method-assign]
    await world.nodes.report("ws1", "Unknown")
    await stays(world, 3600)
    assert "InstanceFailed" in await world.events()


@alone()
async def test_a_node_that_is_deleted_by_hand_ends_its_claim(world: Alone) -> None:
    await ready(world)
    await world.user.delete(Node, KEY)
    await world.until_gone(within=60)
    assert world.cloud.existing() == ()


@alone()
async def test_a_node_object_that_does_not_come_back_ends_its_claim(world: Alone) -> None:
    await ready(world)
    await world.user.patch(Node, KEY, {"metadata": {"finalizers": None}})
    await world.user.delete(Node, KEY)
    with pytest.raises(NotFound):
        await world.user.get(Node, "ws1")
    await stays(world, 14 * MINUTE)
    await world.until_gone(within=3 * MINUTE)


async def doubled(world: Alone) -> None:
    world.nodes.joining = False
    await world.ask()
    await asyncio.sleep(90)
    [instance] = world.cloud.existing()
    for name in ("a", "b"):
        await world.user.create(Node(metadata=ObjectMeta(name=name), spec=NodeSpec(provider_id=instance.provider_id)))
    await asyncio.sleep(5)
    assert (await world.said(world.kind.registered))[:2] == ("False", "MultipleNodesFound")


@alone()
async def test_two_nodes_of_one_instance_are_not_waited_for_for_ever(world: Alone) -> None:
    await doubled(world)
    await world.until_gone(within=18 * MINUTE)


@alone()
async def test_two_nodes_of_one_instance_heal_when_one_of_them_goes(world: Alone) -> None:
    await doubled(world)
    await world.user.delete(Node, ObjectKey("", "b"))
    await asyncio.sleep(5)
    assert (await world.said(world.kind.registered))[0] == "True"
    assert (await world.get()).status.node_name == "a"
