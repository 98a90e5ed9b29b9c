"""AKS on a laptop: a local Resource Manager, the aks backend with the real SDK, and virtual machines that run pods.

What is local is Azure alone. The backend finds it as it finds the real one, through the environment's variables: its
tokens come from the local giver of tokens by workload identity, its requests go over TLS.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from kaito_api.core import Taint
from kaito_ctrl.cli.azure import open_aks, settings_from
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_provisioner import CloudProvider
from kaito_provisioner.testing import Joiner, LocalArm, NodeJoiner, Timings, Vm

__all__ = ["KubeletJoiner", "aks_of", "local_aks", "timings_for"]

_UNINITIALIZED = Taint(key="node.cloudprovider.kubernetes.io/uninitialized", value="true", effect="NoSchedule")
"""What a kubelet puts on its node where a cloud controller has a part in it."""


class KubeletJoiner:
    """Virtual machines become nodes of the process kubelet, so that pods run on them. What the kubelet has no part in,
    the cloud's controllers and a device plug-in do, as on every other cluster."""

    def __init__(self, kubelet: ProcessKubelet, client: Client, clock: Clock) -> None:
        self._kubelet = kubelet
        self._others = NodeJoiner(client, clock)

    async def register(self, vm: Vm) -> None:
        taints = [_taint(each) for each in vm.taints]
        capacity = {"cpu": str(vm.size.cores), "memory": f"{vm.size.memory}Gi", "pods": str(vm.max_pods)}
        await self._kubelet.register(
            vm.node_name, labels=vm.labels, capacity=capacity, taints=(*taints, _UNINITIALIZED)
        )

    async def adopt(self, vm: Vm) -> None:
        await self._others.adopt(vm)

    async def plug(self, vm: Vm) -> None:
        await self._others.plug(vm)

    async def silence(self, vm: Vm) -> None:
        await self._kubelet.deregister(vm.node_name)
        await self._others.silence(vm)

    async def remove(self, vm: Vm) -> None:
        await self._others.remove(vm)


def timings_for(boot: float) -> Timings:
    """As on AKS, but so that a machine's node is there *boot* seconds after it was asked for."""
    usual = Timings()
    return usual.scaled(boot / (usual.allocation + usual.boot))


@asynccontextmanager
async def local_aks(dev: DevCluster, clock: Clock, rng: random.Random, boot: float) -> AsyncIterator[CloudProvider]:
    """The aks backend inside the block, for a local Azure whose machines join *dev*."""
    joiner = KubeletJoiner(dev.kubelet, Client(dev.transport(user="cloud-controller-manager")), clock)
    async with aks_of(joiner, clock, rng, boot) as cloud:
        yield cloud


@asynccontextmanager
async def aks_of(joiner: Joiner, clock: Clock, rng: random.Random, boot: float) -> AsyncIterator[CloudProvider]:
    """The same for machines that join whatever cluster *joiner* has them join."""
    async with AsyncExitStack() as stack:
        local = LocalArm(joiner=joiner, clock=clock, rng=rng, timings=timings_for(boot), serve=True)
        arm = await stack.enter_async_context(local)
        yield await stack.enter_async_context(open_aks(settings_from({}, arm.environment()), clock))


def _taint(text: str) -> Taint:
    """From ``key=value:Effect``, as agent pools spell it."""
    rest, _, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    return Taint.model_validate({"key": key, "effect": effect, **({"value": value} if value else {})})
