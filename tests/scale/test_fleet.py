"""Fifty workspaces at once, in real time: what each costs, and that a fleet which has all it needs is left alone."""

from __future__ import annotations

import pytest_asyncio

from tests.scale.fleet import Figures, measure

COUNT = 50
# What each write of a workspace's life is for. Whoever adds one says why.
ONCE = {
    "PATCH workspaces": 2,  # the finalizer; its revision
    "PATCH controllerrevisions": 1,
    "PATCH services": 1,
    "PATCH deployments": 1,
    "PATCH machines": 4,  # asked for; the finalizer; that the cloud is being asked; what it says of the instance
    "PATCH machines/status": 2,  # launched; registered and initialized
    "PATCH nodes": 1,
}
STATUSES = 6.0
"""Statuses of a workspace: at most one for each thing that happened, and fewer when they happen at once."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> Figures:
    return await measure(COUNT, quiet=2.0)


def test_all_are_served_and_each_costs_few_writes(fleet: Figures) -> None:
    found = {kind: amount / COUNT for kind, amount in fleet.writes.items()}
    statuses = found.pop("PATCH workspaces/status")
    assert 1.0 <= statuses <= STATUSES
    assert set(found) == set(ONCE), "no write of another kind"
    for kind, amount in ONCE.items():
        # Steps that come at the same moment are sometimes seen as one, and sometimes as two.
        assert found[kind] <= amount + 1.0, kind
    assert fleet.writes_each <= sum(ONCE.values()) + STATUSES


def test_each_is_reconciled_a_few_times(fleet: Figures) -> None:
    assert fleet.reconciles["workspace"] <= 10 * COUNT
    assert fleet.reconciles["machine"] <= 6 * COUNT


def test_few_events_are_told_of_each(fleet: Figures) -> None:
    assert COUNT <= fleet.events <= 8 * COUNT


def test_a_fleet_that_is_served_is_not_written_to(fleet: Figures) -> None:
    assert fleet.quiet == ()
