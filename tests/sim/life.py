"""What a simulated life is told by, whatever it is a life of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from kaito_ctrl.runtime import Metrics
from kaito_ctrl.testing import STORMY, Fault, FixedPlan, RandomPlan, Recording, Tape

__all__ = ["Life", "Violation", "metrics", "plan_of", "silence", "within"]


class Violation(AssertionError):
    """Something happened that must never happen; its text begins with the name of the invariant."""


@dataclass
class Life:
    """What became of one seed."""

    seed: int
    tape: Tape = field(default_factory=Tape)
    faults: Sequence[Fault] = ()
    struck: dict[str, int] = field(default_factory=dict)
    """How often faults of each kind had an effect."""
    crashes: int = 0
    leaders: int = 0
    """How often the lease was taken."""
    late_writes: int = 0
    """Writes of a former leader that stood still, or were under way, for longer than a lease's margin."""
    seconds: float = 0.0
    calls: int = 0
    busiest: int = 0
    """The most requests of one process in one minute."""
    most_instances: int = 0
    violations: list[str] = field(default_factory=list)

    def violate(self, invariant: str, what: str) -> None:
        """Note that *invariant* does not hold."""
        at = asyncio.get_running_loop().time()
        self.violations.append(f"{invariant}: {what} (at {at:.3f} s)")

    def judge(self) -> None:
        """Raise :class:`Violation` if there was one."""
        if self.violations:
            raise Violation("; ".join(self.violations[:5]))


def plan_of(
    seed: int,
    hosts: Sequence[str],
    means: Mapping[str, float],
    until: float,
    faults: Sequence[Fault] | None,
    recording: Recording | None,
) -> tuple[RandomPlan | FixedPlan | Recording, list[Fault]]:
    """The plan of a life, and those of its faults that strike at a moment: drawn from *seed*, the latter with *means*
    seconds between two, until *until*; or exactly *faults*; or none while *recording*."""
    if recording is not None:
        recording.until = until
        return recording, []
    if faults is not None:
        fixed = FixedPlan(faults)
        return fixed, fixed.timed()
    # Some lives are harder than others: what only happens between faults needs room between them.
    hardness = random.Random(f"{seed}|hardness").choice((0.3, 1.0, 1.0, 3.0))
    rates = {kind: min(rate * hardness, max(rate, 0.2)) for kind, rate in STORMY.items()}
    drawn = RandomPlan(seed, rates, until=until)
    return drawn, drawn.timed(hosts, {kind: seconds / hardness for kind, seconds in means.items()})


class _Registry(CollectorRegistry):
    """Takes no offence at what is registered again by the next run of a program."""

    def register(self, collector: Collector) -> None:
        with suppress(ValueError):
            super().register(collector)


@cache
def metrics() -> Metrics:
    """For all processes of all lives: to make a few hundred time series takes longer than many a life."""
    return Metrics(_Registry())


async def within(seconds: float, holds: Callable[[], Awaitable[bool]], *, every: float = 1.0) -> bool:
    """Whether *holds* comes true in that time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not await holds():
        if loop.time() > end:
            return False
        await asyncio.sleep(every)
    return True


def silence() -> None:
    """Have the controllers log nothing: what they complain about is what the faults are for."""
    structlog.configure(processors=[_drop])


def _drop(*_: object) -> dict[str, object]:
    raise structlog.DropEvent
