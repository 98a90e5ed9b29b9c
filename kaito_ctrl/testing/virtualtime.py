"""An event loop whose clock jumps: what sleeps for an hour sleeps for no time, and always in the same order.

Nothing outside can be waited for: a socket, a thread or a process would take real time, so asking for one is an
error. When nothing is ready and nothing is due, nothing ever will be: that is a :class:`Deadlock`, found at once
instead of by a time-out.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

__all__ = ["Deadlock", "VirtualClock", "VirtualTimeLoop", "run_virtual"]

T = TypeVar("T")
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Deadlock(RuntimeError):
    """Every task waits for something that cannot happen any more."""


class _JumpingSelector(selectors.BaseSelector):
    """Instead of waiting for input, moves the clock to where the wait would have ended."""

    def __init__(self) -> None:
        self.now = 0.0
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
        if timeout > 0:
            self.now += timeout
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module's docstring. ``time()`` starts at 0 and counts virtual seconds."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # The loop's own wake-up pipe is registered by now, and nobody else's may be.
        self._jumping.sealed = True

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("there are no threads in virtual time")


class VirtualClock:
    """Implements ``runtime.clock.Clock`` on a virtual loop: the wall clock starts at the same moment in every run."""

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* to its end in virtual time. Raises what it raises, and :class:`Deadlock`."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
