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


class Limit:
    """*burst* requests at once, and one more after each *every* seconds."""

    def __init__(self, burst: int, every: float) -> None:
        self._burst = burst
        self._every = every
        self._full = 0.0
        """When the bucket is, or was, full again."""

    def take(self, now: float) -> None:
        """Raises ``Throttled`` when the bucket is empty."""
        full = max(self._full, now) + self._every
        wait = full - now - self._burst * self._every
        if wait > 0:
            raise Throttled(
                "too many requests", fix=f"wait: the cloud takes one every {self._every:g} s", retry_after=wait
            )
        self._full = full
