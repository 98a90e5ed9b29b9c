"""What a subscription holds: one managed cluster, its agent pools, their machines, and what is being done to them.

Everything here is a plain record; :mod:`.cloud` changes it, and :mod:`.api` shows it to clients.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from kaito_provisioner.testing.errors import Failure
from kaito_provisioner.testing.sizes import VmSize

__all__ = ["Cluster", "Operation", "OperationStatus", "Pool", "Vm"]

OperationStatus = Literal["InProgress", "Succeeded", "Failed", "Canceled"]
Wire = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Vm:
    """A machine of a scale set, in AKS' shape; ``zone`` is ``"1"``, or empty for one that the region has placed."""

    pool: str
    node_name: str
    provider_id: str
    size: VmSize
    location: str
    node_group: str
    """The resource group that AKS keeps the machines in."""
    zone: str = ""
    spot: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    """What the kubelet registers with, and what AKS adds: all but what the cloud controller knows."""
    taints: tuple[str, ...] = ()
    """``key=value:Effect`` each."""
    max_pods: int = 110
    disk: int = 128
    """GiB."""


@dataclass(slots=True)
class Operation:
    """A long-running operation. ``doing`` is the provisioning state that its pool has meanwhile."""

    id: str
    doing: str
    pool: str
    started: datetime
    status: OperationStatus = "InProgress"
    ended: datetime | None = None
    failure: Failure | None = None
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Pool:
    """An agent pool. ``properties`` are as the last accepted PUT has left them, defaults filled in."""

    name: str
    properties: Wire
    created: datetime
    number: str
    """Eight digits, of the scale set's name."""
    state: str = "Creating"
    etag: str = ""
    failure: Failure | None = None
    operation: Operation | None = None
    """What is being done to it now."""
    vms: list[Vm] = field(default_factory=list)
    next_vm: int = 0

    @property
    def size(self) -> str:
        return str(self.properties["vmSize"])

    @property
    def spot(self) -> bool:
        return bool(self.properties.get("scaleSetPriority") == "Spot")

    @property
    def tags(self) -> dict[str, str]:
        return dict(self.properties.get("tags") or {})


@dataclass(slots=True)
class Cluster:
    """A managed cluster, and where it is."""

    subscription: str
    resource_group: str
    name: str
    location: str
    pools: dict[str, Pool] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    busy: str = ""
    """What is being done to the whole cluster, ``"Starting"`` for one; meanwhile no pool may be written."""

    @property
    def path(self) -> str:
        return (
            f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.ContainerService/managedClusters/{self.name}"
        )

    @property
    def node_group(self) -> str:
        """The resource group of its machines."""
        return f"MC_{self.resource_group}_{self.name}_{self.location}"

    @property
    def running(self) -> list[Operation]:
        return [each for each in self.operations.values() if each.status == "InProgress"]
