"""Several claims at once on one account, in any weather: each request may meet any fault, lists and reads lag,
processes die, claims are deleted early and come again under the same name, machines run out, operations hang.
Whatever happens, nothing is doubled and nothing left.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from kaito_ctrl.testing.virtualtime import run_virtual
from kaito_provisioner.conformance.bench import Fault
from kaito_provisioner.conformance.claims import claim
from kaito_provisioner.conformance.life import Life
from tests.unit.provisioner.aksbench import AksBench, aks_bench

NAMES, GENERATIONS = 4, 2
ROUGH = 0.15
"""How many of the requests meet a fault."""


class Weather:
    """The faults of one seed, until it clears up."""

    def __init__(self, bench: AksBench, rng: random.Random) -> None:
        self._rng = rng
        self._strike = bench.strike
        self.clear = False
        bench.strike = self.strike  # type: ignore[method-assign]

    def strike(self) -> Fault | None:
        self._strike()
        return self._rng.choice(list(Fault)) if not self.clear and self._rng.random() < ROUGH else None


async def live(bench: AksBench, number: int, rng: random.Random) -> None:
    # Those of one name are in each other's way, for an earlier one may live longer than a later one.
    request = claim(bench, number, name=f"ws{number % NAMES}")
    life = Life(bench, request, crash_after={step for step in range(1, 60) if rng.random() < 0.1})
    await bench.elapse(rng.uniform(0, 900))
    # Never without end, as a controller has a deadline: an operation may hang.
    await life.bring_up(steps=rng.choice([0, 1, 2, 3, 5, 8, 40]))
    await bench.elapse(rng.uniform(0, 300))
    await life.take_down()
    await life.settle()


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_doubled_and_nothing_left_in_any_weather(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        async with aks_bench() as bench:
            bench.lag(rng.choice([0.0, 0.0, 5.0, 55.0]))
            bench.arm.api.list_lag = rng.choice([None, 0.0, 30.0, 55.0])
            bench.arm.cloud.old_wording = rng.random() < 0.5
            for _ in range(rng.randrange(3)):
                bench.arm.faults.mishap(rng.choice(["fails", "stuck-creating", "no-node"]))
            bench.arm.capacity.limit(bench.offerings[0].instance_type, rng.choice([1, 3, 100]))
            weather = Weather(bench, rng)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(live(bench, number, rng)) for number in range(NAMES * GENERATIONS)]
                await bench.elapse(3600)
                weather.clear = True
                await asyncio.wait(tasks)
            assert not bench.truth()

    run_virtual(main())
