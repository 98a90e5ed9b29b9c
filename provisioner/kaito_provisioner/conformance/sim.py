"""The bench of the simulated cloud, as an example of one: the cloud has hooks for everything that a bench can be asked.

It needs no particular event loop: all that the cloud does is a matter of the clock, and the clock is the bench's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from kaito_provisioner.cloud import CloudProvider, Offering, Throttled, Unauthorized, Unavailable
from kaito_provisioner.conformance.bench import RETRY_AFTER, SLOW, Bench, Existing, Fault, Shortage
from kaito_provisioner.sim import Scarcity, SimCloud, SimInstanceType

__all__ = ["SimBench", "make_bench"]

_TYPES = (
    SimInstanceType("sim-small", 1, price=1.0, spot=0.4),
    SimInstanceType("sim-large", 4, price=4.0),
    SimInstanceType("sim-rare", 8, price=9.0, available=False),
)


class ManualClock:
    """Shows the time to which it was set."""

    def __init__(self) -> None:
        self._passed = 0.0

    def advance(self, seconds: float) -> None:
        self._passed += seconds

    def monotonic(self) -> float:
        return self._passed

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._passed)


class SimBench:
    """Implements ``Bench``. *provide* makes the provider of a process from the cloud, which is one itself.

    *options* are the cloud's.
    """

    name = "sim"
    offerings: Sequence[Offering] = (Offering("sim-small", price=1.0), Offering("sim-large", price=4.0))
    unavailable: Offering | None = Offering("sim-rare", price=9.0, available=False)
    faults: Collection[Fault] = tuple(Fault)

    def __init__(self, provide: Callable[[SimCloud], CloudProvider] = lambda cloud: cloud, **options: Any) -> None:
        self.clock = ManualClock()
        self.cloud = SimCloud(
            _TYPES,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
            **{"boot": 90.0, "shutdown": 30.0, "provider_ids": "when running", "operations": True, **options},
        )
        self.cloud.fault, self.cloud.lost = self._before, self._after
        self._provide = provide
        self._faults: dict[int, Fault] = {}

    async def provider(self) -> CloudProvider:
        return self._provide(self.cloud)

    def truth(self) -> Sequence[Existing]:
        own = [Existing(each.name, each.claim_uid, each.provider_id) for each in self.cloud.existing()]
        return [*own, *(Existing(name, "") for name in sorted(self.cloud.foreign))]

    @property
    def calls(self) -> int:
        return sum(self.cloud.calls.values())

    async def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def fail(self, fault: Fault, *, nth: int = 1) -> None:
        self._faults[self.calls + nth] = fault

    def shortage(self, offering: Offering, what: Shortage | None, *, late: bool = False) -> None:
        plain = Offering(offering.instance_type, offering.capacity_type)
        if what is None:
            self.cloud.scarce.pop(plain, None)
        else:
            self.cloud.scarce[plain] = Scarcity(what, late)

    def lag(self, seconds: float) -> None:
        self.cloud.lag = seconds

    async def foreign(self, name: str) -> None:
        self.cloud.foreign.add(name)

    def _before(self, call: str, subject: str) -> Exception | None:
        match self._faults.get(self.calls):
            case Fault.UNREACHABLE | Fault.DROPPED:
                return _silent()
            case Fault.ERROR:
                return _broken()
            case Fault.THROTTLED:
                return Throttled("too many requests", fix="wait, or ask for less", retry_after=RETRY_AFTER)
            case Fault.FORBIDDEN:
                return Unauthorized("the identity may not do that", fix="give it the role that it needs")
            case Fault.SLOW:
                self.clock.advance(SLOW)
        return None

    def _after(self, call: str, subject: str) -> Exception | None:
        match self._faults.get(self.calls):
            case Fault.LOST:
                return _silent()
            case Fault.LATE_ERROR:
                return _broken()
        return None


def _silent() -> Unavailable:
    return Unavailable("the connection broke before the answer came", fix="see whether the cloud can be reached")


def _broken() -> Unavailable:
    return Unavailable("the cloud answered with an internal error", fix="see the cloud's own status page")


@asynccontextmanager
async def make_bench() -> AsyncIterator[Bench]:
    """A simulated cloud that keeps every promise."""
    yield SimBench()
