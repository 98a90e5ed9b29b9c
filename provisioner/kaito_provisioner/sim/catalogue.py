"""What the simulated cloud offers."""

from __future__ import annotations

from dataclasses import dataclass

from kaito_api.karpenter import CAPACITY_TYPE_LABEL, INSTANCE_TYPE_LABEL, ZONE_LABEL
from kaito_provisioner.cloud import InstanceType, Offering

__all__ = ["SimInstanceType"]

_PLATFORM = {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}
_ZONE = "sim-1"


@dataclass(frozen=True, slots=True)
class SimInstanceType:
    """One size of machine, and how many of it may exist at once."""

    name: str
    gpus: int
    cpu: str = "6"
    memory: str = "112Gi"
    quota: int = 100
    available: bool = True
    """Whether the cloud has any; it says so in its catalogue too."""
    price: float | None = None
    """Per hour; ``None``: the catalogue does not tell."""
    spot: float | None = None
    """The price as spot; ``None``: it is not offered as spot."""
    zones: tuple[str, ...] = ()
    """Where it is offered; empty: in the one zone there is, which the catalogue does not tell."""

    @property
    def resources(self) -> dict[str, str]:
        """What a node of it has."""
        found = {"cpu": self.cpu, "memory": self.memory, "pods": "110", "ephemeral-storage": "128Gi"}
        if self.gpus:
            found["nvidia.com/gpu"] = str(self.gpus)
        return found

    @property
    def listed(self) -> InstanceType:
        """Its entry in the catalogue."""
        offerings = [Offering(self.name, zones=self.zones, price=self.price, available=self.available)]
        if self.spot is not None:
            offerings.append(Offering(self.name, "spot", self.zones, self.spot, self.available))
        return InstanceType(self.name, _PLATFORM, self.resources, self.resources, tuple(offerings))

    def offers(self, wanted: Offering) -> bool:
        """Whether it can be had in that way at all."""
        if wanted.capacity_type == "reserved" or (wanted.capacity_type == "spot" and self.spot is None):
            return False
        return not wanted.zones or bool(set(wanted.zones) & set(self.zones or (_ZONE,)))

    def labels(self, wanted: Offering) -> dict[str, str]:
        """What its node says of itself when it is had in that way."""
        here = self.zones or (_ZONE,)
        return {
            INSTANCE_TYPE_LABEL: self.name,
            ZONE_LABEL: next((zone for zone in wanted.zones if zone in here), here[0]),
            CAPACITY_TYPE_LABEL: wanted.capacity_type,
            **_PLATFORM,
        }
