"""The hand-shake between something long-running and whoever runs it."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["Lifetime", "Runnable"]


class Lifetime:
    """Given to a runnable: it says when it is up, and is told when to wind down.

    Cancellation ends a runnable at once; ``stopping`` is the polite request that comes before it.
    """

    def __init__(self) -> None:
        self._up = asyncio.Event()
        self._stopping = asyncio.Event()

    def started(self) -> None:
        """To be called by the runnable once others may rely on it."""
        self._up.set()

    async def wait_started(self) -> None:
        """Until :meth:`started` was called."""
        await self._up.wait()

    @property
    def is_started(self) -> bool:
        return self._up.is_set()

    def stop(self) -> None:
        """Ask the runnable to wind down."""
        self._stopping.set()

    async def wait_stopping(self) -> None:
        """Until :meth:`stop` was called."""
        await self._stopping.wait()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()


class Runnable(Protocol):
    """Anything that a manager runs: it works until it is asked to stop, or cancelled."""

    async def run(self, lifetime: Lifetime) -> None: ...
