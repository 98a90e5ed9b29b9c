"""The short version of ``python -m tests.real.failover``: never two that lead, and never nobody for long."""

from __future__ import annotations

import pytest

from kaito_ctrl.testing.controlplane import ControlPlane
from tests.real.failover import BLOWS, HANDED_OVER, LONGEST, fail_over

SLACK = 1.5
"""Seconds for requests, a busy machine, and the way of the news to us."""


@pytest.mark.timeout(120)
async def test_one_leads_at_a_time_whatever_happens_to_it(plane: ControlPlane) -> None:
    rounds = {each.blow: each async for each in fail_over(plane, list(BLOWS))}
    print(*rounds.values(), sep="\n")
    assert all(each.late == 0 for each in rounds.values()), "a former leader wrote after its successor"
    assert rounds["lease deleted"].changes == 0
    assert rounds["lease deleted"].gap < SLACK
    assert {blow: each.changes for blow, each in rounds.items() if blow != "lease deleted"} == dict.fromkeys(
        ("killed", "paused", "stopped", "cut off"), 1
    )
    assert max(each.gap for each in rounds.values()) < LONGEST + SLACK
    assert rounds["stopped"].gap < HANDED_OVER + SLACK, "a lease that was released was left lying"
    # Whoever has lost its lease ends, and says so; a clean stop is none.
    assert {blow: each.status for blow, each in rounds.items()} == {
        "killed": -9,
        "paused": 1,
        "stopped": 0,
        "cut off": 1,
        "lease deleted": None,
    }
