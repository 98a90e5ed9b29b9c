"""Garbage collection on a real API server, whose finalizers, preconditions and clock are not ours."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kaito_api.core import Node
from kaito_api.crd import all_crds
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_ctrl.reconcilers.machine.gc import GarbageCollection
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.connect import connect
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.testing.controlplane import run_control_plane
from kaito_provisioner import LaunchRequest
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.unit.reconcilers.livefleet import LiveFleet


class Fast(SystemClock):
    """A local clock that is off."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=10)


def _six_minutes_ago() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=6)


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
async def test_what_lost_its_counterpart_goes_and_the_rest_stays(binaries: Path, kind: type[NodeRequest]) -> None:
    with run_control_plane(binaries) as server:
        transport = await connect(kubeconfig=str(server.kubeconfig))
        try:
            async with asyncio.timeout(60):
                await _collect(Client(transport), kind)
        finally:
            await transport.aclose()


async def _collect(user: Client, kind: type[NodeRequest]) -> None:
    for crd in all_crds():
        await user.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=crd)
    while True:
        try:
            await user.list(kind)
            break
        except NotFound:
            await asyncio.sleep(0.1)
    fleet = LiveFleet(user=user, clock=SystemClock(), kind=kind)
    cloud = SimCloud([SimInstanceType("small", 1)], now=_six_minutes_ago, boot=0.0, shutdown=0.0)
    uids = {}
    for name in ("keep", "lost", "gone"):
        uids[name] = await fleet.claim(name)
        made = await cloud.create(LaunchRequest(name, uids[name], ("small",), kind=kind.kind))
        await fleet.joined(name, made.provider_id)
        await fleet.node(name, uids[name], made.provider_id)
        # Silent for longer than a machine is that boots anew.
        await fleet.report(name, "Unknown" if name == "gone" else "True", since=_six_minutes_ago())
    [vanished] = [each for each in await cloud.list() if each.claim_uid == uids["gone"]]
    await cloud.delete(vanished)
    await fleet.strip("lost")
    gc = GarbageCollection(cloud, user.named("gc"), kind, clock=Fast(), rng=random.Random(1))
    async with asyncio.TaskGroup() as group:
        work = group.create_task(cloud.run())
        # One instance or claim in a pass, of so small a fleet; nodes go in the pass after that.
        for _ in range(4):
            assert await gc.collect() == "done"
        work.cancel()
    assert [each.name for each in await cloud.list()] == ["keep"]
    assert (await fleet.names(kind), await fleet.names(Node)) == (["keep"], ["keep"])
