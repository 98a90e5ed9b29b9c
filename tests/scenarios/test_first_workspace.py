"""From ``kubectl apply`` to a served model, where nothing exists: what a user sees on the way, and what is there."""

from __future__ import annotations

from typing import Any

from kaito_api.apps import ControllerRevision, Deployment, StatefulSet
from kaito_api.core import Node, Service
from kaito_api.karpenter import Machine
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.stages import STAGES, current_stage
from tests.scenarios.world import BOOT, SHUTDOWN, World, manifest, scenario

PRIVATE: dict[str, Any] = {
    "preset": {
        "name": "llama-2-70b-chat",
        "accessMode": "private",
        "presetOptions": {"image": "registry.example/llama-2-70b-chat:1", "imagePullSecrets": ["pull"]},
    }
}
NODE = BOOT + 12.0
"""Seconds from the request for a machine to a usable node: the cloud's calls, the boot, the start of the plug-in."""
SERVER = 30.0 + 60.0
"""Seconds from the pod to its readiness: image, weights."""


def _history(world: World) -> list[tuple[str, str, str]]:
    """ResourceReady, InferenceReady, WorkspaceReady as they changed; empty while a condition is absent."""
    found: list[tuple[str, str, str]] = []
    for _, ws in world.seen:
        has = {each.type: str(each.status) for each in ws.status.conditions}
        row = (has.get("ResourceReady", ""), has.get("InferenceReady", ""), has.get("WorkspaceReady", ""))
        if row not in found[-1:]:
            found.append(row)
    return found


@scenario()
async def test_falcon_7b_comes_up_on_a_node_of_its_own(world: World) -> None:
    await world.apply(manifest())
    assert await world.until_ready() < NODE + SERVER + 2.0, "nothing but the world is waited for"
    assert await world.columns() == {
        "NAME": "ws",
        "INSTANCE": "Standard_NC12s_v3",
        "RESOURCEREADY": "True",
        "INFERENCEREADY": "True",
        "WORKSPACEREADY": "True",
        "AGE": "2m42s",
    }
    assert await world.said("MachineReady") == (
        "True",
        "installNodePluginsSuccess",
        "machines plugins have been installed successfully",
    )
    assert await world.said("ResourceReady") == (
        "True",
        "workspaceResourceStatusSuccess",
        "workspace resource is ready",
    )
    assert await world.said("InferenceReady") == (
        "True",
        "WorkspaceInferenceStatusSuccess",
        "Inference has been deployed successfully",
    )
    assert await world.said("WorkspaceReady") == ("True", "workspaceReady", "workspace is ready")
    ws = await world.get(Workspace)
    assert {each.observed_generation for each in ws.status.conditions} == {ws.metadata.generation}
    assert ws.metadata.finalizers == ("workspace.finalizer.kaito.sh",)
    assert len(world.machines) == 1
    await world.settled()


@scenario()
async def test_the_three_columns_are_empty_until_there_is_something_to_say(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    assert _history(world) == [("", "", ""), ("True", "", ""), ("True", "True", "True")]


@scenario()
async def test_an_ordinary_start_warns_of_nothing_and_goes_through_the_stages_in_order(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    passed: list[str] = []
    for _, ws in world.seen:
        assert [each.name for each in ws.status.stages if each.state == "Failed"] == []
        current = current_stage(ws.status.stages)
        if current is not None and current.name not in passed:
            assert current.message, f"{current.name} says what it waits for"
            assert current.deadline is not None
            passed.append(current.name)
    assert passed == [each for each in STAGES if each in passed], "never back"
    assert {"CapacityReserved", "NodeRegistered", "NodeInitialized", "ArtifactsReady", "EngineStarted"} <= set(passed)
    assert await world.events() == [
        *("Planned", "MachineLaunched", "NodeRegistered", "NodeInitialized", "PodScheduled", "ArtifactsReady"),
        *("EngineStarted", "Serving"),
    ]


@scenario()
async def test_what_there_is_has_upstreams_names_ports_and_selectors(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    [machine] = await world.user.list(Machine)
    assert machine.name[:2] == "ws"
    assert len(machine.name) == 11
    assert {key: machine.metadata.labels[key] for key in ("kaito.sh/workspace", "kaito.sh/workspacenamespace")} == {
        "kaito.sh/workspace": "ws",
        "kaito.sh/workspacenamespace": "default",
    }
    assert machine.spec.resources.requests == {"storage": "50Gi"}
    assert {each.key: each.values for each in machine.spec.requirements} == {
        "node.kubernetes.io/instance-type": ("Standard_NC12s_v3",),
        "karpenter.sh/provisioner-name": ("default",),
        "kaito.sh/machine-type": ("gpu",),
        "kubernetes.io/arch": ("amd64",),
        "kubernetes.io/os": ("linux",),
    }
    [node] = await world.user.list(Node)
    assert node.metadata.labels["apps"] == "falcon-7b-ws"
    assert node.metadata.labels["accelerator"] == "nvidia"
    assert (await world.get(Workspace)).status.worker_nodes == (node.name,)

    service = await world.get(Service)
    ports = {each.name: (each.port, each.target_port) for each in service.spec.ports}
    assert (service.spec.type, ports) == ("ClusterIP", {"http": (80, 5000), "torch": (29500, 29500)})
    assert service.spec.selector == {"kaito.sh/workspace": "ws"}

    deployment = await world.get(Deployment)
    [container] = deployment.spec.template.spec.containers
    assert (deployment.spec.replicas, container.name) == (1, "ws")
    assert container.image == "mcr.microsoft.com/aks/kaito/kaito-falcon-7b:0.0.5"
    assert container.resources.limits == {"nvidia.com/gpu": "2"}, "the machine's GPUs"
    assert deployment.metadata.annotations["workspace.kaito.io/revision"] == "1"
    [revision] = await world.user.list(ControllerRevision)
    assert revision.revision == 1
    for owned in (service, deployment, revision):
        assert [(each.kind, each.name, each.controller) for each in owned.metadata.owner_references] == [
            ("Workspace", "ws", True)
        ]


@scenario()
async def test_deleted_it_leaves_nothing_in_the_cluster_nor_in_the_cloud(world: World) -> None:
    await world.apply(manifest())
    await world.until_ready()
    await world.delete(Workspace, "ws")
    await world.until_gone(SHUTDOWN + 10.0)
    assert await world.quiet(3600) == []


@scenario()
async def test_llama_2_70b_is_spread_over_two_nodes_that_come_up_at_once(world: World) -> None:
    await world.apply(manifest(inference=PRIVATE, instanceType="Standard_NC96ads_A100_v4", count=2))
    # Upstream makes one machine after the other, and its pods ask for all 8 GPUs on machines of 4: they never start.
    assert await world.until_ready() < NODE + SERVER + 4.0
    assert len(world.machines) == 2
    assert (await world.get(Workspace)).status.worker_nodes == tuple(sorted(world.machines.values()))

    service, headless = await world.get(Service), await world.get(Service, "ws-headless")
    assert service.spec.selector == {"kaito.sh/workspace": "ws", "statefulset.kubernetes.io/pod-name": "ws-0"}
    assert (headless.spec.cluster_ip, headless.spec.publish_not_ready_addresses) == ("None", True)
    assert [(each.name, each.port) for each in headless.spec.ports] == [("torchrun", 29500)]

    workload = await world.get(StatefulSet)
    assert (workload.spec.replicas, workload.spec.pod_management_policy) == (2, "Parallel")
    assert workload.spec.service_name == "ws-headless"
    spec = workload.spec.template.spec
    [container] = spec.containers
    assert container.image == "registry.example/llama-2-70b-chat:1"
    assert [each.name for each in spec.image_pull_secrets] == ["pull"]
    assert container.resources.limits == {"nvidia.com/gpu": "4"}
    assert container.command[0] == "torchrun"
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv_endpoint=ws-0.ws-headless.default.svc:29500"} <= set(
        container.command
    )
    assert any(each.name == "dshm" for each in spec.volumes)
    assert await world.find(Deployment) is None
    await world.settled()


@scenario()
async def test_a_distributed_workspace_is_ready_only_when_every_pod_is(world: World) -> None:
    await world.apply(manifest(inference=PRIVATE, instanceType="Standard_NC96ads_A100_v4", count=2))
    await world.until_ready()
    world.kubelet.crash("ws-1")

    async def lost() -> bool:
        return not await world.ready()

    assert await world.until(lost, 2.0) < 1.0
    assert "Pod default/ws-1" in (await world.said("InferenceReady"))[2]
    assert (await world.columns())["RESOURCEREADY"] == "True"
    await world.until_ready(within=70.0)
    assert len(world.machines) == 2
