"""The clouds of provisioners' lives: what exists in them, the way of a process to them, and their weather.

What a process has sent to its cloud travels on its own, outside of the process: one that is killed, paused or no longer
interested does not call it back, and it may be carried out much later. What goes wrong with a request is drawn from the
life's seed and the request's number alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from kaito_api.core import Node
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.testing import Network, VirtualClock
from kaito_ctrl.testing.plan import draws
from kaito_provisioner import (
    ClaimRef,
    CloudError,
    CloudProvider,
    Instance,
    InstanceType,
    LaunchRequest,
    NodeClassKind,
    Offering,
    RepairPolicy,
    Throttled,
    Unavailable,
)
from kaito_provisioner.aks import AksSettings, VmSize, connect_aks
from kaito_provisioner.conformance.bench import CONSISTENT
from kaito_provisioner.sim import SimCloud, SimInstanceType
from kaito_provisioner.sim.scarcity import Scarcity
from kaito_provisioner.testing import SIZES, LocalArm, LocalArmTransport, NodeJoiner, Timings
from kaito_provisioner.testing.faults import Dropped
from kaito_provisioner.testing.messages import Answer, Request
from tests.sim.workspace import Nodes

__all__ = ["TYPES", "AksWorld", "CloudWorld", "Existing", "SimWorld", "Traffic"]

T = TypeVar("T")
TYPES = ("Standard_NC6s_v3", "Standard_NC12s_v3", "Standard_NC24s_v3")
REMOVAL = 60.0
"""Seconds from the end of a machine that somebody else has deleted until its Node object is removed."""
_SLOW = 40.0
"""Seconds by which an answer may be late."""
_GONE = "the connection was reset"


@dataclass(frozen=True, slots=True)
class Existing:
    """What really exists and costs money, or counts against a limit."""

    name: str
    uid: str
    """Of the claim that it was made for; empty if it is somebody else's."""
    state: str
    nodes: tuple[str, ...] = ()
    """The names that its machines have as nodes."""


class Traffic:
    """What the processes of a life send to their cloud, and what befalls it on the way until *until* (seconds).

    *looked* is called before and after whatever may change something, *wrote* before each request that is to.
    *hardness* is how much more often than usual something goes wrong.
    """

    def __init__(self, network: Network, group: asyncio.TaskGroup, until: float, hardness: float) -> None:
        self.network = network
        self.until = until
        self.looked: Callable[[], None] = lambda: None
        self.wrote: Callable[[str], None] = lambda _: None
        self.calls = 0
        self.latest = _SLOW
        """Seconds for which a request may be under way. What it does has to show within a minute after it was sent."""
        self._group = group
        self._hardness = hardness
        self._numbers: dict[str, int] = {}

    async def carry(
        self,
        process: str,
        what: str,
        work: Callable[[], Awaitable[T]],
        *,
        writes: bool,
        refuse: Callable[[], Awaitable[T]],
        lose: Callable[[], Exception],
    ) -> T:
        """Have *work* done outside of *process*, which hears of it unless something befalls it: then *refuse* is done
        instead, or *lose* is all that it hears."""
        number = self._numbers.get(process, 0)
        self._numbers[process] = number + 1
        self.calls += 1
        if writes:
            self.wrote(f"{process} {what}")
        kind, share = self._fate(f"{process}/cloud/{number}")
        if kind:
            self.network.count(f"cloud-{kind}")
            self.network.note(f"cloud-{kind}", process, what)
        arrival: asyncio.Future[tuple[T | None, Exception | None]] = asyncio.get_running_loop().create_future()

        async def travel() -> None:
            await asyncio.sleep(0.05 + (self.latest * share if kind == "late" else 0.0))
            answer: T | None = None
            error: Exception | None = None
            if kind == "unreachable":
                error = lose()
            else:
                if writes:
                    self.looked()
                try:
                    answer = await (refuse() if kind == "refused" else work())
                except Exception as raised:  # noqa: BLE001 - it is the answer
                    error = raised
                if writes:
                    self.network.note("cloud", what, type(error).__name__ if error is not None else "done")
                    self.looked()
                await asyncio.sleep(0.05 + (_SLOW * share if kind == "slow" else 0.0))
                if kind == "lost":
                    error = lose()
            if not arrival.done():
                arrival.set_result((answer, error))

        self._group.create_task(travel(), context=Context())
        answer, error = await arrival
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]

    def later(self, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        """Have *work* done then, by nobody's process."""

        async def wait() -> None:
            await asyncio.sleep(seconds)
            await work()

        self._group.create_task(wait(), context=Context())

    def _fate(self, address: str) -> tuple[str, float]:
        if asyncio.get_running_loop().time() >= self.until:
            return "", 0.0
        draw, share = draws(self.network.seed, address)
        for kind, rate in (("lost", 0.05), ("refused", 0.03), ("unreachable", 0.03), ("late", 0.03), ("slow", 0.03)):
            draw -= rate * self._hardness
            if draw < 0:
                return kind, share
        return "", 0.0


class CloudWorld(Protocol):
    """One cloud, as whoever stands outside of all processes sees it."""

    def existing(self) -> Sequence[Existing]:
        """What there is, shown by its API or not."""
        ...

    def connect(self, process: str, clock: Clock) -> AbstractAsyncContextManager[CloudProvider]:
        """The provider of a process that has just started."""
        ...

    def shortage(self, rng: random.Random) -> str:
        """Some of what there was is not to be had any more; says what."""
        ...

    def mishap(self, rng: random.Random) -> str:
        """Something befalls what is made next, as a cloud's machines do; says what."""
        ...

    async def take(self, name: str) -> None:
        """Somebody, not through us, deletes the instance of that name."""
        ...

    def foreign(self, name: str) -> None:
        """Somebody else makes an instance of that name; unless there is one."""
        ...

    def restore(self) -> None:
        """There is enough of everything again."""
        ...

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        ...


# -- the simulated cloud -----------------------------------------------------------------------------------------------


class _Machines(Nodes):
    """No two machines have ever had the same name, and somebody may delete a node at any moment."""

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        with suppress(NotFound):
            await super().join(_named(instance), request)

    async def leave(self, instance: Instance) -> None:
        await super().leave(_named(instance))


def _named(instance: Instance) -> Instance:
    return replace(instance, name=instance.provider_id.rpartition("/")[2])


class SimWorld:
    """The simulated cloud in one of its unkind modes, drawn from *rng*; nodes join through *user*."""

    def __init__(self, rng: random.Random, user: Client, traffic: Traffic) -> None:
        lag = rng.choice((0.0, 0.0, 3.0, 20.0, 50.0))
        traffic.latest = min(_SLOW, CONSISTENT - 2.0 - lag)
        self.cloud = SimCloud(
            [SimInstanceType(name, gpus) for name, gpus in zip(TYPES, (1, 2, 4), strict=True)],
            now=VirtualClock().now,
            joiner=_Machines(user),
            boot=rng.choice((5.0, 40.0, 120.0)),
            shutdown=rng.choice((2.0, 20.0, 60.0)),
            lag=lag,
            provider_ids=rng.choice(("at once", "when running", "never")),
            operations=rng.random() < 0.5,
        )
        self._traffic = traffic
        self._user = user

    def existing(self) -> Sequence[Existing]:
        own = [Existing(each.name, each.claim_uid, each.state, (_named(each).name,)) for each in self.cloud.existing()]
        return [*own, *(Existing(name, "", "Running") for name in sorted(self.cloud.foreign))]

    @asynccontextmanager
    async def connect(self, process: str, clock: Clock) -> AsyncIterator[CloudProvider]:
        yield _Remote(self.cloud, self._traffic, process)

    def shortage(self, rng: random.Random) -> str:
        name = rng.choice(TYPES)
        scarcity = Scarcity(rng.choice(("capacity", "quota")), late=rng.random() < 0.5)
        self.cloud.scarce[Offering(name)] = scarcity
        return f"no {name}: {scarcity}"

    def mishap(self, rng: random.Random) -> str:
        return ""

    async def take(self, name: str) -> None:
        for each in self.cloud.existing():
            if each.name == name:
                await self.cloud.delete(each)
                self._traffic.later(REMOVAL, partial(self._remove, _named(each).name))

    async def _remove(self, node: str) -> None:
        """As a cloud controller does."""
        with suppress(NotFound):
            await self._user.delete(Node, ObjectKey("", node))

    def foreign(self, name: str) -> None:
        if all(each.name != name for each in self.cloud.existing()):
            self.cloud.foreign.add(name)

    def restore(self) -> None:
        self.cloud.scarce.clear()

    def calm(self) -> None:
        self.restore()


class _Remote:
    """A process' way to the simulated cloud."""

    name = "sim"
    node_classes: Sequence[NodeClassKind] = ()

    def __init__(self, cloud: SimCloud, traffic: Traffic, process: str) -> None:
        self._cloud = cloud
        self._traffic = traffic
        self._process = process

    async def create(self, request: LaunchRequest) -> Instance:
        return await self._call(f"create {request.name}", lambda: self._cloud.create(request), writes=True)

    async def get(self, provider_id: str) -> Instance:
        return await self._call("get", lambda: self._cloud.get(provider_id))

    async def find(self, claim: ClaimRef) -> Instance:
        return await self._call(f"find {claim.name}", lambda: self._cloud.find(claim))

    async def list(self) -> Sequence[Instance]:
        return await self._call("list", self._cloud.list)

    async def delete(self, instance: Instance) -> Instance:
        return await self._call(f"delete {instance.name}", lambda: self._cloud.delete(instance), writes=True)

    async def instance_types(self) -> Sequence[InstanceType]:
        return await self._call("instance_types", self._cloud.instance_types)

    def repair_policies(self) -> Sequence[RepairPolicy]:
        return self._cloud.repair_policies()

    async def _call(self, what: str, work: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        async def refuse() -> T:
            raise Throttled("slow down", retry_after=7.0)

        def lose() -> CloudError:
            return Unavailable(_GONE)

        return await self._traffic.carry(self._process, what, work, writes=writes, refuse=refuse, lose=lose)


# -- AKS ---------------------------------------------------------------------------------------------------------------

_MISHAPS = (
    ("fails", 4),
    ("late-provider-id", 3),
    ("two-nodes", 2),
    ("no-node", 1),
    ("no-gpu", 1),
    ("stuck-creating", 1),
    ("dies", 1),
)
"""What may befall an agent pool, and how often in comparison."""


class AksWorld:
    """The local ARM, and the aks backend with the real SDK in front of it."""

    def __init__(self, arm: LocalArm, rng: random.Random, traffic: Traffic) -> None:
        self.arm = arm
        self._traffic = traffic
        arm.api.read_lag = rng.choice((0.0, 0.0, 3.0, 20.0))
        arm.api.list_lag = rng.choice((None, 0.0, 10.0, 45.0))
        # The provider looks at its last list for a few seconds more.
        traffic.latest = min(_SLOW, CONSISTENT - 15.0 - max(arm.api.read_lag, arm.api.list_lag or 0.0))
        arm.quota.checked = rng.choice(("request", "operation"))

    @staticmethod
    @asynccontextmanager
    async def open(rng: random.Random, nodes: Client, traffic: Traffic) -> AsyncIterator[AksWorld]:
        """One of its own, whose machines join through *nodes*."""
        clock = VirtualClock()
        # Heartbeats are for whoever watches leases; nobody does here.
        joiner = NodeJoiner(nodes, clock, heartbeat=100_000.0)
        timings = Timings().scaled(rng.choice((0.3, 1.0)))
        async with LocalArm(clock=clock, rng=random.Random(rng.random()), timings=timings, joiner=joiner) as arm:
            yield AksWorld(arm, rng, traffic)

    def existing(self) -> Sequence[Existing]:
        return [
            Existing(
                pool.name,
                next((value for key, value in pool.tags.items() if key.endswith("claim-uid")), ""),
                pool.state,
                tuple(vm.node_name for vm in pool.vms),
            )
            for pool in self.arm.pools().values()
        ]

    @asynccontextmanager
    async def connect(self, process: str, clock: Clock) -> AsyncIterator[CloudProvider]:
        cluster, sizes = self.arm.cluster, [VmSize(name, SIZES[name].gpus) for name in TYPES]
        settings = AksSettings(cluster.subscription, cluster.resource_group, cluster.name, cluster.location)

        async def handle(request: Request) -> Answer:
            what = f"{request.method} {request.path.rpartition('/')[2]}"

            async def refuse() -> Answer:
                self.arm.faults.refuse(429, "TooManyRequests", retry_after=7)
                return await self.arm.handle(request)

            return await self._traffic.carry(
                process,
                what,
                lambda: self.arm.handle(request),
                writes=request.method not in ("GET", "HEAD"),
                refuse=refuse,
                lose=Dropped,
            )

        credential, transport = self.arm.credential(), LocalArmTransport(handle)
        async with connect_aks(
            settings, clock=clock, instance_types=sizes, credential=credential, transport=transport
        ) as cloud:
            yield cloud

    def shortage(self, rng: random.Random) -> str:
        name = rng.choice(TYPES)
        match rng.randrange(4):
            case 0:
                self.arm.quota.families[SIZES[name].family] = 0
                return f"no quota for {SIZES[name].family}"
            case 1:
                self.arm.capacity.restrict(name)
                return f"{name} is restricted"
            case _:
                self.arm.capacity.limit(name, 0)
                return f"no {name}"

    def mishap(self, rng: random.Random) -> str:
        kind: Any = rng.choices([name for name, _ in _MISHAPS], [often for _, often in _MISHAPS])[0]
        seconds = rng.uniform(10.0, 300.0)
        self.arm.faults.mishap(kind, seconds=seconds)
        return f"{kind} {seconds:.0f}"

    async def take(self, name: str) -> None:
        pool = self.arm.pools().get(name)
        if pool is not None and pool.operation is None:
            self.arm.cloud.delete(pool)

    def foreign(self, name: str) -> None:
        if name not in self.arm.cluster.pools:
            self.arm.add_pool(name, "Standard_D2s_v5")

    def restore(self) -> None:
        self.arm.capacity.lift()
        self.arm.quota.families.clear()

    def calm(self) -> None:
        self.restore()
        self.arm.faults.clear()
