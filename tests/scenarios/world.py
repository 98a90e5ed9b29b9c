"""What a scenario plays in: kaito-ctrl on a whole embedded cluster with a simulated cloud, in virtual time.

Everything but the cloud and the kubelet is the real thing: the API server, its garbage collector, the workload
controllers, the scheduler, the node life cycle, and the daemon behind a network with latency, as a process that can be
killed. A test is a coroutine that is given the world::

    @scenario()
    async def test_something(world: World) -> None: ...
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kaito_api.apps import ControllerRevision, Deployment, StatefulSet
from kaito_api.core import Node, Pod, Service
from kaito_api.crd import all_crds
from kaito_api.events import Event
from kaito_api.karpenter import NODE_REQUESTS, Machine, NodeClaim, NodeRequest
from kaito_api.meta import Resource, find_condition, is_true
from kaito_api.workspace import StageStatus, Workspace
from kaito_ctrl.cli.daemon import DaemonOptions, NodeApi, build_manager
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.deployment import DeploymentController
from kaito_ctrl.devcluster.endpoints import EndpointsController
from kaito_ctrl.devcluster.nodelifecycle import NodeLifecycle
from kaito_ctrl.devcluster.replicaset import ReplicaSetController
from kaito_ctrl.devcluster.scheduler import Scheduler
from kaito_ctrl.devcluster.statefulset import StatefulSetController
from kaito_ctrl.reconcilers.workspace.stages import current_stage
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.meta import object_path
from kaito_ctrl.runtime.store import Change
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import Fault, FaultyTransport, FixedPlan, Host, Network, VirtualClock, run_virtual
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.scenarios.kubelet import SimKubelet
from tests.sim.life import metrics

__all__ = ["BOOT", "SHUTDOWN", "World", "manifest", "scenario"]

R = TypeVar("R", bound=Resource)
BOOT, SHUTDOWN = 60.0, 20.0
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_TYPES = ("Standard_NC6s_v3", "Standard_NC12s_v3", "Standard_NC96ads_A100_v4")
_GPUS = {"Standard_NC6s_v3": 1, "Standard_NC12s_v3": 2, "Standard_NC96ads_A100_v4": 4}


def manifest(name: str = "ws", *, app: str = "", inference: Any = None, **resource: Any) -> dict[str, Any]:
    """A Workspace as a user writes it; by default KAITO's first example."""
    selector = {"labelSelector": {"matchLabels": {"apps": app or f"falcon-7b-{name}"}}}
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name, "namespace": "default"},
        "resource": {"instanceType": "Standard_NC12s_v3", **selector, **resource},
        "inference": inference or {"preset": {"name": "falcon-7b"}},
    }


@dataclass(frozen=True, slots=True)
class Write:
    """One write of the daemon."""

    at: float
    verb: str
    path: str

    @property
    def is_event(self) -> bool:
        return "/events" in self.path

    def __str__(self) -> str:
        return f"{self.at:.2f} {self.verb} {self.path}"


@dataclass
class Journal:
    """A transport that notes the daemon's writes."""

    inner: Transport
    writes: list[Write]

    async def send(self, request: Request) -> Response:
        if request.method != "GET":
            self.writes.append(Write(asyncio.get_running_loop().time(), request.method, request.path))
        return await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass
class World:
    """Everything that a test looks at and may lay hands on."""

    server: ApiServer
    user: Client
    cloud: SimCloud
    kubelet: SimKubelet
    host: Host
    writes: list[Write]
    claims: type[NodeRequest] = Machine
    """The kind that nodes are asked for by."""
    machines: dict[str, str] = field(default_factory=dict)
    """Every claim that there ever was: uid to name."""
    seen: list[tuple[float, Workspace]] = field(default_factory=list)
    """Every version of every Workspace, and when it came."""

    # -- the user ------------------------------------------------------------------------------------------------

    async def apply(self, raw: Mapping[str, Any]) -> None:
        """``kubectl apply``."""
        metadata = raw["metadata"]
        path = object_path(Workspace, ObjectKey(metadata["namespace"], metadata["name"]))
        await self.user.request(
            "PATCH",
            path,
            query=(("fieldManager", "kubectl"), ("force", "true")),
            body=raw,
            headers={"content-type": "application/apply-patch+yaml"},
        )

    async def edit(self, kind: type[Resource], name: str, patch: Mapping[str, Any]) -> None:
        """``kubectl patch``."""
        namespace = "default" if kind.namespaced else ""
        await self.user.patch(kind, ObjectKey(namespace, name), patch)

    async def delete(self, kind: type[Resource], name: str, **options: Any) -> None:
        """``kubectl delete --wait=false``."""
        namespace = "default" if kind.namespaced else ""
        await self.user.delete(kind, ObjectKey(namespace, name), **options)

    async def columns(self, name: str = "ws", *, wide: bool = False) -> dict[str, str]:
        """What ``kubectl get workspace`` prints, or ``-o wide``."""
        path = object_path(Workspace, ObjectKey("default", name))
        table = json.loads(await self.user.request("GET", path, headers={"accept": _TABLE}))
        heads = [each["name"].upper() for each in table["columnDefinitions"] if wide or not each.get("priority")]
        cells = [str(cell or "") for cell in table["rows"][0]["cells"]]
        return dict(zip(heads, cells, strict=False))

    # -- what there is -------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return asyncio.get_running_loop().time()

    async def get(self, kind: type[R], name: str = "ws") -> R:
        return await self.user.get(kind, name, "default" if kind.namespaced else "")

    async def find(self, kind: type[R], name: str = "ws") -> R | None:
        with suppress(NotFound):
            return await self.get(kind, name)
        return None

    async def ready(self, name: str = "ws") -> bool:
        found = await self.find(Workspace, name)
        return found is not None and is_true(found.status.conditions, "WorkspaceReady")

    async def said(self, kind: str, name: str = "ws") -> tuple[str, str, str]:
        """Status, reason and message of a condition; all empty when there is none."""
        found = find_condition((await self.get(Workspace, name)).status.conditions, kind)
        return (found.status, found.reason, found.message) if found is not None else ("", "", "")

    async def stage(self, name: str = "ws") -> StageStatus | None:
        """The first stage that is not done."""
        return current_stage((await self.get(Workspace, name)).status.stages)

    async def cause(self, name: str = "ws") -> tuple[str, str, str]:
        """Stage, state and cause of where it stands."""
        found = await self.stage(name)
        if found is None:
            return ("", "Done", "")
        return (found.name, found.state, found.last_error.code if found.last_error is not None else "")

    async def events(self, name: str = "ws") -> list[str]:
        """Reasons of what was told of the workspace, in order."""
        await asyncio.sleep(1)
        about = ("Workspace", name)
        found = [each for each in await self.user.list(Event) if (each.regarding.kind, each.regarding.name) == about]
        return [each.reason for each in sorted(found, key=lambda each: str(each.event_time))]

    async def left(self) -> list[str]:
        """Everything that should not outlive the workspaces."""
        kinds: tuple[type[Resource], ...] = (
            *(Workspace, Machine, NodeClaim, Node, Pod, Deployment, StatefulSet, Service, ControllerRevision),
        )
        found = [str(each) for kind in kinds for each in await self.user.list(kind)]
        found += [f"instance {each.name}" for each in await self.cloud.list()]
        return [each for each in found if each != "Service default/kubernetes"]

    # -- time ----------------------------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], Awaitable[object]], within: float, what: str = "") -> float:
        """Wait for *holds*, looking every tenth of a second; the seconds that it took. Fails after *within*."""
        began = self.now
        while not await holds():
            if self.now - began > within:
                raise AssertionError(f"not within {within:.0f} s: {what or 'it'}; {await self.picture()}")
            await asyncio.sleep(0.1)
        return self.now - began

    async def until_ready(self, name: str = "ws", within: float = 600.0) -> float:
        return await self.until(lambda: self.ready(name), within, f"{name} is ready")

    async def until_stage(self, wanted: str, within: float = 600.0, name: str = "ws") -> None:
        async def there() -> bool:
            found = await self.stage(name)
            return found is not None and found.name == wanted

        await self.until(there, within, f"stage {wanted}")

    async def until_gone(self, within: float) -> float:
        """Nothing is left, in the cluster and in the cloud."""

        async def nothing() -> bool:
            return not await self.left()

        return await self.until(nothing, within, "everything is gone")

    async def quiet(self, seconds: float) -> list[str]:
        """What the daemon writes, apart from events, in that time."""
        began = self.now
        await asyncio.sleep(seconds)
        return [str(each) for each in self.writes if each.at > began and not each.is_event]

    async def settled(self) -> None:
        """Nothing is written in a quiet hour, in which the kubelets go on reporting."""
        await asyncio.sleep(5)
        assert await self.quiet(3600) == []

    async def picture(self) -> str:
        """For a failed expectation: where everything stands."""
        lines = [f"left: {await self.left()}"]
        for ws in await self.user.list(Workspace):
            stage = current_stage(ws.status.stages)
            lines.append(f"{ws.name}: {stage}; deleting {ws.deleting}, finalizers {ws.metadata.finalizers}")
            lines += [f"  {each.type}={each.status} {each.reason}: {each.message}" for each in ws.status.conditions]
        lines += [f"last writes: {[str(each) for each in self.writes[-8:]]}"]
        return "\n".join(lines)

    # -- the daemon ----------------------------------------------------------------------------------------------

    def kill(self, down: float = 2.0) -> None:
        """The daemon ends without a word, and is started again after *down* seconds."""
        self.host.strike(Fault("crash-at", f"kaito@{self.now}", down))


Scenario = Callable[..., Awaitable[None]]


def scenario(
    *,
    types: Sequence[str] = _TYPES,
    quota: int = 1000,
    latency: float = 1.0,
    node_api: NodeApi = "machine",
    provisioner: bool = True,
) -> Callable[[Scenario], Any]:
    """A test in a world of its own: *types* are the instance types on offer, *latency* the seconds of a cloud call.
    Without a *provisioner* of ours, whoever serves claims is up to the test."""

    def wrap(test: Scenario) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **options: Any) -> None:
            run_virtual(
                _live(lambda world: test(world, *args, **options), types, quota, latency, node_api, provisioner)
            )

        signature = inspect.signature(test)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[each for name, each in signature.parameters.items() if name != "world"]
        )
        return run

    return wrap


async def _live(
    test: Callable[[World], Awaitable[None]],
    types: Sequence[str],
    quota: int,
    latency: float,
    node_api: NodeApi,
    provisioner: bool,
) -> None:
    clock, rng = VirtualClock(), random.Random(7)
    server = ApiServer(clock=clock, rng=rng)
    user = Client(server.transport())
    for crd in _crds():
        await user.request("POST", _CRDS, body=crd)
    around = Cluster(server.transport(user="system:kube-controller-manager"), clock=clock, rng=rng, metrics=metrics())
    kubelet = SimKubelet(around, Client(server.transport(user="system:node")))
    offered = [SimInstanceType(name, _GPUS[name], cpu="24", memory="448Gi", quota=quota) for name in types]
    cloud = SimCloud(offered, now=clock.now, joiner=kubelet, boot=BOOT, shutdown=SHUTDOWN, latency=latency)
    writes: list[Write] = []
    network = Network(7, FixedPlan())

    def daemon(host: Host, transport: FaultyTransport) -> Manager:
        cluster = Cluster(transport, clock=host.clock, rng=random.Random(transport.name), metrics=metrics())
        options = DaemonOptions(node_api=node_api, metrics_port=None, health_port=None, drain=1.0)
        return build_manager(cluster, cloud if provisioner else None, options)

    host = Host("kaito", network, lambda name: Journal(server.transport(user=name), writes), daemon)
    claims = NODE_REQUESTS[node_api]
    world = World(server, user, cloud, kubelet, host, writes, claims)
    around.cache.declare(claims)
    around.cache.declare(Workspace)
    builtin = _builtin(around)
    ended, failure = asyncio.Event(), None
    async with asyncio.TaskGroup() as group:
        background = [
            group.create_task(work)
            for work in (GarbageCollector(server).run(), cloud.run(), kubelet.run(), builtin.run())
        ]
        await builtin.wait_ready()
        around.cache.store(claims).listen(functools.partial(_note_claim, world))
        around.cache.store(Workspace).listen(functools.partial(_note_workspace, world))
        running = group.create_task(host.run(ended))
        await asyncio.sleep(1)
        try:
            await test(world)
        except Exception as error:  # noqa: BLE001 - raised below, by itself and not as one of a group
            failure = error
        ended.set()
        await asyncio.wait((running,))
        builtin.stop()
        await asyncio.wait((background.pop(),))
        for task in background:
            task.cancel()
    await network.settle()
    await server.aclose()
    if failure is not None:
        raise failure


@functools.cache
def _crds() -> tuple[dict[str, Any], ...]:
    return tuple(all_crds())


def _builtin(cluster: Cluster) -> Manager:
    manager = Manager(cluster, drain=1.0)
    for controller in (
        DeploymentController(),
        ReplicaSetController(),
        StatefulSetController(),
        EndpointsController(),
        NodeLifecycle(),
        Scheduler(),
    ):
        manager.add(controller)
    return manager


def _note_claim(world: World, change: Change[NodeRequest]) -> None:
    if change.new is not None:
        world.machines.setdefault(change.new.header.uid, change.key.name)


def _note_workspace(world: World, change: Change[Workspace]) -> None:
    if change.new is not None:
        world.seen.append((asyncio.get_running_loop().time(), change.new.view()))
