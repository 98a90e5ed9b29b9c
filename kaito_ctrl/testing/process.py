"""A simulated process: everything that began inside it can be paused, counted, and found to have ended.

What belongs to a process is told by a context variable, which tasks, timers and callbacks inherit from whoever made
them. A paused process does not run at all, as after a ``SIGSTOP``, a long garbage collection or a blocking call in the
event loop: its timers fall due and its answers arrive meanwhile, and all of it is handled when it runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar
from weakref import WeakSet

__all__ = ["Process", "current_process"]

T = TypeVar("T")

_CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)
_WORLD = copy_context()


def current_process(context: Context | None = None) -> Process | None:
    """The process that *context* (by default, whoever calls) belongs to."""
    return _CURRENT.get() if context is None else context.get(_CURRENT)


class Process:
    """One run of one program, from its start to its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self.resumed_at = 0.0
        """When it last ran again after a pause."""
        self._tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._parked: list[Step] = []
        self._pauses = 0

    def __repr__(self) -> str:
        return f"<Process {self.name}>"

    def start(self, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run *main* as this process; whoever calls owns the task."""
        context = copy_context()
        context.run(_CURRENT.set, self)
        return asyncio.get_running_loop().create_task(main, name=self.name, context=context)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Called by the loop for each task that begins inside."""
        self._tasks.add(task)

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks of this process that have not ended, by name."""
        return sorted((task for task in self._tasks if not task.done()), key=lambda task: task.get_name())

    def pause(self) -> None:
        """From the next step on, nothing of it runs."""
        self.paused = True

    def pause_for(self, seconds: float) -> None:
        """Paused now, and running again after *seconds*, unless it is resumed earlier."""
        self.pause()
        self._pauses += 1
        number = self._pauses

        def awake() -> None:
            if self._pauses == number:
                self.resume()

        asyncio.get_running_loop().call_later(seconds, awake, context=_WORLD.copy())

    def resume(self) -> None:
        """What came due meanwhile runs, in the order in which it came due."""
        self._pauses += 1
        if not self.paused:
            return
        self.paused, self.resumed_at = False, asyncio.get_running_loop().time()
        parked, self._parked = self._parked, []
        for step in parked:
            asyncio.get_running_loop().call_soon(step.again, context=step.outside)

    def park(self, step: Step) -> None:
        """Called by the loop for each step that falls due during a pause."""
        self._parked.append(step)


class Step:
    """A callback of a process, on its way through the loop's queue."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(
        self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: Context
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self.handle: asyncio.Handle | None = None

    @property
    def outside(self) -> Context:
        """A context in which the loop does not take :meth:`again` for a step of the process once more."""
        return _WORLD.copy()

    def __call__(self) -> None:
        if self.process.paused:
            self.process.park(self)
        else:
            self.callback(*self.args)

    def again(self) -> None:
        """Run after a pause, unless cancelled meanwhile."""
        if self.process.paused:
            self.process.park(self)
        elif self.handle is None or not self.handle.cancelled():
            self.context.run(self.callback, *self.args)
