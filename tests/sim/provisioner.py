"""One life of the provisioner, in virtual time: users make and delete claims and nodes, machines fall silent, clouds
run out, while everything that can go wrong does; then a calm in which everything must settle, and an end with nothing
left.

The cloud is the simulated one, or AKS: the real SDK before the local ARM. The provisioner is one process, or two that
contend for a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import TERMINATION_FINALIZER, Machine, NodeClaim, NodeRequest
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Lease, Manager, ObjectKey
from kaito_ctrl.runtime.errors import ApiError
from kaito_ctrl.runtime.transport import Transport
from kaito_ctrl.testing import (
    Fault,
    FaultyTransport,
    Host,
    Network,
    Recording,
    VirtualClock,
    strike_in_time,
)
from tests.sim.clouds import TYPES, AksWorld, CloudWorld, SimWorld, Traffic
from tests.sim.custody import LEAKED, NONSENSE, QUIET, Custody
from tests.sim.life import Life, metrics, plan_of, within
from tests.sim.workspace import crds

__all__ = ["live"]

SPAN = 900.0
"""Seconds in which users are at work and faults strike."""
SETTLED = 4 * 3600.0
"""Seconds after that in which everything must have settled: every deadline, twice, and the longest rest."""
STILL = 200.0
"""Seconds without a write that are taken for convergence: longer than any of the provisioner's looks are apart."""
TIMED_MEANS = {
    "crash-at": 90.0,
    "stop-at": 300.0,
    "loop-at": 900.0,
    "pause-at": 300.0,
    "starve-at": 900.0,
    "expire-at": 900.0,
    "outage-at": 600.0,
    "failing-at": 900.0,
    "jump-at": 600.0,
}
NAMES = ("ws0", "ws1", "ws2", "ws3", "ws4", "ws5")


class Daemon:
    """What a process runs: a connection to the cloud, and the daemon with its provisioner alone."""

    def __init__(
        self, cloud: CloudWorld, host: Host, transport: FaultyTransport, options: DaemonOptions, seed: int
    ) -> None:
        self._cloud = cloud
        self._host = host
        self._transport = transport
        self._options = options
        self._seed = seed
        self._manager: Manager | None = None
        self._stopping = False

    async def run(self) -> None:
        name, clock = self._transport.name, self._host.clock
        async with self._cloud.connect(name, clock) as provider:
            cluster = Cluster(
                self._transport, clock=clock, rng=random.Random(f"{self._seed}|{name}"), metrics=metrics()
            )
            self._manager = build_manager(cluster, provider, self._options)
            if not self._stopping:
                await self._manager.run()

    def stop(self) -> None:
        self._stopping = True
        if self._manager is not None:
            self._manager.stop()


async def live(
    seed: int,
    faults: Sequence[Fault] | None = None,
    *,
    recording: Recording | None = None,
    quiet: float | None = None,
    cloud: str | None = None,
    patience: float = SETTLED,
) -> Life:
    """One life. Its faults are drawn from *seed*, or are *faults*, or none while *recording*; what users do, and what
    befalls requests to the cloud, is the seed's in any case. *quiet* is how many seconds the converged state is watched
    for; by default an hour in some lives, and five minutes in the others. *cloud* is ``sim`` or ``aks``; by default the
    seed says which. *patience* is in how many seconds of calm everything must settle.
    """
    rng, life, clock = random.Random(f"{seed}|provisioner"), Life(seed), VirtualClock()
    names = ["kaito"] if rng.random() < 0.6 else ["kaito", "other"]
    kind: type[NodeRequest] = rng.choice((Machine, NodeClaim))
    chosen = rng.choice(("sim", "aks"))
    plan, timed = plan_of(seed, names, TIMED_MEANS, SPAN, faults, recording)
    network = Network(seed, plan, life.tape)
    server = ApiServer(clock=clock, rng=random.Random(rng.random()))
    user = Client(server.transport(user="user"), "user")
    for crd in crds():
        await user.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=crd)
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as world, contextlib.AsyncExitStack() as stack:
        hardness = rng.choice((0.3, 1.0, 1.0, 3.0))
        traffic = Traffic(network, world, SPAN, hardness if recording is None else 0.0)
        there: CloudWorld
        if (cloud or chosen) == "sim":
            there = sim = SimWorld(rng, user, traffic)
            running_cloud = world.create_task(sim.cloud.run())
            stack.callback(running_cloud.cancel)
        else:
            nodes = Client(server.transport(user="system:node"))
            there = await stack.enter_async_context(AksWorld.open(rng, nodes, traffic))
        custody = Custody(life, server, there, kind)
        network.witness, traffic.looked, traffic.wrote = custody, custody.looked, custody.wrote
        people = People(user, rng, there, custody, network)
        await people.settle_in()

        def program(host: Host, transport: FaultyTransport) -> Daemon:
            # Renewed more rarely than in life: hours of it are most of what there is to compute.
            identity = transport.name
            lease = Lease("kaito", "default", 60, 40.0, 10.0, identity) if len(names) > 1 else None
            options = DaemonOptions(
                workspaces=False,
                node_api="machine" if kind is Machine else "nodeclaim",
                metrics_port=None,
                health_port=None,
                leader=lease,
                drain=1.0,
            )
            return Daemon(there, host, transport, options, seed)

        def connect(process: str) -> Transport:
            return server.transport(user=process)

        hosts = [Host(name, network, connect, program, ended=custody.ended) for name in names]
        running = [world.create_task(host.run(ended)) for host in hosts]
        striking = world.create_task(strike_in_time(timed, hosts))
        await people.live(SPAN)
        await striking
        network.note("calm")
        await people.calm()
        await _settle(life, custody, network, hosts, patience)
        hour = rng.random() < 0.1
        if not life.violations:
            custody.quiet = True
            await asyncio.sleep(quiet if quiet is not None else 3600.0 if hour else 300.0)
            custody.quiet = False
            await people.delete_all()
            if not await within(patience, lambda: _nothing(custody), every=5.0):
                life.violate(LEAKED, f"after everything was deleted: {custody.left()}")
        ended.set()
        await asyncio.wait(running)
    await network.settle()
    await server.aclose()
    life.seconds, life.faults = clock.monotonic(), plan.faults
    life.crashes = sum(host.crashes for host in hosts)
    life.struck, life.calls = network.struck, network.calls + traffic.calls
    life.busiest = custody.busiest
    life.leaders = custody.leaders()
    return life


async def _nothing(custody: Custody) -> bool:
    return not custody.left()


async def _settle(life: Life, custody: Custody, network: Network, hosts: Sequence[Host], patience: float) -> None:
    loop = asyncio.get_running_loop()
    while any(host.disturbed for host in hosts) or network.disturbed:
        await asyncio.sleep(1.0)
    custody.calm_since = custody.last_write = loop.time()
    end, pause = loop.time() + patience, 5.0
    while not life.violations:
        unsettled = list(custody.unsettled())
        if not unsettled and loop.time() - custody.last_write > STILL:
            return
        if loop.time() > end:
            for invariant, what in unsettled or [(QUIET, "there is still writing")]:
                life.violate(invariant, what)
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, 30.0)


# -- people ------------------------------------------------------------------------------------------------------------


class People:
    """Those who use the cluster, and what happens to its machines."""

    def __init__(self, user: Client, rng: random.Random, cloud: CloudWorld, custody: Custody, network: Network) -> None:
        self._user = user
        self._rng = rng
        self._cloud = cloud
        self._custody = custody
        self._network = network
        self._kind = custody.kind
        self._down: set[str] = set()

    async def settle_in(self) -> None:
        """There is a node that was there before, and a claim that is somebody else's."""
        await self._user.create(Node.model_validate({"metadata": {"name": "system"}, "spec": {"providerID": "x:///1"}}))
        await self._say("system", "True")
        wire: dict[str, Any] = {
            "metadata": {"name": "karpenters", "finalizers": [TERMINATION_FINALIZER]},
            "spec": {"requirements": [], "nodeClassRef": {"group": "karpenter.aws", "kind": "Other", "name": "x"}},
        }
        await self._user.create(self._kind.model_validate(wire))
        self._cloud.foreign("theirs")
        self._custody.foreign = {"system", "karpenters"}
        self._custody.foreign_instances = frozenset({"theirs"})

    async def live(self, seconds: float) -> None:
        """Do this and that until then."""
        rng, loop = self._rng, asyncio.get_running_loop()
        for _ in range(rng.randint(1, 4)):
            with contextlib.suppress(ApiError):
                await self._ask(rng.choice(NAMES))
        every = rng.choice((15.0, 40.0, 120.0))
        deeds: Sequence[tuple[Callable[[], Awaitable[object]], int]] = (
            (self._ask_some, 8),
            (self._delete, 4),
            (self._again, 3),
            (self._delete_node, 1),
            (self._bring_down, 2),
            (self._bring_up, 2),
            (self._take, 1),
            (self._strip, 1),
            (self._shortage, 2),
            (self._mishap, 2),
            (self._plenty, 3),
            (self._stand_in_the_way, 1),
        )
        while True:
            await asyncio.sleep(rng.expovariate(1 / every))
            if loop.time() >= seconds:
                return
            deed = rng.choices([deed for deed, _ in deeds], [often for _, often in deeds])[0]
            self._network.note("people", deed.__name__)
            with contextlib.suppress(ApiError):
                await deed()

    async def calm(self) -> None:
        """Whatever was disturbed from outside, is no more."""
        self._cloud.calm()
        for name in sorted(self._down):
            with contextlib.suppress(ApiError):
                await self._say(name, "True")

    async def delete_all(self) -> None:
        for claim in await self._claims():
            self._custody.known[claim.uid].asked = True
            with contextlib.suppress(ApiError):
                await self._user.delete(self._kind, ObjectKey("", claim.name))

    # -- deeds ---------------------------------------------------------------------------------------------------

    async def _claims(self) -> list[NodeRequest]:
        return [each for each in await self._user.list(self._kind) if each.name not in self._custody.foreign]

    async def _ask(self, name: str) -> None:
        types = self._rng.sample(TYPES, self._rng.choice((1, 2)))
        if self._rng.random() < 0.05:
            types = [NONSENSE]
        spec: dict[str, Any] = {
            "requirements": [{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": types}],
            "resources": {"requests": {"storage": "100Gi"}},
        }
        if self._kind is NodeClaim:
            spec["nodeClassRef"] = {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}
        labels = {"kaito.sh/workspace": name, "kaito.sh/workspacenamespace": "default"}
        await self._user.create(self._kind.model_validate({"metadata": {"name": name, "labels": labels}, "spec": spec}))

    async def _ask_some(self) -> None:
        await self._ask(self._rng.choice(NAMES))

    async def _delete(self) -> str | None:
        claims = await self._claims()
        if not claims:
            return None
        claim = self._rng.choice(claims)
        self._custody.known[claim.uid].asked = True
        await self._user.delete(self._kind, ObjectKey("", claim.name), uid=claim.uid)
        return claim.name

    async def _again(self) -> None:
        """Delete, and make one of the same name as soon as the server lets go of the old one."""
        name = await self._delete()
        for _ in range(20 if name is not None else 0):
            await asyncio.sleep(2.1)
            with contextlib.suppress(ApiError):
                await self._ask(name or "")
                return

    async def _nodes(self) -> list[Node]:
        return [each for each in await self._user.list(Node) if each.name not in self._custody.foreign]

    async def _delete_node(self) -> None:
        if nodes := await self._nodes():
            await self._user.delete(Node, ObjectKey("", self._rng.choice(nodes).name))

    async def _bring_down(self) -> None:
        if nodes := await self._nodes():
            name = self._rng.choice(nodes).name
            self._down.add(name)
            await self._say(name, "Unknown")

    async def _bring_up(self) -> None:
        for name in sorted(self._down):
            with contextlib.suppress(ApiError):
                await self._say(name, "True")
        self._down.clear()

    async def _say(self, name: str, word: str) -> None:
        moment = f"{VirtualClock().now():%Y-%m-%dT%H:%M:%SZ}"
        condition = {"type": "Ready", "status": word, "reason": "Simulated", "lastTransitionTime": moment}
        patch = {"status": {"conditions": [condition]}}
        await self._user.patch(Node, ObjectKey("", name), patch, type="strategic", subresource="status")

    async def _take(self) -> None:
        if instances := [each for each in self._cloud.existing() if each.uid]:
            chosen = self._rng.choice(instances)
            self._custody.taken.add(chosen.uid)
            await self._cloud.take(chosen.name)
            self._custody.looked()

    async def _strip(self) -> None:
        """Somebody has no patience: they delete a claim, and take its finalizer off."""
        name = await self._delete()
        for claim in await self._claims():
            if claim.name == name and claim.deleting:
                self._custody.known[claim.uid].stripped = True
                await self._user.patch(self._kind, ObjectKey("", name), {"metadata": {"finalizers": []}})

    async def _shortage(self) -> None:
        self._network.note("people", self._cloud.shortage(self._rng))

    async def _mishap(self) -> None:
        self._network.note("people", self._cloud.mishap(self._rng))

    async def _plenty(self) -> None:
        self._cloud.restore()

    async def _stand_in_the_way(self) -> None:
        """Somebody else makes an instance whose name a claim may come to need."""
        name = self._rng.choice(NAMES)
        if all(each.name != name for each in self._cloud.existing()):
            self._cloud.foreign(name)
            self._custody.foreign_instances |= {name}
