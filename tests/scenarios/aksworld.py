"""The provisioner on AKS, in virtual time: an embedded API server, the daemon with its provisioner alone, the aks
backend with the real SDK, and the local ARM, whose machines join the cluster as nodes.

A test is a coroutine that is given the world::

    @on_aks()
    async def test_something(world: AksWorld) -> None: ...
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from kaito_api.core import Node
from kaito_api.crd import all_crds
from kaito_api.events import Event
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.meta import find_condition, is_true
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.testing import Fault, FaultyTransport, FixedPlan, Host, Network, VirtualClock, run_virtual
from kaito_provisioner.aks import AksSettings, VmSize, connect_aks
from kaito_provisioner.testing import SIZES, LocalArm, NodeJoiner
from tests.sim.life import metrics

__all__ = ["GPU", "AksWorld", "on_aks"]

GPU = "Standard_NC6s_v3"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass
class AksWorld:
    """Everything that a test looks at and may lay hands on."""

    arm: LocalArm
    user: Client
    host: Host
    kind: type[NodeRequest] = Machine

    # -- the user ------------------------------------------------------------------------------------------------

    async def ask(self, name: str, *instance_types: str) -> None:
        """Apply a claim for one node, as KAITO writes it."""
        requirements = [
            {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": list(instance_types or (GPU,))},
            {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
        ]
        spec: dict[str, Any] = {
            "requirements": requirements,
            "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
            "resources": {"requests": {"storage": "100Gi"}},
        }
        if self.kind is NodeClaim:
            spec["nodeClassRef"] = {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}
        labels = {"kaito.sh/workspace": name, "kaito.sh/workspacenamespace": "default"}
        wire = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        await self.user.create(self.kind.model_validate(wire))

    async def delete(self, name: str) -> None:
        await self.user.delete(self.kind, ObjectKey("", name))

    # -- what there is -------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return asyncio.get_running_loop().time()

    async def claims(self) -> dict[str, NodeRequest]:
        return {each.name: each for each in await self.user.list(self.kind)}

    async def ready(self) -> set[str]:
        """The claims whose nodes can be used."""
        return {name for name, each in (await self.claims()).items() if is_true(each.status.conditions, "Ready")}

    async def launched(self, name: str) -> tuple[str, str]:
        """Reason and message of how the claim's launch stands."""
        found = find_condition((await self.claims())[name].status.conditions, self.kind.launched)
        return (found.reason, found.message) if found is not None else ("", "")

    async def events(self, name: str) -> list[tuple[str, str]]:
        """Reasons and notes of what was told of the claim, in order."""
        found = [each for each in await self.user.list(Event) if each.regarding.name == name]
        return [(each.reason, each.note) for each in sorted(found, key=lambda each: str(each.event_time))]

    async def left(self) -> list[str]:
        """What should not outlive the claims."""
        found = [str(each) for kind in (self.kind, Node) for each in await self.user.list(kind)]
        return [*found, *(f"pool {each}" for each in self.arm.pools())]

    async def until(self, holds: Callable[[], Awaitable[object]], within: float, what: str = "") -> float:
        """Wait for *holds*, looking every few seconds; those that it took. Fails after *within*."""
        began = self.now
        while not await holds():
            if self.now - began > within:
                states = {name: await self.launched(name) for name in list(await self.claims())[:5]}
                raise AssertionError(f"not within {within:.0f} s: {what or 'it'}; {states}; left {await self.left()}")
            await asyncio.sleep(5)
        return self.now - began

    async def until_gone(self, within: float) -> float:
        async def nothing() -> bool:
            return not await self.left()

        return await self.until(nothing, within, "everything is gone")

    def created(self) -> int:
        """How many pools there have ever been."""
        return sum(what == "created" for _, what, _ in self.arm.history)

    def kill(self, down: float = 2.0) -> None:
        """The daemon ends without a word, and is started again after *down* seconds."""
        self.host.strike(Fault("crash-at", f"kaito@{self.now}", down))


Scenario = Callable[..., Awaitable[None]]


def on_aks(*, kind: type[NodeRequest] = Machine) -> Callable[[Scenario], Any]:
    """A test in a world of its own, whose nodes are asked for by *kind*."""

    def wrap(test: Scenario) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **options: Any) -> None:
            run_virtual(_live(lambda world: test(world, *args, **options), kind))

        signature = inspect.signature(test)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[each for name, each in signature.parameters.items() if name != "world"]
        )
        return run

    return wrap


async def _live(test: Callable[[AksWorld], Awaitable[None]], kind: type[NodeRequest]) -> None:
    clock, rng = VirtualClock(), random.Random(7)
    server = ApiServer(clock=clock, rng=rng)
    user = Client(server.transport())
    for crd in all_crds():
        await user.request("POST", _CRDS, body=crd)
    options = DaemonOptions(
        workspaces=False,
        node_api="machine" if kind is Machine else "nodeclaim",
        metrics_port=None,
        health_port=None,
        drain=1.0,
    )
    sizes = [VmSize(each.name, each.gpus) for each in SIZES.values()]
    network = Network(7, FixedPlan())
    ended, failure = asyncio.Event(), None
    async with AsyncExitStack() as stack:
        joiner = NodeJoiner(Client(server.transport(user="system:node")), clock)
        arm = await stack.enter_async_context(LocalArm(clock=clock, rng=rng, joiner=joiner))
        settings = AksSettings(
            arm.cluster.subscription, arm.cluster.resource_group, arm.cluster.name, arm.cluster.location
        )

        def daemon(host: Host, transport: FaultyTransport) -> Manager:
            cluster = Cluster(transport, clock=host.clock, rng=random.Random(transport.name), metrics=metrics())
            return build_manager(cluster, cloud, options)

        cloud = await stack.enter_async_context(
            connect_aks(
                settings, clock=clock, instance_types=sizes, credential=arm.credential(), transport=arm.transport()
            )
        )
        host = Host("kaito", network, lambda name: server.transport(user=name), daemon)
        world = AksWorld(arm, user, host, kind)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(host.run(ended))
            await asyncio.sleep(1)
            try:
                await test(world)
            except Exception as error:  # noqa: BLE001 - raised below, by itself and not as one of a group
                failure = error
            ended.set()
            await asyncio.wait((running,))
        await network.settle()
    await server.aclose()
    if failure is not None:
        raise failure
