"""The provisioner, killed with SIGKILL at each step of making a node and of taking it away.

A step is a write to the API server that is no event, or a request to Azure that is for no token. It is held before it
has had its effect, or before its answer has arrived; the daemon is killed; another one, that remembers nothing, finds
what is there. The API server is a real one, the daemon ``kaito-ctrl run --provisioner aks``, and Azure the local one,
which lives on. ``python -m tests.real.kills`` tries every step and says what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from kaito_api.core import Node
from kaito_api.crd import all_crds
from kaito_api.karpenter import NODE_REQUESTS, NodeRequest
from kaito_api.meta import is_true
from kaito_ctrl.runtime import Client, Manager, ObjectKey
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.testing.envtest import Environment, envtest
from kaito_provisioner.testing import NodeJoiner, Timings
from tests.real.gates import Gate, GatedArm, Trap, gated_api

__all__ = ["Kill", "World", "changes_of_mind", "rounds", "world_on"]

SIZE = "Standard_NC24ads_A100_v4"
TIMINGS = Timings(
    allocation=0.1, boot=0.2, provider_id=0.1, device_plugin=0.1, create=0.6, delete=0.4, node_removal=0.1
)
_PATIENCE = 100.0
_LATE = 10.0


@dataclass(frozen=True, slots=True)
class Kill:
    """At which step the daemon was killed; ``after`` its effect or before. Empty: there was no such step."""

    doing: str
    nth: int
    after: bool
    step: str

    def __str__(self) -> str:
        verb, _, path = self.step.partition(" ")
        where = path.partition("/managedClusters")
        step = f"{verb} {where[1] + where[2] or path}" if path else "nothing: it has no more steps"
        return f"{self.doing} {self.nth:3} {'after ' if self.after else 'before'} {step}"


@dataclass
class World:
    """A cluster, a cloud, and a daemon that is killed."""

    client: Client
    arm: GatedArm
    gate: Gate
    kind: type[NodeRequest]
    command: list[str]
    environment: dict[str, str]
    log: Path
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    made: int = 0
    """Claims that there have been."""
    daemons: int = 0
    """Daemons that have been started."""
    _spare: asyncio.subprocess.Process | None = None
    _daemon: asyncio.subprocess.Process | None = None

    # -- the daemon ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start a daemon, and have another one load its modules."""
        self._daemon = self._spare or await self._load()
        assert self._daemon.stdin is not None
        self._daemon.stdin.write(b"go\n")
        self.daemons += 1
        self._spare = await self._load()

    async def kill(self) -> None:
        """Kill it where it stands."""
        assert self._daemon is not None
        if self._daemon.returncode is not None:
            raise AssertionError(f"the daemon has ended by itself:\n{self.log.read_text()[-4000:]}")
        self._daemon.kill()
        await self._daemon.wait()

    async def end(self) -> None:
        for process in (self._daemon, self._spare):
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()

    async def _load(self) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self.command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, env=self.environment
            )

    # -- one claim -----------------------------------------------------------------------------------------------

    async def create(self, trap: Trap) -> str:
        """Ask for a node; its claim's name, once the node is there, whoever was killed meanwhile."""
        self.made += 1
        name = f"ws{self.made}"
        self.gate.set(trap)
        await self.client.create(self._claim(name))
        await self._outlive(trap, lambda: self._is_initialized(name))
        return name

    async def delete(self, name: str, trap: Trap) -> None:
        """Take it away again, whoever is killed meanwhile."""
        self.gate.set(trap)
        await self.client.delete(self.kind, ObjectKey("", name))
        await self._outlive(trap, lambda: self._is_gone(name))

    async def give_up(self, trap: Trap) -> str:
        """Ask for a node, and no longer once the daemon has been killed; its claim's name, once nothing is left of it.

        What was on its way when it was killed arrives late: when the next daemon has worked for ten seconds, or thinks
        that it is done.
        """
        self.made += 1
        name = f"ws{self.made}"
        self.gate.set(trap)
        await self.client.create(self._claim(name))
        await self._within(trap, self._first(trap.sprung, lambda: self._is_initialized(name)))
        self.gate.set(None)
        if trap.sprung.is_set():
            await self.kill()
        await self.client.delete(self.kind, ObjectKey("", name))
        if trap.sprung.is_set():
            await self.start()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LATE):
                    await self._until(lambda: self._is_gone(name))
            trap.arrive()
            await trap.arrived.wait()
        await self._within(trap, self._until(lambda: self._is_gone(name)))
        return name

    async def check_made(self, name: str) -> None:
        """One pool, one machine, one node: all of them this claim's."""
        claim = await self.client.get(self.kind, name)
        assert [*self.arm.pools()] == [name], f"{name} has pools {[*self.arm.pools()]}"
        assert claim.uid in self.arm.pools()[name].tags.values()
        assert [vm.provider_id for vm in self.arm.vms()] == [claim.status.provider_id]
        nodes = await self.client.list(Node, labels={"agentpool": name})
        assert [each.spec.provider_id for each in nodes] == [claim.status.provider_id]
        made = [pool for _, what, pool in self.arm.history if what == "created" and pool == name]
        assert made == [name], f"pool {name} was made {len(made)} times"

    async def check_gone(self, name: str) -> None:
        """Nothing is left that costs money, or that stands in the way."""
        assert self.arm.pools() == {}, f"left of {name}: {[*self.arm.pools()]}"
        assert self.arm.vms() == []
        assert [each.name for each in await self.client.list(Node, labels={"agentpool": name})] == []
        history = [what for _, what, pool in self.arm.history if pool == name]
        assert history in ([], ["created", "deleted"]), history

    async def _outlive(self, trap: Trap, done: Callable[[], Awaitable[bool]]) -> None:
        await self._within(trap, self._first(trap.sprung, done))
        self.gate.set(None)
        if trap.sprung.is_set():
            await self.kill()
            trap.lose()
            await self.start()
            await self._within(trap, self._until(done))

    async def _first(self, event: asyncio.Event, done: Callable[[], Awaitable[bool]]) -> None:
        """Until the *event*, or until it is *done* without."""

        async def happens() -> None:
            await event.wait()

        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(each) for each in (self._until(done), happens())}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _within(self, trap: Trap, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await work
        except TimeoutError:
            raise AssertionError(
                f"not done within {_PATIENCE:.0f} s of {trap.what or 'no kill'}; the last requests:\n  "
                + "\n  ".join(self.gate.passed[-15:])
                + f"\nthe daemon's log ends:\n{self.log.read_text()[-6000:]}"
            ) from None

    async def _until(self, done: Callable[[], Awaitable[bool]]) -> None:
        while True:
            self.changed.clear()
            if await done():
                return
            await self.changed.wait()

    async def _is_initialized(self, name: str) -> bool:
        claim = await self.client.get(self.kind, name)
        return is_true(claim.status.conditions, self.kind.initialized)

    async def _is_gone(self, name: str) -> bool:
        nodes = await self.client.list(Node, labels={"agentpool": name})
        return not nodes and all(each.name != name for each in await self.client.list(self.kind))

    def _claim(self, name: str) -> NodeRequest:
        requirement = {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": [SIZE]}
        spec = {"requirements": [requirement], "resources": {"requests": {"storage": "128Gi"}}}
        reference = {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"}
        return self.kind.model_validate(
            {
                "metadata": {"name": name, "labels": {"kaito.sh/workspace": name}},
                "spec": {**spec, **({"nodeClassRef": reference} if self.kind.kind == "NodeClaim" else {})},
            }
        )


@asynccontextmanager
async def world_on(api: Environment, folder: Path, *, node_api: str = "machine") -> AsyncIterator[World]:
    """A provisioner at work on *api*, which no other claims are on. *folder* is for its files."""
    gate, clock = Gate(), SystemClock()
    async with AsyncExitStack() as stack:
        await api.install(all_crds())
        transport = await api.transport()
        client = Client(transport, "test")
        url = await stack.enter_async_context(gated_api(transport, gate))
        kubeconfig = folder / "gated"
        kubeconfig.write_text(json.dumps(_kubeconfig(url)))
        arm = GatedArm(
            serve=True, rng=random.Random(7), timings=TIMINGS, joiner=NodeJoiner(client, clock), system_pool=""
        )
        arm.gate = gate
        await stack.enter_async_context(arm)
        arm.throttles.enabled = False
        command = [
            *(sys.executable, "-m", "tests.real.sparedaemon", "run", "--provisioner", "aks"),
            *("--controllers", "provisioner", "--node-api", node_api, "--kubeconfig", str(kubeconfig)),
            *("--metrics-port", "-1", "--health-port", "-1", "--no-leader-elect"),
        ]
        environment = {**os.environ, **arm.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
        world = World(client, arm, gate, NODE_REQUESTS[node_api], command, environment, folder / "daemon.log")
        await stack.enter_async_context(_watching(api, world))
        stack.push_async_callback(world.end)
        await world.start()
        yield world


@asynccontextmanager
async def _watching(api: Environment, world: World) -> AsyncIterator[None]:
    """Have the world say when claims and nodes change."""
    cluster = await api.cluster()
    for kind in (world.kind, Node):
        cluster.cache.declare(kind)
    manager = Manager(cluster, drain=1.0)
    running = asyncio.create_task(manager.run())
    try:
        await manager.wait_ready()
        for kind in (world.kind, Node):
            cluster.cache.store(kind).listen(lambda _: world.changed.set())
        yield
    finally:
        manager.stop()
        await running


def _kubeconfig(url: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gate", "cluster": {"server": url}}],
        "users": [{"name": "gate", "user": {}}],
        "contexts": [{"name": "gate", "context": {"cluster": "gate", "user": "gate"}}],
        "current-context": "gate",
    }


async def rounds(world: World, *, after: bool) -> AsyncIterator[Kill]:
    """Kill the daemon at each step of making a node and of deleting it, until there are no more."""
    nth, creating, deleting = 0, True, True
    while creating or deleting:
        trap = Trap(nth if creating else -1, after=after)
        name = await world.create(trap)
        await world.check_made(name)
        if creating:
            yield Kill("create", nth, after, trap.what)
        creating = creating and bool(trap.what)
        trap = Trap(nth if deleting else -1, after=after)
        await world.delete(name, trap)
        await world.check_gone(name)
        if deleting:
            yield Kill("delete", nth, after, trap.what)
        deleting = deleting and bool(trap.what)
        nth += 1


async def changes_of_mind(world: World) -> AsyncIterator[Kill]:
    """Kill the daemon at each step of making a node, which then nobody wants any more; until there are no more."""
    nth, what = 0, "first"
    while what:
        trap = Trap(nth, after=False)
        name = await world.give_up(trap)
        await world.check_gone(name)
        what = trap.what
        yield Kill("give up", nth, False, what)
        nth += 1


async def _main(arguments: argparse.Namespace) -> None:
    clock = asyncio.get_running_loop().time
    with TemporaryDirectory(prefix="kills-") as folder:
        async with envtest(arguments.server) as api, world_on(api, Path(folder), node_api=arguments.node_api) as world:
            began = clock()
            for kills in (changes_of_mind(world), rounds(world, after=False), rounds(world, after=True)):
                async for kill in kills:
                    print(f"{clock() - began:7.1f} s  {kill}", flush=True)
            print(f"{world.made} claims, {world.daemons} daemons")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=("real", "embedded"), default="real")
    parser.add_argument("--node-api", choices=tuple(NODE_REQUESTS), default="machine")
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))
