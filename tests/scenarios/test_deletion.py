"""A workspace that is deleted, at any moment and in any manner, is gone as soon as the world allows, and all of it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from kaito_api.apps import ControllerRevision, Deployment
from kaito_api.core import Pod, Service
from kaito_api.karpenter import Machine
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace
from kaito_ctrl.runtime.errors import NotFound
from kaito_provisioner import CloudError, Instance, LaunchRequest
from tests.scenarios.kubelet import GRACE
from tests.scenarios.test_first_workspace import PRIVATE
from tests.scenarios.world import BOOT, SHUTDOWN, World, manifest, scenario

PROMPT = 8.0
"""Seconds beside what the outside takes: the cloud's own calls of a second each, and a look each second."""
STAGES = ("CapacityReserved", "NodeRegistered", "NodeInitialized", "ArtifactsReady", "EngineStarted")


async def _gone(world: World, outside: float = GRACE + SHUTDOWN) -> None:
    """Gone within *outside* seconds and a few; then nothing happens any more, and nothing has come back."""
    await world.until_gone(outside + PROMPT)
    assert await world.quiet(3600) == []
    assert await world.left() == []
    assert len(world.machines) <= 2


@pytest.mark.parametrize("stage", STAGES)
@scenario()
async def test_at_every_stage(world: World, stage: str) -> None:
    await world.apply(manifest())
    await world.until_stage(stage)
    await world.delete(Workspace, "ws")
    await _gone(world)


@scenario()
async def test_when_it_serves(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    await world.delete(Workspace, "ws")
    await asyncio.sleep(0.5)
    assert await world.said("WorkspaceDeleting") == ("True", "workspaceDeleted", "workspace is being deleted")
    await _gone(world)


@scenario()
async def test_when_it_was_never_valid(world: World) -> None:
    await world.apply(manifest(inference={"preset": {"name": "no-such-model"}}))
    await asyncio.sleep(5)
    assert (await world.cause())[:2] == ("Planned", "Failed")
    await world.delete(Workspace, "ws")
    await _gone(world, 0.0)


@scenario(quota=0)
async def test_while_the_cloud_refuses(world: World) -> None:
    await world.apply(manifest(count=2))
    await asyncio.sleep(3600)
    await world.delete(Workspace, "ws")
    # Upstream waits for four minutes per machine before it notices.
    await _gone(world, 0.0)


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.03, 0.04, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 61.0, 62.0, 62.05, 67.1, 72.1])
@scenario()
async def test_at_every_moment_of_the_start(world: World, moment: float) -> None:
    await world.apply(manifest(count=2))
    await asyncio.sleep(moment)
    await world.delete(Workspace, "ws")
    await _gone(world)


@scenario()
async def test_while_a_model_is_spread_over_two_nodes(world: World) -> None:
    await world.apply(manifest(inference=PRIVATE, instanceType="Standard_NC96ads_A100_v4", count=2))
    await world.until_ready()
    await world.delete(Workspace, "ws")
    await _gone(world)


@scenario()
async def test_while_a_machine_of_it_is_being_deleted(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    [machine] = await world.user.list(Machine)
    await world.delete(Machine, machine.name)
    await asyncio.sleep(4)
    await world.delete(Workspace, "ws")
    await _gone(world)


@scenario()
async def test_while_its_workload_is_being_deleted(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    await world.delete(Deployment, "ws", propagation="Foreground")
    await asyncio.sleep(0.5)
    await world.delete(Workspace, "ws")
    await _gone(world)


@scenario()
async def test_twice(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    await world.delete(Workspace, "ws")
    await asyncio.sleep(3)
    await world.delete(Workspace, "ws")
    await _gone(world)


@scenario()
async def test_somebody_elses_finalizer_is_left_to_them(world: World) -> None:
    raw = manifest()
    raw["metadata"]["finalizers"] = ["example.com/theirs"]
    await world.apply(raw)
    await world.until_ready()
    await world.delete(Workspace, "ws")
    await asyncio.sleep(GRACE + SHUTDOWN + PROMPT)
    assert (await world.get(Workspace)).metadata.finalizers == ("example.com/theirs",), "upstream takes off all"
    assert not await world.user.list(Machine)
    assert await world.cloud.list() == ()
    assert await world.quiet(3600) == []
    await world.edit(Workspace, "ws", {"metadata": {"finalizers": None}})
    await _gone(world, 0.0)


@scenario()
async def test_with_orphans_wanted_the_nodes_are_given_back_all_the_same(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    await world.delete(Workspace, "ws", propagation="Orphan")

    async def gone() -> bool:
        return await world.find(Workspace) is None and not await world.cloud.list()

    await world.until(gone, GRACE + SHUTDOWN + PROMPT)
    assert not await world.user.list(Machine)
    assert await world.quiet(3600) == []
    # What was to be orphaned is the user's now, and theirs to delete.
    for kind in (Deployment, Service):
        with contextlib.suppress(NotFound):
            await world.delete(kind, "ws", propagation="Background")
    for each in await world.user.list(ControllerRevision):
        await world.delete(ControllerRevision, each.name)
    await world.until_gone(PROMPT)


@pytest.mark.parametrize("after", [0.0, 0.01, 0.05, 2.0, 2.2, 4.0, 20.0, 25.0])
@scenario()
async def test_with_the_daemon_killed_right_after(world: World, after: float) -> None:
    await world.apply(manifest(count=2))
    await world.until_ready()
    await world.delete(Workspace, "ws")
    await asyncio.sleep(after)
    world.kill(down=5.0)
    await _gone(world, GRACE + SHUTDOWN + 8.0)


@scenario()
async def test_with_the_daemon_killed_while_the_first_machine_is_made(world: World) -> None:
    await world.apply(manifest())
    await asyncio.sleep(1.5)  # the cloud is being asked
    world.kill(down=30.0)
    await asyncio.sleep(0.1)
    await world.delete(Workspace, "ws")
    await _gone(world, 30.0 + BOOT + SHUTDOWN)


@scenario()
async def test_with_the_daemon_killed_before_it_hears_that_the_instance_was_made(world: World) -> None:
    make = world.cloud.create

    async def create(request: LaunchRequest) -> Instance:
        await make(request)
        raise await asyncio.sleep(3600, CloudError("the answer is lost"))

    world.cloud.create = create  # type: ignore[method-assign]
    await world.apply(manifest())
    await asyncio.sleep(5)
    assert len(await world.cloud.list()) == 1
    world.kill(down=2.0)
    await world.delete(Workspace, "ws")
    [machine] = await world.user.list(Machine)
    await world.delete(Machine, machine.name)
    # Nothing in the cluster names the instance: it is found by the uid of the machine that it was made for.
    await _gone(world)


@scenario()
async def test_a_pod_that_does_not_end_holds_its_node_no_longer_than_is_reasonable(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    [pod] = await world.user.list(Pod)
    await world.edit(Pod, pod.name, {"metadata": {"finalizers": ["example.com/stuck"]}})
    await world.delete(Workspace, "ws")

    async def given_back() -> bool:
        return not await world.cloud.list()

    await world.until(given_back, 300 + 90 + SHUTDOWN + PROMPT)
    await world.edit(Pod, pod.name, {"metadata": {"finalizers": None}})
    await _gone(world)


@scenario()
async def test_a_cloud_that_is_away_is_asked_until_it_is_back(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    world.cloud.fault = lambda *_: CloudError("nobody answers")
    await world.delete(Workspace, "ws")
    await asyncio.sleep(1800)
    world.cloud.fault = None
    assert await world.find(Workspace) is not None, "what is paid for is not forgotten"
    began = world.now
    await world.until_gone(300 + SHUTDOWN)
    assert world.now - began < 5 + SHUTDOWN + PROMPT


@scenario()
async def test_made_again_under_the_same_name_it_has_nothing_of_the_first(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    first = await world.get(Workspace)
    await world.delete(Workspace, "ws")
    await world.until_gone(GRACE + SHUTDOWN + PROMPT)
    await world.apply(manifest())
    await world.until_ready()
    second = await world.get(Workspace)
    assert second.uid != first.uid
    assert second.status.worker_nodes != first.status.worker_nodes
    assert len(world.machines) == 2
    await world.settled()


@scenario()
async def test_one_of_two_leaves_the_other_alone(world: World) -> None:
    await world.apply(manifest("one", app="shared"))
    await world.apply(manifest("two", app="shared"))
    await world.until_ready("one")
    await world.until_ready("two")
    await world.delete(Workspace, "one")
    await asyncio.sleep(GRACE + SHUTDOWN + PROMPT)
    assert await world.ready("two")
    kinds: tuple[type[Resource], ...] = (Workspace, Machine, Pod, Deployment)
    assert [len(await world.user.list(kind)) for kind in kinds] == [1, 1, 1, 1]
    assert {each.state for each in (await world.get(Workspace, "two")).status.stages} == {"Done"}
    types = {name: replace(each, quota=0) for name, each in world.cloud.types.items()}
    world.cloud.types = types
    await world.delete(Workspace, "two")
    await _gone(world)
