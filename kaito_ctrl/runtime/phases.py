"""Phases: what runs at the same time starts together, after the phase around it is up, and ends before that one does.

Leaving a phase joins everything inside it, so that no code anywhere has to say in which order to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Self

from kaito_ctrl.runtime.errors import ShutdownTimeout
from kaito_ctrl.runtime.lifetime import Lifetime, Runnable
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.stacks import stack_of

__all__ = ["Guard", "Phase", "Phases"]

_Task = asyncio.Task[None]

_AT_ONCE = 0.1
"""Seconds in which a task ends that does not ignore its cancellation."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What runs at the same time; *before* is called when everything around it is up."""

    runnables: Sequence[Runnable]
    before: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """A runnable that what is inside of it may not outlive: if it ends first, the rest is cancelled at once, and if
    something inside cannot be made to end, it is told so by *forfeit* before it is asked to stop."""

    runnable: Runnable
    forfeit: Callable[[], None]


class Phases:
    """Runs phases; used once.

    *drain* is how long the innermost phase may take when asked to stop, *grace* how long everything may take after
    that, in seconds.
    """

    def __init__(self, phases: Sequence[Phase], *, drain: float, grace: float, guard: Guard | None = None) -> None:
        self._phases = [each for each in phases if each.runnables or each.before]
        self._drain = drain
        self._grace = grace
        self._guard = guard
        self._running: list[list[_Running]] = []
        self._left: set[_Task] = set()
        self._log = logger()

    async def run(self, up: Callable[[], None], down: Callable[[], None], stop: asyncio.Event) -> list[BaseException]:
        """Start everything, call *up*, wait for *stop*, call *down*, and stop everything; what the runnables raised.

        The end of a runnable is a stop without a drain; so is being cancelled, which is raised at the end. Tasks that
        ignore cancellation until the deadline are left behind, and named by a ``ShutdownTimeout`` among the errors.
        """
        cancelled: asyncio.CancelledError | None = None
        asked = False
        try:
            asked = await self._operate(up, stop)
        except asyncio.CancelledError as error:
            cancelled = error
        down()
        errors = await self._wind_down(self._drain if asked else 0.0)
        if cancelled is not None and not errors:
            raise cancelled
        return errors

    async def _operate(self, up: Callable[[], None], stop: asyncio.Event) -> bool:
        """Start one phase after the other, and wait; whether it ends because a stop was asked for."""
        for phase in self._phases:
            if phase.before is not None:
                phase.before()
            started = [_Running.start(runnable, stop) for runnable in phase.runnables]
            self._running.append(started)
            if not await self._until(_all_started(started), stop):
                return stop.is_set()
        up()
        await self._until(stop.wait(), stop)
        return stop.is_set()

    async def _until(self, event: Coroutine[Any, Any, Any], stop: asyncio.Event) -> bool:
        """Wait for *event*; false if a stop, or the end of anything that runs, comes first."""
        happened, stopped = asyncio.create_task(event), asyncio.create_task(stop.wait())
        tasks = {each.task for phase in self._running for each in phase}
        try:
            await asyncio.wait({happened, stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            return happened.done() and not stop.is_set() and not any(task.done() for task in tasks)
        finally:
            happened.cancel()
            stopped.cancel()
            await asyncio.wait((happened, stopped))

    async def _wind_down(self, drain: float) -> list[BaseException]:
        """Stop phase after phase, the last one first, within *drain* and the grace period; what they raised.

        Whatever does not end in its time is cancelled, and left behind if that does not help either: each of the
        phases that follow still has a share of the grace period.
        """
        loop = asyncio.get_running_loop()
        drained = loop.time() + drain
        deadline = drained + self._grace
        share = self._grace / (2 * max(len(self._running), 1))
        errors: list[BaseException] = []
        stuck: list[_Task] = []
        everything = [each.task for phase in self._running for each in phase]
        try:
            while self._running:
                phase = self._running.pop()
                guard = self._guard_of_inside()
                tasks = [each.task for each in phase]
                for each in phase:
                    each.lifetime.stop()
                cancel_at = max(drained, loop.time()) + share / 2
                for task in await _unfinished(tasks, cancel_at - loop.time(), guard):
                    task.cancel()
                end_at = max(deadline - share * len(self._running), cancel_at + share / 2)
                ignoring = await _unfinished(tasks, end_at - loop.time())
                if ignoring and guard is not None and self._guard is not None:
                    self._guard.forfeit()
                stuck += [task for task in tasks if task in ignoring]
                errors += [error for task in tasks if (error := _error_of(task)) is not None]
        finally:
            # Also when we are cancelled a second time: then all end at once, and nothing goes unseen.
            left = [task for task in everything if not task.done()]
            for task in left:
                task.cancel()
            if others := [task for task in left if task not in stuck]:
                await asyncio.wait(others, timeout=_AT_ONCE)
            for task in left:
                if not task.done():
                    self._leave_behind(task)
        if stuck:
            errors.append(ShutdownTimeout([task.get_name() for task in stuck]))
        return errors

    def _guard_of_inside(self) -> _Task | None:
        """The guard's task, if it is around the phase that was taken off last."""
        if self._guard is None:
            return None
        guards = (each.task for phase in self._running for each in phase if each.runnable is self._guard.runnable)
        return next(guards, None)

    def _leave_behind(self, task: _Task) -> None:
        self._log.error("ignores cancellation", task=task.get_name(), stack="\n".join(stack_of(task)))
        self._left.add(task)

        def ended(task: _Task) -> None:
            self._left.discard(task)
            self._log.warning("ended after the shutdown deadline", task=task.get_name(), error=repr(_error_of(task)))

        task.add_done_callback(ended)


@dataclass(frozen=True, slots=True)
class _Running:
    """A runnable at work."""

    runnable: Runnable
    task: _Task
    lifetime: Lifetime

    @classmethod
    def start(cls, runnable: Runnable, stop: asyncio.Event) -> Self:
        lifetime = Lifetime()
        name = str(getattr(runnable, "name", None) or type(runnable).__name__)
        return cls(runnable, asyncio.create_task(_supervised(runnable, lifetime, stop), name=name), lifetime)


async def _supervised(runnable: Runnable, lifetime: Lifetime, stop: asyncio.Event) -> None:
    await runnable.run(lifetime)
    if not lifetime.is_stopping and not stop.is_set():
        raise RuntimeError(f"{type(runnable).__name__} ended by itself")


async def _all_started(started: Sequence[_Running]) -> None:
    for each in started:
        await each.lifetime.wait_started()


async def _unfinished(tasks: Sequence[_Task], timeout: float, guard: _Task | None = None) -> set[_Task]:
    """Wait for *tasks*, for *timeout* seconds at most, and no longer than the *guard* around them lives; the rest."""
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout
    left = {task for task in tasks if not task.done()}
    while left and (guard is None or not guard.done()) and loop.time() < until:
        awaited = left if guard is None else {*left, guard}
        await asyncio.wait(awaited, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        left = {task for task in left if not task.done()}
    return left


def _error_of(task: _Task) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
