"""An operator at work under people who never rest: the mirror example over some hundred ConfigMaps that change.

What everybody wrote last is known, so that it can be told whether the operator lost anything.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from kaito_api.core import ConfigMap, Namespace
from kaito_api.meta import ObjectMeta
from kaito_ctrl import Client, Cluster, Controller, Manager, ObjectKey
from kaito_ctrl.runtime.connect import connect
from kaito_ctrl.runtime.errors import AlreadyExists, KubeError, NotFound
from kaito_ctrl.runtime.transport import Transport
from tests.real.meter import Meter

__all__ = ["MirrorWorld", "mirror_world"]

_EXAMPLE = Path(__file__).parents[2] / "examples" / "library" / "mirror.py"


def mirror_controller() -> Controller[ConfigMap]:
    """The controller of the example, as it is."""
    spec = importlib.util.spec_from_file_location("mirror_example", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Controller[ConfigMap] = module.MirrorController()
    return made


class Complaints(logging.Handler):
    """What was logged as an error, by structlog or by the standard library."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def processor(self, _: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if level in ("error", "exception", "critical"):
            about = {key: event.get(key) for key in ("error", "times", "attempt")}
            self.said.append(f"{event['event']} {about}")
        raise structlog.DropEvent


@dataclass
class MirrorWorld:
    """``wanted`` is what each original should be (``None``: not there); the copies should be the same."""

    name: str
    people: Client
    meter: Meter
    cluster: Cluster
    rng: random.Random
    objects: int
    wanted: dict[str, str | None] = field(default_factory=dict)
    outcomes: list[tuple[float, ObjectKey, str]] = field(default_factory=list)
    complaints: Complaints = field(default_factory=Complaints)
    resting: bool = False
    _number: int = 0

    @property
    def copies(self) -> str:
        return f"{self.name}-copies"

    async def write(self, index: int) -> None:
        """Change one original, and insist until it is certain that it has happened."""
        name = f"o-{index}"
        self._number += 1
        gone = self.wanted.get(name) is not None and self.rng.random() < 0.1
        value = None if gone else str(self._number)
        while True:
            try:
                await self._put(name, value)
                break
            except KubeError:
                await asyncio.sleep(0.2)
        self.wanted[name] = value

    async def _put(self, name: str, value: str | None) -> None:
        key = ObjectKey(self.name, name)
        if value is None:
            try:
                await self.people.delete(ConfigMap, key)
            except NotFound:
                return
        else:
            metadata = ObjectMeta(name=name, namespace=self.name, labels={"mirror-to": self.copies})
            await self.people.apply(ConfigMap(metadata=metadata, data={"n": value}))

    async def people_at_work(self, mine: range, pause: float) -> None:
        """Write one of *mine* after the other, in no order, until told to rest, and finish what has begun."""
        while not self.resting:
            await asyncio.sleep(pause * 2 * self.rng.random())
            await self.write(self.rng.choice(mine))

    async def wrong(self) -> list[str]:
        """The objects whose copy is not what their original is, read from the server."""
        found = {each.name: each.data.get("n") for each in await self.people.list(ConfigMap, self.copies)}
        found = {name: value for name, value in found.items() if name.startswith("o-")}
        return sorted(name for name in {*self.wanted, *found} if self.wanted.get(name) != found.get(name))

    async def converged(self, seconds: float) -> float:
        """Until nothing is wrong; how long that took. Raises ``AssertionError`` with what still is after *seconds*."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            try:
                wrong = await self.wrong()
            except KubeError as error:
                wrong = [f"the API server: {error}"]
            if not wrong:
                return clock() - began
            assert clock() - began < seconds, f"after {seconds:g} s still wrong: {wrong[:10]} ({len(wrong)})"
            await asyncio.sleep(0.1)

    def reconciled_after(self, moment: float) -> float | None:
        """Seconds from *moment* to the next reconcile that succeeded."""
        return next((at - moment for at, _, how in self.outcomes if at >= moment and how == "success"), None)

    def most_tries(self, start: float, end: float) -> int:
        """The most reconciles of one object that failed in that time."""
        failed = Counter(key for at, key, how in self.outcomes if start <= at < end and how == "error")
        return max(failed.values(), default=0)


@asynccontextmanager
async def mirror_world(
    name: str,
    *,
    people: str,
    operator: str,
    through: Callable[[Transport], Transport] = lambda transport: transport,
    objects: int = 200,
    writers: int = 4,
    pause: float = 0.1,
    seed: int = 7,
) -> AsyncIterator[MirrorWorld]:
    """Everybody at work in namespaces of *name*; *people* and *operator* are the kubeconfigs of the writers and of
    the operator, whose requests go *through* something."""
    rng = random.Random(seed)
    async with Cluster.connect(kubeconfig=people) as outside:
        transport = await connect(kubeconfig=operator)
        meter = Meter(through(transport))
        cluster = Cluster(meter)
        world = MirrorWorld(name, outside.client, meter, cluster, rng, objects)
        manager = Manager(cluster, drain=2.0)
        loop = asyncio.get_running_loop()

        def observe(key: ObjectKey, outcome: str) -> None:
            if key.namespace == name:
                world.outcomes.append((loop.time(), key, outcome))

        structlog.configure(processors=[structlog.processors.format_exc_info, world.complaints.processor])
        logging.getLogger().addHandler(world.complaints)
        try:
            for namespace in (name, world.copies):
                with suppress(AlreadyExists):
                    await world.people.create(Namespace(metadata=ObjectMeta(name=namespace)))
            manager.add(mirror_controller(), observe=observe)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(manager.run())
                await manager.wait_ready()
                share = objects // writers
                busy = [
                    group.create_task(world.people_at_work(range(n * share, (n + 1) * share), pause))
                    for n in range(writers)
                ]
                try:
                    yield world
                finally:
                    world.resting = True
                    manager.stop()
                    await asyncio.wait((*busy, running))
        finally:
            structlog.reset_defaults()
            logging.getLogger().removeHandler(world.complaints)
            await transport.aclose()
