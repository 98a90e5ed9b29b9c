"""Machines: each boots, joins a cluster as its kubelet, the cloud node manager and a device plug-in would have it,
and leaves it as the cloud controller would.

The order is AKS': the kubelet registers the node, with the pool's labels and taints and the one that says that the
cloud has not told its part yet; the cloud node manager adds the provider id and takes that taint off; the GPUs appear
when a device plug-in has found them. A machine that is switched off falls silent, and its Node object is removed after
a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from kaito_ctrl.runtime.errors import KubeError
from kaito_provisioner.testing.faults import Faults, Mishap
from kaito_provisioner.testing.state import Vm
from kaito_provisioner.testing.tasks import Tasks

__all__ = ["Joiner", "Machines", "Timings"]

_RETRY = 1.0


@dataclass(frozen=True, slots=True)
class Timings:
    """How long things take, in seconds. The defaults are about what AKS takes."""

    allocation: float = 30.0
    """From an accepted PUT until its machines exist, or do not for want of capacity."""
    boot: float = 60.0
    """Until the machine's node registers."""
    provider_id: float = 5.0
    """Until that node has its provider id."""
    device_plugin: float = 30.0
    """Until its GPUs appear."""
    create: float = 150.0
    """From an accepted PUT until its operation ends."""
    update: float = 60.0
    delete: float = 180.0
    abort: float = 30.0
    node_removal: float = 30.0
    """From a machine's end until its Node object is removed."""
    retry_after: int | None = None
    """What the status of an operation says about when to ask again; AKS often says nothing."""

    def scaled(self, factor: float) -> Timings:
        """The same, faster or slower."""
        return Timings(
            self.allocation * factor,
            self.boot * factor,
            self.provider_id * factor,
            self.device_plugin * factor,
            self.create * factor,
            self.update * factor,
            self.delete * factor,
            self.abort * factor,
            self.node_removal * factor,
            self.retry_after,
        )


class Joiner(Protocol):
    """A cluster that machines join. Each method may be called again; it may raise ``KubeError``, and then is."""

    async def register(self, vm: Vm) -> None:
        """Its kubelet has started."""
        ...

    async def adopt(self, vm: Vm) -> None:
        """The cloud node manager has found it: its provider id, its zone and its size are known."""
        ...

    async def plug(self, vm: Vm) -> None:
        """A device plug-in has found its GPUs."""
        ...

    async def silence(self, vm: Vm) -> None:
        """It is off: its kubelet is heard of no more."""
        ...

    async def remove(self, vm: Vm) -> None:
        """The cloud controller has found that it is no more."""
        ...


class Machines:
    """The lives of machines; in *tasks*."""

    def __init__(self, tasks: Tasks, timings: Timings, faults: Faults, joiner: Joiner | None) -> None:
        self._tasks = tasks
        self._timings = timings
        self._faults = faults
        self._joiner = joiner
        self._lives: dict[str, asyncio.Task[None]] = {}
        self.registered: set[str] = set()
        """The nodes that have joined, and whose machines run."""

    def boot(self, vm: Vm) -> None:
        """Switch it on."""
        if self._joiner is not None:
            self._lives[vm.node_name] = self._tasks.start(self._live(vm, self._joiner), f"vm/{vm.node_name}")

    def die(self, vm: Vm) -> None:
        """Switch it off: its node stays, and falls silent."""
        if self._joiner is not None:
            self._tasks.start(self._off(vm, self._joiner), f"vm/{vm.node_name}/off")

    def retire(self, vm: Vm) -> None:
        """Switch it off and scrap it: its node falls silent, and is removed in a while."""
        if self._joiner is not None:
            self._tasks.start(self._removed(vm, self._joiner), f"vm/{vm.node_name}/removal")

    async def _live(self, vm: Vm, joiner: Joiner) -> None:
        timings, name = self._timings, vm.node_name
        if self._faults.befalls("no-node", vm.pool) is not None:
            return
        await asyncio.sleep(timings.boot)
        await self._insist(joiner.register, vm)
        self.registered.add(name)
        dies = self._faults.befalls("dies", vm.pool)
        try:
            async with asyncio.timeout(dies.seconds if dies is not None else None):
                await self._settle(vm, joiner, self._faults.befalls("late-provider-id", vm.pool))
                if dies is not None:
                    await asyncio.get_running_loop().create_future()
        except TimeoutError:
            await self._quiet(vm, joiner)

    async def _settle(self, vm: Vm, joiner: Joiner, late: Mishap | None) -> None:
        await asyncio.sleep(late.seconds if late is not None else self._timings.provider_id)
        await self._insist(joiner.adopt, vm)
        if vm.size.gpus and self._faults.befalls("no-gpu", vm.pool) is None:
            await asyncio.sleep(self._timings.device_plugin)
            await self._insist(joiner.plug, vm)

    async def _off(self, vm: Vm, joiner: Joiner) -> None:
        life = self._lives.pop(vm.node_name, None)
        if life is not None:
            life.cancel()
            await asyncio.wait((life,))
        await self._quiet(vm, joiner)

    async def _quiet(self, vm: Vm, joiner: Joiner) -> None:
        if vm.node_name in self.registered:
            self.registered.discard(vm.node_name)
            await self._insist(joiner.silence, vm)

    async def _removed(self, vm: Vm, joiner: Joiner) -> None:
        await self._off(vm, joiner)
        await asyncio.sleep(self._timings.node_removal)
        await self._insist(joiner.remove, vm)

    @staticmethod
    async def _insist(step: Callable[[Vm], Awaitable[None]], vm: Vm) -> None:
        while True:
            try:
                await step(vm)
            except KubeError:
                # As a kubelet does whose API server is away, for as long as the machine runs.
                await asyncio.sleep(_RETRY)
            else:
                return


def twin(vm: Vm) -> Vm:
    """Another machine of the same pool, at the same place."""
    return replace(vm, node_name=vm.node_name[:-6] + "00000z", provider_id=vm.provider_id.rpartition("/")[0] + "/35")
