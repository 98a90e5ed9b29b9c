"""Adapters that are changed on a running workspace: a revision, one rolling update, and the way back."""

from __future__ import annotations

import asyncio
from typing import Any

from kaito_api.apps import ControllerRevision, Deployment
from kaito_api.core import Pod
from kaito_api.workspace import Workspace
from kaito_ctrl.devcluster.kinds import ReplicaSet
from tests.scenarios.world import World, manifest, scenario

UPDATE = 130.0
"""Seconds for one replica to leave and another one to come: GPUs are scarce, so it is one after the other."""


def _with(*adapters: tuple[str, str]) -> dict[str, Any]:
    found = [
        {"source": {"name": name, "image": f"registry.example/{name}:1"}, "strength": strength}
        for name, strength in adapters
    ]
    return manifest(inference={"preset": {"name": "falcon-7b"}, "adapters": found})


async def _revisions(world: World) -> list[int]:
    return sorted(each.revision for each in await world.user.list(ControllerRevision))


async def _noted(world: World) -> set[str]:
    """The revision as the workspace and its workload say it."""
    objects = (await world.get(Workspace), await world.get(Deployment))
    return {each.metadata.annotations["workspace.kaito.io/revision"] for each in objects}


@scenario()
async def test_an_adapter_comes_with_one_rolling_update_and_goes_with_another(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    before = (await world.get(Deployment)).spec.template.to_wire()
    generation = (await world.get(Deployment)).metadata.generation
    [first] = await world.user.list(Pod)

    await world.apply(_with(("poet", "0.5")))
    await asyncio.sleep(1)
    assert not await world.ready(), "what serves is not what was asked for"
    await world.until_ready(within=UPDATE)
    deployment = await world.get(Deployment)
    assert await _revisions(world) == [1, 2]
    assert await _noted(world) == {"2"}
    assert deployment.metadata.generation == (generation or 0) + 1, "one update"
    [init] = deployment.spec.template.spec.init_containers
    assert (init.name, init.image) == ("poet", "registry.example/poet:1")
    assert ("poet", "0.5") in {(each.name, each.value) for each in deployment.spec.template.spec.containers[0].env}
    [second] = await world.user.list(Pod)
    assert second.uid != first.uid
    assert len(await world.user.list(ReplicaSet)) == 2
    assert len(world.machines) == 1

    await world.user.request(
        "PATCH",
        "/apis/kaito.sh/v1alpha1/namespaces/default/workspaces/ws",
        body={"inference": {"adapters": None}},
        headers={"content-type": "application/merge-patch+json"},
    )
    await asyncio.sleep(1)
    await world.until_ready(within=UPDATE)
    assert (await world.get(Deployment)).spec.template.to_wire() == before
    assert await _revisions(world) == [1, 2]
    assert await _noted(world) == {"1"}
    assert len(await world.user.list(ReplicaSet)) == 2, "the first one is used again"
    assert len(world.machines) == 1
    await world.settled()


@scenario()
async def test_another_strength_and_another_order_are_revisions_of_their_own(world: World) -> None:
    await world.apply(_with(("poet", "0.5")))
    await world.until_ready()
    await world.apply(_with(("poet", "0.8")))
    await asyncio.sleep(1)
    await world.until_ready(within=UPDATE)
    assert await _revisions(world) == [1, 2]
    [pod] = await world.user.list(Pod)
    assert ("poet", "0.8") in {(each.name, each.value) for each in pod.spec.containers[0].env}
    await world.settled()


@scenario()
async def test_adapters_that_change_faster_than_they_load_end_with_the_last_one(world: World) -> None:
    await world.apply(_with(("poet", "0.1")))
    await world.until_ready()
    for strength in ("0.2", "0.3", "0.4", "0.9"):
        await world.apply(_with(("poet", strength)))
        await asyncio.sleep(20)
    await world.until_ready(within=2 * UPDATE)
    [pod] = await world.user.list(Pod)
    assert ("poet", "0.9") in {(each.name, each.value) for each in pod.spec.containers[0].env}
    assert len(world.machines) == 1
    await world.settled()


@scenario()
async def test_ten_revisions_are_kept(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    for number in range(1, 13):
        await world.apply(_with(("poet", f"0.{number:02}")))
        await asyncio.sleep(5)
    assert await _revisions(world) == list(range(4, 14))


@scenario()
async def test_what_somebody_edits_meanwhile_leaves_no_trace(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    before = (await world.get(Deployment)).spec.template.to_wire()
    await world.apply(_with(("poet", "0.5")))
    await asyncio.sleep(1)
    container = {"name": "ws", "env": [{"name": "THEIRS", "value": "1"}]}
    await world.user.request(
        "PATCH",
        "/apis/apps/v1/namespaces/default/deployments/ws",
        body={"spec": {"template": {"spec": {"containers": [container]}}}},
        headers={"content-type": "application/strategic-merge-patch+json"},
    )
    await asyncio.sleep(1)
    [kept] = (await world.get(Deployment)).spec.template.spec.containers
    assert "THEIRS" not in {each.name for each in kept.env}
    await world.apply({**manifest(), "inference": {"preset": {"name": "falcon-7b"}, "adapters": []}})
    await asyncio.sleep(1)
    await world.until_ready(within=2 * UPDATE)
    assert (await world.get(Deployment)).spec.template.to_wire() == before
    await world.settled()
