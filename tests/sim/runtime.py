"""One life of the runtime itself: a small operator, of which several processes contend for a lease, and users who make,
edit, delete and make again, while everything that can go wrong does; then a calm in which everything must settle."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from kaito_api.core import ConfigMap
from kaito_api.meta import Resource
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.errors import ApiError
from kaito_ctrl.runtime.leader import Lease
from kaito_ctrl.testing import (
    Fault,
    FaultyTransport,
    Host,
    Network,
    Recording,
    Run,
    VirtualClock,
    strike_in_time,
)
from tests.sim.life import Life, metrics, plan_of
from tests.sim.operator import CRDS, Outside, Tier, TierController, Widget, WidgetController
from tests.sim.oracles import LEAK, Oracles

__all__ = ["Make", "live"]

DRAIN, GRACE = 5.0, 2.0
SETTLED = 1200.0
"""Seconds after the last fault in which everything must have settled: the longest back-off, and a restart."""
TIMED_MEANS = {
    "crash-at": 80.0,
    "stop-at": 120.0,
    "loop-at": 400.0,
    "pause-at": 90.0,
    "starve-at": 200.0,
    "expire-at": 200.0,
    "outage-at": 150.0,
    "failing-at": 200.0,
    "jump-at": 150.0,
}

Make = Callable[[Cluster, Lease | None], Manager]
"""How a manager is made; a test makes a broken one."""


def manager(cluster: Cluster, lease: Lease | None) -> Manager:
    return Manager(cluster, leader=lease, drain=DRAIN, grace=GRACE)


async def live(
    seed: int,
    faults: Sequence[Fault] | None = None,
    *,
    make: Make = manager,
    recording: Recording | None = None,
    quiet: float | None = None,
) -> Life:
    """One life. Its faults are drawn from *seed*, or are *faults*, or none while *recording*. *quiet* is how many
    seconds the converged state is watched for; by default an hour in some lives, and a minute in the others.
    """
    rng = random.Random(f"{seed}|life")
    span = rng.choice((20.0, 60.0, 120.0))
    hosts = 1 if rng.random() < 0.4 else rng.choice((2, 2, 3))
    names = [chr(ord("a") + number) for number in range(hosts)]
    plan, timed = plan_of(seed, names, TIMED_MEANS, span, faults, recording)
    life = Life(seed)
    life.faults = plan.faults
    network = Network(seed, plan, life.tape)
    clock = VirtualClock()
    server = ApiServer(clock=clock, rng=random.Random(f"{seed}|server"), history=rng.choice((20, 10_000)))
    user = Client(server.transport(user="user"), "user")
    for crd in CRDS:
        await user.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=crd)
    outside = Outside()
    oracles = Oracles(life, server, outside)
    network.witness = oracles
    machines = [_host(name, server, network, oracles, outside, make, hosts > 1) for name in names]
    oracles.hosts = machines
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as world:
        collector = world.create_task(GarbageCollector(server).run())
        running = [world.create_task(machine.run(ended)) for machine in machines]
        striking = world.create_task(strike_in_time(timed, machines))
        await _use(server, user, rng, span)
        await striking
        await asyncio.sleep(max(span - clock.monotonic(), 0.0))
        network.note("calm")
        await _settle(life, oracles, network, machines)
        oracles.calm = not life.violations
        # An hour of renewing a lease every other second takes longer than twenty lives.
        hour = rng.random() < (0.1 if hosts == 1 else 0.02)
        await asyncio.sleep(quiet if quiet is not None else 3600.0 if hour else 60.0)
        for invariant, what in oracles.unsettled() if not life.violations else ():
            life.violate(invariant, f"after the quiet: {what}")
        oracles.calm = False
        await _delete_all(user)
        await _until_empty(life, oracles)
        ended.set()
        await asyncio.wait(running)
        collector.cancel()
    await network.settle()
    if server.backend.watches:
        life.violate(LEAK, f"{server.backend.watches} watches are open in the server")
    await server.aclose()
    life.struck, life.calls = network.struck, network.calls
    life.crashes = sum(machine.crashes for machine in machines)
    life.seconds = clock.monotonic()
    life.busiest = oracles.busiest
    life.leaders = oracles.leaders()
    return life


def _host(
    name: str, server: ApiServer, network: Network, oracles: Oracles, outside: Outside, make: Make, elects: bool
) -> Host:
    def program(host: Host, transport: FaultyTransport) -> Manager:
        rng = random.Random(f"{network.seed}|{transport.name}")
        streaming = rng.random() < 0.5
        cluster = Cluster(transport, clock=host.clock, rng=rng, metrics=metrics(), streaming=streaming)
        lease = Lease("operator", "default", identity=transport.name) if elects else None
        made = make(cluster, lease)
        page = oracles.page(transport.name)
        page.manager = made
        made.add(WidgetController(page, outside, transport.name, rng))
        made.add(TierController(page))
        return made

    def ended(run: Run) -> None:
        # A stop lasts as long as the drain and the grace period, and as releasing the lease.
        oracles.ended(run, DRAIN + GRACE)

    return Host(name, network, lambda user: server.transport(user=user), program, ended=ended)


# -- users -------------------------------------------------------------------------------------------------------------


async def _use(server: ApiServer, user: Client, rng: random.Random, span: float) -> None:
    """Make something of everything, and then do this and that until *span*."""
    await user.create(Tier.model_validate({"metadata": {"name": "t0"}, "spec": {"price": 1}}))
    await _widget(user, rng, "w0")
    actions = (_edit, _edit, _edit, _drop, _again, _reprice, _reprice, _drop_tier, _meddle, _meddle)
    while True:
        await asyncio.sleep(rng.expovariate(1 / 5.0))
        if asyncio.get_running_loop().time() >= span:
            return
        if rng.random() < 0.05:
            server.compact()
        with contextlib.suppress(ApiError):
            await rng.choice(actions)(user, rng)


def _some(rng: random.Random) -> str:
    return rng.choice(("w0", "w0", "w1", "w2"))


async def _widget(user: Client, rng: random.Random, name: str) -> None:
    spec = {"size": rng.randint(0, 3), "tier": rng.choice(("t0", "t1")), "poll": rng.random() < 0.3}
    meta = {"name": name, "namespace": "default"}
    await user.create(Widget.model_validate({"metadata": meta, "spec": spec}))


async def _edit(user: Client, rng: random.Random) -> None:
    """Of a widget that is not there, this makes one."""
    name = _some(rng)
    change = rng.choice(({"size": rng.randint(0, 3)}, {"tier": rng.choice(("t0", "t1", "t2"))}))
    try:
        await user.patch(Widget, ObjectKey("default", name), {"spec": change})
    except ApiError:
        await _widget(user, rng, name)


async def _drop(user: Client, rng: random.Random) -> None:
    propagation: Any = rng.choice((None, "Foreground", "Background"))
    await user.delete(Widget, ObjectKey("default", _some(rng)), propagation=propagation)


async def _again(user: Client, rng: random.Random) -> None:
    """Delete, and make one of the same name as soon as the server lets go of the old one."""
    name = _some(rng)
    with contextlib.suppress(ApiError):
        await user.delete(Widget, ObjectKey("default", name))
    for _ in range(3):
        try:
            await _widget(user, rng, name)
        except ApiError:
            await asyncio.sleep(2.1)
        else:
            return


async def _reprice(user: Client, rng: random.Random) -> None:
    name, spec = rng.choice(("t0", "t1")), {"price": rng.randint(1, 3)}
    try:
        await user.patch(Tier, ObjectKey("", name), {"spec": spec})
    except ApiError:
        await user.create(Tier.model_validate({"metadata": {"name": name}, "spec": spec}))


async def _drop_tier(user: Client, rng: random.Random) -> None:
    await user.delete(Tier, ObjectKey("", rng.choice(("t0", "t1"))))


async def _meddle(user: Client, rng: random.Random) -> None:
    """Delete or change what belongs to the operator."""
    parts = await user.list(ConfigMap, "default", labels=None)
    mine = [part for part in parts if part.metadata.owner_references]
    if mine:
        part = rng.choice(mine)
        key = ObjectKey("default", part.name)
        if rng.random() < 0.5:
            await user.delete(ConfigMap, key)
        else:
            await user.patch(ConfigMap, key, {"data": {"price": "mine"}})


# -- the calm ----------------------------------------------------------------------------------------------------------


async def _settle(life: Life, oracles: Oracles, network: Network, machines: Sequence[Host]) -> None:
    loop = asyncio.get_running_loop()
    # What has struck before the calm may last into it: one that is down, or cut off, has settled nothing yet.
    while any(machine.disturbed for machine in machines) and not life.violations:
        await asyncio.sleep(1.0)
    end, pause = loop.time() + SETTLED, 1.0
    while ((unsettled := oracles.unsettled()) or network.disturbed) and not life.violations:
        if loop.time() > end:
            for invariant, what in unsettled:
                life.violate(invariant, what)
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 30.0)


async def _delete_all(user: Client) -> None:
    everything: tuple[type[Resource], ...] = (Widget, Tier)
    for kind in everything:
        for obj in await user.list(kind):
            with contextlib.suppress(ApiError):
                await user.delete(kind, ObjectKey(obj.namespace or "", obj.name))


async def _until_empty(life: Life, oracles: Oracles) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + SETTLED
    while (remains := oracles.remains()) and not life.violations:
        if loop.time() > end:
            for invariant, what in remains:
                life.violate(invariant, what)
        await asyncio.sleep(2.0)
