"""The reconcilers on a real API server, with the simulated cloud; every write and every cloud call is counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, NodeSpec, Service
from kaito_api.karpenter import Machine
from kaito_api.meta import Condition, ObjectMeta
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.local import install_crds
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.runtime import Client, Cluster, ObjectKey
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_provisioner import Instance, LaunchRequest
from kaito_provisioner.sim import SimCloud, SimInstanceType

NAME = "ws"
KEY = ObjectKey("default", NAME)


class Counting:
    """A transport that notes every write, and can hold back what watches of nodes say."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.writes: list[str] = []
        self.nodes_are_told = asyncio.Event()
        self.nodes_are_told.set()

    async def send(self, request: Request) -> Response:
        if request.method != "GET":
            self.writes.append(f"{request.method} {request.path}")
        response = await self.inner.send(request)
        if request.path.endswith("/nodes") and ("watch", "true") in request.query:
            return Response(response.status, response.headers, self._held(response), close=response.aclose)
        return response

    async def _held(self, response: Response) -> AsyncIterator[bytes]:
        async for chunk in response.chunks():
            await self.nodes_are_told.wait()
            yield chunk

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class NodeMaker:
    """Nodes appear as a kubelet would register them; nothing runs on them."""

    client: Client

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        node = Node(
            metadata=ObjectMeta(name=instance.name, labels={**instance.labels, **request.labels}),
            spec=NodeSpec(provider_id=instance.provider_id, taints=request.taints),
        )
        await self.client.create(node)
        await self.ready(instance.name, "True", allocatable=dict(instance.allocatable))
        # A new node is tainted as not ready; a node lifecycle controller takes that away.
        taints = [taint.to_wire() for taint in request.taints]
        await self.client.patch(Node, ObjectKey("", instance.name), {"spec": {"taints": taints}})

    async def leave(self, instance: Instance) -> None:
        with contextlib.suppress(NotFound):
            await self.ready(instance.name, "Unknown")

    async def ready(self, name: str, word: Any, **status: Any) -> None:
        now = SystemClock().now()
        condition = Condition(type="Ready", status=word, reason="KubeletReady", last_transition_time=now)
        wire = {"status": {"conditions": [condition.to_wire()], **status}}
        await self.client.patch(Node, ObjectKey("", name), wire, subresource="status")


@dataclass
class World:
    """Everything that a test looks at."""

    server: ApiServer
    client: Client
    cloud: SimCloud
    nodes: NodeMaker
    transport: Counting

    async def until(self, check: Callable[[], Awaitable[object]], *, seconds: float = 5) -> None:
        async with asyncio.timeout(seconds):
            while not await check():
                await asyncio.sleep(0.005)

    async def quiet(self, seconds: float = 0.3) -> list[str]:
        """The writes of a while in which nothing should happen."""
        await asyncio.sleep(0.2)
        self.transport.writes.clear()
        await asyncio.sleep(seconds)
        return self.transport.writes

    async def workspace(self) -> Workspace:
        return await self.client.get(Workspace, NAME, "default")

    async def condition(self, kind: str) -> Condition | None:
        found = (await self.workspace()).status.conditions
        return next((each for each in found if each.type == kind), None)

    async def serve(self) -> None:
        """Let the Deployment's pods be ready, as its controller would say."""
        deployment = await self.client.get(Deployment, NAME, "default")
        replicas = deployment.spec.replicas
        status = {
            "observedGeneration": deployment.metadata.generation,
            "replicas": replicas,
            "readyReplicas": replicas,
            "updatedReplicas": replicas,
        }
        await self.client.patch(Deployment, KEY, {"status": status}, subresource="status")

    async def count(self, kind: type[Machine] | type[Node] | type[Deployment] | type[Service]) -> int:
        return len([each for each in await self.client.list(kind) if each.name != "kubernetes"])


def manifest(**resource: Any) -> dict[str, Any]:
    selector = {"labelSelector": {"matchLabels": {"apps": "phi-3"}}}
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": NAME, "namespace": "default"},
        "resource": {"instanceType": "Standard_NC6s_v3", **selector, **resource},
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }


@pytest.fixture
async def world() -> AsyncIterator[World]:
    rng = random.Random(3)
    server = ApiServer(clock=SystemClock(), rng=rng)
    client = Client(server.transport())
    await install_crds(client)
    nodes = NodeMaker(client)
    types = [SimInstanceType("Standard_NC6s_v3", 1), SimInstanceType("Standard_NC12s_v3", 2)]
    cloud = SimCloud(types, now=SystemClock().now, joiner=nodes, boot=0.02, shutdown=0.02)
    transport = Counting(server.transport(user="kaito-ctrl"))
    manager = build_manager(
        Cluster(transport, rng=rng), cloud, DaemonOptions(metrics_port=None, health_port=None, drain=0.5)
    )
    # No task group: a fixture's two halves run in different tasks.
    surroundings = [asyncio.ensure_future(cloud.run()), asyncio.ensure_future(GarbageCollector(server).run())]
    running = asyncio.ensure_future(manager.run())
    await manager.wait_ready()
    yield World(server, client, cloud, nodes, transport)
    manager.stop()
    await running
    for task in surroundings:
        if task.done():
            task.result()
        task.cancel()
    await asyncio.gather(*surroundings, return_exceptions=True)
    await server.aclose()
