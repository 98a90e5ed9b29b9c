"""Tasks that end with the thing that has started them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any

__all__ = ["Tasks"]


class Tasks:
    """Starts tasks in a *group*, and can cancel those that are left. One that fails fails the group."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._running: set[asyncio.Task[None]] = set()
        self._context = copy_context()

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        # Not in the context of whoever asks: what a client has begun here goes on without it.
        task = self._group.create_task(coroutine, name=name, context=self._context.copy())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def cancel(self) -> None:
        for task in tuple(self._running):
            task.cancel()
