"""The server's side of a SPDY/3.1 connection: streams that the other side opens.

It is what Kubernetes makes of SPDY: every stream is taken, ``SYN_REPLY`` says no more than that, and there are no flow
control windows (Kubernetes' own library neither sends nor heeds them): who is slow holds up the whole connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from kaito_ctrl.devcluster.streaming import spdy
from kaito_ctrl.devcluster.streaming.inbox import Inbox

__all__ = ["Duplex", "SpdyConnection", "SpdyStream"]

LINGER_SECONDS = 5.0
_CHUNK = 64 * 1024


class Duplex(Protocol):
    """What carries the frames: bytes both ways."""

    async def receive(self) -> bytes:
        """The next bytes; ``b""`` when the other side has gone."""
        ...

    async def send(self, data: bytes) -> None:
        """Send, when there is room. Raises ``ConnectionError`` when the other side has gone."""
        ...


class SpdyStream:
    """One stream, a :class:`.channels.Channel`; ``headers`` is what it was opened with, names in lower case."""

    def __init__(self, connection: SpdyConnection, opening: spdy.SynStream) -> None:
        self.number = opening.stream
        self.headers: Mapping[str, str] = opening.headers
        self.inbox = Inbox()
        self.reset = asyncio.Event()
        """The other side wants nothing more of it."""
        self._connection = connection
        self.closed = False

    async def receive(self) -> bytes:
        return await self.inbox.receive()

    def discard(self) -> None:
        self.inbox.discard()

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), _CHUNK):
            if self.closed:
                raise BrokenPipeError("the stream was closed")
            await self._connection.send(spdy.Data(self.number, data[start : start + _CHUNK]))

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._connection.settle(self)
            await self._connection.send(spdy.Data(self.number, b"", fin=True))


class SpdyConnection:
    """A :class:`.channels.Connection`; :meth:`accept` gives its streams in the order in which they were opened."""

    def __init__(self, duplex: Duplex) -> None:
        self.gone = asyncio.Event()
        self._duplex = duplex
        self._framer = spdy.Framer()
        self._streams: dict[int, SpdyStream] = {}
        self._opened: asyncio.Queue[SpdyStream | None] = asyncio.Queue()
        self._last = 0
        self._pings = 0
        self._sending = asyncio.Lock()

    async def accept(self) -> SpdyStream | None:
        """The next stream; ``None`` when no more will come."""
        return await self._opened.get()

    async def run(self) -> None:
        try:
            while data := await self._duplex.receive():
                for frame in self._framer.feed(data):
                    await self._take(frame)
        except spdy.ProtocolError:
            with suppress(ConnectionError):
                await self.send(spdy.GoAway(self._last, 1))
        except ConnectionError:
            pass  # gone is gone
        finally:
            self.gone.set()
            self._opened.put_nowait(None)
            for stream in self._streams.values():
                stream.reset.set()
                stream.inbox.end()

    async def send(self, frame: spdy.Frame) -> None:
        """Raises ``ConnectionError``."""
        async with self._sending:
            await self._duplex.send(self._framer.encode(frame))

    def settle(self, stream: SpdyStream) -> None:
        """Forget a stream that has ended in both directions."""
        if stream.closed and stream.inbox.ended:
            self._streams.pop(stream.number, None)

    async def ping(self) -> None:
        self._pings += 2  # a server's are even
        await self.send(spdy.Ping(self._pings))

    async def finish(self) -> None:
        try:
            for stream in tuple(self._streams.values()):
                stream.discard()
                await stream.close()
            async with asyncio.timeout(LINGER_SECONDS):
                # A connection that is closed while something unread is on it is reset, and takes what was sent along.
                await self.gone.wait()
        except (ConnectionError, TimeoutError):
            pass  # it was over anyway

    async def _take(self, frame: spdy.Frame) -> None:
        match frame:
            case spdy.SynStream():
                await self._open(frame)
            case spdy.Data(number, data, fin) if (stream := self._streams.get(number)) is not None:
                stream.inbox.feed(data)
                if fin:
                    stream.inbox.end()
                    self.settle(stream)
                await stream.inbox.room()
            case spdy.Headers(number, _, True) if (stream := self._streams.get(number)) is not None:
                stream.inbox.end()
                self.settle(stream)
            case spdy.RstStream(number, _) if (stream := self._streams.get(number)) is not None:
                stream.closed = True
                stream.reset.set()
                stream.inbox.end()
                self.settle(stream)
            case spdy.Ping(number) if number % 2:
                await self.send(frame)

    async def _open(self, frame: spdy.SynStream) -> None:
        if frame.stream % 2 == 0 or frame.stream <= self._last:
            await self.send(spdy.RstStream(frame.stream, spdy.PROTOCOL_ERROR))
            return
        self._last = frame.stream
        stream = self._streams[frame.stream] = SpdyStream(self, frame)
        if frame.fin:
            stream.inbox.end()
        await self.send(spdy.SynReply(frame.stream))
        self._opened.put_nowait(stream)
