"""The manager: everything that runs against one cluster, started in order and stopped in the mirror image of it.

Phases nest: servers (health, metrics) around webhooks around the cache around other runnables around the
controllers. A phase starts when the one around it is up, and ends before it: leaving a phase joins everything
inside it, so that no code anywhere has to say in which order to stop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import structlog

from kaito_ctrl.runtime.cache import Cache
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random
from kaito_ctrl.runtime.controller import Controller, Worker
from kaito_ctrl.runtime.errors import ShutdownTimeout
from kaito_ctrl.runtime.lifetime import Lifetime, Runnable
from kaito_ctrl.runtime.metrics import Metrics
from kaito_ctrl.runtime.transport import Transport

__all__ = ["Cluster", "Manager"]


class Cluster:
    """One API server: how to reach it, a live client, and a shared cache."""

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
        streaming: bool = False,
        sync_timeout: float = 120.0,
    ) -> None:
        self.transport = transport
        self.clock = clock or SystemClock()
        self.rng = rng or system_random()
        self.metrics = metrics or Metrics()
        self.client = Client(transport, metrics=self.metrics)
        self.cache = Cache(self.client, rng=self.rng, streaming=streaming, sync_timeout=sync_timeout)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, *, kubeconfig: str | None = None, context: str | None = None, **options: Any
    ) -> AsyncIterator[Self]:
        """The cluster that ``kubectl`` would talk to, or the one that this pod runs in. *options* as for the class.

        Raises :class:`~kaito_ctrl.runtime.errors.KubeError` when no configuration is found.
        """
        from kaito_ctrl.runtime.connect import connect  # the Kubernetes client takes a second to import

        transport = await connect(kubeconfig=kubeconfig, context=context)
        try:
            yield cls(transport, **options)
        finally:
            await transport.aclose()


class Manager:
    """Runs controllers and their surroundings until told to stop.

    ``drain`` is how long running reconciles may finish in after a stop, ``grace`` how long cancelled tasks may take to
    clean up (both in seconds): together they fit into a pod's default termination grace period of 30 s.
    """

    def __init__(self, cluster: Cluster, *, drain: float = 20.0, grace: float = 5.0) -> None:
        self.cluster = cluster
        self._drain = drain
        self._grace = grace
        self._servers: list[Runnable] = []
        self._webhooks: list[Runnable] = []
        self._others: list[Runnable] = []
        self._workers: list[Worker[Any]] = []
        self._stop = asyncio.Event()
        self._up = asyncio.Event()
        self._names: set[str] = set()
        self._log = structlog.get_logger("kaito_ctrl")

    def add(self, controller: Controller[Any], *, observe: Callable[..., None] | None = None) -> Worker[Any]:
        """Have *controller* run. Raises ``ValueError`` for a name that is taken: names are metric labels."""
        if controller.name in self._names:
            raise ValueError(f"two controllers are called {controller.name!r}")
        self._names.add(controller.name)
        client = Client(self.cluster.transport, controller.name, self.cluster.cache, metrics=self.cluster.metrics)
        worker = Worker(
            controller,
            client,
            self.cluster.cache,
            self.cluster.clock,
            self.cluster.rng,
            self.cluster.metrics.controller(controller.name, controller.workers),
            self._drain,
            observe,
        )
        self._workers.append(worker)
        return worker

    def add_server(self, runnable: Runnable) -> None:
        """Have something run around everything else: health, metrics."""
        self._servers.append(runnable)

    def add_webhook(self, runnable: Runnable) -> None:
        """Have a webhook server run before the cache lists anything."""
        self._webhooks.append(runnable)

    def add_runnable(self, runnable: Runnable) -> None:
        """Have something run that needs the cache."""
        self._others.append(runnable)

    @property
    def workers(self) -> Sequence[Worker[Any]]:
        """The running controllers, in the order in which they were added."""
        return tuple(self._workers)

    @property
    def ready(self) -> bool:
        """Whether every phase is up."""
        return self._up.is_set()

    async def wait_ready(self) -> None:
        """Until every phase is up."""
        await self._up.wait()

    def stop(self) -> None:
        """Wind down; :meth:`run` returns when everything has ended. Safe to call twice, and from a signal handler."""
        self._stop.set()

    async def run(self) -> None:
        """Run until :meth:`stop`, or until cancelled, which skips the drain.

        Raises the first error that a runnable ends with, and ``ShutdownTimeout`` for tasks that ignore cancellation.
        """
        phases: list[Sequence[Runnable]] = [
            self._servers,
            self._webhooks,
            [self.cluster.cache],
            self._others,
            self._workers,
        ]
        try:
            await self._phase([each for each in phases if each])
        finally:
            self._up.clear()

    async def _started(self, lifetimes: Sequence[Lifetime]) -> bool:
        """Whether all of *lifetimes* came up before a stop was asked for."""
        async with asyncio.TaskGroup() as group:
            stopping: asyncio.Task[Any] = group.create_task(self._stop.wait())
            starting: list[asyncio.Task[Any]] = [group.create_task(each.wait_started()) for each in lifetimes]
            for task in starting:
                await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in (stopping, *starting):
                task.cancel()
        return not self._stop.is_set()

    async def _phase(self, phases: Sequence[Sequence[Runnable]]) -> None:
        if not phases:
            self._up.set()
            self._log.info("controllers are up", controllers=sorted(self._names))
            await self._stop.wait()
            self._up.clear()
            return
        lifetimes: list[Lifetime] = []
        tasks: list[asyncio.Task[None]] = []
        async with asyncio.TaskGroup() as group:
            for runnable in phases[0]:
                lifetime = Lifetime()
                name = type(runnable).__name__
                tasks.append(group.create_task(_supervised(runnable, lifetime, self._stop), name=name))
                lifetimes.append(lifetime)
            if await self._started(lifetimes):
                await self._phase(phases[1:])
            for lifetime in lifetimes:
                lifetime.stop()
            _, late = await asyncio.wait(tasks, timeout=self._drain + self._grace if phases[0] is self._workers else 0)
            for task in late:
                task.cancel()
            _, stuck = await asyncio.wait(tasks, timeout=self._grace)
            if stuck:
                raise ShutdownTimeout([task.get_name() for task in stuck])


async def _supervised(runnable: Runnable, lifetime: Lifetime, stop: asyncio.Event) -> None:
    await runnable.run(lifetime)
    if not lifetime.is_stopping and not stop.is_set():
        raise RuntimeError(f"{type(runnable).__name__} ended by itself")
