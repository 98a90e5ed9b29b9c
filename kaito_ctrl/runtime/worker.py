"""What runs a controller: changes in, keys out, a task for each reconcile, and what follows from how it ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from kaito_api.meta import Resource
from kaito_ctrl.runtime.cache import Cache
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.controller import Context, Controller, Result
from kaito_ctrl.runtime.errors import (
    ApiError,
    Conflict,
    DecodeError,
    LeaseLost,
    RetryAfter,
    TerminalError,
    TooManyRequests,
    TransportError,
    leaf_errors,
)
from kaito_ctrl.runtime.events import DISCARD, EventSink
from kaito_ctrl.runtime.finalizer import Finalizer
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.member import Member
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.metrics import ControllerMetrics
from kaito_ctrl.runtime.queue import LOW, NORMAL, Queue
from kaito_ctrl.runtime.source import EVERY_CLUSTER, Predicate, Source
from kaito_ctrl.runtime.store import Change, Entry, Store

__all__ = ["Failure", "Worker"]

R = TypeVar("R", bound=Resource)

_PATIENCE = 60.0
"""Seconds for which what usually passes by itself is a warning, and not yet an error."""


@dataclass(slots=True)
class Failure:
    """The last failure of a key, so that a repeated one is logged ever more rarely; ``since`` is that of the first of
    the failures in a row, whatever they were, ``last`` that of the last, both on the monotonic clock."""

    text: str
    since: float
    last: float
    times: int = 0


@dataclass
class Worker(Generic[R]):
    """Runs one controller: routes changes into its queue and starts a task per key, at most ``workers`` at once."""

    controller: Controller[R]
    client: Client
    cache: Cache
    clock: Clock
    rng: random.Random
    metrics: ControllerMetrics | None = None
    drain: float = 20.0
    """Seconds that running reconciles may take to finish when asked to stop."""
    observe: Callable[[ObjectKey, str], None] | None = None
    """Told of each reconcile's end and outcome; for tests and oracles."""
    events: EventSink = DISCARD
    members: Mapping[str, Member] = field(default_factory=dict)
    """The manager's extra clusters."""
    queue: Queue[ObjectKey] = field(init=False)

    def __post_init__(self) -> None:
        controller = self.controller
        self.queue = Queue(
            rng=self.rng, retry=controller.retry, metrics=self.metrics.queue if self.metrics is not None else None
        )
        self._log = logger().bind(controller=controller.name, kind=controller.kind.kind)
        self._failures: dict[ObjectKey, Failure] = {}
        self._hints: dict[ObjectKey, float] = {}
        self._tasks: dict[ObjectKey, asyncio.Task[Any]] = {}
        if self.metrics is not None:
            self.metrics.queue.look_at(self.queue.ages, self.queue.__len__)
        self._finalizer = (
            Finalizer(controller.finalizer, controller.kind, self.client) if controller.finalizer is not None else None
        )
        self._own = Source(
            controller.kind,
            lambda change, _: (change.key,),
            _or_deletion(type(controller).when),  # through the class: of the instance it would be a method
            controller.scope,
            controller.indexes,
        )
        sources = (self._own, *controller.bound_sources())
        self._watched = tuple((source, cache) for source in sources for cache in self._caches_of(source))
        for source, cache in self._watched:
            cache.declare(source.kind, scope=source.scope, indexes=source.indexes)
        self._kinds = self._kinds_in(self.cache)
        self.members = {
            name: replace(member, kinds=self._kinds_in(member.cache)) for name, member in self.members.items()
        }

    @property
    def name(self) -> str:
        """The controller's."""
        return self.controller.name

    @property
    def running(self) -> Mapping[ObjectKey, asyncio.Task[Any]]:
        """The reconciles that run now."""
        return self._tasks

    @property
    def failing(self) -> Mapping[ObjectKey, Failure]:
        """The keys whose last reconcile failed."""
        return self._failures

    @property
    def store(self) -> Store[R]:
        """The store of the controller's own kind."""
        return self.cache.store(self.controller.kind)

    async def run(self, lifetime: Lifetime) -> None:
        """Until asked to stop (then drained) or cancelled (then at once)."""
        endings: list[Callable[[], None]] = []
        try:
            for source, cache in self._watched:
                if source.route is not None:
                    store, listener = cache.store(source.kind), self._listener(source, cache)
                    endings.append(store.listen(listener, replay=False))
                    await store.replay(listener)
            lifetime.started()
            async with asyncio.TaskGroup() as group:
                dispatcher = group.create_task(self._dispatch(group), name=f"{self.controller.name}/dispatch")
                await lifetime.wait_stopping()
                dispatcher.cancel()
                await self._drained()
                raise _Drained
        except* _Drained:
            pass
        finally:
            for end in endings:
                end()

    def _caches_of(self, source: Source) -> Iterable[Cache]:
        """Where *source* is watched. Raises ``ValueError`` for a cluster that the manager does not have."""
        if source.cluster is None:
            return (self.cache,)
        if source.cluster == EVERY_CLUSTER:
            return tuple(member.cache for member in self.members.values())
        if source.cluster not in self.members:
            raise ValueError(
                f"controller {self.name!r} watches {source.kind.kind} on cluster {source.cluster!r}, which the manager "
                f"does not have; it has: {', '.join(self.members) or 'none'}. Add it before the controller"
            )
        return (self.members[source.cluster].cache,)

    def _kinds_in(self, cache: Cache) -> tuple[type[Resource], ...]:
        return tuple(dict.fromkeys(source.kind for source, where in self._watched if where is cache))

    def _listener(self, source: Source, cache: Cache) -> Callable[[Change[Any]], None]:
        def listen(change: Change[Any]) -> None:
            priority = LOW if change.initial else NORMAL
            try:
                for key in source.keys(change, cache):
                    self.queue.add(key, priority=priority)
                    if not change.initial:
                        self._hints.setdefault(key, asyncio.get_running_loop().time())
            except Exception:  # noqa: BLE001 - a predicate or mapper that fails must not end the watch it hangs on
                self._log.exception("cannot tell whom a change wakes", source=source.kind.kind, key=str(change.key))
                if self.metrics is not None:
                    self.metrics.errors.inc()

        return listen

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        free = asyncio.Semaphore(self.controller.workers)
        while True:
            await free.acquire()
            try:
                key, priority = await self.queue.get()
            except BaseException:
                free.release()
                raise
            task = group.create_task(self._process(key, priority), name=f"{self.controller.name}/{key}")
            self._tasks[key] = task
            task.add_done_callback(lambda _: free.release())

    async def _drained(self) -> None:
        try:
            async with asyncio.timeout(self.drain):
                await self.queue.rest()
        except TimeoutError:
            self._log.warning("cut off at the end of the drain", keys=[str(key) for key in self.queue.working])

    async def _process(self, key: ObjectKey, priority: int) -> None:
        metrics = self.metrics
        loop = asyncio.get_running_loop()
        began = loop.time()
        outcome = "cancelled"
        hinted = self._hints.pop(key, None)
        if metrics is not None:
            metrics.active.inc()
            if hinted is not None:
                metrics.hint_seconds.observe(began - hinted)
        try:
            outcome = await self._attempt(key, priority)
        finally:
            self._tasks.pop(key, None)
            self.queue.done(key)
            if metrics is not None:
                metrics.active.dec()
                metrics.results[outcome].inc()
                metrics.seconds.observe(loop.time() - began)
            if self.observe is not None:
                self.observe(key, outcome)

    async def _attempt(self, key: ObjectKey, priority: int) -> str:
        """One reconcile; returns the word for its outcome and has already told the queue."""
        attempt = self.queue.failures(key)
        log = self._log.bind(namespace=key.namespace, name=key.name, attempt=attempt)
        ctx = Context(key, attempt, self.client, self.cache, self.clock, log, self.events, self.members)
        limit = asyncio.timeout(self.controller.timeout)
        try:
            async with limit:
                result = self._result(await self._reconcile(key, ctx))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not us, but something that the reconcile waited for was cancelled: to this object, a failure like others.
            return self._failed(key, priority, log, RuntimeError("the reconcile awaited something that was cancelled"))
        except Exception as error:  # noqa: BLE001 - whatever a reconciler raises must not end the controller
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                text = "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaf_errors(error))
                log.info("failed while it was cancelled", error=text)
                self.queue.retry(key, priority=priority)
                return "cancelled"
            if isinstance(error, TimeoutError) and limit.expired():
                error = TimeoutError(f"the reconcile took longer than {self.controller.timeout:g} s")
                if self.metrics is not None:
                    self.metrics.timeouts.inc()
            return self._raised(key, priority, log, error)
        self._failures.pop(key, None)
        task = asyncio.current_task()
        if limit.expired() or (task is not None and task.cancelling()):
            log.warning("a reconcile went on although it was cancelled")
            if self.metrics is not None:
                self.metrics.ignored.inc()
        if result.backoff:
            self.queue.retry(key, priority=priority)
            return "requeue"
        self.queue.forget(key)
        if result.after is not None:
            self.queue.add(key, after=self._spread(result.after), priority=priority)
            return "requeue_after"
        return "success"

    def _result(self, returned: object) -> Result:
        if not isinstance(returned, Result):
            raise TypeError(
                f"controller {self.name!r} returned {returned!r}: return Result.done(), or when to look again"
            )
        return returned

    def _raised(self, key: ObjectKey, priority: int, log: Any, error: Exception) -> str:
        leaves = leaf_errors(error)
        # What reconcilers raise for us comes in a group when they raise it in a task group of theirs.
        if all(isinstance(leaf, LeaseLost) for leaf in leaves):
            # Nothing is wrong with the object, and most likely somebody else leads now. But a fence that was closed for
            # a moment, until the answer to a renewal was seen, must not cost a wake-up.
            self.queue.retry(key, priority=priority)
            return "cancelled"
        put_off = [leaf for leaf in leaves if isinstance(leaf, RetryAfter)]
        if len(put_off) == len(leaves):
            first = min(put_off, key=lambda each: each.seconds)
            self._failures.pop(key, None)
            self.queue.forget(key)
            self.queue.add(key, after=self._spread(first.seconds), priority=priority)
            log.info("not now", reason=str(first), seconds=first.seconds)
            return "requeue_after"
        if all(isinstance(leaf, TerminalError) for leaf in leaves):
            self.queue.forget(key)
            self._report(key, log, error, final=True)
            if self.metrics is not None:
                self.metrics.terminal.inc()
                self.metrics.errors.inc()
            return "error"
        return self._failed(key, priority, log, error)

    def _failed(self, key: ObjectKey, priority: int, log: Any, error: Exception) -> str:
        asked = max((leaf.retry_after or 0.0 for leaf in leaf_errors(error) if isinstance(leaf, ApiError)), default=0.0)
        # Whatever a server or a proxy asks for, nobody is put off for longer than by failures alone.
        least = self._spread(min(asked, self.controller.retry.cap))
        delay = self.queue.retry(key, priority=priority, least=least)
        self._report(key, log, error, delay=delay)
        if self.metrics is not None:
            self.metrics.errors.inc()
        return "error"

    async def _reconcile(self, key: ObjectKey, ctx: Context) -> Result:
        await self.cache.settle(self._kinds)
        ctx.check_leading()  # what was queued before a stall must not begin after it
        entry = self.store.entry(key)
        if entry is None:
            await self.controller.gone(key, ctx)
            return Result.done()
        if not self.controller.concerns(entry):
            return Result.done()
        finalizer = self._finalizer
        # Of the header alone: an object that no longer fits its model has to let go of our finalizer all the same.
        if entry.header.deletion_timestamp is not None:
            if finalizer is None or not finalizer.holds(entry):
                return Result.done()
            return await self._finalize(finalizer, entry.header.uid, ctx)
        try:
            obj = entry.view()
        except DecodeError as error:
            raise TerminalError(str(error)) from error
        if finalizer is not None and not finalizer.holds(entry):
            obj = await finalizer.add(obj)
        return await self.controller.reconcile(obj, ctx)

    async def _finalize(self, finalizer: Finalizer[R], uid: str, ctx: Context) -> Result:
        live = await finalizer.read(ctx.key, uid)
        if live is None or not self.controller.concerns(live):
            return Result.done()
        if live.decodable:
            result = await self.controller.cleanup(live.view(), ctx)
        else:
            result = await self._abandon(live, ctx)
        if result == Result.done():
            await finalizer.remove(live)
        return result

    async def _abandon(self, live: Entry[R], ctx: Context) -> Result:
        try:
            return await self.controller.abandon(live.header, ctx)
        except DecodeError as refusal:
            raise TerminalError(str(refusal)) from refusal

    def _spread(self, seconds: float) -> float:
        """Up to a tenth later, so that what was started together does not stay together."""
        return seconds * (1.0 + 0.1 * self.rng.random())

    def _report(
        self, key: ObjectKey, log: Any, error: Exception, *, delay: float | None = None, final: bool = False
    ) -> None:
        text = "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaf_errors(error))
        now = self.clock.monotonic()
        failure = self._failures.get(key)
        if failure is None or failure.text != text:
            failure = self._failures[key] = Failure(text, failure.since if failure is not None else now, now)
        failure.times += 1
        failure.last = now
        if failure.times & (failure.times - 1):
            return  # the same again: said once, then at each power of two
        expected = all(map(_passes, leaf_errors(error)))
        say = log.warning if expected and now - failure.since < _PATIENCE else log.error
        more = {} if expected or final else {"exc_info": error}
        say("reconcile failed", error=text, retry_in=delay, times=failure.times, **more)


def _or_deletion(when: Predicate | None) -> Predicate | None:
    if when is None:
        return None

    def passes(change: Change[Any]) -> bool:
        new = change.new
        # A predicate on labels, say, must not keep an object from being cleaned up.
        return new is None or new.header.deletion_timestamp is not None or when(change)

    return passes


def _passes(error: BaseException) -> bool:
    """Whether it is of the kind that happens to everybody, and passes without anybody's help."""
    if isinstance(error, ApiError):
        return isinstance(error, Conflict | TooManyRequests) or error.code >= 500
    return isinstance(error, TransportError)


class _Drained(Exception):
    """Ends a worker's task group after the drain; never seen outside this module."""
