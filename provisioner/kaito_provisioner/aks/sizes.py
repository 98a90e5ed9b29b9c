"""The instance types that whoever runs us knows of, in the protocol's terms.

Azure's own list is neither needed nor asked for: a claim may name any type, and AKS knows what it can have. What is
known here decides what is tried first, and what a claim that names no type can be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kaito_provisioner.cloud import InstanceType, Offering

__all__ = ["VmSize"]


@dataclass(frozen=True, slots=True)
class VmSize:
    """One VM size. ``cpu`` and ``memory`` are Kubernetes quantities, empty where unknown; prices are per hour, in
    whatever currency all of them share."""

    name: str
    gpus: int = 0
    cpu: str = ""
    memory: str = ""
    gpu_resource: str = "nvidia.com/gpu"
    price: float | None = None
    spot_price: float | None = None
    arch: str = ""
    """``amd64`` or ``arm64``; empty where unknown."""

    @property
    def capacity(self) -> Mapping[str, str]:
        """What is known of what a node has."""
        gpus = {self.gpu_resource: str(self.gpus)} if self.gpus else {}
        rest = {"cpu": self.cpu, "memory": self.memory}
        return {name: amount for name, amount in rest.items() if amount} | gpus

    @property
    def labels(self) -> Mapping[str, str]:
        """What every node of it is labelled with."""
        return {"kubernetes.io/os": "linux"} | ({"kubernetes.io/arch": self.arch} if self.arch else {})

    def instance_type(self) -> InstanceType:
        """The same as the protocol lists it."""
        return InstanceType(
            self.name,
            labels={**self.labels, "karpenter.azure.com/sku-name": self.name},
            capacity=self.capacity,
            offerings=(
                Offering(self.name, "on-demand", price=self.price),
                Offering(self.name, "spot", price=self.spot_price),
            ),
        )
