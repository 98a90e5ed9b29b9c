"""Many workspaces applied at once on the embedded API server, with nodes and pods that are there at once.

What is left is the work of kaito-ctrl and of the API server: seconds, writes and reconciles for each workspace, and
what is written when there is nothing to do. Server and daemon share one process and one core.
"""

from __future__ import annotations

import asyncio
import random
import re
import resource
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kaito_api.apps import Deployment
from kaito_api.core import Node, NodeSpec
from kaito_api.meta import Condition, ObjectMeta, is_true
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.local import install_crds
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Manager, Metrics, ObjectKey
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.meta import collection_path
from kaito_ctrl.runtime.store import Change
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_provisioner import Instance, LaunchRequest
from kaito_provisioner.sim import SimCloud, SimInstanceType

__all__ = ["Figures", "measure"]

TYPE = "Standard_NC6s_v3"
CONTROLLERS = ("workspace", "machine")


@dataclass(frozen=True, slots=True)
class Figures:
    """What it took."""

    count: int
    seconds: float
    """Until the last one was ready."""
    writes: dict[str, int]
    """The daemon's writes by verb and kind, events apart."""
    events: int
    reconciles: dict[str, int]
    quiet: tuple[str, ...]
    """Writes while there was nothing to do."""
    peak: int
    """Bytes of memory that the whole process has held at most."""

    @property
    def writes_each(self) -> float:
        """For each workspace."""
        return sum(self.writes.values()) / self.count


@dataclass
class _Counting:
    inner: Transport
    writes: list[str] = field(default_factory=list)

    async def send(self, request: Request) -> Response:
        if request.method != "GET":
            self.writes.append(f"{request.method} {request.path}")
        return await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class _Nodes:
    """Nodes that are ready, with their GPUs, from the moment on at which they join."""

    client: Client

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        node = Node(
            metadata=ObjectMeta(name=instance.name, labels={**instance.labels, **request.labels}),
            spec=NodeSpec(provider_id=instance.provider_id, taints=request.taints),
        )
        await self.client.create(node)
        ready = Condition(type="Ready", status="True", reason="KubeletReady", last_transition_time=SystemClock().now())
        key = ObjectKey("", instance.name)
        status = {"conditions": [ready.to_wire()], "allocatable": dict(instance.allocatable)}
        await self.client.patch(Node, key, {"status": status}, subresource="status")
        # A new node is tainted as not ready; a node lifecycle controller takes that away.
        await self.client.patch(Node, key, {"spec": {"taints": [each.to_wire() for each in request.taints]}})

    async def leave(self, instance: Instance) -> None: ...


class _World:
    """Everything around the daemon; :meth:`run` works until cancelled."""

    def __init__(self, server: ApiServer) -> None:
        self.ready: set[str] = set()
        self.changed = asyncio.Event()
        self._client = Client(server.transport(user="world"))
        self._made: asyncio.Queue[Deployment] = asyncio.Queue()
        self.cluster = Cluster(server.transport(user="world"), rng=random.Random(2))
        self.cluster.cache.declare(Deployment)
        self.cluster.cache.declare(Workspace)

    async def run(self) -> None:
        self.cluster.cache.store(Deployment).listen(self._on_deployment)
        self.cluster.cache.store(Workspace).listen(self._on_workspace)
        while True:
            await self._serve(await self._made.get())

    def _on_deployment(self, change: Change[Deployment]) -> None:
        if change.new is not None:
            found = change.new.view()
            if found.status.observed_generation != found.metadata.generation:
                self._made.put_nowait(found)

    def _on_workspace(self, change: Change[Workspace]) -> None:
        if change.new is not None and is_true(change.new.view().status.conditions, "WorkspaceReady"):
            self.ready.add(change.key.name)
            self.changed.set()

    async def _serve(self, deployment: Deployment) -> None:
        replicas = deployment.spec.replicas
        status = {"observedGeneration": deployment.metadata.generation}
        counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), replicas)
        key = ObjectKey(deployment.namespace or "", deployment.name)
        with suppress(NotFound):
            await self._client.patch(Deployment, key, {"status": {**status, **counts}}, subresource="status")


def _manifest(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": f"ws-{number:05}", "namespace": "default"},
        "resource": {"instanceType": TYPE, "labelSelector": {"matchLabels": {"apps": f"app-{number}"}}},
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }


async def measure(count: int, *, quiet: float = 60.0) -> Figures:
    """Apply *count* workspaces, wait until they are ready, and then for *quiet* seconds."""
    clock, rng = SystemClock(), random.Random(1)
    server = ApiServer(clock=clock, rng=rng)
    user = Client(server.transport())
    await install_crds(user)
    offered = SimInstanceType(TYPE, 1, quota=10**6)
    cloud = SimCloud([offered], now=clock.now, joiner=_Nodes(user), boot=0.0, shutdown=0.0)
    counting, metrics, world = _Counting(server.transport(user="kaito-ctrl")), Metrics(), _World(server)
    options = DaemonOptions(metrics_port=None, health_port=None, drain=1.0)
    manager = build_manager(Cluster(counting, rng=rng, metrics=metrics), cloud, options)
    around = _around(world)
    async with asyncio.TaskGroup() as group:
        managers = [group.create_task(each.run()) for each in (manager, around)]
        await manager.wait_ready()
        await around.wait_ready()
        background = [group.create_task(work) for work in (cloud.run(), world.run())]
        began = time.perf_counter()
        path = collection_path(Workspace, "default")
        for number in range(count):
            await user.request("POST", path, body=_manifest(number))
        while len(world.ready) < count:
            world.changed.clear()
            await world.changed.wait()
        seconds = time.perf_counter() - began
        settled = await _settle(counting)
        await asyncio.sleep(quiet)
        late = tuple(each for each in counting.writes[settled:] if "/events" not in each)
        manager.stop()
        around.stop()
        await asyncio.wait(managers)
        for task in background:
            task.cancel()
    await server.aclose()
    kinds = Counter(_kind(each) for each in counting.writes[:settled])
    events = sum(amount for kind, amount in kinds.items() if kind.endswith(" events"))
    return Figures(
        count,
        seconds,
        {kind: amount for kind, amount in kinds.most_common() if not kind.endswith(" events")},
        events,
        {name: _reconciles(metrics, name) for name in CONTROLLERS},
        late,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _around(world: _World) -> Manager:
    return Manager(world.cluster, drain=1.0)


async def _settle(counting: _Counting) -> int:
    """Wait until two seconds have passed without a write but of events; how many there were."""
    while True:
        before = len(counting.writes)
        await asyncio.sleep(2.0)
        if all("/events" in each for each in counting.writes[before:]):
            return len(counting.writes)


def _kind(write: str) -> str:
    """``PATCH machines/status`` of a write to any machine's status."""
    verb, path = write.split(" ")
    parts = re.sub(r"^/(api/v1|apis/[^/]+/[^/]+)/(namespaces/[^/]+/)?", "", path).split("/")
    return " ".join((verb, "/".join((parts[0], *parts[2:]))))


def _reconciles(metrics: Metrics, controller: str) -> int:
    return int(
        sum(
            sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == "controller_runtime_reconcile_total" and sample.labels["controller"] == controller
        )
    )
