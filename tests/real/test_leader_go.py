"""One Lease, contended for by client-go (in a kube-controller-manager) and by us, on a real API server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kaito_api import coordination
from kaito_ctrl.runtime import Cluster, Lease, Metrics
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.leader import Elector
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.testing.controlplane import run_control_plane

GO = "kube-controller-manager"
DURATION = 4
LEASE = Lease("contended", "default", DURATION, renew_deadline=3.0, retry_period=1.0, identity="ours")
FLAGS = {
    "leader-elect": "true",
    "leader-elect-resource-lock": "leases",
    "leader-elect-resource-name": LEASE.name,
    "leader-elect-resource-namespace": "default",
    "leader-elect-lease-duration": f"{DURATION}s",
    "leader-elect-renew-deadline": "3s",
    "leader-elect-retry-period": "1s",
}


async def until(check: Callable[[], Awaitable[bool]]) -> float:
    """Wait; how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.05)
    return loop.time() - began


@pytest.mark.timeout(120)
async def test_go_and_python_take_over_from_each_other_and_never_from_a_holder(binaries: Path) -> None:
    if not (binaries / GO).exists():
        pytest.skip(f"there is no {GO} in KUBEBUILDER_ASSETS")
    with run_control_plane(binaries, controllers=("serviceaccount",), controller_manager=FLAGS) as plane:
        async with Cluster.connect(kubeconfig=str(plane.kubeconfig)) as cluster:

            async def record() -> coordination.LeaseSpec:
                try:
                    return (await cluster.client.get(coordination.Lease, LEASE.name, "default")).spec
                except NotFound:
                    return coordination.LeaseSpec()

            async def go_leads() -> bool:
                return (await record()).holder_identity not in (None, "", "ours")

            async def we_lead() -> bool:
                return elector.leads

            await until(go_leads)
            transitions = (await record()).lease_transitions or 0
            elector = Elector(
                LEASE,
                cluster.transport,
                "ours",
                clock=SystemClock(),
                rng=random.Random(1),
                metrics=Metrics(),
                dial=cluster.dial,
            )
            lifetime = Lifetime()
            async with asyncio.TaskGroup() as group:
                running = group.create_task(elector.run(lifetime))
                await asyncio.sleep(2 * DURATION)
                assert not await we_lead()
                await asyncio.to_thread(plane.kill, GO)
                assert await until(we_lead) > DURATION / 2
                assert (await record()).lease_transitions == transitions + 1
                await asyncio.to_thread(plane.restart, GO)
                await asyncio.sleep(2 * DURATION)
                assert await we_lead()
                lifetime.stop()
                await running
                # Released: client-go need not wait for the lease to lapse.
                assert await until(go_leads) < DURATION
                assert (await record()).lease_transitions == transitions + 2
