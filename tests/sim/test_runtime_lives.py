"""Lives of the runtime with every fault at once, and with each single one: all invariants hold, and any can be had
again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from kaito_ctrl.testing import KINDS, TIMED, Fault, Recording, parse_faults, run_virtual, shrink, single_faults
from tests.sim.life import Life
from tests.sim.runtime import live
from tests.sim.seeds import RUNTIME


def simulate(seed: int, faults: Sequence[Fault] | None = None) -> Life:
    return run_virtual(live(seed, faults, quiet=60.0))


@pytest.mark.parametrize("seed", [*range(100), *RUNTIME])
def test_a_life_with_faults_keeps_every_invariant(seed: int) -> None:
    simulate(seed).judge()


def test_a_converged_cluster_sees_no_write_for_an_hour() -> None:
    run_virtual(live(3, quiet=3600.0)).judge()


def test_each_single_fault_is_survived() -> None:
    seed = 16
    recording = Recording()
    run_virtual(live(seed, recording=recording, quiet=1.0)).judge()
    faults = single_faults(recording.spots)
    assert len(faults) > 300
    for fault in faults[:: max(len(faults) // 60, 1)]:
        life = simulate(seed, [fault])
        assert not life.violations, f"{fault}: {life.violations}"


def test_every_kind_of_fault_strikes_sooner_or_later() -> None:
    missing = {*TIMED}.union(*KINDS.values())
    for seed in range(300):
        missing -= simulate(seed).struck.keys()
        if not missing:
            return
    raise AssertionError(f"never seen: {sorted(missing)}")


def test_the_same_seed_gives_the_same_tape() -> None:
    first, second = simulate(7), simulate(7)
    assert first.tape.lines == second.tape.lines
    assert first.tape.digest != simulate(8).tape.digest


def test_the_recorded_faults_give_the_same_tape() -> None:
    drawn = simulate(7)
    text = " ".join(map(str, drawn.faults))
    assert simulate(7, parse_faults(text)).tape.lines == drawn.tape.lines


def test_another_interpreter_gives_the_same_tape() -> None:
    code = """if True:
        from tests.sim.life import silence
        from tests.sim.test_runtime_lives import simulate
        silence()
        print(*(simulate(seed).tape.digest for seed in range(4, 9)))
    """

    def digests(hash_seed: str) -> bytes:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True).stdout

    assert digests("1") == digests("4242")


def test_a_list_of_faults_is_shortened_to_those_that_matter() -> None:
    faults = [Fault("lost", f"a#0/{number}") for number in range(30)]
    needed = {faults[4], faults[17]}
    assert set(shrink(faults, lambda left: needed <= set(left))) == needed
