"""What goes wrong on the way up or later: what the status says, what is done about it, and what it costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kaito_api.apps import Deployment, StatefulSet
from kaito_api.core import Node, Service, ServicePort, ServiceSpec
from kaito_api.karpenter import Machine
from kaito_api.meta import ObjectMeta, Resource
from kaito_api.workspace import Workspace
from kaito_provisioner import CloudError, QuotaExceeded
from kaito_provisioner.sim import SimInstanceType
from tests.scenarios.kubelet import Conduct
from tests.scenarios.world import World, manifest, scenario

AT_ONCE = 2.0
"""Seconds within which what has happened is in the status."""


async def _cause_is(world: World, stage: str, code: str, within: float = AT_ONCE) -> None:
    async def shown() -> bool:
        return await world.cause() == (stage, "Failed", code)

    await world.until(shown, within, f"{stage} fails with {code}")


class _Nowhere:
    """Instances boot, and their nodes never join."""

    async def join(self, *_: Any) -> None: ...
    async def leave(self, *_: Any) -> None: ...


@scenario()
async def test_a_machine_that_never_becomes_a_node_is_replaced_ever_more_rarely(world: World) -> None:
    world.cloud.joiner = _Nowhere()
    await world.apply(manifest())
    await asyncio.sleep(800)
    stage = await world.stage()
    assert stage is not None
    assert (stage.name, stage.state) == ("NodeRegistered", "Active")
    assert stage.message is not None
    assert "node to join" in stage.message
    assert stage.deadline is not None
    assert len(world.machines) == 1
    await asyncio.sleep(6 * 3600)
    assert 3 <= len(world.machines) <= 12, "Upstream waits on the first one for ever"
    assert len(await world.cloud.list()) <= 1

    async def told() -> bool:
        status, reason, message = await world.said("MachineReady")
        return (status, reason) == ("False", "machineFailedCreation") and "did not become ready" in message

    await world.until(told, 3 * 3600, "between two attempts it is said that there was one")
    assert (await world.columns())["WORKSPACEREADY"] == "False"
    # The network is repaired: it comes up by itself, at the next attempt.
    world.cloud.joiner = world.kubelet
    await world.until_ready(within=3600 + 900 + 300)


@scenario()
async def test_no_capacity_is_said_at_once_and_waited_for_on_one_machine(world: World) -> None:
    offered = dict(world.cloud.types)
    world.cloud.types = {name: SimInstanceType(name, 2, available=False) for name in offered}
    await world.apply(manifest())
    await _cause_is(world, "CapacityReserved", "InsufficientCapacity", 5.0)
    text = "all requested instance types were unavailable during launch"
    for kind, reason in (
        ("MachineReady", "machineFailedCreation"),
        ("ResourceReady", "workspaceResourceStatusFailed"),
        ("WorkspaceReady", "workspaceFailed"),
    ):
        status, said, message = await world.said(kind)
        assert (status, said) == ("False", reason)
        assert text in message
    columns = await world.columns()
    assert (columns["RESOURCEREADY"], columns["INFERENCEREADY"], columns["WORKSPACEREADY"]) == ("False", "", "False")
    stage = await world.stage()
    assert stage is not None
    assert "another instance type" in (stage.next_action or "")
    assert "InsufficientCapacity" in await world.events()
    await asyncio.sleep(6 * 3600)
    assert len(world.machines) == 1, "Upstream makes another one at each retry"
    assert world.cloud.calls["create"] < 100
    world.cloud.types = offered
    # What was refused for so long rests for ten minutes.
    await world.until_ready(within=600 + 200)
    assert len(world.machines) == 1


@scenario(quota=0)
async def test_a_node_that_the_user_brings_is_taken_at_once_and_the_machine_that_is_not_there_given_up(
    world: World,
) -> None:
    await world.apply(manifest())
    await asyncio.sleep(600)
    labels = {"apps": "falcon-7b-ws", "node.kubernetes.io/instance-type": "Standard_NC12s_v3"}
    await world.kubelet.add_node("own", labels=labels)
    assert await world.until_ready() < 10.0 + 90.0 + 2.0
    assert (await world.get(Workspace)).status.worker_nodes == ("own",)
    assert not await world.user.list(Machine)
    assert {each.state for each in (await world.get(Workspace)).status.stages} == {"Done"}
    await world.settled()


@scenario(quota=0)
async def test_no_quota_is_a_verdict_within_seconds(world: World) -> None:
    await world.apply(manifest())
    await _cause_is(world, "CapacityReserved", "QuotaExceeded", 5.0)
    stage = await world.stage()
    assert stage is not None
    assert "ask the cloud for more quota" in (stage.next_action or "")
    assert await world.cloud.list() == ()


@scenario()
async def test_a_pod_whose_image_cannot_be_pulled_is_explained_at_once(world: World) -> None:
    error = "unauthorized: authentication required"
    world.kubelet.conduct = lambda _: Conduct(pull=3.0, pull_error=error)
    await world.apply(manifest())
    await world.until_stage("ArtifactsReady")
    await _cause_is(world, "ArtifactsReady", "ImageUnauthorized")
    status, reason, message = await world.said("InferenceReady")
    assert (status, reason) == ("False", "WorkspaceInferenceStatusFailed"), "Upstream says so after half an hour"
    assert error in message
    assert (await world.said("WorkspaceReady"))[:2] == ("False", "workspaceFailed")
    assert (await world.columns())["RESOURCEREADY"] == "True"
    world.kubelet.conduct = lambda _: Conduct()
    await world.until_ready(within=300 + 100)
    await world.settled()


@scenario()
async def test_a_server_that_crashes_while_loading_is_explained_at_once(world: World) -> None:
    world.kubelet.conduct = lambda _: Conduct(load=20.0, exit_code=1)
    await world.apply(manifest())
    await world.until_stage("EngineStarted")
    await _cause_is(world, "EngineStarted", "CrashLoop", 20.0 + AT_ONCE)
    stage = await world.stage()
    assert stage is not None
    assert (stage.next_action or "").startswith("kubectl logs ws-")
    assert (await world.said("InferenceReady"))[0] == "False"
    assert "exit code 1" in (await world.said("InferenceReady"))[2]
    await asyncio.sleep(3600)
    before = len(await world.events())
    await asyncio.sleep(3600)
    assert len(await world.events()) - before <= 14, "a crash loop is told now and then"
    assert len(world.machines) == 1
    world.kubelet.conduct = lambda _: Conduct()
    await world.until_ready(within=300 + 100)


@scenario()
async def test_a_server_that_never_answers_its_readiness_probe_is_waited_for_until_it_does(world: World) -> None:
    world.kubelet.conduct = lambda _: Conduct(ready=False)
    await world.apply(manifest())
    await world.until_stage("Serving")
    stage = await world.stage()
    assert stage is not None
    assert stage.deadline is not None
    assert (await world.columns())["WORKSPACEREADY"] != "True"
    await asyncio.sleep(3600)
    # The deadline has passed: by now somebody has to look.
    await _cause_is(world, "Serving", "NotReady")
    assert "readiness probe" in (await world.said("InferenceReady"))[2]


@scenario()
async def test_a_node_that_is_lost_is_noticed_at_once_and_replaced_when_its_claim_is_given_up(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    [lost] = await world.user.list(Node)
    world.kubelet.fall_silent(lost.name)

    async def noticed() -> bool:
        return not await world.ready()

    # A kubelet is given 40 s by the node life cycle controller; from there on it is ours.
    await world.until(noticed, 55.0)
    assert (await world.said("ResourceReady"))[2] == f"not ready, and expected back: node {lost.name}"
    assert lost.name in (await world.said("WorkspaceReady"))[2]
    assert (await world.cause())[:2] == ("NodeInitialized", "Failed")
    await asyncio.sleep(400)
    assert len(world.machines) == 1, "for how long a claimed node is awaited is its provisioner's to say"
    await world.delete(Machine, lost.name)

    async def asked_again() -> bool:
        return len(world.machines) == 2

    await world.until(asked_again, AT_ONCE, "another node is asked for")
    await world.until_ready(within=300)
    assert (await world.get(Workspace)).status.worker_nodes != (lost.name,)
    await asyncio.sleep(1800)
    left = [each for each in world.machines.values() if each != lost.name]
    assert [each.name for each in await world.cloud.list()] == left, "what was replaced is not paid for any longer"


@scenario()
async def test_a_node_of_the_users_that_stays_away_is_replaced_by_a_new_one(world: World) -> None:
    labels = {"apps": "falcon-7b-ws", "node.kubernetes.io/instance-type": "Standard_NC12s_v3"}
    await world.kubelet.add_node("own", labels=labels)
    await asyncio.sleep(15)
    await world.apply(manifest())
    await world.until_ready()
    assert world.machines == {}
    world.kubelet.fall_silent("own")
    await asyncio.sleep(200)
    assert world.machines == {}, "most blips are shorter: five minutes are waited"
    await world.until_ready(within=40 + 300 + 200)
    assert (await world.get(Workspace)).status.worker_nodes == tuple(world.machines.values())


@scenario()
async def test_a_short_blip_of_a_node_costs_nothing(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    [node] = await world.user.list(Node)
    world.kubelet.fall_silent(node.name)
    await asyncio.sleep(100)
    assert not await world.ready()
    world.kubelet.fall_silent(node.name, silent=False)
    await world.until_ready(within=120)
    assert len(world.machines) == 1
    await world.settled()


def _foreign(kind: type[Resource]) -> Resource:
    metadata = ObjectMeta(name="ws", namespace="default", labels={"app": "theirs"})
    if kind is Service:
        return Service(metadata=metadata, spec=ServiceSpec(ports=(ServicePort(port=80),), selector={"app": "theirs"}))
    selector, pod = {"matchLabels": {"app": "theirs"}}, {"containers": [{"name": "c", "image": "i"}]}
    template = {"metadata": {"labels": {"app": "theirs"}}, "spec": pod}
    spec: dict[str, Any] = {"selector": selector, "replicas": 0, "template": template}
    return kind.model_validate({"metadata": metadata.to_wire(), "spec": spec})


@pytest.mark.parametrize("kind", [Service, Deployment, StatefulSet])
@scenario()
async def test_a_name_that_is_taken_is_said_before_a_node_is_paid_for(world: World, kind: type[Resource]) -> None:
    await world.user.create(_foreign(kind))
    before = (await world.get(kind)).to_wire()["spec"]
    await world.apply(manifest())
    await _cause_is(world, "Planned", "NameTaken")
    assert f"{kind.kind} default/ws" in (await world.said("WorkspaceReady"))[2]
    assert world.machines == {}
    assert (await world.get(kind)).to_wire()["spec"] == before, "what is somebody else's is not touched"
    # The user does what the status says.
    await world.delete(kind, "ws")

    async def begun() -> bool:
        return len(world.machines) == 1

    await world.until(begun, AT_ONCE, "the name is free, and nobody goes on")
    await world.until_ready()


@pytest.mark.parametrize("moment", [0.0, 1.5, 2.5, 30.0, 62.0, 67.0, 72.2, 90.0, 120.0, 161.9])
@scenario()
async def test_a_restart_of_the_daemon_costs_its_own_time_and_no_machine(world: World, moment: float) -> None:
    await world.apply(manifest())
    await asyncio.sleep(moment)
    world.kill(down=3.0)
    assert await world.until_ready() < 162.0 + 10.0 - moment
    assert len(world.machines) == 1
    await world.settled()


@scenario()
async def test_an_error_of_the_cloud_that_passes_delays_nothing_else(world: World) -> None:
    quota: CloudError | None = QuotaExceeded("the quota is used up")
    world.cloud.fault = lambda call, _: quota if call == "create" else None
    await world.apply(manifest())
    await asyncio.sleep(20)
    world.cloud.fault = None
    # What is refused for the first time rests for a minute.
    assert await world.until_ready() < 60.0 - 20.0 + 162.0 + 10.0
    [machine] = await world.user.list(Machine)
    assert list(world.machines) == [machine.uid]
