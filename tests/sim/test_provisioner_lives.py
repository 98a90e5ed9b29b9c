"""Lives of the provisioner with every fault at once, against both clouds: whatever happens, nothing is leaked, doubled
or destroyed; and broken variants of it, each caught by the invariant that it breaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from kaito_api.karpenter import NodeRequest
from kaito_ctrl.reconcilers.machine import gc, launch, nodes
from kaito_ctrl.reconcilers.machine.gc import GarbageCollection
from kaito_ctrl.reconcilers.machine.termination import Termination
from kaito_ctrl.runtime import Context, Result
from kaito_ctrl.testing import Fault, parse_faults, run_virtual
from kaito_provisioner import RepairPolicy
from kaito_provisioner.sim import SimCloud
from tests.sim import custody
from tests.sim.life import Life
from tests.sim.provisioner import live
from tests.sim.seeds import PROVISIONER


def simulate(seed: int, cloud: str, faults: list[Fault] | None = None) -> Life:
    return run_virtual(live(seed, faults, cloud=cloud, quiet=120.0))


@pytest.mark.parametrize(
    ("cloud", "seed"), [*(("sim", seed) for seed in range(5)), *(("aks", seed) for seed in range(3)), *PROVISIONER]
)
def test_a_life_with_faults_keeps_every_invariant(cloud: str, seed: int) -> None:
    simulate(seed, cloud).judge()


@pytest.mark.parametrize("cloud", ["sim", "aks"])
def test_a_converged_fleet_sees_no_write_for_an_hour(cloud: str) -> None:
    run_virtual(live(1, cloud=cloud, quiet=3600.0)).judge()


@pytest.mark.parametrize("cloud", ["sim", "aks"])
def test_the_same_seed_gives_the_same_tape_and_so_do_its_faults(cloud: str) -> None:
    first = simulate(0, cloud)
    assert simulate(0, cloud).tape.lines == first.tape.lines
    assert simulate(0, cloud, parse_faults(" ".join(map(str, first.faults)))).tape.lines == first.tape.lines
    assert first.tape.digest != simulate(1, cloud).tape.digest


# -- broken variants ---------------------------------------------------------------------------------------------------


def caught(invariant: str, seeds: Iterable[int], cloud: str = "sim") -> bool:
    """Whether one of *seeds* shows that *invariant* does not hold."""
    assert invariant in custody.INVARIANTS
    return any(
        violation.startswith(f"{invariant}:")
        for seed in seeds
        for violation in run_virtual(live(seed, cloud=cloud, quiet=120.0, patience=2400.0)).violations
    )


def test_a_launch_that_is_noted_nowhere_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def announce(claim: NodeRequest, ctx: Context) -> NodeRequest:
        return claim

    monkeypatch.setattr(launch, "_announce", announce)
    assert caught(custody.LET_GO, range(60))


def test_a_finalizer_that_comes_off_before_the_instance_is_gone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def delete(self: Termination, *_: Any) -> Result:
        return Result.done()

    monkeypatch.setattr(Termination, "run", delete)
    assert caught(custody.LET_GO, range(5))


def test_garbage_that_nobody_collects_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def collect(self: GarbageCollection) -> str:
        return "done"

    monkeypatch.setattr(GarbageCollection, "collect", collect)
    assert caught(custody.LEAKED, range(9, 16))


def test_collecting_by_what_is_remembered_and_at_any_age_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = GarbageCollection._read
    remembered: dict[int, frozenset[str]] = {}

    async def read(self: GarbageCollection) -> Any:
        found = await real(self)
        uids = remembered.get(id(self), found.uids)
        remembered[id(self)] = found.uids
        return replace(found, uids=uids)

    async def exists(self: GarbageCollection, _: Any) -> bool:
        return False

    monkeypatch.setattr(GarbageCollection, "_read", read)
    monkeypatch.setattr(GarbageCollection, "_exists", exists)
    monkeypatch.setattr(gc, "_AGE", 0.0)
    assert caught(custody.DESTROYED, range(22, 33))


def test_a_repair_without_patience_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimCloud, "repair_policies", lambda _: (RepairPolicy("Ready", "Unknown", 0.0),))
    assert caught(custody.DESTROYED, range(20))


def test_a_node_that_is_held_for_nobody_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "with_owner", lambda *_: None)
    assert caught(custody.LEFT, range(60))
