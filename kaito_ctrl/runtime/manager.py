"""The manager: everything that runs against one cluster, started in order and stopped in the mirror image of it.

Phases nest: servers (health, metrics) around webhooks around the cache around other runnables around the
controllers. A phase starts when the one around it is up, and ends before it: leaving a phase joins everything
inside it, so that no code anywhere has to say in which order to stop.
"""

from __future__ import annotations

import asyncio
import io
import platform
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import structlog

from kaito_ctrl.runtime.cache import Cache
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random
from kaito_ctrl.runtime.controller import Controller, Worker
from kaito_ctrl.runtime.errors import ShutdownTimeout
from kaito_ctrl.runtime.events import EventRecorder
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
        self.cache = Cache(
            self.client, rng=self.rng, streaming=streaming, sync_timeout=sync_timeout, metrics=self.metrics
        )

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, *, kubeconfig: str | None = None, context: str | None = None, **options: Any
    ) -> AsyncIterator[Self]:
        """The cluster that ``kubectl`` would talk to, or the one that this pod runs in. *options* as for the class.

        Raises :class:`~kaito_ctrl.runtime.errors.KubeError` when no configuration is found.
        """
        from kaito_ctrl.runtime.connect import connect  # the Kubernetes client takes a second to import

        transport = await connect(kubeconfig=kubeconfig, context=context, clock=options.get("clock"))
        try:
            yield cls(transport, **options)
        finally:
            await transport.aclose()


class Manager:
    """Runs controllers and their surroundings until told to stop.

    ``drain`` is how long running reconciles may finish in after a stop, ``grace`` how long everything may take after
    that to wind down and, once cancelled, to clean up. Both in seconds: together they bound a stop, and fit into the
    30 s of a pod's default termination grace period.
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
        self._known = asyncio.Event()
        self._failure: BaseException | None = None
        self._left: set[asyncio.Task[None]] = set()
        self._names: set[str] = set()
        self._log = structlog.get_logger("kaito_ctrl")
        self.events = EventRecorder(
            cluster.client,
            clock=cluster.clock,
            rng=random.Random(cluster.rng.getrandbits(64)),  # noqa: S311 - names, no secrets
            instance=platform.node(),
            metrics=cluster.metrics,
        )

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
            self.events.named(controller.name),
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
        """Until every phase is up. Raises what :meth:`run` raised if that has ended, and ``RuntimeError`` if it was
        stopped."""
        await self._known.wait()
        if not self._up.is_set():
            raise self._failure or RuntimeError("the manager has stopped")

    def stop(self) -> None:
        """Wind down; :meth:`run` returns when everything has ended. Safe to call twice, and from a signal handler."""
        self._stop.set()

    async def run(self) -> None:
        """Run until :meth:`stop`, or until cancelled, which skips the drain.

        Raises what a runnable ends with, and ``ShutdownTimeout`` for tasks that ignore cancellation until the
        deadline (they are left behind); several of these as a group.
        """
        phases: list[Sequence[Runnable]] = [
            self._servers,
            self._webhooks,
            [self.cluster.cache],
            self._others,
            [self.events],
            self._workers,
        ]
        running: list[list[_Running]] = []
        cancelled: asyncio.CancelledError | None = None
        asked = False
        try:
            asked = await self._operate([each for each in phases if each], running)
        except asyncio.CancelledError as error:
            cancelled = error
        self._up.clear()
        try:
            errors = await self._wind_down(running, self._drain if asked else 0.0)
            if errors:
                self._failure = errors[0] if len(errors) == 1 else BaseExceptionGroup("the manager failed", errors)
                raise self._failure
        finally:
            self._known.set()
        if cancelled is not None:
            raise cancelled

    async def _operate(self, phases: Sequence[Sequence[Runnable]], running: list[list[_Running]]) -> bool:
        """Start one phase after the other, and wait; whether it ends because a stop was asked for."""
        for phase in phases:
            started = [_Running.start(runnable, self._stop) for runnable in phase]
            running.append(started)
            if not await _until(_all_started(started), self._stop, running):
                return self._stop.is_set()
        self._up.set()
        self._known.set()
        self._log.info("controllers are up", controllers=sorted(self._names))
        await _until(self._stop.wait(), self._stop, running)
        return self._stop.is_set()

    async def _wind_down(self, running: list[list[_Running]], drain: float) -> list[BaseException]:
        """Stop phase after phase, the last one first, within *drain* and the grace period; what they raised.

        Whatever does not end in its time is cancelled, and left behind if that does not help either: each of the
        phases that follow still has a share of the grace period.
        """
        loop = asyncio.get_running_loop()
        drained = loop.time() + drain
        deadline = drained + self._grace
        share = self._grace / (2 * max(len(running), 1))
        errors: list[BaseException] = []
        stuck: list[asyncio.Task[None]] = []
        everything = [each.task for phase in running for each in phase]
        try:
            while running:
                phase = running.pop()
                tasks = [each.task for each in phase]
                for each in phase:
                    each.lifetime.stop()
                cancel_at = max(drained, loop.time()) + share / 2
                _, late = await asyncio.wait(tasks, timeout=cancel_at - loop.time())
                for task in late:
                    task.cancel()
                end_at = max(deadline - share * len(running), cancel_at + share / 2)
                _, ignoring = await asyncio.wait(tasks, timeout=end_at - loop.time())
                stuck += [task for task in tasks if task in ignoring]
                errors += [error for task in tasks if (error := _error_of(task)) is not None]
        finally:
            # Also when we are cancelled a second time: then nobody waits any longer, but nothing goes unseen.
            for task in everything:
                if not task.done():
                    task.cancel()
                    self._leave_behind(task)
        if stuck:
            errors.append(ShutdownTimeout([task.get_name() for task in stuck]))
        return errors

    def _leave_behind(self, task: asyncio.Task[None]) -> None:
        stack = io.StringIO()
        task.print_stack(file=stack)
        self._log.error("ignores cancellation", task=task.get_name(), stack=stack.getvalue())
        self._left.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._left.discard(task)
            self._log.warning("ended after the shutdown deadline", task=task.get_name(), error=repr(_error_of(task)))

        task.add_done_callback(ended)


@dataclass(frozen=True, slots=True)
class _Running:
    """A runnable at work."""

    task: asyncio.Task[None]
    lifetime: Lifetime

    @classmethod
    def start(cls, runnable: Runnable, stop: asyncio.Event) -> Self:
        lifetime = Lifetime()
        name = runnable.controller.name if isinstance(runnable, Worker) else type(runnable).__name__
        return cls(asyncio.create_task(_supervised(runnable, lifetime, stop), name=name), lifetime)


async def _supervised(runnable: Runnable, lifetime: Lifetime, stop: asyncio.Event) -> None:
    await runnable.run(lifetime)
    if not lifetime.is_stopping and not stop.is_set():
        raise RuntimeError(f"{type(runnable).__name__} ended by itself")


async def _all_started(started: Sequence[_Running]) -> None:
    for each in started:
        await each.lifetime.wait_started()


async def _until(event: Coroutine[Any, Any, Any], stop: asyncio.Event, running: Sequence[Sequence[_Running]]) -> bool:
    """Wait for *event*; false if a stop, or the end of anything that runs, comes first."""
    happened, stopped = asyncio.create_task(event), asyncio.create_task(stop.wait())
    tasks = {each.task for phase in running for each in phase}
    try:
        await asyncio.wait({happened, stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        return happened.done() and not stop.is_set() and not any(task.done() for task in tasks)
    finally:
        happened.cancel()
        stopped.cancel()
        await asyncio.wait((happened, stopped))


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
