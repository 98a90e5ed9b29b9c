"""The manager: everything that runs against one cluster, started in order and stopped in the mirror image of it.

Phases nest: servers (health, metrics) around webhooks around the cache around events around what always runs, around
the lease, around the controllers that only the leader runs. Without a lease every controller always leads.

A standby has everything but the last phase running: its cache is warm, and it is ready. The lease is held around the
leading phase: nothing of it starts before the lease is held, and the lease is released when all of it has ended. Is it
lost, everything inside is cancelled at once, no write of a leading client leaves any more, and :meth:`Manager.run`
raises ``LeaseLost``: the process has to end.
"""

from __future__ import annotations

import asyncio
import platform
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import uid_source
from kaito_ctrl.runtime.cluster import Cluster
from kaito_ctrl.runtime.controller import Controller
from kaito_ctrl.runtime.events import EventRecorder
from kaito_ctrl.runtime.leader import Elector, Lease
from kaito_ctrl.runtime.lifetime import Runnable
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.member import Member, MemberCache
from kaito_ctrl.runtime.phases import Guard, Phase, Phases
from kaito_ctrl.runtime.source import EVERY_CLUSTER
from kaito_ctrl.runtime.worker import Worker

__all__ = ["Cluster", "Manager"]


class Manager:
    """Runs controllers and their surroundings until told to stop.

    ``leader`` is the Lease that settles which of several managers runs the leading controllers; without one, this one
    does. ``clusters`` are extra ones, see :meth:`add_cluster`. ``drain`` is how long running reconciles may finish in
    after a stop, ``grace`` how long everything may take after that to wind down and, once cancelled, to clean up. Both
    in seconds: together they bound a stop, and fit into the 30 s of a pod's default termination grace period.

    Raises ``KubeError`` for a Lease of which it is not known in which namespace it lives.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        leader: Lease | None = None,
        clusters: Mapping[str, Cluster] | None = None,
        drain: float = 20.0,
        grace: float = 5.0,
    ) -> None:
        self.cluster = cluster
        self.clusters: dict[str, Cluster] = {}
        """The extra clusters, by name."""
        self.elector = self._elector(leader) if leader is not None else None
        """What holds the Lease; ``None`` when there is no leader election."""
        self._drain = drain
        self._grace = grace
        self._servers: list[Runnable] = []
        self._webhooks: list[Runnable] = []
        self._always: list[Runnable] = []
        self._leading: list[Runnable] = []
        self._workers: list[Worker[Any]] = []
        self._stop = asyncio.Event()
        self._ready = _Milestone()
        self._leads = _Milestone()
        self._names: set[str] = set()
        self._phases: Phases | None = None
        self._log = logger()
        self.events = self._recorder(leader=False)
        """For events of what always runs."""
        self._leading_events = self._recorder(leader=True) if self.elector is not None else self.events
        for name, extra in (clusters or {}).items():
            self.add_cluster(name, extra)

    def add(
        self,
        controller: Controller[Any],
        *,
        leader: bool | None = None,
        observe: Callable[..., None] | None = None,
    ) -> Worker[Any]:
        """Have *controller* run: on the leader alone, or with *leader* (by default the controller's own
        ``needs_leader``) off, on every replica.

        Raises ``ValueError`` for a name that is taken (names are metric labels), and for a source on a cluster that
        is not there.
        """
        if controller.name in self._names:
            raise ValueError(f"two controllers are called {controller.name!r}")
        self._names.add(controller.name)
        leads = controller.needs_leader if leader is None else leader
        worker = Worker(
            controller,
            self.client(controller.name, leader=leads),
            self.cluster.cache,
            self.cluster.clock,
            self.cluster.rng,
            self.cluster.metrics.controller(controller.name, controller.workers),
            self._drain,
            observe,
            (self._leading_events if leads else self.events).named(controller.name),
            {
                name: Member(name, self.client(controller.name, leader=leads, cluster=name), extra.cache)
                for name, extra in self.clusters.items()
            },
        )
        self._workers.append(worker)
        (self._leading if leads else self._always).append(worker)
        return worker

    def add_cluster(self, name: str, cluster: Cluster) -> None:
        """Have an extra *cluster*, under a name by which sources and reconciles refer to it (a source's ``cluster``,
        :meth:`Context.cluster`). Its cache runs beside the manager's own. Objects that are reconciled, their events,
        and the lease are always on the manager's own cluster.

        An extra cluster that is away fails neither the start nor readiness: only what asks for it has to wait. At the
        start, the controllers wait until it is listed, has failed to be, or ``sync_timeout`` has passed. Its metrics
        are with the others if it was made with the same ``metrics``, and a ``name`` to tell them apart.

        Raises ``ValueError`` for a name that is taken, and once there are controllers: they could not see it.
        """
        if name in self.clusters or name in ("", EVERY_CLUSTER):
            raise ValueError(f"an extra cluster cannot be called {name!r}: that name is taken")
        if self._workers:
            raise ValueError(f"cluster {name!r} has to be added before the first controller")
        self.clusters[name] = cluster

    def client(self, field_manager: str, *, leader: bool = True, cluster: str | None = None) -> Client:
        """A client whose writes the cache knows of at once; with *leader*, it only writes while this process leads.
        *cluster* is the name of an extra one."""
        target = self.cluster if cluster is None else self.clusters[cluster]
        return Client(
            target.transport,
            field_manager,
            target.cache,
            self.elector.fence if leader and self.elector is not None else None,
            target.metrics,
        )

    def add_server(self, runnable: Runnable) -> None:
        """Have something run around everything else: health, metrics."""
        self._servers.append(runnable)

    def add_webhook(self, runnable: Runnable) -> None:
        """Have a webhook server run before the cache lists anything."""
        self._webhooks.append(runnable)

    def add_runnable(self, runnable: Runnable, *, leader: bool = False) -> None:
        """Have something run that needs the cache; with *leader*, where and when the leading controllers do. What it
        writes through :meth:`client` is fenced like theirs."""
        (self._leading if leader else self._always).append(runnable)

    @property
    def workers(self) -> Sequence[Worker[Any]]:
        """The running controllers, in the order in which they were added."""
        return tuple(self._workers)

    @property
    def ready(self) -> bool:
        """Whether it does its work, or would take it over at once: a standby is ready."""
        return self._ready.reached

    @property
    def leading(self) -> bool:
        """Whether every phase is up, the leading one included."""
        return self._leads.reached and (self.elector is None or self.elector.leads)

    async def wait_ready(self) -> None:
        """Until :attr:`ready`. Raises what :meth:`run` raised if that has ended, and ``RuntimeError`` if it was
        stopped."""
        await self._ready.wait()

    async def wait_leading(self) -> None:
        """Until :attr:`leading`; raises like :meth:`wait_ready`."""
        await self._leads.wait()

    def stop(self) -> None:
        """Wind down; :meth:`run` returns when everything has ended. Safe to call twice, and from a signal handler."""
        self._stop.set()

    async def run(self) -> None:
        """Run until :meth:`stop`, or until cancelled, which skips the drain.

        Raises what a runnable ends with, ``LeaseLost`` when somebody else may lead, and ``ShutdownTimeout`` for tasks
        that ignore cancellation until the deadline (they are left behind); several of these as a group.
        """
        guard: Guard | None = None
        lease: tuple[Phase, ...] = ()
        if self.elector is not None:
            guard = Guard(self.elector, self.elector.forfeit)
            lease = (Phase((self.elector,), before=self._standing_by), Phase((self._leading_events,)))
        self._phases = Phases(
            (
                Phase(self._servers),
                Phase(self._webhooks),
                Phase((self.cluster.cache, *(MemberCache(name, each.cache) for name, each in self.clusters.items()))),
                Phase((self.events,)),
                Phase(self._always),
                *lease,
                Phase(self._leading),
            ),
            drain=self._drain,
            grace=self._grace,
            guard=guard,
        )
        failure: BaseException | None = None
        try:
            errors = await self._phases.run(self._everything_up, self._going_down, self._stop)
            if errors:
                failure = errors[0] if len(errors) == 1 else BaseExceptionGroup("the manager failed", errors)
                raise failure
        finally:
            self._ready.miss(failure)
            self._leads.miss(failure)

    def _standing_by(self) -> None:
        self._ready.reach()
        self._log.info("stands by", controllers=sorted(self._names))

    def _everything_up(self) -> None:
        self._ready.reach()
        self._leads.reach()
        self._log.info("controllers are up", controllers=sorted(self._names))

    def _going_down(self) -> None:
        self._ready.reached = False
        self._leads.reached = False

    def _elector(self, lease: Lease) -> Elector:
        cluster = self.cluster
        return Elector(
            lease,
            cluster.transport,
            lease.identity or f"{platform.node()}_{uid_source(cluster.rng)()}",
            clock=cluster.clock,
            rng=cluster.rng,
            metrics=cluster.metrics,
            dial=cluster.dial,
        )

    def _recorder(self, *, leader: bool) -> EventRecorder:
        cluster = self.cluster
        fence = self.elector.fence if leader and self.elector is not None else None
        return EventRecorder(
            Client(cluster.transport, fence=fence, metrics=cluster.metrics),
            clock=cluster.clock,
            rng=random.Random(cluster.rng.getrandbits(64)),  # noqa: S311 - names, no secrets
            instance=platform.node(),
            metrics=cluster.metrics,
        )


class _Milestone:
    """Something that is reached, or never will be."""

    def __init__(self) -> None:
        self.reached = False
        self._decided = asyncio.Event()
        self._failure: BaseException | None = None

    def reach(self) -> None:
        self.reached = True
        self._decided.set()

    def miss(self, failure: BaseException | None) -> None:
        self.reached = False
        self._failure = failure
        self._decided.set()

    async def wait(self) -> None:
        """Until it is reached. Raises what made it impossible."""
        await self._decided.wait()
        if not self.reached:
            raise self._failure or RuntimeError("the manager has stopped")
