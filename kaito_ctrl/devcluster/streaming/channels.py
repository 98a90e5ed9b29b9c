"""Several byte streams over one connection: what they have in common, and the WebSocket way of it.

In the subprotocols ``*.channel.k8s.io`` the first byte of each binary message says to which channel the rest belongs.
Only ``v5`` can say that a channel ends before the connection does: a message of 255 and the channel's number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import aiohttp
from aiohttp import web

from kaito_ctrl.devcluster.streaming.inbox import Inbox

__all__ = ["Channel", "Connection", "WebSocketChannels", "running"]

PING_SECONDS = 2.0
_CLOSE = 255


class Channel(Protocol):
    """One of the streams."""

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` once the other side sends no more of them."""
        ...

    def discard(self) -> None:
        """Nobody will receive any more."""
        ...

    async def send(self, data: bytes) -> None:
        """Send, when there is room. Raises ``ConnectionError`` when the other side has gone."""
        ...

    async def close(self) -> None:
        """Say that nothing more will be sent, where the protocol can."""
        ...


class Connection(Protocol):
    """What carries the channels."""

    gone: asyncio.Event
    """The other side has gone."""

    async def run(self) -> None:
        """Take in what comes, until the other side has gone."""
        ...

    async def ping(self) -> None:
        """Send something that means nothing. Raises ``ConnectionError`` when the other side has gone."""
        ...

    async def finish(self) -> None:
        """Say that it is over, and let the other side end the connection; what was sent is not to be lost."""
        ...


C = TypeVar("C", bound=Connection)


@asynccontextmanager
async def running(connection: C) -> AsyncIterator[C]:
    """Take in what comes while the block runs, and finish after it."""
    problem: Exception | None = None
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(connection.run()), group.create_task(_keep(connection))]
        try:
            yield connection
        except Exception as error:  # noqa: BLE001 - it goes on from below, as it is and not as a group
            problem = error
        if not connection.gone.is_set():
            await connection.finish()
        for task in tasks:
            task.cancel()
    if problem is not None:
        raise problem


async def _keep(connection: Connection) -> None:
    """Find out that the other side has gone even while nothing is taken in, because nobody reads what came before."""
    try:
        while True:
            await asyncio.sleep(PING_SECONDS)
            await connection.ping()
    except ConnectionError:
        connection.gone.set()


class WebSocketChannels:
    """The channels of a WebSocket, by number; *closable* is whether they may end one by one (``v5``)."""

    def __init__(self, websocket: web.WebSocketResponse, count: int, *, closable: bool) -> None:
        self.websocket = websocket
        self.gone = asyncio.Event()
        self.channels = tuple(_WebSocketChannel(websocket, number) for number in range(count))
        self._closable = closable

    async def run(self) -> None:
        try:
            async for message in self.websocket:
                if message.type is aiohttp.WSMsgType.BINARY and message.data:
                    await self._take(message.data)
        finally:
            self.gone.set()
            for channel in self.channels:
                channel.inbox.end()

    async def _take(self, data: bytes) -> None:
        number = data[0]
        if number == _CLOSE and self._closable and len(data) == 2:
            if data[1] < len(self.channels):
                self.channels[data[1]].inbox.end()
        elif number < len(self.channels):
            self.channels[number].inbox.feed(data[1:])
            await self.channels[number].inbox.room()

    async def ping(self) -> None:
        await self.websocket.ping()

    async def finish(self) -> None:
        for channel in self.channels:
            channel.discard()
        await self.websocket.close()


class _WebSocketChannel:
    def __init__(self, websocket: web.WebSocketResponse, number: int) -> None:
        self.inbox = Inbox()
        self._websocket = websocket
        self._prefix = bytes((number,))

    async def receive(self) -> bytes:
        return await self.inbox.receive()

    def discard(self) -> None:
        self.inbox.discard()

    async def send(self, data: bytes) -> None:
        await self._websocket.send_bytes(self._prefix + data)

    async def close(self) -> None:
        return  # the connection's end is the channel's
