"""`manifests/` on a real kube-apiserver: it takes them, and the controllers live with what they grant."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import get_args

import pytest

from kaito_ctrl.cli.daemon import NodeApi
from kaito_ctrl.cli.laptop import KubeletJoiner, aks_of
from kaito_ctrl.cli.local import NodeJoiner, offered_types
from kaito_ctrl.runtime import Cluster
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.testing.controlplane import ControlPlane, run_control_plane
from kaito_provisioner import CloudProvider
from kaito_provisioner.sim import SimCloud
from tests import provisioned
from tests.deployed import ACCOUNT, NAMESPACE, SERVICE, World, live, remove
from tests.e2e.conftest import Kubectl
from tests.permissions import difference, granted
from tests.real.joined import SERVICE_CIDR, nodes_on, own_address
from tests.rendered import render

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def strict(binaries: Path) -> Iterator[ControlPlane]:
    """One that lets only those hold up an owner's end who may write its finalizers, as OpenShift does."""
    flags = {
        "service-cluster-ip-range": SERVICE_CIDR,
        "enable-admission-plugins": "OwnerReferencesPermissionEnforcement",
    }
    with run_control_plane(binaries, controllers=["*"], api_server=flags) as running:
        if not running.controllers:
            pytest.skip("there is no kube-controller-manager in KUBEBUILDER_ASSETS")
        yield running


@asynccontextmanager
async def real(plane: ControlPlane, folder: Path, *, azure: bool = False) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(nodes_on(plane, folder / "pods"))
        people = await stack.enter_async_context(Cluster.connect(kubeconfig=str(plane.kubeconfig)))
        clock = SystemClock()
        cloud: CloudProvider
        if azure:
            joiner = KubeletJoiner(nodes.kubelet, people.client, clock)
            cloud = await stack.enter_async_context(aks_of(joiner, clock, random.Random(7), 0.3))
        else:
            cloud = SimCloud(offered_types(), now=clock.now, joiner=NodeJoiner(nodes.kubelet), boot=0.3)
            booting = asyncio.create_task(cloud.run())
            stack.push_async_callback(asyncio.wait, (booting,))
            stack.callback(booting.cancel)
        namespace, name, _ = SERVICE

        async def lead_webhook_to(ports: Sequence[int]) -> None:
            """By hand: the replicas are no pods, which a selector could find."""
            path = f"/api/v1/namespaces/{namespace}"
            await people.client.request(
                "PATCH",
                f"{path}/services/{name}",
                body={"spec": {"selector": None}},
                headers={"content-type": "application/merge-patch+json"},
            )
            subsets = [
                {"addresses": [{"ip": own_address()}], "ports": [{"name": "webhook", "port": each}]} for each in ports
            ]
            body = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}, "subsets": subsets}
            await people.client.request(
                "PATCH",
                f"{path}/endpoints/{name}",
                query=(("fieldManager", "test"), ("force", "true")),
                body=body,
                headers={"content-type": "application/apply-patch+yaml"},
            )

        yield World(
            people.client,
            Kubectl(plane.kubeconfig),
            cloud,
            lambda token: plane.kubeconfig_of({"token": token}),
            lead_webhook_to,
            folder,
            plane.version,
        )


async def test_the_controllers_use_every_right_that_they_are_granted_and_need_no_other(
    strict: ControlPlane, tmp_path: Path
) -> None:
    async with real(strict, tmp_path) as world:
        traffic = await live(world)
        await remove(world)
    assert traffic.refusals == []
    unlike = difference(granted(render("base"), NAMESPACE, ACCOUNT), traffic.used)
    assert not unlike, f"manifests/base and what the controllers do are not the same:\n{unlike}"


@pytest.mark.parametrize("node_api", get_args(NodeApi))
async def test_the_provisioner_uses_every_right_that_it_is_granted_and_needs_no_other(
    strict: ControlPlane, node_api: NodeApi, tmp_path: Path
) -> None:
    async with real(strict, tmp_path, azure=True) as world:
        traffic = await provisioned.live(world, node_api)
        await provisioned.remove(world, node_api)
    assert traffic.refusals == []
    overlay = provisioned.OVERLAYS[node_api]
    unlike = difference(granted(render(overlay), NAMESPACE, provisioned.ACCOUNT), traffic.used)
    assert not unlike, f"manifests/{overlay} and what the provisioner does are not the same:\n{unlike}"
