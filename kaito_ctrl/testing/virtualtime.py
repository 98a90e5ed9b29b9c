"""An event loop whose clock jumps: what sleeps for an hour sleeps for no time, and always in the same order.

Nothing outside can be waited for: a socket, a thread or a process would take real time, so asking for one is an
error. When nothing is ready and nothing is due, nothing ever will be: that is a :class:`Deadlock`, found at once
instead of by a time-out; and when things happen for ever without any time passing, that is a :class:`Livelock`. The
loop knows of simulated processes (:mod:`kaito_ctrl.testing.process`), and runs no step
of one that is paused.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

from kaito_ctrl.testing.process import Step, current_process

__all__ = ["Deadlock", "Livelock", "VirtualClock", "VirtualTimeLoop", "run_virtual"]

T = TypeVar("T")
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Deadlock(RuntimeError):
    """Every task waits for something that cannot happen any more."""


class Livelock(RuntimeError):
    """Something is done again and again, and no time passes."""


_ROUNDS = 100_000
"""Rounds of the loop without any passing of time that nothing honest needs."""


class _JumpingSelector(selectors.BaseSelector):
    """Instead of waiting for input, moves the clock to where the wait would have ended."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rounds = 0
        self.sealed = False
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.sealed:
            raise RuntimeError("there is no input or output in virtual time")
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock(f"nothing is ready and nothing is due, {self.now:.3f} s after the start")
        self.rounds += 1
        if timeout > 0:
            self.now += timeout
            self.rounds = 0
        elif self.rounds > _ROUNDS:
            raise Livelock(f"{_ROUNDS} rounds without any time passing, {self.now:.3f} s after the start")
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class _NumberedTask(asyncio.Task[T]):
    """A task whose place in a set depends on when it was made, and not on where in memory it lies.

    A task group cancels its tasks in the order of a set: without this, no two runs would be the same.
    """

    def __init__(self, coro: Coroutine[Any, Any, T], number: int, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module's docstring. ``time()`` starts at 0 and counts virtual seconds."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self._numbers = itertools.count()
        super().__init__(self._jumping)
        # The loop's own wake-up pipe is registered by now, and nobody else's may be.
        self._jumping.sealed = True

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("there are no threads in virtual time")

    def create_task(self, coro: Any, *, name: object = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = _NumberedTask(coro, next(self._numbers), loop=self, name=name, context=context)
        process = current_process(context)
        if process is not None:
            process.adopt(task)
        return task

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        process = current_process(context)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        step = Step(process, callback, args, context if context is not None else copy_context())
        step.handle = super().call_soon(step, context=step.context)
        return step.handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        process = current_process(context)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        step = Step(process, callback, args, context if context is not None else copy_context())
        timer = super().call_at(when, step, context=step.context)
        step.handle = timer
        return timer


class VirtualClock:
    """Implements ``runtime.clock.Clock`` on a virtual loop: the wall clock starts at the same moment in every run."""

    def __init__(self) -> None:
        self._offset = timedelta()

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward, or back; what is measured does not change."""
        self._offset += timedelta(seconds=seconds)

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.monotonic()) + self._offset

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* to its end in virtual time. Raises what it raises, and :class:`Deadlock` or :class:`Livelock`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
