"""What somebody does to a running workspace, or what happens to it: noticed at once, repaired in one go, then peace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod, Service
from kaito_api.karpenter import Machine
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import ENABLE_LB_ANNOTATION
from tests.scenarios.world import BOOT, SHUTDOWN, World, manifest, scenario

AT_ONCE = 1.0
"""Seconds: two or three calls, and the watch between them."""
POD = 95.0
"""Seconds until another pod serves: image, weights."""
NODE = BOOT + 14.0


async def _up(world: World, **options: Any) -> None:
    await world.apply(manifest(**options))
    await world.until_ready()


async def _noticed(world: World, within: float = AT_ONCE) -> None:
    async def unready() -> bool:
        return not await world.ready()

    await world.until(unready, within, "it is noticed")


@scenario()
async def test_a_node_that_reports_not_ready(world: World) -> None:
    await _up(world)
    [node] = await world.user.list(Node)
    await world.kubelet.report(node.name, "False", "PLEG is not healthy")
    await _noticed(world)
    assert (await world.said("ResourceReady"))[2] == f"not ready, and expected back: node {node.name}"
    stage = await world.stage()
    assert stage is not None
    assert (stage.name, stage.state) == ("NodeInitialized", "Failed")
    assert stage.message == f"Node {node.name}: is not ready: PLEG is not healthy"
    assert stage.next_action == f"kubectl describe node {node.name}"
    await world.kubelet.report(node.name, "True")
    assert await world.until_ready() < 12.0
    assert len(world.machines) == 1
    await world.settled()


@scenario()
async def test_a_server_that_crashes(world: World) -> None:
    await _up(world)
    [pod] = await world.user.list(Pod)
    world.kubelet.crash(pod.name, exit_code=137)
    await _noticed(world)
    assert (await world.columns())["RESOURCEREADY"] == "True"
    assert pod.name in (await world.said("InferenceReady"))[2]
    await world.until_ready(within=POD)
    await world.settled()


@scenario()
async def test_a_pod_that_is_evicted(world: World) -> None:
    await _up(world)
    [pod] = await world.user.list(Pod)
    await world.kubelet.evict(pod.name)
    await _noticed(world)
    await world.until_ready(within=POD)
    ws = await world.get(Workspace)
    assert {each.state for each in ws.status.stages} == {"Done"}, "what is left of the first pod holds up nothing"
    await world.settled()


@scenario()
async def test_a_pod_that_somebody_deletes(world: World) -> None:
    await _up(world)
    [pod] = await world.user.list(Pod)
    await world.delete(Pod, pod.name)
    await world.until(lambda: _other_pod(world, pod.uid), 5.0)
    await world.until_ready(within=POD)
    await world.settled()


async def _other_pod(world: World, uid: str) -> bool:
    return any(each.uid != uid for each in await world.user.list(Pod))


@pytest.mark.parametrize("kind", [Node, Machine])
@scenario()
async def test_a_node_or_a_machine_that_somebody_deletes(world: World, kind: type[Node] | type[Machine]) -> None:
    await _up(world)
    [found] = await world.user.list(kind)
    began = world.now
    await world.delete(kind, found.name)

    async def asked_again() -> bool:
        return len(world.machines) == 2

    await world.until(asked_again, 5.0, "another machine is asked for")
    await world.until(lambda: _served_by_another(world, found.name), NODE + POD + SHUTDOWN)
    assert world.now - began < NODE + POD + 10.0

    async def given_back() -> bool:
        return len(await world.cloud.list()) == 1

    await world.until(given_back, SHUTDOWN)
    assert len(world.machines) == 2
    await world.settled()


async def _served_by_another(world: World, node: str) -> bool:
    return await world.ready() and (await world.get(Workspace)).status.worker_nodes not in ((), (node,))


HTTP = {"name": "http", "port": 8080, "targetPort": 1, "protocol": "TCP"}
EDITS: dict[str, dict[str, Any]] = {
    "ports": {"spec": {"ports": [HTTP]}},
    "selector": {"spec": {"selector": {"kaito.sh/workspace": "other"}}},
    "owner": {"metadata": {"labels": {"kaito.sh/workspace": None}}},
}


@pytest.mark.parametrize("what", EDITS)
@scenario()
async def test_a_service_that_somebody_edits(world: World, what: str) -> None:
    await _up(world)
    before = await world.get(Service)
    await world.edit(Service, "ws", EDITS[what])
    await world.until(lambda: _service_is(world, before), AT_ONCE, "the service is as it was")
    assert await world.ready()
    await world.settled()


async def _service_is(world: World, wanted: Service) -> bool:
    found = await world.find(Service)
    return found is not None and (found.spec, found.metadata.labels) == (wanted.spec, wanted.metadata.labels)


@scenario()
async def test_a_service_that_somebody_deletes(world: World) -> None:
    await _up(world)
    before = await world.get(Service)
    await world.delete(Service, "ws")

    async def back() -> bool:
        found = await world.find(Service)
        return found is not None and found.uid != before.uid and found.spec.ports == before.spec.ports

    await world.until(back, AT_ONCE)
    await world.settled()


@scenario()
async def test_a_deployment_that_somebody_scales(world: World) -> None:
    await _up(world)
    for replicas in (0, 3):
        await world.edit(Deployment, "ws", {"spec": {"replicas": replicas}})

        async def back() -> bool:
            return (await world.get(Deployment)).spec.replicas == 1

        await world.until(back, AT_ONCE)
    await world.until_ready(within=POD + 5.0)
    assert len(world.machines) == 1
    await world.settled()


@scenario()
async def test_a_deployment_whose_image_somebody_changes(world: World) -> None:
    await _up(world)
    before = (await world.get(Deployment)).spec.template
    patch = [{"name": "ws", "image": "theirs:1"}]
    await world.user.request(
        "PATCH",
        "/apis/apps/v1/namespaces/default/deployments/ws",
        body={"spec": {"template": {"spec": {"containers": patch}}}},
        headers={"content-type": "application/strategic-merge-patch+json"},
    )

    async def back() -> bool:
        return (await world.get(Deployment)).spec.template == before

    await world.until(back, AT_ONCE)
    await world.until_ready(within=2 * POD)
    await world.settled()


@scenario()
async def test_a_deployment_that_somebody_deletes(world: World) -> None:
    await _up(world)
    before = await world.get(Deployment)
    await world.delete(Deployment, "ws")

    async def back() -> bool:
        found = await world.find(Deployment)
        return found is not None and found.uid != before.uid

    await world.until(back, AT_ONCE)
    await world.until_ready(within=POD + 10.0)
    assert len(world.machines) == 1
    await world.settled()


@scenario()
async def test_labels_that_somebody_takes_off_the_node(world: World) -> None:
    await _up(world)
    [node] = await world.user.list(Node)
    stripped = ("apps", "accelerator", "kaito.sh/workspace", "kaito.sh/workspacenamespace", "karpenter.sh/initialized")
    await world.edit(Node, node.name, {"metadata": {"labels": dict.fromkeys(stripped)}})

    async def back() -> bool:
        return (await world.get(Node, node.name)).metadata.labels == node.metadata.labels

    await world.until(back, AT_ONCE, "the labels are back")
    await world.until_ready(within=2 * POD)
    assert len(world.machines) == 1, "a label is no reason to buy another node"
    await world.settled()


@scenario()
async def test_the_load_balancer_is_switched_on_and_off(world: World) -> None:
    await _up(world)
    before = await world.get(Service)
    for word, kind in (("True", "LoadBalancer"), (None, "ClusterIP"), ("true", "ClusterIP"), ("True", "LoadBalancer")):
        await world.edit(Workspace, "ws", {"metadata": {"annotations": {ENABLE_LB_ANNOTATION: word}}})
        await asyncio.sleep(AT_ONCE)
        found = await world.get(Service)
        assert found.spec.type == kind, "Upstream ignores it once the service is there"
        assert (found.uid, found.spec.cluster_ip) == (before.uid, before.spec.cluster_ip)
    assert await world.ready()
    await world.settled()


@scenario()
async def test_a_preferred_node_takes_over_and_nothing_else_is_bought(world: World) -> None:
    await _up(world)
    labels = {"apps": "falcon-7b-ws", "node.kubernetes.io/instance-type": "Standard_NC12s_v3"}
    await world.kubelet.add_node("own", labels=labels)
    await asyncio.sleep(15)
    assert (await world.get(Workspace)).status.worker_nodes != ("own",), "not for being there"
    await world.edit(Workspace, "ws", {"resource": {"preferredNodes": ["own"]}})

    async def moved() -> bool:
        return (await world.get(Workspace)).status.worker_nodes == ("own",)

    await world.until(moved, AT_ONCE)
    await world.until_ready(within=2 * POD)
    assert len(world.machines) == 1
    await world.settled()
