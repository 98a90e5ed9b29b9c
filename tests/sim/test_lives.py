"""Many short lives with every fault at once: never an instance too many, nothing left in the end, the same again."""

from __future__ import annotations

import asyncio
import random

import pytest

from kaito_api.karpenter import Machine
from kaito_ctrl.reconcilers.machine.controller import MachineController
from kaito_ctrl.reconcilers.workspace import nodes
from kaito_ctrl.runtime import Context, Result
from kaito_ctrl.runtime.store import Store
from kaito_ctrl.testing import Deadlock, VirtualTimeLoop, run_virtual
from tests.sim.life import Life, Violation
from tests.sim.workspace import live


def simulate(seed: int) -> Life:
    life = run_virtual(live(seed))
    life.judge()
    return life


ONCE_WRONG = (2607, 3001, 5245, 5569)
"""Seeds that found a mistake: a node that joined while its machine was being deleted outlived it."""


@pytest.mark.parametrize("seed", [*range(40), *ONCE_WRONG])
def test_a_life_with_faults_ends_with_nothing_left(seed: int) -> None:
    life = simulate(seed)
    assert life.most_instances <= 3


def test_the_same_seed_gives_the_same_tape() -> None:
    first, second = simulate(7), simulate(7)
    assert first.tape.lines == second.tape.lines
    assert first.tape.digest == second.tape.digest
    assert first.tape.digest != simulate(8).tape.digest


def test_a_day_passes_in_no_time() -> None:
    async def day() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert run_virtual(day()) == 86_400


def test_waiting_for_what_cannot_happen_is_found_at_once() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="nothing is due"):
        run_virtual(wait())


def test_virtual_time_has_no_threads_and_no_sockets() -> None:
    async def thread() -> None:
        await asyncio.to_thread(print)

    async def socket() -> None:
        await asyncio.open_connection("127.0.0.1", 9)

    for attempt in (thread, socket):
        with pytest.raises(RuntimeError, match="virtual time"):
            run_virtual(attempt())
    loop = VirtualTimeLoop()
    loop.close()


def test_a_controller_that_forgets_its_own_writes_is_caught_buying_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    names = random.Random(1)
    monkeypatch.setattr(nodes, "machine_name", lambda uid, index: f"ws{names.getrandbits(36):09x}")
    monkeypatch.setattr(Store, "wrote", lambda self, raw: None)
    with pytest.raises(Violation, match="instances for a workspace of"):
        _all(range(40))


def _all(seeds: range) -> None:
    for seed in seeds:
        simulate(seed)


def test_a_machine_that_is_let_go_too_early_is_caught_leaving_its_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cleanup(self: MachineController, machine: Machine, ctx: Context) -> Result:
        return Result.done()

    monkeypatch.setattr(MachineController, "cleanup", cleanup)
    with pytest.raises(Violation, match="nothing outlives its workspace"):
        simulate(0)
