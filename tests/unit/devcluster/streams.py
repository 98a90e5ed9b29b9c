"""Clients of the streaming protocols, down to the wire: a WebSocket with channels, and SPDY/3.1."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp

from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.devcluster.streaming import spdy

Query = Iterable[tuple[str, str]]


def pod_path(name: str, subresource: str, query: Query = ()) -> str:
    return f"/api/v1/namespaces/default/pods/{name}/{subresource}?{urlencode(list(query))}"


def command(*argv: str, **wanted: bool) -> list[tuple[str, str]]:
    flags = {"stdout": True, "stderr": True, **wanted}
    return [("command", word) for word in argv] + [(name, "true") for name, on in flags.items() if on]


@dataclass(frozen=True)
class Target:
    """Where the API server listens, and what it takes to talk to it."""

    url: str
    context: ssl.SSLContext
    headers: dict[str, str]

    @classmethod
    def of(cls, dev: DevCluster) -> Target:
        assert dev.endpoint is not None
        context = ssl.create_default_context(cadata=dev.endpoint.ca_pem)
        return cls(dev.endpoint.url, context, {"Authorization": f"Bearer {dev.endpoint.token}"})


@dataclass
class Channels:
    """A WebSocket, as ``kubectl`` uses it; ``received`` is what came, by channel."""

    socket: aiohttp.ClientWebSocketResponse
    received: dict[int, bytes] = field(default_factory=dict)

    async def send(self, channel: int, data: bytes) -> None:
        await self.socket.send_bytes(bytes((channel,)) + data)

    async def end(self, channel: int) -> None:
        """The CLOSE signal of v5."""
        await self.socket.send_bytes(bytes((255, channel)))

    async def resize(self, width: int, height: int) -> None:
        await self.send(4, json.dumps({"Width": width, "Height": height}).encode())

    @property
    def transport(self) -> asyncio.Transport:
        """What is below."""
        connection = self.socket._response.connection
        assert connection is not None
        assert connection.transport is not None
        return connection.transport

    def cut(self) -> None:
        """Go without a word."""
        self.transport.abort()

    async def until(self, channel: int, text: bytes) -> None:
        async with asyncio.timeout(20):
            while text not in self.received.get(channel, b""):
                assert await self._take(), (text, self.received)

    async def finish(self) -> dict[str, Any]:
        """Read to the end; the status in the error channel."""
        async with asyncio.timeout(20):
            while await self._take():
                pass
        assert self.socket.close_code == 1000, self.socket.close_code
        return dict(json.loads(self.received[3]))

    async def _take(self) -> bool:
        message = await self.socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            return False
        self.received[message.data[0]] = self.received.get(message.data[0], b"") + message.data[1:]
        return True


@asynccontextmanager
async def websocket(target: Target, path: str, *protocols: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession(headers=target.headers) as session,
        session.ws_connect(
            target.url + path, protocols=protocols, ssl=target.context, max_msg_size=0, autoclose=True
        ) as socket,
    ):
        yield socket


@asynccontextmanager
async def channels(target: Target, path: str, protocol: str = "v5.channel.k8s.io") -> AsyncIterator[Channels]:
    async with websocket(target, path, protocol) as socket:
        assert socket.protocol == protocol
        yield Channels(socket)


class SpdyClient:
    """One SPDY/3.1 connection, as the client's side of it; made by :func:`spdy_client` or :func:`tunnel`."""

    def __init__(self) -> None:
        self.framer = spdy.Framer()
        self.received: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.replied: set[int] = set()
        self.reset: dict[int, int] = {}
        self.others: list[spdy.Frame] = []
        self._next = 1

    async def write(self, data: bytes) -> None:
        raise NotImplementedError

    async def read(self) -> bytes:
        raise NotImplementedError

    async def send(self, frame: spdy.Frame) -> None:
        await self.write(self.framer.encode(frame))

    async def open(self, **headers: str) -> int:
        number, self._next = self._next, self._next + 2
        await self.send(spdy.SynStream(number, headers))
        return number

    async def until_ended(self, *streams: int) -> None:
        async with asyncio.timeout(20):
            while not self.ended.issuperset(streams):
                assert await self.take(), (streams, self.received)

    async def take(self) -> bool:
        data = await self.read()
        for frame in self.framer.feed(data):
            match frame:
                case spdy.Data(number, payload, fin):
                    self.received[number] = self.received.get(number, b"") + payload
                    if fin:
                        self.ended.add(number)
                case spdy.SynReply(number):
                    self.replied.add(number)
                case spdy.RstStream(number, status):
                    self.reset[number] = status
                case spdy.Ping(number) if number % 2 == 0:
                    await self.send(frame)
                case _:
                    self.others.append(frame)
        return bool(data)


class _Raw(SpdyClient):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__()
        self._reader, self._writer = reader, writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def read(self) -> bytes:
        return await self._reader.read(65536)


class _Tunnel(SpdyClient):
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        super().__init__()
        self._socket = socket

    async def write(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def read(self) -> bytes:
        message = await self._socket.receive()
        return bytes(message.data) if message.type is aiohttp.WSMsgType.BINARY else b""


async def upgrade(
    target: Target, path: str, headers: dict[str, str]
) -> tuple[int, dict[str, str], asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for an upgrade; status and headers of the answer, and the connection after them."""
    url = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=target.context)
    lines = [f"POST {path} HTTP/1.1", f"Host: {url.netloc}", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in {**target.headers, "Connection": "Upgrade", **headers}.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), found, reader, writer


@asynccontextmanager
async def spdy_client(target: Target, path: str, protocol: str) -> AsyncIterator[SpdyClient]:
    status, headers, reader, writer = await upgrade(
        target, path, {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": protocol}
    )
    try:
        assert status == 101
        assert headers["upgrade"] == "spdy/3.1"
        assert headers["x-stream-protocol-version"] == protocol
        yield _Raw(reader, writer)
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def tunnel(target: Target, path: str) -> AsyncIterator[SpdyClient]:
    protocol = "SPDY/3.1+portforward.k8s.io"
    async with websocket(target, path, protocol) as socket:
        assert socket.protocol == protocol
        yield _Tunnel(socket)
