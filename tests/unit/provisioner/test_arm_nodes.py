"""Machines of the local ARM join the embedded API server as nodes, as AKS' machines do, and leave it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from armworld import CPU, GPU, Azure

from kaito_api.coordination import Lease
from kaito_api.core import Node
from kaito_api.meta import find_condition
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.nodelifecycle import NodeLifecycle
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.errors import NotFound, TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import VirtualClock, run_virtual
from kaito_provisioner.testing import LocalArm, NodeJoiner, Timings

TIMINGS = Timings(allocation=10, boot=20, provider_id=5, device_plugin=15, create=60, delete=40, node_removal=30)


class Switch:
    """A way to the server that can be cut."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.cut = False

    async def send(self, request: Request) -> Response:
        if self.cut:
            raise TransportError("connection refused")
        return await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class Joined(Azure):
    user: Client
    way: Switch

    async def nodes(self) -> list[Node]:
        return list(await self.user.list(Node))

    async def node(self) -> Node:
        (node,) = await self.nodes()
        return node


def play(test: Callable[[Joined], Awaitable[None]]) -> None:
    async def main() -> None:
        clock = VirtualClock()
        server = ApiServer(clock=clock, rng=random.Random(7))
        way = Switch(server.transport(user="azure"))
        around = Cluster(server.transport(user="controllers"), clock=clock, rng=random.Random(8))
        manager = Manager(around, drain=1.0)
        manager.add(NodeLifecycle())
        arm = LocalArm(
            clock=clock, rng=random.Random(9), timings=TIMINGS, joiner=NodeJoiner(Client(way), clock), system_pool=""
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            await manager.wait_ready()
            async with arm, arm.client() as client:
                await test(Joined(arm, client, Client(server.transport(user="user")), way))
            manager.stop()
        await server.aclose()

    run_virtual(main())


def ready(node: Node) -> str:
    condition = find_condition(node.status.conditions, "Ready")
    return condition.status if condition is not None else ""


def test_a_node_joins_step_by_step() -> None:
    async def test(azure: Joined) -> None:
        await azure.put(nodeLabels={"kaito.sh/workspace": "phi"}, nodeTaints=["sku=gpu:NoSchedule", "bare:NoExecute"])
        await asyncio.sleep(29)
        assert await azure.nodes() == []

        await asyncio.sleep(2)
        node = await azure.node()
        (vm,) = azure.arm.vms()
        assert node.name == vm.node_name
        assert node.spec.provider_id == ""
        assert [(each.key, each.value, each.effect) for each in node.spec.taints] == [
            ("sku", "gpu", "NoSchedule"),
            ("bare", "", "NoExecute"),
            ("node.cloudprovider.kubernetes.io/uninitialized", "true", "NoSchedule"),
        ]
        for name, value in {
            "agentpool": "ws1",
            "kubernetes.azure.com/agentpool": "ws1",
            "kubernetes.azure.com/cluster": "MC_kaito_kaito-aks_eastus",
            "kubernetes.io/hostname": vm.node_name,
            "accelerator": "nvidia",
            "kaito.sh/workspace": "phi",
        }.items():
            assert node.metadata.labels[name] == value
        assert "node.kubernetes.io/instance-type" not in node.metadata.labels
        assert "nvidia.com/gpu" not in node.status.allocatable

        await asyncio.sleep(5)
        node = await azure.node()
        assert node.spec.provider_id == vm.provider_id
        assert [each.key for each in node.spec.taints] == ["sku", "bare"]
        assert node.metadata.labels["node.kubernetes.io/instance-type"] == GPU
        assert node.metadata.labels["topology.kubernetes.io/zone"] == "0"
        assert "nvidia.com/gpu" not in node.status.allocatable

        await asyncio.sleep(15)
        node = await azure.node()
        assert node.status.allocatable["nvidia.com/gpu"] == "1"
        assert (node.status.allocatable["cpu"], node.status.allocatable["memory"]) == ("24", "220Gi")

    play(test)


def test_a_zone_is_spelled_with_its_region() -> None:
    async def test(azure: Joined) -> None:
        await azure.make(availabilityZones=["3"])
        assert (await azure.node()).metadata.labels["topology.kubernetes.io/zone"] == "eastus-3"

    play(test)


def test_a_node_whose_machine_runs_stays_ready() -> None:
    async def test(azure: Joined) -> None:
        await azure.make()
        await asyncio.sleep(3600)
        node = await azure.node()
        assert ready(node) == "True"
        assert node.spec.taints == ()

    play(test)


def test_a_deleted_pools_node_falls_silent_and_is_then_removed() -> None:
    async def test(azure: Joined) -> None:
        await azure.make()
        await azure.pools.begin_delete(*azure.where, "ws1")
        await asyncio.sleep(25)
        node = await azure.node()
        assert ready(node) == "Unknown"
        await asyncio.sleep(30)
        assert await azure.nodes() == []
        with pytest.raises(NotFound):
            await azure.user.get(Lease, node.name, "kube-node-lease")

    play(test)


def test_a_node_with_a_finalizer_is_left_to_whoever_put_it_there() -> None:
    async def test(azure: Joined) -> None:
        await azure.make()
        key = ObjectKey("", (await azure.node()).name)
        await azure.user.patch(Node, key, {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
        await azure.delete()
        await asyncio.sleep(300)
        node = await azure.node()
        assert node.metadata.deletion_timestamp is not None
        assert node.metadata.finalizers == ("karpenter.sh/termination",)
        await azure.user.patch(Node, key, {"metadata": {"finalizers": None}})
        assert await azure.nodes() == []

    play(test)


def test_a_node_that_somebody_has_deleted_is_not_made_again() -> None:
    async def test(azure: Joined) -> None:
        await azure.put()
        await asyncio.sleep(31)  # registered, and not yet known to the cloud node manager
        await azure.user.delete(Node, ObjectKey("", (await azure.node()).name))
        await asyncio.sleep(600)
        assert await azure.nodes() == []
        assert len(azure.arm.vms()) == 1

    play(test)


def test_taints_that_others_put_on_a_node_stay() -> None:
    async def test(azure: Joined) -> None:
        await azure.put()
        await asyncio.sleep(31)
        node = await azure.node()
        taints = [*(each.to_wire() for each in node.spec.taints), {"key": "theirs", "effect": "NoSchedule"}]
        await azure.user.patch(Node, ObjectKey("", node.name), {"spec": {"taints": taints}})
        await asyncio.sleep(60)
        assert [each.key for each in (await azure.node()).spec.taints] == ["theirs"]

    play(test)


def test_a_machine_waits_for_an_api_server_that_is_away() -> None:
    async def test(azure: Joined) -> None:
        azure.way.cut = True
        await azure.make()
        await asyncio.sleep(600)
        azure.way.cut = False
        await asyncio.sleep(30)
        assert ready(await azure.node()) == "True"

    play(test)


def test_an_unreachable_api_server_keeps_no_pool_from_being_deleted() -> None:
    async def test(azure: Joined) -> None:
        await azure.make()
        azure.way.cut = True
        await azure.delete()
        assert azure.arm.pools() == {}
        azure.way.cut = False
        await asyncio.sleep(60)
        assert await azure.nodes() == []

    play(test)


def test_a_dead_machines_node_falls_silent_and_stays() -> None:
    async def test(azure: Joined) -> None:
        await azure.make()
        azure.arm.kill_vm((await azure.node()).name)
        await asyncio.sleep(3600)
        assert ready(await azure.node()) == "Unknown"
        assert (await azure.get()).provisioning_state == "Succeeded"

    play(test)


def test_an_evicted_machines_node_is_removed_and_its_pool_stays() -> None:
    async def test(azure: Joined) -> None:
        await azure.make(scaleSetPriority="Spot")
        azure.arm.evict((await azure.node()).name)
        await asyncio.sleep(60)
        assert await azure.nodes() == []
        assert (azure.arm.vms(), (await azure.get()).provisioning_state) == ([], "Succeeded")

    play(test)


@pytest.mark.parametrize(
    ("kind", "seconds", "expected"),
    [
        ("no-node", 0, []),
        ("two-nodes", 0, [("True", True, True), ("True", True, True)]),
        ("late-provider-id", 900, [("True", False, False)]),
        ("dies", 100, [("Unknown", True, True)]),
        ("no-gpu", 0, [("True", True, False)]),
    ],
)
def test_what_can_become_of_a_machine(kind: Any, seconds: float, expected: list[tuple[str, bool, bool]]) -> None:
    async def test(azure: Joined) -> None:
        azure.arm.faults.mishap(kind, seconds=seconds)
        await azure.make()
        await asyncio.sleep(600)
        found = [
            (ready(node), bool(node.spec.provider_id), "nvidia.com/gpu" in node.status.allocatable)
            for node in await azure.nodes()
        ]
        assert found == expected
        assert len({node.spec.provider_id for node in await azure.nodes()}) == len(expected)
        await asyncio.sleep(600)
        await azure.delete()
        await asyncio.sleep(60)
        assert await azure.nodes() == []

    play(test)


def test_gpus_of_another_maker_have_another_name() -> None:
    async def test(azure: Joined) -> None:
        await azure.make(vm_size="Standard_NG32ads_V620_v1")
        node = await azure.node()
        assert node.status.allocatable["amd.com/gpu"] == "1"
        assert "accelerator" not in node.metadata.labels

    play(test)


def test_a_machine_without_gpus_says_so() -> None:
    async def test(azure: Joined) -> None:
        await azure.make(vm_size=CPU)
        node = await azure.node()
        assert "accelerator" not in node.metadata.labels
        assert "nvidia.com/gpu" not in node.status.capacity

    play(test)
