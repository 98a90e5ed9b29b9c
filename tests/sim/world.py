"""One life of a workspace, in virtual time: applied, served, deleted, while everything that can go wrong does."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field

from kaito_api.apps import Deployment
from kaito_api.core import Node, NodeSpec
from kaito_api.karpenter import Machine
from kaito_api.meta import Condition, ObjectMeta, is_true
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.local import install_crds
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.meta import collection_path
from kaito_ctrl.testing import FaultPlan, FaultyTransport, Tape, VirtualClock
from kaito_provisioner import Instance, LaunchRequest, Throttled
from kaito_provisioner.sim import SimCloud, SimInstanceType

KEY = ObjectKey("default", "ws")


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass
class Life:
    """What became of one seed."""

    seed: int
    tape: Tape = field(default_factory=Tape)
    crashes: int = 0
    seconds: float = 0.0
    most_instances: int = 0
    violations: list[str] = field(default_factory=list)


class Nodes:
    """Nodes appear and fall silent as their instances do."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        node = Node(
            metadata=ObjectMeta(name=instance.name, labels={**instance.labels, **request.labels}),
            spec=NodeSpec(provider_id=instance.provider_id, taints=request.taints),
        )
        await self._client.create(node)
        await self._say(instance, "True")

    async def leave(self, instance: Instance) -> None:
        with contextlib.suppress(NotFound):
            await self._say(instance, "Unknown")

    async def _say(self, instance: Instance, word: str) -> None:
        condition = Condition.model_validate({"type": "Ready", "status": word, "reason": "Simulated"})
        condition = condition.evolve(last_transition_time=VirtualClock().now())
        wire = {"conditions": [condition.to_wire()], "allocatable": dict(instance.allocatable)}
        await self._client.patch(Node, ObjectKey("", instance.name), {"status": wire}, subresource="status")


async def live(seed: int, plan: FaultPlan, *, crashes: float = 60.0, delete_early: float = 0.3) -> Life:
    """One life. *crashes* is the mean time between two of the controllers, in seconds. Raises :class:`Violation`."""
    rng, life, clock = random.Random(seed), Life(seed), VirtualClock()
    server = ApiServer(clock=clock, rng=random.Random(rng.random()))
    user = Client(server.transport())
    await install_crds(user)
    count = rng.randint(1, 3)
    cloud = _cloud(rng, user, count, life)
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as world:
        collector = world.create_task(GarbageCollector(server).run())
        booting = world.create_task(cloud.run())
        serving = world.create_task(_serve(user))
        process = world.create_task(_controllers(server, cloud, rng, plan, life, crashes, ended))
        await user.request("POST", collection_path(Workspace, "default"), body=_manifest(count))
        if rng.random() < delete_early:
            await asyncio.sleep(rng.uniform(0, 60))
        else:
            await _within(3 * 3600, lambda: _ready(user), "the workspace is not ready")
            await asyncio.sleep(rng.uniform(0, 600))
        with contextlib.suppress(NotFound):
            await user.delete(Workspace, KEY)
        await _within(3 * 3600, lambda: _nothing(user, cloud), "something is left after the deletion")
        ended.set()
        for task in (collector, booting, serving):
            task.cancel()
        await process
    await server.aclose()
    life.seconds = clock.monotonic()
    if life.violations:
        raise Violation("; ".join(life.violations))
    return life


def _manifest(count: int) -> dict[str, object]:
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": KEY.name, "namespace": KEY.namespace},
        "resource": {
            "count": count,
            "instanceType": "Standard_NC6s_v3",
            "labelSelector": {"matchLabels": {"apps": "phi-3"}},
        },
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }


def _cloud(rng: random.Random, user: Client, count: int, life: Life) -> SimCloud:
    """A cloud that refuses, loses answers, and counts what it has given."""
    types = [SimInstanceType("Standard_NC6s_v3", 1)]
    cloud = SimCloud(types, now=VirtualClock().now, joiner=Nodes(user), boot=40.0, shutdown=20.0, latency=0.1)
    inner = cloud.create

    async def create(request: LaunchRequest) -> Instance:
        instance = await inner(request)
        alive = [each for each in await cloud.list() if each.state != "Deleting"]
        life.most_instances = max(life.most_instances, len(alive))
        if len(alive) > count:
            # Noted, not raised: this is called by a controller, which would take it for a failure of the cloud.
            life.violations.append(
                f"{len(alive)} instances for a workspace of {count}: {[each.name for each in alive]}"
            )
        if rng.random() < 0.1:
            raise Throttled("the answer was lost", retry_after=1.0)
        return instance

    cloud.create = create  # type: ignore[method-assign]
    cloud.fault = lambda call, _: (
        Throttled("slow down", retry_after=2.0) if call != "list" and rng.random() < 0.05 else None
    )
    return cloud


async def _controllers(
    server: ApiServer,
    cloud: SimCloud,
    rng: random.Random,
    plan: FaultPlan,
    life: Life,
    mean: float,
    ended: asyncio.Event,
) -> None:
    """The controllers' process: killed where it stands, and started again, until the faults end."""
    calm = 900.0
    while not ended.is_set():
        faulty = FaultyTransport(server.transport(user="kaito"), rng, plan, life.tape, f"#{life.crashes}")
        if asyncio.get_running_loop().time() > calm:
            faulty.heal()
        cluster = Cluster(faulty, clock=VirtualClock(), rng=random.Random(rng.random()))
        manager: Manager = build_manager(cluster, cloud, DaemonOptions(metrics_port=None, health_port=None, drain=1.0))
        running = asyncio.ensure_future(manager.run())
        ending = asyncio.ensure_future(ended.wait())
        now = asyncio.get_running_loop().time()
        patience = rng.expovariate(1 / mean) if now < calm else None
        await asyncio.wait((running, ending), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not ended.is_set():
            life.crashes += 1
            life.tape.note(f"{asyncio.get_running_loop().time():.6f}", "crash")
            faulty.dead = True
        else:
            manager.stop()
            await asyncio.wait((running,), timeout=30)
        running.cancel()
        ending.cancel()
        await asyncio.gather(running, ending, return_exceptions=True)


async def _serve(user: Client) -> None:
    """Deployments become ready a while after they are made."""
    while True:
        await asyncio.sleep(5)
        for deployment in await user.list(Deployment):
            if not deployment.deleting and deployment.status.ready_replicas != deployment.spec.replicas:
                replicas = deployment.spec.replicas
                status = {
                    "observedGeneration": deployment.metadata.generation,
                    "readyReplicas": replicas,
                    "updatedReplicas": replicas,
                }
                with contextlib.suppress(NotFound):
                    await user.patch(
                        Deployment, ObjectKey("default", deployment.name), {"status": status}, subresource="status"
                    )


async def _ready(user: Client) -> bool:
    return is_true((await user.get(Workspace, KEY.name, KEY.namespace)).status.conditions, "WorkspaceReady")


async def _nothing(user: Client, cloud: SimCloud) -> bool:
    left: list[object] = [*await user.list(Workspace), *await user.list(Machine), *await user.list(Node)]
    left += [*await user.list(Deployment), *await cloud.list()]
    return not left


async def _within(seconds: float, check, what: str) -> None:  # type: ignore[no-untyped-def]
    try:
        async with asyncio.timeout(seconds):
            while not await check():
                await asyncio.sleep(1)
    except TimeoutError:
        raise Violation(f"{what} after {seconds:.0f} virtual seconds") from None
