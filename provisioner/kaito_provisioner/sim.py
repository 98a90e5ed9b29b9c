"""A cloud in memory: instances take time to boot and to go, quotas run out, calls fail where they are told to.

For the embedded cluster, for simulations and for tests. It keeps the promises of the protocol, and it can break
them on purpose: :attr:`SimCloud.fault` is asked before each call. A booted instance joins a cluster through the
``Joiner`` that it was given, as a real one does through its kubelet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from kaito_api.quantity import format_binary
from kaito_provisioner.cloud import (
    ClaimRef,
    Instance,
    InstanceType,
    InsufficientCapacity,
    LaunchRequest,
    NodeClassKind,
    NotFound,
    Offering,
    QuotaExceeded,
    RepairPolicy,
    UnknownInstanceType,
)

__all__ = ["Joiner", "SimCloud", "SimInstanceType"]


@dataclass(frozen=True, slots=True)
class SimInstanceType:
    """What the cloud offers: its size, and how many of it may exist at once."""

    name: str
    gpus: int
    cpu: str = "6"
    memory: str = "112Gi"
    quota: int = 100
    available: bool = True


class Joiner(Protocol):
    """Where booted machines report for duty."""

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        """The machine is up: register its node."""
        ...

    async def leave(self, instance: Instance) -> None:
        """The machine is being switched off."""
        ...


@dataclass(slots=True)
class _Machine:
    instance: Instance
    request: LaunchRequest


class SimCloud:
    """Implements ``CloudProvider``. Run :meth:`run` in a task group: booting happens there."""

    name = "sim"
    node_classes: Sequence[NodeClassKind] = ()

    def __init__(
        self,
        types: Sequence[SimInstanceType],
        *,
        now: Callable[[], datetime],
        joiner: Joiner | None = None,
        boot: float = 3.0,
        shutdown: float = 0.5,
        latency: float = 0.0,
    ) -> None:
        self.types: Mapping[str, SimInstanceType] = {each.name: each for each in types}
        self.boot = boot
        self.shutdown = shutdown
        self.latency = latency
        self.joiner = joiner
        self.fault: Callable[[str, str], Exception | None] | None = None
        """Asked with the call's name and the instance's before each call; what it returns is raised."""
        self.calls: dict[str, int] = {}
        self._now = now
        self._machines: dict[str, _Machine] = {}
        self._serial = 0
        self._jobs: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def run(self) -> None:
        """Boot and delete instances until cancelled; what was under way then is lost, as at a power cut."""
        async with asyncio.TaskGroup() as group:
            while True:
                job, uid = await self._jobs.get()
                group.create_task(self._boot(uid) if job == "boot" else self._remove(uid), name=f"sim/{job}/{uid}")

    # -- CloudProvider -------------------------------------------------------------------------------------------

    async def create(self, request: LaunchRequest) -> Instance:
        await self._call("create", request.name)
        known = self._machines.get(request.uid)
        if known is not None:
            return known.instance
        offered = [self.types[name] for name in request.instance_types if name in self.types]
        if not offered:
            raise UnknownInstanceType(
                f"none of the instance types {', '.join(request.instance_types) or '(none given)'} is offered here",
                fix=f"use one of: {', '.join(sorted(self.types))}",
            )
        chosen = self._choose(offered)
        self._serial += 1
        resources = _resources(chosen)
        if request.disk:
            resources["ephemeral-storage"] = format_binary(request.disk)
        instance = Instance(
            name=request.name,
            claim_uid=request.uid,
            state="Creating",
            instance_type=chosen.name,
            provider_id=f"sim:///instances/{request.name}-{self._serial:04d}",
            labels={
                "node.kubernetes.io/instance-type": chosen.name,
                "topology.kubernetes.io/zone": "sim-1",
                "karpenter.sh/capacity-type": "on-demand",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
            },
            capacity=resources,
            allocatable=resources,
            created=self._now(),
            claim_kind=request.kind,
            group=request.group,
        )
        self._machines[request.uid] = _Machine(instance, request)
        self._jobs.put_nowait(("boot", request.uid))
        return instance

    async def get(self, provider_id: str) -> Instance:
        await self._call("get", provider_id)
        for machine in self._machines.values():
            if machine.instance.provider_id == provider_id:
                return machine.instance
        raise NotFound(f"there is no instance {provider_id}")

    async def find(self, claim: ClaimRef) -> Instance:
        await self._call("find", claim.name)
        machine = self._machines.get(claim.uid)
        if machine is None:
            raise NotFound(f"there is no instance for claim {claim.name}")
        return machine.instance

    async def list(self) -> Sequence[Instance]:
        await self._call("list", "")
        return tuple(machine.instance for machine in self._machines.values())

    async def delete(self, instance: Instance) -> Instance:
        await self._call("delete", instance.name)
        machine = self._machines.get(instance.claim_uid)
        if machine is None:
            raise NotFound(f"there is no instance {instance.name}")
        if machine.instance.state != "Deleting":
            machine.instance = replace(machine.instance, state="Deleting")
            self._jobs.put_nowait(("remove", instance.claim_uid))
        return machine.instance

    async def instance_types(self) -> Sequence[InstanceType]:
        await self._call("instance_types", "")
        return tuple(
            InstanceType(
                each.name,
                labels={"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"},
                capacity=_resources(each),
                allocatable=_resources(each),
                offerings=(Offering(each.name, available=each.available),),
            )
            for each in self.types.values()
        )

    def repair_policies(self) -> Sequence[RepairPolicy]:
        return (RepairPolicy("Ready", "False", 600.0), RepairPolicy("Ready", "Unknown", 600.0))

    # -- inside --------------------------------------------------------------------------------------------------

    async def _call(self, name: str, subject: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.latency:
            await asyncio.sleep(self.latency)
        error = self.fault(name, subject) if self.fault is not None else None
        if error is not None:
            raise error

    def _choose(self, offered: Sequence[SimInstanceType]) -> SimInstanceType:
        available = [each for each in offered if each.available]
        if not available:
            raise InsufficientCapacity(
                "all requested instance types were unavailable during launch",
                fix="wait, or allow another instance type",
            )
        for each in available:
            if sum(machine.instance.instance_type == each.name for machine in self._machines.values()) < each.quota:
                return each
        raise QuotaExceeded(
            f"the quota of {available[0].quota} for {available[0].name} is used up",
            fix="ask for more quota, or delete what is not needed",
        )

    async def _boot(self, uid: str) -> None:
        await asyncio.sleep(self.boot)
        machine = self._machines.get(uid)
        if machine is None or machine.instance.state != "Creating":
            return
        machine.instance = replace(machine.instance, state="Running")
        if self.joiner is not None:
            await self.joiner.join(machine.instance, machine.request)

    async def _remove(self, uid: str) -> None:
        machine = self._machines[uid]
        if self.joiner is not None:
            await self.joiner.leave(machine.instance)
        await asyncio.sleep(self.shutdown)
        self._machines.pop(uid, None)


def _resources(kind: SimInstanceType) -> dict[str, str]:
    resources = {"cpu": kind.cpu, "memory": kind.memory, "pods": "110", "ephemeral-storage": "128Gi"}
    if kind.gpus:
        resources["nvidia.com/gpu"] = str(kind.gpus)
    return resources
