"""KAITO on a real control plane, whose nodes are processes of this machine.

The API server and the workload controllers are the real ones. Ours are what a cluster gets from its provider: machines
(the simulated cloud), the kubelet on them, the scheduler, and the service proxy; they know the server through its API
alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kaito_api.core import Node
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.local import NodeJoiner, local_images, offered_types
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.devcluster.kubeletapi import KubeletPort
from kaito_ctrl.devcluster.proxy import ServiceProxy
from kaito_ctrl.devcluster.scheduler import Scheduler
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.testing.controlplane import ControlPlane
from kaito_provisioner.sim import SimCloud

__all__ = ["SERVICE_CIDR", "SYSTEM_NODE", "Joined", "kaito_on", "nodes_on"]

SYSTEM_NODE = "system"
SERVICE_CIDR = "127.96.0.0/16"
"""The service proxy listens on the cluster IPs themselves."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """What runs pods."""

    kubelet: ProcessKubelet
    proxy: ServiceProxy


_OWN = "10.98.0.1"


@dataclass(frozen=True, slots=True)
class Joined:
    """Everything that runs; ``client`` is an administrator's."""

    client: Client
    cloud: SimCloud
    nodes: Nodes
    controllers: Manager


def own_address() -> str:
    """An address of this machine that is none of loopback's, which Endpoints may not name. Where there is none, one is
    put on the loopback interface, which takes privilege, and stays."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it asks which of our addresses would be used
            address: str = probe.getsockname()[0]
            return address
    except OSError:
        subprocess.run(["ip", "address", "replace", f"{_OWN}/32", "dev", "lo"], check=True)
        return _OWN


@asynccontextmanager
async def _running(manager: Manager) -> AsyncIterator[None]:
    running = asyncio.create_task(manager.run())
    try:
        await manager.wait_ready()
        yield
    finally:
        manager.stop()
        await running


@asynccontextmanager
async def nodes_on(plane: ControlPlane, root: Path) -> AsyncIterator[Nodes]:
    """A kubelet that nodes can be added to, a scheduler and a service proxy. *root* is for volumes and logs."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster.connect(kubeconfig=str(plane.kubeconfig)))
        proxy = ServiceProxy()
        kubelet = ProcessKubelet(
            cluster,
            root=root,
            images=local_images(),
            pod_cidr=f"{own_address()}/32",
            port=KubeletPort(plane.kubelet_client_ca),
            env={"PATH": os.environ["PATH"], "HOME": str(root.parent)},
        )
        manager = Manager(cluster, drain=2.0)
        manager.add_runnable(proxy)
        manager.add(proxy)
        manager.add(Scheduler())
        await stack.enter_async_context(_running(manager))
        await stack.enter_async_context(kubelet)
        yield Nodes(kubelet, proxy)


@asynccontextmanager
async def kaito_on(plane: ControlPlane, root: Path, *, boot: float) -> AsyncIterator[Joined]:
    """KAITO's controllers as well, whose CRDs are there, with a cloud whose machines take *boot* seconds to start."""
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(nodes_on(plane, root))
        # What is no model runs there: the nodes of the workspaces take nothing else.
        await nodes.kubelet.register(SYSTEM_NODE, labels={}, capacity={"cpu": "4", "memory": "8Gi", "pods": "10"})
        people = await stack.enter_async_context(Cluster.connect(kubeconfig=str(plane.kubeconfig)))
        clock = SystemClock()
        cloud = SimCloud(offered_types(), now=clock.now, joiner=NodeJoiner(nodes.kubelet), boot=boot)
        booting = asyncio.create_task(cloud.run())
        stack.push_async_callback(asyncio.wait, (booting,))
        stack.callback(booting.cancel)
        cluster = await stack.enter_async_context(
            Cluster.connect(kubeconfig=str(plane.kubeconfig), rng=random.Random(7))
        )
        options = DaemonOptions(metrics_port=None, health_port=None, webhook_port=0, drain=2.0)
        manager = build_manager(cluster, cloud, options)
        await stack.enter_async_context(_running(manager))
        yield Joined(people.client, cloud, nodes, manager)
        await nodes.kubelet.deregister(SYSTEM_NODE)
        await people.client.delete(Node, ObjectKey("", SYSTEM_NODE))
