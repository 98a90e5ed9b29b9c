"""What the cloud has, and what the subscription may have of it: both can run out.

Capacity is the cloud's: machines of a size, per zone and capacity type. It is found missing in the middle of an
operation, when machines are allocated. Quota is the subscription's: cores of a family of sizes, of a region, or of
spot machines. AKS looks at it before it starts anything, and Compute when it allocates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from kaito_provisioner.testing.errors import (
    ArmError,
    Failure,
    allocation_failed,
    quota_exceeded,
    quota_refused,
    sku_not_available,
)
from kaito_provisioner.testing.sizes import VmSize
from kaito_provisioner.testing.state import Vm

__all__ = ["Capacity", "Quota"]

_ANY = "*"


@dataclass(slots=True)
class Capacity:
    """How many machines there may be at once; of what no limit is set, any number."""

    location: str
    _limits: dict[tuple[str, str, bool | None], int] = field(default_factory=dict)
    _restricted: set[str] = field(default_factory=set)

    def limit(self, size: str, count: int, *, zone: str = _ANY, spot: bool | None = None) -> None:
        """At most *count* machines of that *size* (``"*"``: of any); in that *zone* (``"1"``) only, of spot or of
        regular ones only."""
        self._limits[size, zone, spot] = count

    def restrict(self, size: str) -> None:
        """The size is not offered here for now, whatever there is of it: ``SkuNotAvailable``."""
        self._restricted.add(size)

    def lift(self, size: str | None = None) -> None:
        """There is enough again, of that *size*, or of all."""
        if size is None:
            self._limits.clear()
            self._restricted.clear()
        else:
            self._limits = {key: count for key, count in self._limits.items() if key[0] != size}
            self._restricted.discard(size)

    def place(self, size: str, zones: tuple[str, ...], *, spot: bool, existing: Iterable[Vm]) -> str | Failure:
        """The zone for one more machine, empty where the region chooses; or why there is none."""
        if size in self._restricted:
            return sku_not_available(size, self.location)
        vms = tuple(existing)
        # Spread, as a scale set does: the zone with the fewest first.
        for zone in sorted(zones, key=lambda zone: sum(vm.zone == zone for vm in vms)) or [""]:
            if self._free(size, zone, spot, vms):
                return zone
        return allocation_failed(size, zones, spot=spot)

    def _free(self, size: str, zone: str, spot: bool, vms: tuple[Vm, ...]) -> bool:
        for (of_size, of_zone, of_spot), count in self._limits.items():
            if of_size not in (size, _ANY) or of_zone not in (zone, _ANY) or of_spot not in (spot, None):
                continue
            used = sum(
                of_size in (vm.size.name, _ANY) and of_zone in (vm.zone, _ANY) and of_spot in (vm.spot, None)
                for vm in vms
            )
            if used >= count:
                return False
        return True


@dataclass(slots=True)
class Quota:
    """How many cores the subscription may have: by family, in the region, and of spot machines."""

    location: str
    families: dict[str, int] = field(default_factory=dict)
    regional: int | None = None
    spot: int | None = None
    checked: Literal["request", "operation"] = "request"
    """Who notices: AKS, which refuses the request, or Compute, which fails the operation."""

    def refusal(self, size: VmSize, count: int, *, spot: bool, used: Mapping[str, int]) -> ArmError | None:
        """AKS' answer to a request for that many more machines. *used* are cores by family; see :meth:`used`."""
        over = self._over(size, count, spot=spot, used=used) if self.checked == "request" else None
        return quota_refused(over[0], self.location, over[1] - over[2], over[3]) if over is not None else None

    def failure(self, size: VmSize, count: int, *, spot: bool, used: Mapping[str, int]) -> Failure | None:
        """Compute's answer to the same."""
        over = self._over(size, count, spot=spot, used=used)
        return quota_exceeded(over[0], self.location, *over[1:]) if over is not None else None

    @staticmethod
    def used(vms: Iterable[Vm]) -> dict[str, int]:
        """The cores that are in use: by family, in the region, and of spot machines."""
        used: dict[str, int] = {}
        for vm in vms:
            for name in ("LowPriorityCores",) if vm.spot else (vm.size.family, "Total Regional"):
                used[name] = used.get(name, 0) + vm.size.cores
        return used

    def _over(
        self, size: VmSize, count: int, *, spot: bool, used: Mapping[str, int]
    ) -> tuple[str, int, int, int] | None:
        wanted = size.cores * count
        limits = (
            {"LowPriorityCores": self.spot}
            if spot
            else {size.family: self.families.get(size.family), "Total Regional": self.regional}
        )
        for name, limit in limits.items():
            if limit is not None and used.get(name, 0) + wanted > limit:
                return name, limit, used.get(name, 0), wanted
        return None
