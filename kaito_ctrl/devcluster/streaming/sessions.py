"""Handlers whose work goes on when their connection is lost: they notice it themselves, and end in order.

A server that cancels its handlers when the client goes (aiohttp's ``handler_cancellation``) lets go of watches and
followed logs at once, however silent these are. What runs beside a container is to be hung up on first, though.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["Sessions"]

T = TypeVar("T")


class Sessions:
    """Owns them; leaving the block ends those that are left."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, session: Coroutine[Any, Any, T]) -> T:
        """Its result. Whoever waits for it may be cancelled; the session is not."""
        task = asyncio.create_task(session)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
