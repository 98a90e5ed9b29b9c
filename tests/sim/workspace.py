"""One life of a workspace, in virtual time: applied, served, deleted, while everything that can go wrong does."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from kaito_api.apps import Deployment
from kaito_api.core import Node, NodeSpec
from kaito_api.crd import all_crds
from kaito_api.karpenter import Machine, NodeClaim
from kaito_api.meta import Condition, ObjectMeta, Resource, is_true
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.daemon import DaemonOptions, NodeApi, build_manager
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.apiserver.store import Stored
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.errors import NotFound
from kaito_ctrl.runtime.meta import collection_path
from kaito_ctrl.testing import (
    Fault,
    FaultyTransport,
    Host,
    Network,
    Recording,
    VirtualClock,
    strike_in_time,
)
from kaito_provisioner import Instance, LaunchRequest, Throttled, Unavailable
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.sim.life import Life, metrics, plan_of, within

__all__ = ["Nodes", "crds", "live"]

KEY = ObjectKey("default", "ws")
FAULTS_END = 900.0
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
"""Mean seconds between two faults of each kind."""


class Nodes:
    """Nodes appear and fall silent as their instances do."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        node = Node(
            metadata=ObjectMeta(
                name=instance.name, labels={**instance.labels, **instance.node_labels, **request.labels}
            ),
            spec=NodeSpec(provider_id=instance.provider_id, taints=request.taints),
        )
        await self._client.create(node)
        await self._say(instance, "True")
        # A new node is tainted as not ready; a node lifecycle controller takes that away.
        taints = [taint.to_wire() for taint in request.taints]
        await self._client.patch(Node, ObjectKey("", instance.name), {"spec": {"taints": taints}})

    async def leave(self, instance: Instance) -> None:
        with contextlib.suppress(NotFound):
            await self._say(instance, "Unknown")

    async def _say(self, instance: Instance, word: str) -> None:
        condition = Condition.model_validate({"type": "Ready", "status": word, "reason": "Simulated"})
        condition = condition.evolve(last_transition_time=VirtualClock().now())
        wire = {"conditions": [condition.to_wire()], "allocatable": dict(instance.allocatable)}
        await self._client.patch(Node, ObjectKey("", instance.name), {"status": wire}, subresource="status")


async def live(
    seed: int, faults: Sequence[Fault] | None = None, *, recording: Recording | None = None, delete_early: float = 0.3
) -> Life:
    """One life. Its faults are drawn from *seed*, or are *faults*, or none while *recording*."""
    rng, life, clock = random.Random(seed), Life(seed), VirtualClock()
    plan, timed = plan_of(seed, ("kaito",), TIMED_MEANS, FAULTS_END, faults, recording)
    network = Network(seed, plan, life.tape)
    server = ApiServer(clock=clock, rng=random.Random(rng.random()))
    user = Client(server.transport())
    for crd in crds():
        await user.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=crd)
    count = rng.randint(1, 3)
    node_api: NodeApi = rng.choice(("machine", "nodeclaim"))
    cloud = _cloud(rng, user, count, life)

    def program(host: Host, transport: FaultyTransport) -> Manager:
        cluster = Cluster(transport, clock=host.clock, rng=random.Random(f"{seed}|{transport.name}"), metrics=metrics())
        options = DaemonOptions(node_api=node_api, metrics_port=None, health_port=None, drain=1.0)
        return build_manager(cluster, cloud, options)

    host = Host("kaito", network, lambda user: server.transport(user=user), program)
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as world:
        running = world.create_task(host.run(ended))
        others = [
            world.create_task(work)
            for work in (
                GarbageCollector(server).run(),
                cloud.run(),
                _serve(server, user),
                strike_in_time(timed, [host]),
            )
        ]
        await user.request("POST", collection_path(Workspace, "default"), body=_manifest(count))
        if rng.random() < delete_early:
            await asyncio.sleep(rng.uniform(0, 60))
        else:
            if not await within(3 * 3600, lambda: _ready(server)):
                life.violate("a workspace becomes ready", "it is not, after 3 hours")
            await asyncio.sleep(rng.uniform(0, 600))
        with contextlib.suppress(NotFound):
            await user.delete(Workspace, KEY)
        if not await within(3 * 3600, lambda: _nothing(server, cloud)):
            life.violate("nothing outlives its workspace", "something is left 3 hours after the deletion")
        ended.set()
        await asyncio.wait((running,))
        for other in others:
            other.cancel()
    await network.settle()
    await server.aclose()
    life.seconds = clock.monotonic()
    life.faults, life.crashes = plan.faults, host.crashes
    life.struck, life.calls = network.struck, network.calls
    return life


@cache
def crds() -> tuple[dict[str, Any], ...]:
    """Made once: making them from the models takes longer than half a life."""
    return tuple(all_crds())


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
    """A cloud that refuses, shows late what it does, loses answers, and counts what it has given."""
    cloud = SimCloud(
        [SimInstanceType("Standard_NC6s_v3", 1)],
        now=VirtualClock().now,
        joiner=Nodes(user),
        boot=40.0,
        shutdown=20.0,
        latency=0.1,
        lag=rng.choice((0.0, 0.0, 3.0, 20.0, 50.0)),
        provider_ids=rng.choice(("at once", "when running", "never")),
        operations=rng.random() < 0.5,
    )
    inner = cloud.create

    async def create(request: LaunchRequest) -> Instance:
        instance = await inner(request)
        alive = [each for each in cloud.existing() if each.state != "Deleting"]
        life.most_instances = max(life.most_instances, len(alive))
        if len(alive) > count:
            # Noted, not raised: this is called by a controller, which would take it for a failure of the cloud.
            life.violate(
                "never an instance too many",
                f"{len(alive)} instances for a workspace of {count}: {[each.name for each in alive]}",
            )
        if rng.random() < 0.1:
            raise Unavailable("the answer was lost", retry_after=1.0)
        return instance

    cloud.create = create  # type: ignore[method-assign]
    cloud.fault = lambda call, _: (
        Throttled("slow down", retry_after=2.0) if call != "list" and rng.random() < 0.05 else None
    )
    return cloud


async def _serve(server: ApiServer, user: Client) -> None:
    """Deployments become ready a while after they are made."""
    while True:
        await asyncio.sleep(5)
        for stored in _all(server, Deployment):
            deployment = Deployment.model_validate(stored.obj)
            if not deployment.deleting and deployment.status.ready_replicas != deployment.spec.replicas:
                replicas = deployment.spec.replicas
                status = {
                    "observedGeneration": deployment.metadata.generation,
                    "readyReplicas": replicas,
                    "updatedReplicas": replicas,
                }
                key = ObjectKey("default", deployment.name)
                with contextlib.suppress(NotFound):
                    await user.patch(Deployment, key, {"status": status}, subresource="status")


def _all(server: ApiServer, kind: type[Resource]) -> list[Stored]:
    resource = server.backend.registry.find(kind.group, kind.version, kind.plural)
    assert resource is not None
    return list(server.backend.bucket(resource).items.values())


async def _ready(server: ApiServer) -> bool:
    found = [Workspace.model_validate(stored.obj) for stored in _all(server, Workspace)]
    return any(is_true(each.status.conditions, "WorkspaceReady") for each in found)


async def _nothing(server: ApiServer, cloud: SimCloud) -> bool:
    kinds: tuple[type[Resource], ...] = (Workspace, Machine, NodeClaim, Node, Deployment)
    return not any(_all(server, kind) for kind in kinds) and not cloud.existing()
