"""What must not cost a node that is well: a wrong answer of the cloud, a blip, a wrong clock. Nor a claim its node."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kaito_api.core import Node, Pod
from kaito_api.karpenter import Machine
from kaito_ctrl.runtime import ObjectKey
from kaito_provisioner import InvalidRequest, NotFound
from tests.unit.reconcilers.claimworld import Alone, alone


async def nowhere(_: Any) -> Any:
    """The cloud is asked about another cluster than ours."""
    raise NotFound("there is no agent pool ws1")


def astray(world: Alone) -> None:
    world.cloud.find = world.cloud.get = nowhere  # type: ignore[method-assign]


@alone()
async def test_a_machine_that_boots_anew_while_the_cloud_is_asked_in_the_wrong_place_is_kept(world: Alone) -> None:
    uid = await world.ask()
    await world.until_ready()
    astray(world)
    await world.nodes.report("ws1", "Unknown")
    await asyncio.sleep(200)
    await world.nodes.report("ws1", "True")
    await asyncio.sleep(3600)
    assert (await world.get()).uid == uid
    assert [each.name for each in await world.user.list(Node)] == ["system", "ws1"]


@alone()
async def test_a_claim_whose_node_is_ready_is_not_let_go_however_often_the_cloud_denies_its_instance(
    world: Alone,
) -> None:
    await world.ask()
    await world.until_ready()
    astray(world)
    await world.user.delete(world.kind, ObjectKey("", "ws1"))
    await asyncio.sleep(7200)
    _, reason, message = await world.said("InstanceTerminating")
    assert reason == "InstanceNotFound"
    assert "node ws1 is Ready" in message
    del world.cloud.find
    del world.cloud.get
    await world.until_gone(within=600)
    assert not world.cloud.existing()


@pytest.mark.parametrize("ahead", [0, 3600, -3600])
def test_a_pods_grace_is_kept_whatever_the_local_clock_says(ahead: int) -> None:
    @alone(kinds=(Machine,))
    async def scene(world: Alone) -> None:
        await world.ask()
        await world.until_ready()
        pod = {"nodeName": "ws1", "terminationGracePeriodSeconds": 600, "containers": [{"name": "c", "image": "i"}]}
        await world.user.create(Pod.model_validate({"metadata": {"name": "p", "namespace": "default"}, "spec": pod}))
        world.clock.jump(ahead)
        await world.user.delete(Machine, ObjectKey("", "ws1"))
        await asyncio.sleep(550)
        assert len(world.cloud.existing()) == 1
        await world.until_gone(within=600)

    scene()


@alone()
async def test_what_the_cloud_calls_hopeless_is_tried_again_in_a_while(world: Alone) -> None:
    world.cloud.fault = lambda call, _: InvalidRequest("the subnet does not exist") if call == "create" else None
    await world.ask()
    await asyncio.sleep(7200)
    assert world.cloud.calls["create"] <= 10
    world.cloud.fault = None
    await world.until_ready(within=1800 * 1.1 + 300)


@alone()
async def test_an_annotation_that_is_edited_is_heard_at_once(world: Alone) -> None:
    world.cloud.fault = lambda call, _: InvalidRequest("no such image") if call == "create" else None
    await world.ask()
    await asyncio.sleep(60)
    world.cloud.fault = None
    patch = {"metadata": {"annotations": {"kaito.sh/node-image-family": "ubuntu"}}}
    await world.user.patch(world.kind, ObjectKey("", "ws1"), patch)
    await world.until_ready(within=300)
