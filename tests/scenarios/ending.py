"""A claim with an instance, a node and pods, and the controller that ends it: in virtual time, on the embedded server.

The API server, the node life cycle, the workload-free parts of a kubelet and the runtime are the real things; the
cloud is simulated. The controller runs behind a network with latency, as a process that can be killed. What launches
claims plays no part: the test does that by hand::

    @ending()
    async def test_something(scene: Scene) -> None: ...
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kaito_api.core import Node, Pod
from kaito_api.crd import all_crds
from kaito_api.events import Event
from kaito_api.karpenter import TERMINATION_FINALIZER, NodeClaim, NodeRequest
from kaito_api.meta import Condition, Resource, find_condition, is_true
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.nodelifecycle import NodeLifecycle
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.reconcilers.machine.termination import Termination
from kaito_ctrl.runtime import Client, Cluster, Context, Controller, Manager, ObjectKey, Reader, Result, key_of, watches
from kaito_ctrl.runtime.codec import Header
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import Fault, FaultyTransport, FixedPlan, Host, Network, Plan, VirtualClock, run_virtual
from kaito_provisioner import ClaimRef, Instance, LaunchRequest
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.scenarios.kubelet import Conduct, SimKubelet
from tests.sim.life import metrics, silence

__all__ = ["BOOT", "NAME", "SHUTDOWN", "Ender", "Scene", "Step", "ending", "play"]

R = TypeVar("R", bound=Resource)
NAME = "ws1"
BOOT, SHUTDOWN = 10.0, 20.0
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_MERGE = {"content-type": "application/merge-patch+json"}


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done: a write of the controller, or one of its calls to the cloud."""

    at: float
    verb: str
    what: str
    body: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    """The pods and instances that there were at that moment."""

    def __str__(self) -> str:
        return f"{self.verb} {self.what}"


@dataclass
class _Journal:
    """Notes the controller's writes; *answer* may answer in the server's place."""

    inner: Transport
    scene: Scene

    async def send(self, request: Request) -> Response:
        if request.method != "GET" and "/events" not in request.path:
            body = json.loads(request.body) if request.body else {}
            _, _, what = request.path.partition("/v1alpha5/" if "/v1alpha5/" in request.path else "/v1/")
            await self.scene.note(request.method, what, body)
        answer = self.scene.answer(request) if self.scene.answer is not None else None
        if answer is not None:
            return answer
        return await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


class _JournalledCloud:
    """Notes the controller's calls that change something."""

    def __init__(self, cloud: SimCloud, scene: Scene) -> None:
        self._cloud = cloud
        self._scene = scene

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cloud, name)

    async def find(self, claim: ClaimRef) -> Instance:
        self._scene.asked.append((self._scene.now, claim))
        return await self._cloud.find(claim)

    async def delete(self, instance: Instance) -> Instance:
        await self._scene.note("CLOUD", f"delete {instance.name}")
        return await self._cloud.delete(instance)


class Ender(Controller[NodeRequest]):
    """Nothing but the end of claims."""

    name = "machine"
    finalizer = TERMINATION_FINALIZER
    workers = 8

    def __init__(self, cloud: Any, kind: type[NodeRequest], figures: ClaimMetrics) -> None:
        self.kind = kind
        self._termination = Termination(cloud, figures)
        self.sources = (
            watches(Node, self._claims_of, indexes={"providerID": lambda node: _indexed(node.spec.provider_id)}),
        )
        self.indexes = {"providerID": lambda claim: _indexed(claim.status.provider_id)}

    def _claims_of(self, node: Node, cache: Reader) -> Iterable[ObjectKey]:
        if not node.spec.provider_id:
            return ()
        return (key_of(each) for each in cache.list(self.kind, index=("providerID", node.spec.provider_id)))

    async def reconcile(self, obj: NodeRequest, ctx: Context) -> Result:
        return Result.done()

    async def cleanup(self, obj: NodeRequest, ctx: Context) -> Result:
        return await self._termination.run(obj, ctx)

    async def abandon(self, header: Header, ctx: Context) -> Result:
        return await self._termination.abandon(self.kind, ctx)


def _indexed(value: str) -> tuple[str, ...]:
    return (value,) if value else ()


@dataclass
class Scene:
    """Everything that a test looks at and may lay hands on."""

    server: ApiServer
    user: Client
    cloud: SimCloud
    kubelet: SimKubelet
    kind: type[NodeRequest]
    figures: ClaimMetrics
    host: Host = field(init=False)
    steps: list[Step] = field(default_factory=list)
    asked: list[tuple[float, ClaimRef]] = field(default_factory=list)
    """The looks into the cloud."""
    answer: Callable[[Request], Response | None] | None = None
    """What the API server's place answers to the controller, if it does."""

    async def note(self, verb: str, what: str, body: Mapping[str, Any] | None = None) -> None:
        """The controller does something."""
        pods = [each.name for each in await self.user.list(Pod)]
        instances = [each.name for each in self.cloud.existing()]
        self.steps.append(Step(self.now, verb, what, body or {}, (*pods, *instances)))

    # -- what there is to end ------------------------------------------------------------------------------------

    async def claim(self, name: str = NAME, **metadata: Any) -> NodeRequest:
        """A claim as it is before anything was launched for it."""
        spec: dict[str, Any] = {"requirements": []}
        if self.kind is NodeClaim:
            spec["nodeClassRef"] = {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}
        spec |= metadata.pop("spec", {})
        meta = {"name": name, "finalizers": [TERMINATION_FINALIZER], "labels": {"kaito.sh/workspace": "ws"}, **metadata}
        return await self.user.create(self.kind.model_validate({"metadata": meta, "spec": spec}))

    async def launch(self, claim: NodeRequest, *, persist: bool = True) -> Instance:
        """An instance for it; unless *persist*, nothing of it is written down."""
        request = LaunchRequest(claim.name, claim.uid, ("small",), kind=claim.kind)
        instance = await self.cloud.create(request)
        if persist and instance.provider_id:
            condition = Condition(type=claim.launched, status="True", reason="Launched", last_transition_time=self.wall)
            status = {"providerID": instance.provider_id, "conditions": [condition.to_wire()]}
            await self.user.patch(self.kind, key_of(claim), {"status": status}, subresource="status")
        return instance

    async def up(self, name: str = NAME, **metadata: Any) -> NodeRequest:
        """A claim whose node has joined, is Ready and has registered."""
        claim = await self.claim(name, **metadata)
        await self.launch(claim)
        await self.until(lambda: self.node_is(name, "True"), BOOT + 20.0, "its node is ready")
        owner = claim.owner_reference(controller=False).to_wire()
        patch = {"metadata": {"finalizers": [TERMINATION_FINALIZER], "ownerReferences": [owner]}}
        await self.user.patch(Node, ObjectKey("", name), patch)
        return claim

    async def pod(self, name: str, *, node: str = NAME, metadata: Any = None, **spec: Any) -> None:
        """A pod that runs on *node*."""
        meta = {"name": name, "labels": {"app": name}, **(metadata or {})}
        full = {"nodeName": node, "containers": [{"name": "c", "image": "i"}], **spec}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": full}
        await self.user.request("POST", "/api/v1/namespaces/default/pods", body=body)

        async def runs() -> bool:
            return is_true((await self.user.get(Pod, name, "default")).status.conditions, "Ready")

        await self.until(runs, 5.0, f"pod {name} runs")

    async def finish(self, name: str) -> None:
        """That pod ends by itself."""
        status = {"status": {"phase": "Succeeded"}}
        await self.user.patch(Pod, ObjectKey("default", name), status, subresource="status")

    async def budget(self, app: str, allowed: int) -> None:
        """A disruption budget for the pods of *app*, and what its controller would say of it."""
        path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
        with suppress(NotFound):
            await self.user.request("GET", f"{path}/{app}")
            await self._allow(f"{path}/{app}/status", allowed)
            return
        selector = {"matchLabels": {"app": app}}
        budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": app}}
        await self.user.request("POST", path, body={**budget, "spec": {"minAvailable": 1, "selector": selector}})
        await self._allow(f"{path}/{app}/status", allowed)

    async def _allow(self, path: str, allowed: int) -> None:
        await self.user.request("PATCH", path, body={"status": {"disruptionsAllowed": allowed}}, headers=_MERGE)

    async def delete(self, name: str = NAME) -> None:
        """``kubectl delete --wait=false``."""
        await self.user.delete(self.kind, ObjectKey("", name))

    def kill(self, down: float = 2.0) -> None:
        """The controller's process ends without a word, and is started again after *down* seconds."""
        self.host.strike(Fault("crash-at", f"machine@{self.now}", down))

    # -- what there is -------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return asyncio.get_running_loop().time()

    @property
    def wall(self) -> Any:
        """What the controller's clock says."""
        return self.host.clock.now().replace(microsecond=0)

    async def find(self, kind: type[R], name: str = NAME) -> R | None:
        with suppress(NotFound):
            return await self.user.get(kind, name, "default" if kind.namespaced else "")
        return None

    async def node_is(self, name: str, ready: str) -> bool:
        node = await self.find(Node, name)
        found = find_condition(node.status.conditions, "Ready") if node is not None else None
        return found is not None and found.status == ready

    async def said(self, kind: str, name: str = NAME) -> tuple[str, str, str]:
        """Status, reason and message of a condition of the claim; all empty when there is none."""
        claim = await self.find(self.kind, name)
        found = find_condition(claim.status.conditions, kind) if claim is not None else None
        return (found.status, found.reason, found.message) if found is not None else ("", "", "")

    async def events(self, reason: str) -> list[Event]:
        """What was told under that reason."""
        await asyncio.sleep(1)
        return [each for each in await self.user.list(Event) if each.reason == reason]

    async def pods(self) -> list[str]:
        """The pods that are there and not on their way out."""
        return sorted(each.name for each in await self.user.list(Pod) if not each.deleting)

    async def gone(self) -> bool:
        """Nothing is left, in the cluster and in the cloud."""
        kinds: tuple[type[Resource], ...] = (self.kind, Node)
        return not self.cloud.existing() and not [each for kind in kinds for each in await self.user.list(kind)]

    async def until(self, holds: Callable[[], Awaitable[object]], within: float, what: str = "") -> float:
        """Wait for *holds*, looking every tenth of a second; the seconds that it took. Fails after *within*."""
        began = self.now
        while not await holds():
            if self.now - began > within:
                raise AssertionError(f"not within {within:.0f} s: {what or 'it'}; {await self._picture()}")
            await asyncio.sleep(0.1)
        return self.now - began

    async def until_gone(self, within: float) -> float:
        return await self.until(self.gone, within, "everything is gone")

    def did(self, since: float = 0.0) -> list[str]:
        """The controller's steps, each time something else: repetitions in a row are left out."""
        said = [str(each) for each in self.steps if each.at >= since]
        return [each for index, each in enumerate(said) if index == 0 or said[index - 1] != each]

    async def _picture(self) -> str:
        left = [*await self.user.list(self.kind), *await self.user.list(Node), *await self.user.list(Pod)]
        claims = [each.status.conditions for each in await self.user.list(self.kind)]
        return f"left: {[str(each) for each in left]} {self.cloud.existing()}; {claims}; {self.did()[-12:]}"


Test = Callable[..., Awaitable[None]]


def ending(**options: Any) -> Callable[[Test], Any]:
    """A test in a scene of its own; *options* as for :func:`play`, or else parameters of the test: ``kind``,
    ``plan``."""

    def wrap(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **given: Any) -> None:
            chosen = {name: given[name] for name in ("kind",) if name in given}
            play(lambda scene: test(scene, *args, **given), **{**options, **chosen})

        signature = inspect.signature(test)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[each for name, each in signature.parameters.items() if name != "scene"]
        )
        return run

    return wrap


def play(
    test: Callable[[Scene], Awaitable[None]],
    *,
    kind: type[NodeRequest] = NodeClaim,
    plan: Plan | None = None,
    **cloud: Any,
) -> None:
    """Run *test* in a scene: claims are of *kind*, *plan* says what goes wrong on the controller's way to the server,
    and *cloud* are options of the simulated cloud."""
    silence()
    run_virtual(_live(test, kind, plan or FixedPlan(), {"boot": BOOT, "shutdown": SHUTDOWN, "latency": 0.1, **cloud}))


async def _live(
    test: Callable[[Scene], Awaitable[None]], kind: type[NodeRequest], plan: Plan, options: dict[str, Any]
) -> None:
    clock, rng = VirtualClock(), random.Random(7)
    server = ApiServer(clock=clock, rng=rng)
    user = Client(server.transport())
    for crd in _crds():
        await user.request("POST", _CRDS, body=crd)
    around = Cluster(server.transport(user="system:kube-controller-manager"), clock=clock, rng=rng, metrics=metrics())
    kubelet = SimKubelet(around, Client(server.transport(user="system:node")))
    kubelet.conduct = lambda _: Conduct(pull=0.1, load=0.1)
    cloud = SimCloud([SimInstanceType("small", 1, quota=1000)], now=clock.now, joiner=kubelet, **options)
    scene = Scene(server, user, cloud, kubelet, kind, ClaimMetrics(kind))

    def daemon(host: Host, transport: FaultyTransport) -> Manager:
        cluster = Cluster(transport, clock=host.clock, rng=random.Random(transport.name), metrics=metrics())
        manager = Manager(cluster, drain=1.0)
        manager.add(Ender(_JournalledCloud(cloud, scene), kind, scene.figures))
        return manager

    network = Network(7, plan)
    scene.host = Host("machine", network, lambda name: _Journal(server.transport(user=name), scene), daemon)
    builtin = Manager(around, drain=1.0)
    builtin.add(NodeLifecycle())
    ended, failure = asyncio.Event(), None
    async with asyncio.TaskGroup() as group:
        background = [group.create_task(work) for work in (cloud.run(), kubelet.run(), builtin.run())]
        await builtin.wait_ready()
        running = group.create_task(scene.host.run(ended))
        await asyncio.sleep(1)
        try:
            await test(scene)
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
