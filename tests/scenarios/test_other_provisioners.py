"""The workspace controller beside a provisioner that is not ours: it goes by what Karpenter writes."""

from __future__ import annotations

import asyncio
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.meta import rfc3339
from kaito_api.workspace import Workspace
from kaito_ctrl.runtime import key_of
from kaito_ctrl.testing import VirtualClock
from tests.scenarios.world import World, manifest, scenario

AT_ONCE = 2.0


async def _claim(world: World, within: float = AT_ONCE) -> NodeRequest:
    """The only claim, once it is there."""

    async def there() -> bool:
        return bool(await world.user.list(world.claims))

    await world.until(there, within, "a node is asked for")
    [claim] = await world.user.list(world.claims)
    return claim


async def _say(world: World, claim: NodeRequest, *conditions: tuple[str, str, str, str], **status: Any) -> None:
    """Write what Karpenter would: type, status, reason and message of each condition."""
    now = rfc3339(VirtualClock().now())
    names = ("type", "status", "reason", "message")
    wire = [{**dict(zip(names, each, strict=True)), "lastTransitionTime": now} for each in conditions]
    body = {"status": {"conditions": wire, **status}}
    await world.user.patch(world.claims, key_of(claim), body, subresource="status")


AWAITING = ("Unknown", "AwaitingReconciliation", "object is awaiting reconciliation")


@scenario(node_api="nodeclaim", provisioner=False)
async def test_what_karpenter_says_of_a_launch_that_fails_is_on_the_workspace_at_once(world: World) -> None:
    await world.apply(manifest())
    claim = await _claim(world)
    await _say(world, claim, ("Launched", *AWAITING), ("Registered", *AWAITING), ("Ready", *AWAITING))
    await asyncio.sleep(AT_ONCE)
    stage = await world.stage()
    assert stage is not None
    assert (stage.name, stage.state) == ("CapacityReserved", "Active"), "that it begins is no failure"
    text = "creating instance failed: InsufficientVCPUQuota: remaining quota 0 for family standardNCSFamily"
    await _say(
        world,
        claim,
        ("Launched", "Unknown", "LaunchFailed", text),
        ("Registered", *AWAITING),
        ("Ready", "Unknown", "ReconcilingDependents", "Launched=Unknown, Registered=Unknown"),
    )

    async def told() -> bool:
        return await world.cause() == ("CapacityReserved", "Failed", "QuotaExceeded")

    await world.until(told, AT_ONCE)
    for kind in ("NodeClaimReady", "ResourceReady", "WorkspaceReady"):
        assert (await world.said(kind))[::2] == ("False", f"NodeClaim {claim.name}: QuotaExceeded: {text}")
    stage = await world.stage()
    assert stage is not None
    assert "ask the cloud for more quota" in (stage.next_action or "")


@scenario(node_api="nodeclaim", provisioner=False)
async def test_a_provisioner_that_deletes_what_it_cannot_launch_is_asked_ever_more_rarely(world: World) -> None:
    await world.apply(manifest())
    began = world.now
    # Karpenter deletes a claim for which there is no capacity, without a word in it.
    while world.now - began < 3600:
        for claim in await world.user.list(NodeClaim):
            await world.delete(NodeClaim, claim.name)
        await asyncio.sleep(1)
    assert 4 <= len(world.machines) <= 8
    assert (await world.said("WorkspaceReady"))[0] == "False"
    assert "did not become ready; the next is asked for in" in (await world.said("NodeClaimReady"))[2]


@scenario(provisioner=False)
async def test_a_machine_of_v0_29_is_followed_by_its_reasons_and_not_by_its_false(world: World) -> None:
    await world.apply(manifest())
    claim = await _claim(world)
    waiting = ("False", "MachineNotLaunched", "Machine is not launched")
    await _say(
        world,
        claim,
        ("MachineLaunched", "True", "", ""),
        ("MachineRegistered", "False", "NodeNotFound", "Node not registered with cluster"),
        ("MachineInitialized", *waiting),
        ("Ready", "False", "NodeNotFound", "Node not registered with cluster"),
        providerID="azure:///vm",
    )
    await asyncio.sleep(300)
    stage = await world.stage()
    assert stage is not None
    assert (stage.name, stage.state) == ("NodeRegistered", "Active")
    assert (await world.columns())["WORKSPACEREADY"] == ""
    labels = {**claim.metadata.labels, "node.kubernetes.io/instance-type": "Standard_NC12s_v3"}
    await world.kubelet.add_node("vm", labels={**labels, "karpenter.sh/initialized": "true"})
    done = [(kind, "True", "", "") for kind in ("MachineLaunched", "MachineRegistered", "MachineInitialized", "Ready")]
    await _say(world, claim, *done, nodeName="vm", providerID="azure:///vm")
    await world.until_ready(within=200)
    assert (await world.get(Workspace)).status.worker_nodes == ("vm",)
    # Its node falls silent: that is the provisioner's to judge, and nobody is overruled.
    world.kubelet.fall_silent("vm")
    await asyncio.sleep(3600)
    assert list(world.machines.values()) == [claim.name]
    await world.delete(Machine, claim.name)
    await world.user.delete(Node, key_of(await world.get(Node, "vm")))
    assert (await _claim(world)).uid != claim.uid
