"""The short version of ``python -m tests.real.faults``: an operator lives through a real server's bad days."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kaito_ctrl.runtime.queue import RetryPolicy
from kaito_ctrl.testing.controlplane import ControlPlane, run_control_plane
from tests.real.faults import Seen, compaction, crash, expiry, freeze, overload

pytestmark = pytest.mark.timeout(180)
SMALL: dict[str, Any] = {"settle": 1.5, "objects": 100}


@pytest.fixture(scope="module")
def fragile(binaries: Path) -> Iterator[ControlPlane]:
    """A control plane that is broken again and again."""
    with run_control_plane(binaries) as running:
        yield running


def polite(seen: Seen) -> None:
    """No error was logged that is none, no object was tried more often than its back-off allows, and all in all the
    server was not asked for much more than in peace."""
    print(seen)
    assert seen.complaints == ()
    policy = RetryPolicy()
    assert seen.tries <= math.log2(max(seen.outage, 1.0) / (policy.base * (1 - policy.jitter))) + 2
    assert seen.during <= 3 * seen.before
    assert seen.after <= 3 * seen.before + 100  # what was missed is caught up with, once


async def test_a_killed_server_is_found_again(fragile: ControlPlane) -> None:
    seen = await crash(fragile, seconds=4.0, **SMALL)
    polite(seen)
    assert seen.worked == 0, "it was never away"


async def test_a_server_that_answers_nobody_is_waited_for(fragile: ControlPlane) -> None:
    seen = await freeze(fragile, seconds=10.0, **SMALL)
    polite(seen)
    assert seen.worked == 0, "it was never away"


async def test_what_happened_while_the_operator_was_cut_off_is_made_up_for(fragile: ControlPlane) -> None:
    seen = await compaction(fragile, seconds=3.0, **SMALL)
    polite(seen)
    assert seen.lists > 0, "nothing was forgotten: the watch went on where it was"


async def test_a_third_of_all_answers_may_be_refusals(fragile: ControlPlane) -> None:
    seen = await overload(fragile, seconds=6.0, **SMALL)
    polite(seen)
    assert seen.tries > 0, "nothing was refused"


async def test_tokens_end_and_the_work_goes_on(fragile: ControlPlane) -> None:
    # The first token has certainly ended by then: a server may remember for ten seconds that it was good.
    seen = await expiry(fragile, seconds=22.0, lifetime=11.0, **SMALL)
    polite(seen)
    assert seen.worked > 0
    assert seen.tries == 0, "a request was refused for its token"
