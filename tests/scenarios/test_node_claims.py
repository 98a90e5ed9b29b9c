"""The same walk by NodeClaims, as today's Karpenter and gpu-provisioner know them."""

from __future__ import annotations

import asyncio

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeClaim
from kaito_api.meta import find_condition
from kaito_api.workspace import Workspace
from kaito_provisioner import Throttled
from kaito_provisioner.sim import SimInstanceType
from tests.scenarios.test_first_workspace import NODE, SERVER
from tests.scenarios.world import SHUTDOWN, World, manifest, scenario

AT_ONCE = 2.0


@scenario(node_api="nodeclaim")
async def test_a_workspace_comes_up_on_a_node_claim_and_nothing_says_machine(world: World) -> None:
    await world.apply(manifest())
    assert await world.until_ready() < NODE + SERVER + 2.0, "it takes no longer"
    assert not await world.user.list(Machine)
    [claim] = await world.user.list(NodeClaim)
    assert claim.spec.expire_after == "Never"
    assert claim.spec.node_class_ref is not None
    assert claim.spec.node_class_ref.kind == "KaitoNodeClass"
    [node] = await world.user.list(Node)
    assert {node.metadata.labels[key] for key in ("kaito.sh/workspace", "apps")} == {"ws", "falcon-7b-ws"}
    assert node.metadata.labels["karpenter.sh/nodepool"] == "kaito"
    assert node.metadata.annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert await world.said("NodeClaimReady") == (
        "True",
        "installNodePluginsSuccess",
        "nodeClaim plugins have been installed successfully",
    )
    assert await world.said("MachineReady") == ("", "", "")
    ready = find_condition(claim.status.conditions, "Ready")
    assert ready is not None
    assert ready.status == "True"
    assert {each.state for each in (await world.get(Workspace)).status.stages} == {"Done"}
    await world.settled()


@scenario(node_api="nodeclaim")
async def test_every_start_is_without_a_warning(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    for _, ws in world.seen:
        assert [each.name for each in ws.status.stages if each.state == "Failed"] == []


@scenario(node_api="nodeclaim")
async def test_no_capacity_is_said_at_once_and_waited_for_on_one_claim(world: World) -> None:
    offered = dict(world.cloud.types)
    world.cloud.types = {name: SimInstanceType(name, 2, available=False) for name in offered}
    await world.apply(manifest())

    async def told() -> bool:
        return await world.cause() == ("CapacityReserved", "Failed", "InsufficientCapacity")

    await world.until(told, 5.0)
    for kind in ("NodeClaimReady", "ResourceReady", "WorkspaceReady"):
        status, _, message = await world.said(kind)
        assert status == "False"
        assert message.startswith("NodeClaim ws")
        assert "InsufficientCapacity: all requested instance types were unavailable during launch" in message
    columns = await world.columns(wide=True)
    assert "InsufficientCapacity" in columns["MESSAGE"]
    assert columns["WAITING"] == ""
    await asyncio.sleep(3600)
    assert len(world.machines) == 1
    world.cloud.types = offered
    await world.until_ready(within=600 + 300 + 200)
    assert len(world.machines) == 1
    await world.settled()


@scenario(node_api="nodeclaim")
async def test_a_place_in_the_clouds_queue_is_shown_as_what_is_waited_for(world: World) -> None:
    queued: Throttled | None = Throttled("place 3 of 9 in the queue", retry_after=30.0)
    world.cloud.fault = lambda call, _: queued if call == "create" else None
    await world.apply(manifest())

    async def shown() -> bool:
        stage = await world.stage()
        return stage is not None and stage.state == "Active" and "place 3 of 9" in (stage.message or "")

    await world.until(shown, 6.0)
    assert "place 3 of 9" in (await world.said("NodeClaimReady"))[2]
    columns = await world.columns(wide=True)
    assert (columns["WORKSPACEREADY"], columns["MESSAGE"]) == ("", "")
    assert "place 3 of 9" in columns["WAITING"]
    queued = None
    assert await world.until_ready() < 30.0 + NODE + SERVER + 5.0
    for _, ws in world.seen:
        assert [each.name for each in ws.status.stages if each.state == "Failed"] == []


@scenario(node_api="nodeclaim")
async def test_a_lost_node_is_awaited_until_its_claim_is_given_up(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    [lost] = await world.user.list(Node)
    world.kubelet.fall_silent(lost.name)
    await asyncio.sleep(400)
    assert (await world.said("ResourceReady"))[2] == f"not ready, and expected back: node {lost.name}"
    assert len(world.machines) == 1
    await world.delete(NodeClaim, lost.name)

    async def asked_again() -> bool:
        return len(world.machines) == 2

    await world.until(asked_again, AT_ONCE)
    await world.until_ready(within=300)


@scenario(node_api="nodeclaim")
async def test_a_deleted_workspace_takes_its_claim_its_node_and_its_instance_along(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    await world.delete(Workspace, "ws")
    await world.until_gone(SHUTDOWN + 60.0)
