"""A claim ends on a real kube-apiserver, whose own controllers decide what its disruption budgets allow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kaito_api.core import Node, Pod
from kaito_api.crd import all_crds
from kaito_api.karpenter import TERMINATION_FINALIZER, Machine, NodeClaim, NodeRequest
from kaito_api.meta import find_condition, rfc3339
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.runtime import Client, Manager, ObjectKey
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.testing.controlplane import ControlPlane
from kaito_ctrl.testing.envtest import envtest
from kaito_provisioner import LaunchRequest
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.scenarios.ending import Ender

pytestmark = pytest.mark.timeout(120)
BUDGETS = "/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets"


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
async def test_a_claim_ends_in_order_and_hears_the_servers_disruption_budgets(
    working: ControlPlane, kind: type[NodeRequest]
) -> None:
    name = f"ws{kind.plural}"
    async with envtest(working, crds=all_crds()) as env:
        client, clock = env.client, SystemClock()
        cloud = SimCloud([SimInstanceType("small", 1)], now=clock.now, boot=0.1, shutdown=1.0)
        claim = await _claim(client, kind, name)
        instance = await cloud.create(LaunchRequest(name, claim.uid, ("small",), kind=kind.kind))
        await client.patch(
            kind, ObjectKey("", name), {"status": {"providerID": instance.provider_id}}, subresource="status"
        )
        await _node(client, name, instance.provider_id)
        for pod in ("free", "held"):
            await _pod(client, f"{name}-{pod}", name)
        await _budget(client, f"{name}-held")
        manager = Manager(await env.cluster(), drain=1.0)
        manager.add(Ender(cloud, kind, ClaimMetrics(kind)))
        running = asyncio.ensure_future(manager.run())
        try:
            await manager.wait_ready()
            await client.delete(kind, ObjectKey("", name))

            async def only_the_held_one_is_left() -> bool:
                return [each.name for each in await client.list(Pod) if each.spec.node_name == name] == [f"{name}-held"]

            await _until(only_the_held_one_is_left)
            await asyncio.sleep(3)
            assert await only_the_held_one_is_left()
            node = await client.get(Node, name)
            assert node.deleting
            assert "karpenter.sh/disrupted" in {each.key for each in node.spec.taints}
            said = find_condition((await client.get(kind, name)).status.conditions, "Drained")
            assert said is not None
            assert (said.reason, said.message) == ("Draining", "1 pod is waiting to be evicted")
            await client.request("DELETE", f"{BUDGETS}/{name}-held")

            async def all_is_gone() -> bool:
                left = [*await client.list(kind), *(each for each in await client.list(Node) if each.name == name)]
                return not left and not cloud.existing()

            await _until(all_is_gone)
        finally:
            manager.stop()
            await running


async def _claim(client: Client, kind: type[NodeRequest], name: str) -> NodeRequest:
    spec: dict[str, Any] = {"requirements": []}
    if kind is NodeClaim:
        spec["nodeClassRef"] = {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}
    metadata = {"name": name, "finalizers": [TERMINATION_FINALIZER]}
    return await client.create(kind.model_validate({"metadata": metadata, "spec": spec}))


async def _node(client: Client, name: str, provider_id: str) -> None:
    body = {"metadata": {"name": name, "finalizers": [TERMINATION_FINALIZER]}, "spec": {"providerID": provider_id}}
    await client.create(Node.model_validate(body))
    stamp = rfc3339(SystemClock().now())
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": stamp, "lastTransitionTime": stamp}
    await client.patch(Node, ObjectKey("", name), {"status": {"conditions": [ready]}}, subresource="status")


async def _pod(client: Client, name: str, node: str) -> None:
    """One that runs, as far as anybody can tell, and that ends as soon as it is asked to."""
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 0}
    metadata = {"name": name, "namespace": "default", "labels": {"app": name}}
    await client.create(Pod.model_validate({"metadata": metadata, "spec": spec}))
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"status": {"phase": "Running", "conditions": conditions}}
    await client.patch(Pod, ObjectKey("default", name), status, subresource="status")


async def _budget(client: Client, app: str) -> None:
    selector = {"matchLabels": {"app": app}}
    body = {"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {"name": app}}
    await client.request("POST", BUDGETS, body={**body, "spec": {"minAvailable": 1, "selector": selector}})


async def _until(holds: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.1)
