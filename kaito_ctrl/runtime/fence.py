"""The fence: what keeps a process from writing once somebody else may lead.

A leader that has stood still, or lost the API server, does not know that it has been replaced; its clock does. So the
fence is open until a moment of the monotonic clock, which every renewal of the lease moves, and nothing else has to
happen for it to close. A write that is on its way at that moment is given up.

It keeps what a client can keep: bytes that have left cannot be called back. That is what lies between the moment at
which the fence closes and the one at which others may take the lease.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import LeaseLost

__all__ = ["Fence"]


class Fence:
    """Closed at first; opened, and kept open, by whoever holds the lease."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._until = -math.inf
        self._closed = False
        self._inside: set[asyncio.Timeout] = set()

    def remaining(self) -> float:
        """Seconds until it closes; not positive when it has."""
        return self._until - self._clock.monotonic()

    def check(self) -> None:
        """To be called right before anything that only a leader may do. Raises ``LeaseLost`` when it is closed."""
        if self.remaining() <= 0:
            raise LeaseLost(f"lease {self._name} is not held, or may have lapsed: refused to act under it")

    def open(self, until: float) -> None:
        """Stay open until that moment of the monotonic clock, which also holds for what is inside already."""
        if not self._closed:
            self._until = until
            self._reschedule()

    def close(self) -> None:
        """Close at once and for good, and give up what is inside."""
        self._closed = True
        self._until = -math.inf
        self._reschedule()

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Do something inside the fence. Raises ``LeaseLost`` when it is closed, and when it closes meanwhile: what
        was inside is then cancelled, and may or may not have happened."""
        self.check()
        limit = asyncio.timeout_at(self._loop_time())
        try:
            async with limit:
                self._inside.add(limit)
                try:
                    yield
                finally:
                    self._inside.discard(limit)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise LeaseLost(f"lease {self._name} ended during a write, which may or may not have happened") from error

    def _reschedule(self) -> None:
        for limit in self._inside:
            if not limit.expired():
                limit.reschedule(self._loop_time())

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time() + max(self.remaining(), 0.0)
