"""What keeps the simulated cloud from giving what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaito_provisioner.cloud import InsufficientCapacity, Offering, OfferingError, QuotaExceeded, Throttled
from kaito_provisioner.unavailable import describe

__all__ = ["Limit", "Scarcity", "exhausted"]


@dataclass(frozen=True, slots=True)
class Scarcity:
    """Why an offering is not to be had."""

    what: Literal["capacity", "quota"]
    late: bool = False
    """Whether that comes out only while the instance is being made."""


def exhausted(offering: Offering, what: Literal["capacity", "quota"]) -> OfferingError:
    """The cloud's answer to whoever wants *offering* all the same."""
    if what == "quota":
        return QuotaExceeded(
            f"the quota for {describe(offering)} is used up",
            fix="ask for more quota, or delete what is not needed",
            offering=offering,
        )
    return InsufficientCapacity(
        f"there is no {describe(offering)} to be had now", fix="wait, or allow another instance type", offering=offering
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """*burst* requests at once, and one more after each *every* seconds."""

    burst: int
    every: float

    def admit(self, now: float, full: float) -> float:
        """When the bucket, which was to be full at *full*, is full after a request *now*. Raises ``Throttled``."""
        again = max(full, now) + self.every
        wait = again - now - self.burst * self.every
        if wait > 0:
            raise Throttled(
                "too many requests", fix=f"wait: the cloud takes one every {self.every:g} s", retry_after=wait
            )
        return again
