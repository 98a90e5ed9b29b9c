"""Workspaces and machines from beginning to end, on a real API server: what is there, and how often it was written."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod, Service
from kaito_api.karpenter import Machine
from kaito_api.meta import ObjectMeta, is_true
from kaito_api.workspace import Workspace
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.errors import DecodeError, NotFound
from kaito_ctrl.runtime.meta import collection_path
from kaito_provisioner import QuotaExceeded, Throttled
from tests.unit.reconcilers.conftest import KEY, NAME, World, manifest

WORKSPACES = collection_path(Workspace, "default")


async def apply(world: World, **resource: Any) -> None:
    await world.client.request("POST", WORKSPACES, body=manifest(**resource))


async def deployed(world: World) -> bool:
    return await world.count(Deployment) == 1


async def ready(world: World) -> bool:
    return is_true((await world.workspace()).status.conditions, "WorkspaceReady")


async def up(world: World, **resource: Any) -> None:
    await apply(world, **resource)
    await world.until(lambda: deployed(world))
    await world.serve()
    await world.until(lambda: ready(world))


async def gone(world: World) -> bool:
    return not await world.client.list(Workspace)


async def test_a_workspace_gets_a_node_a_service_and_a_deployment_and_then_peace(world: World) -> None:
    await up(world)
    assert (await world.count(Machine), await world.count(Node), await world.count(Service)) == (1, 1, 1)
    assert (await world.workspace()).status.worker_nodes == ((await world.client.list(Node))[0].name,)
    assert await world.quiet() == []


async def test_the_writes_that_a_workspace_costs_are_few(world: World) -> None:
    await up(world)
    await world.quiet(0.0)
    world.transport.writes.clear()
    # Counted from a second one, because the first may meet a controller that is still starting.
    second = manifest()
    second["metadata"]["name"] = "second"
    second["resource"]["labelSelector"]["matchLabels"] = {"apps": "second"}
    await world.client.request("POST", WORKSPACES, body=second)

    async def both() -> bool:
        return await world.count(Deployment) == 2

    await world.until(both)
    await asyncio.sleep(0.2)
    writes = [each for each in world.transport.writes if "/events" not in each]
    assert len(writes) <= 16, writes


async def test_count_machines_are_asked_for_at_once(world: World) -> None:
    await apply(world, count=3)

    async def three() -> bool:
        return await world.count(Machine) == 3

    await world.until(three)
    await world.until(lambda: deployed(world))
    assert (await world.client.get(Deployment, NAME, "default")).spec.replicas == 3
    assert len(await world.cloud.list()) == 3


async def test_a_deleted_workspace_takes_everything_with_it_the_workload_first(world: World) -> None:
    await up(world)
    world.transport.writes.clear()
    await world.client.delete(Workspace, KEY)
    await world.until(lambda: gone(world))
    assert [await world.count(kind) for kind in (Machine, Node, Deployment)] == [0, 0, 0]
    assert await world.cloud.list() == ()
    deletions = [write for write in world.transport.writes if write.startswith("DELETE")]
    kinds = [write.split("/")[-2] for write in deletions]
    assert kinds.index("deployments") < kinds.index("machines")


@pytest.mark.parametrize("text", ["the quota is used up", None])
async def test_a_refusing_cloud_is_not_hurried(world: World, text: str | None) -> None:
    calls = 0

    def refuse(call: str, _: str) -> Exception | None:
        nonlocal calls
        if call != "create":
            return None
        calls += 1
        return QuotaExceeded(text, fix="ask for more") if text else Throttled(f"request {calls}", retry_after=30)

    world.cloud.fault = refuse
    await apply(world)

    async def shown() -> bool:
        # To be told to come back later is no refusal: it is what is waited for.
        found = await world.condition("WorkspaceReady" if text else "MachineReady")
        return found is not None and (text or "request") in found.message

    await world.until(shown)
    before = calls
    assert await world.quiet(0.5) == []
    assert calls == before == 1


async def test_an_answer_that_was_lost_makes_no_second_instance(world: World) -> None:
    inner = world.cloud.create
    lost = False

    async def create(request: Any) -> Any:
        nonlocal lost
        instance = await inner(request)
        if not lost:
            lost = True
            raise Throttled("the connection broke", retry_after=0.01)
        return instance

    world.cloud.create = create  # type: ignore[method-assign]
    await apply(world)
    await world.until(lambda: deployed(world))
    assert lost
    assert len(await world.cloud.list()) == 1


async def test_a_node_that_somebody_deletes_is_replaced_in_order(world: World) -> None:
    await up(world)
    first = (await world.client.list(Machine))[0].name
    await world.client.delete(Node, ObjectKey("", first))

    async def replaced() -> bool:
        machines = await world.client.list(Machine)
        return [each.name != first and is_true(each.status.conditions, "Ready") for each in machines] == [True]

    await world.until(replaced, seconds=10)
    assert [each.name != first for each in await world.cloud.list()] == [True]


async def test_an_instance_that_vanishes_takes_its_machine_with_it(world: World) -> None:
    await up(world)
    instance = (await world.cloud.list())[0]
    await world.cloud.delete(instance)

    async def replaced() -> bool:
        instances = await world.cloud.list()
        return [each.name != instance.name for each in instances] == [True]

    await world.until(replaced, seconds=10)


async def test_a_blip_of_a_users_own_node_buys_nothing(world: World) -> None:
    await world.client.create(Node.model_validate({"metadata": {"name": "own", "labels": {"apps": "phi-3"}}}))
    await world.nodes.ready("own", "True")
    await up(world)
    assert await world.count(Machine) == 0
    await world.nodes.ready("own", "Unknown")

    async def unready() -> bool:
        return not await ready(world)

    await world.until(unready)
    lost = await world.condition("InferenceReady")
    assert lost is not None
    assert lost.status == "False"
    assert "own" in lost.message
    await world.nodes.ready("own", "True")
    await world.until(lambda: ready(world))
    assert await world.count(Machine) == 0


async def test_an_object_that_the_server_refuses_is_explained_in_the_status(world: World) -> None:
    raw = manifest()
    container = {"name": "c", "image": "i", "imagePullPolicy": "Sometimes"}
    raw["inference"] = {"template": {"spec": {"containers": [container]}}}
    await world.client.request("POST", WORKSPACES, body=raw)

    async def shown() -> bool:
        found = await world.condition("WorkspaceReady")
        return found is not None and "imagePullPolicy" in found.message

    await world.until(shown)


async def test_a_template_that_the_server_rewrites_is_not_applied_for_ever(world: World) -> None:
    raw = manifest()
    limits = {"cpu": "0.5", "memory": "1024Mi", "nvidia.com/gpu": 1}
    container = {"name": "c", "image": "i", "args": [], "stdin": False, "resources": {"limits": limits}}
    raw["inference"] = {"template": {"spec": {"containers": [container]}}}
    await world.client.request("POST", WORKSPACES, body=raw)
    await world.until(lambda: deployed(world))
    await world.quiet(0.0)
    node = (await world.client.list(Node))[0].name
    world.transport.writes.clear()
    for _ in range(3):
        await world.nodes.ready(node, "True")
        await asyncio.sleep(0.05)
    assert [write for write in world.transport.writes if "deployments" in write] == []


async def test_machines_whose_workspace_is_gone_are_deleted(world: World) -> None:
    await apply(world)

    async def asked() -> bool:
        return await world.count(Machine) == 1

    await world.until(asked)
    # A human strips the finalizer: the workspace goes at once, and leaves its machine behind.
    await world.client.delete(Workspace, KEY)
    with contextlib.suppress(NotFound):
        await world.client.patch(Workspace, KEY, {"metadata": {"finalizers": None}})

    async def nothing() -> bool:
        return not await world.cloud.list() and await world.count(Machine) == 0

    await world.until(nothing)


async def test_a_node_that_the_cache_has_not_seen_goes_with_its_machine(world: World) -> None:
    world.transport.nodes_are_told.clear()
    await apply(world)

    async def joined() -> bool:
        return await world.count(Node) == 1

    await world.until(joined)
    await world.client.delete(Workspace, KEY)
    await world.until(lambda: gone(world))
    assert await world.cloud.list() == ()
    assert await world.count(Node) == 0


async def test_two_workspaces_with_one_selector_do_not_share_a_node(world: World) -> None:
    await up(world)
    second = manifest()
    second["metadata"]["name"] = "second"
    await world.client.request("POST", WORKSPACES, body=second)

    async def two() -> bool:
        return await world.count(Machine) == 2 and await world.count(Deployment) == 2

    await world.until(two)
    used = [each.status.worker_nodes for each in await world.client.list(Workspace)]
    assert len(set(used)) == 2


async def test_a_node_wakes_the_workspaces_that_could_use_it_and_no_others(world: World) -> None:
    # A thousand workspaces have a thousand nodes: who looks at all of them at each change never comes to rest.
    await up(world)
    other = manifest(labelSelector={"matchLabels": {"apps": "other", "team": "a"}})
    other["metadata"]["name"] = "other"
    await world.client.request("POST", WORKSPACES, body=other)

    async def both() -> bool:
        return await world.count(Deployment) == 2

    await world.until(both)
    node = Node(metadata=ObjectMeta(name="brought", labels={"apps": "other", "team": "a"}))
    await world.client.create(node)
    await world.nodes.ready("brought", "True")
    served = await world.client.get(Workspace, "other", "default")
    assert len(served.status.worker_nodes) == 1
    # Its own node goes: the one that was brought takes over.
    await world.nodes.ready(served.status.worker_nodes[0], "False")
    await world.client.delete(Machine, ObjectKey("", served.status.worker_nodes[0]))

    async def moved() -> bool:
        found = await world.client.get(Workspace, "other", "default")
        return found.status.worker_nodes == ("brought",)

    await world.until(moved)


async def test_a_pod_that_nobody_can_read_does_not_hold_up_the_end_of_its_node(world: World) -> None:
    await up(world)
    node = (await world.client.list(Node))[0].name
    pods = "/api/v1/namespaces/default/pods"
    spec = {"nodeName": node, "containers": [{"name": "a", "image": "b"}], "terminationGracePeriodSeconds": 0}
    pod = {"metadata": {"name": "odd"}, "spec": spec}
    await world.client.request("POST", pods, body={"apiVersion": "v1", "kind": "Pod", **pod})
    await world.client.request(
        "PATCH",
        f"{pods}/odd/status",
        body={"status": {"phase": "Undecided"}},
        headers={"content-type": "application/merge-patch+json"},
    )
    with pytest.raises(DecodeError):
        await world.client.list(Pod)
    await world.client.delete(Workspace, KEY)
    await world.until(lambda: gone(world), seconds=10)
    assert not await world.cloud.list()
