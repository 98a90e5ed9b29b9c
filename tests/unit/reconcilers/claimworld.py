"""The machine controller alone, in virtual time: claims are put on a server as anybody would, and the simulated cloud's
machines join as nodes that are ready at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kaito_api.core import Node, NodeSpec
from kaito_api.crd import all_crds
from kaito_api.events import Event
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.meta import Condition, ObjectMeta, find_condition, is_true
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.reconcilers.machine.controller import MachineController
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import VirtualClock, run_virtual
from kaito_provisioner import Instance, LaunchRequest
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.sim.life import metrics

__all__ = ["BOOT", "A", "Alone", "B", "alone", "claim"]

A, B = "Standard_NC6s_v3", "Standard_NC12s_v3"
BOOT = 60.0
Wrap = Callable[[Callable[["Alone"], Awaitable[None]]], Callable[[], None]]
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def claim(
    kind: type[NodeRequest] = Machine,
    name: str = "ws1",
    *types: str,
    storage: str = "100Gi",
    requirements: Sequence[dict[str, Any]] = (),
    **metadata: Any,
) -> NodeRequest:
    """A claim as KAITO writes it."""
    labels = {"kaito.sh/workspace": "ws", "kaito.sh/workspacenamespace": "default"}
    spec: dict[str, Any] = {
        "requirements": [
            {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": list(types or (A,))},
            *requirements,
        ],
        "resources": {"requests": {"storage": storage}},
        "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
    }
    if kind is NodeClaim:
        spec["nodeClassRef"] = {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}
    return kind.model_validate({"metadata": {"name": name, "labels": labels, **metadata}, "spec": spec})


@dataclass
class _Noted:
    inner: Transport
    writes: list[tuple[str, str]]
    nodes_are_told: asyncio.Event

    async def send(self, request: Request) -> Response:
        if request.method != "GET" and "/events" not in request.path:
            self.writes.append((request.method, request.path))
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
class _Nodes:
    """Nodes as kubelets make them. ``join`` off: machines boot and never report."""

    client: Client
    joining: bool = True
    ready: str = "True"
    gpus: str = "1"
    silent: set[str] = field(default_factory=set)

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        if not self.joining:
            return
        labels = {**instance.labels, **instance.node_labels, **request.labels}
        node = Node(
            metadata=ObjectMeta(name=instance.name, labels=labels),
            spec=NodeSpec(provider_id=instance.provider_id, taints=request.taints),
        )
        await self.client.create(node)
        amounts = {**instance.allocatable, "nvidia.com/gpu": self.gpus}
        await self.report(instance.name, self.ready, allocatable=amounts, capacity=amounts)
        await self.client.patch(
            Node, ObjectKey("", instance.name), {"spec": {"taints": [each.to_wire() for each in request.taints]}}
        )

    async def leave(self, instance: Instance) -> None:
        with suppress(NotFound):
            await self.report(instance.name, "Unknown")

    async def report(self, name: str, ready: Any, **status: Any) -> None:
        told = Condition(type="Ready", status=ready, reason="Kubelet", last_transition_time=VirtualClock().now())
        wire = {"status": {"conditions": [told.to_wire()], **status}}
        await self.client.patch(Node, ObjectKey("", name), wire, subresource="status")


@dataclass
class Alone:
    """Everything that a test looks at and may lay hands on."""

    kind: type[NodeRequest]
    user: Client
    cloud: SimCloud
    nodes: _Nodes
    clock: VirtualClock
    """The daemon's."""
    writes: list[tuple[str, str]]
    nodes_are_told: asyncio.Event
    """Cleared, the daemon hears of no change of any node."""

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def ask(self, name: str = "ws1", *types: str, **more: Any) -> str:
        """``kubectl apply`` of a claim; its uid."""
        return (await self.user.create(claim(self.kind, name, *types, **more))).uid

    async def get(self, name: str = "ws1") -> NodeRequest:
        return await self.user.get(self.kind, name)

    async def said(self, kind: str, name: str = "ws1") -> tuple[str, str, str]:
        """Status, reason and message of a condition; all empty when there is none."""
        found = find_condition((await self.get(name)).status.conditions, kind)
        return (found.status, found.reason, found.message) if found is not None else ("", "", "")

    async def ready(self, name: str = "ws1") -> bool:
        return is_true((await self.get(name)).status.conditions, "Ready")

    async def until_ready(self, name: str = "ws1", within: float = 300.0) -> float:
        return await self.until(lambda: self.ready(name), within)

    async def until_gone(self, name: str = "ws1", within: float = 300.0) -> float:
        async def gone() -> bool:
            return name not in [each.name for each in await self.user.list(self.kind)]

        return await self.until(gone, within)

    async def until(self, holds: Callable[[], Awaitable[object]], within: float = 300.0) -> float:
        """Wait for *holds*; the seconds that it took."""
        began = self.now
        while not await holds():
            if self.now - began > within:
                told = [each.to_wire() for each in await self.user.list(self.kind)]
                raise AssertionError(f"not within {within:.0f} s; claims: {told}; cloud: {self.cloud.existing()}")
            await asyncio.sleep(0.5)
        return self.now - began

    async def events(self, name: str = "ws1") -> list[str]:
        """Reasons of what was told of the claim, sorted."""
        await asyncio.sleep(1)
        about = (self.kind.kind, name)
        found = [each for each in await self.user.list(Event) if (each.regarding.kind, each.regarding.name) == about]
        return sorted(each.reason for each in found)

    async def system_node(self) -> None:
        """A node of the cluster's own, which is ready, as every cluster has."""
        await self.user.create(Node(metadata=ObjectMeta(name="system")))
        await self.nodes.report("system", "True")


def alone(*, kinds: Sequence[type[NodeRequest]] = (Machine, NodeClaim), system: bool = True, **cloud: Any) -> Wrap:
    """A test that is run for each of *kinds*, in a world of its own whose cloud has these traits."""

    def wrap(test: Callable[[Alone], Awaitable[None]]) -> Callable[[], None]:
        # No functools.wraps: pytest would ask for the test's own parameter.
        def run() -> None:
            for kind in kinds:
                run_virtual(_live(test, kind, cloud, system=system))

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return run

    return wrap


async def _live(
    test: Callable[[Alone], Awaitable[None]], kind: type[NodeRequest], traits: dict[str, Any], *, system: bool
) -> None:
    right, daemons, rng = VirtualClock(), VirtualClock(), random.Random(7)
    server = ApiServer(clock=right, rng=rng)
    user = Client(server.transport())
    for crd in all_crds():
        await user.request("POST", _CRDS, body=crd)
    nodes = _Nodes(user)
    offered = {"types": [SimInstanceType(A, 1), SimInstanceType(B, 2)], "boot": BOOT, "shutdown": 20.0, "latency": 0.5}
    cloud = SimCloud(now=right.now, joiner=nodes, **{**offered, **traits})
    writes: list[tuple[str, str]] = []
    told = asyncio.Event()
    told.set()
    transport = _Noted(server.transport(user="kaito-ctrl"), writes, told)
    manager = Manager(Cluster(transport, clock=daemons, rng=rng, metrics=metrics()), drain=1.0)
    manager.add(MachineController(cloud, kind))
    world = Alone(kind, user, cloud, nodes, daemons, writes, told)
    if system:
        await world.system_node()
    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        running, clouds = group.create_task(manager.run()), group.create_task(cloud.run())
        await manager.wait_ready()
        try:
            await test(world)
        except Exception as error:  # noqa: BLE001 - raised below, by itself and not as one of a group
            failure = error
        manager.stop()
        await asyncio.wait((running,))
        clouds.cancel()
    await server.aclose()
    if failure is not None:
        raise failure
