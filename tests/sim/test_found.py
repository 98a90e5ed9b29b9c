"""What simulated lives have found in the runtime, each as a test of its own."""

from __future__ import annotations

import asyncio
import random

import pytest

from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Manager
from kaito_ctrl.runtime.errors import CacheSyncTimeout
from kaito_ctrl.testing import FaultyTransport, FixedPlan, Network, Process, VirtualClock, parse_faults, run_virtual
from tests.sim.life import Life
from tests.sim.operator import CRDS, Outside, TierController
from tests.sim.oracles import Oracles, Page


async def operated(*faults: str) -> tuple[Manager, FaultyTransport]:
    """A manager with one controller and two kinds, whose connection has these faults."""
    server = ApiServer(clock=VirtualClock(), rng=random.Random(1))
    for crd in CRDS:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        await Client(server.transport()).request("POST", path, body=crd)
    network = Network(1, FixedPlan(parse_faults(" ".join(faults))))
    transport = FaultyTransport(server.transport(), network, "a#0")
    manager = Manager(Cluster(transport, clock=VirtualClock(), rng=random.Random(1), streaming=False))
    manager.add(TierController(Page(Oracles(Life(0), server, Outside()), "a#0")))
    return manager, transport


def test_a_kind_that_cannot_be_listed_ends_a_manager_with_the_very_error_that_says_so() -> None:
    """It came wrapped in a group, which whoever catches the error by its name does not see."""

    async def main() -> None:
        manager, transport = await operated()
        transport.down_until = 1e9
        with pytest.raises(CacheSyncTimeout, match=r"not listed after 120 s: .*tiers"):
            await manager.run()

    run_virtual(main())


def test_what_was_listed_during_a_pause_is_listed_in_time() -> None:
    """The last answer and the end of the time for it were both there when the process ran again: it gave up, saying
    that nothing was missing."""

    async def main() -> None:
        manager, _ = await operated("late=a#0/0+40", "late=a#0/1+40")
        process = Process("a#0")
        running = process.start(manager.run())
        await asyncio.sleep(1)
        process.pause_for(150)
        await asyncio.sleep(200)
        assert manager.ready
        manager.stop()
        await running

    run_virtual(main())
