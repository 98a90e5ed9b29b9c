"""Bytes on their way from whoever receives them to the one who reads them, never many at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["Inbox"]


class Inbox:
    """A queue of bytes in one event loop, with one reader.

    Whoever fills it holds back while it is over *limit* bytes: by :meth:`room`, or, where it is filled by callbacks,
    by *pause* and *resume*.
    """

    def __init__(
        self,
        *,
        limit: int = 256 * 1024,
        pause: Callable[[], None] = lambda: None,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._unwanted = False
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def feed(self, data: bytes) -> None:
        """More bytes; after the end, and when nobody wants them, they are dropped."""
        if not data or self._ended or self._unwanted:
            return
        self._chunks.append(data)
        self._size += len(data)
        self._filled.set()
        if self._size > self._limit and self._room.is_set():
            self._room.clear()
            self._pause()

    async def room(self) -> None:
        """Until there is room again."""
        await self._room.wait()

    def end(self) -> None:
        """No more will come; what is there can still be read."""
        self._ended = True
        self._filled.set()

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self._ended

    def discard(self) -> None:
        """Nobody will read any more: what is there, and all that still comes, is dropped."""
        self._unwanted = True
        self._chunks.clear()
        self._size = 0
        self._make_room()

    async def receive(self) -> bytes:
        """The next bytes, one chunk as it came; ``b""`` at the end."""
        while not self._chunks:
            if self._ended or self._unwanted:
                return b""
            self._filled.clear()
            await self._filled.wait()
        data = self._chunks.popleft()
        self._size -= len(data)
        if self._size <= self._limit // 2:
            self._make_room()
        return data

    def _make_room(self) -> None:
        if not self._room.is_set():
            self._room.set()
            self._resume()
