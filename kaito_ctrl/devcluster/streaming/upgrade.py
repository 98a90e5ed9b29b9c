"""From an HTTP request to a connection that is HTTP no more: a WebSocket, SPDY/3.1, or SPDY in a WebSocket.

``kubectl`` from 1.31 on speaks WebSocket (``v5.channel.k8s.io``, and for port-forward SPDY tunnelled through one), and
older ones SPDY, chosen by ``X-Stream-Protocol-Version``. When a WebSocket is refused, newer ones try SPDY again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
from aiohttp import web

from kaito_ctrl.devcluster.streaming.channels import WebSocketChannels, running
from kaito_ctrl.devcluster.streaming.inbox import Inbox
from kaito_ctrl.devcluster.streaming.spdyconnection import SpdyConnection

__all__ = [
    "UpgradeRefused",
    "choose_spdy",
    "choose_websocket",
    "is_upgrade",
    "is_websocket",
    "spdy_connection",
    "tunnelled_connection",
    "websocket_channels",
]

SPDY = "SPDY/3.1"
_VERSION = "X-Stream-Protocol-Version"
_ACCEPTED = "X-Accepted-Stream-Protocol-Versions"
_CLOSE_SECONDS = 5.0
_CHUNK = 64 * 1024
_LARGEST = 32 * 2**20
"""A message may be a whole SPDY frame, of 16 MiB."""


class UpgradeRefused(Exception):
    """The request asks for no protocol that is spoken here; ``response`` says which are."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.response = web.Response(status=status, text=message + "\n", headers=dict(headers))


def is_upgrade(request: web.BaseRequest) -> bool:
    """Whether the client wants to leave HTTP."""
    return "upgrade" in request.headers.get("Connection", "").lower() and "Upgrade" in request.headers


def is_websocket(request: web.BaseRequest) -> bool:
    """Whether it wants a WebSocket."""
    return is_upgrade(request) and request.headers["Upgrade"].lower() == "websocket"


def _offered(request: web.BaseRequest, header: str) -> list[str]:
    return [name.strip() for value in request.headers.getall(header, ()) for name in value.split(",") if name.strip()]


def choose_websocket(request: web.BaseRequest, ours: Sequence[str]) -> str:
    """The first subprotocol of the client's that is among *ours*. Raises :class:`UpgradeRefused`."""
    offered = _offered(request, "Sec-WebSocket-Protocol")
    chosen = next((name for name in offered if name in ours), None)
    if chosen is None:
        raise UpgradeRefused(
            400, f"unable to upgrade: requested protocol(s) are not supported: {offered}; supports {list(ours)}"
        )
    return chosen


def choose_spdy(request: web.BaseRequest, ours: Sequence[str]) -> str:
    """The first protocol version of the client's that is among *ours*. Raises :class:`UpgradeRefused`."""
    if SPDY.lower() not in request.headers.get("Upgrade", "").lower() or not is_upgrade(request):
        raise UpgradeRefused(400, "unable to upgrade: the request asks neither for a WebSocket nor for SPDY/3.1")
    offered = _offered(request, _VERSION)
    if not offered:
        raise UpgradeRefused(400, f"unable to upgrade: {_VERSION} is required")
    chosen = next((name for name in offered if name in ours), None)
    if chosen is None:
        message = f"unable to upgrade: unable to negotiate protocol: client supports {offered}, server accepts {ours}"
        raise UpgradeRefused(403, message, [(_ACCEPTED, ", ".join(ours))])
    return chosen


@asynccontextmanager
async def websocket_channels(
    request: web.BaseRequest, protocol: str, count: int
) -> AsyncIterator[tuple[web.StreamResponse, WebSocketChannels]]:
    """Answer with a WebSocket of *count* channels; leaving the block closes it."""
    websocket = await _websocket(request, protocol)
    channels = WebSocketChannels(websocket, count, closable=protocol.startswith("v5."))
    async with running(channels):
        yield websocket, channels


@asynccontextmanager
async def spdy_connection(
    request: web.BaseRequest, protocol: str
) -> AsyncIterator[tuple[web.StreamResponse, SpdyConnection]]:
    """Answer with SPDY/3.1; leaving the block ends what is left of it."""
    response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": SPDY, _VERSION: protocol})
    response.force_close()
    raw = _Raw(request, response)
    # Before the answer, which is what makes the client send something that is not HTTP.
    request.protocol.set_parser(cast(Any, raw))
    request.protocol.keep_alive(False)
    await response.prepare(request)
    async with running(SpdyConnection(raw)) as connection:
        yield response, connection


@asynccontextmanager
async def tunnelled_connection(
    request: web.BaseRequest, protocol: str
) -> AsyncIterator[tuple[web.StreamResponse, SpdyConnection]]:
    """Answer with a WebSocket that carries SPDY/3.1 in its messages; leaving the block closes it."""
    websocket = await _websocket(request, protocol)
    async with running(SpdyConnection(_Tunnel(websocket))) as connection:
        yield websocket, connection
    await websocket.close()


async def _websocket(request: web.BaseRequest, protocol: str) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse(
        protocols=(protocol,), timeout=_CLOSE_SECONDS, compress=False, max_msg_size=_LARGEST, writer_limit=_CHUNK
    )
    await websocket.prepare(request)
    return websocket


class _Raw:
    """The bytes of a connection after its last HTTP request; for aiohttp it is what parses the rest."""

    def __init__(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        self._request = request
        self._response = response
        self._inbox = Inbox(pause=lambda: self._hold(True), resume=lambda: self._hold(False))

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._inbox.feed(data)
        return False, b""

    def feed_eof(self) -> None:
        self._inbox.end()

    async def receive(self) -> bytes:
        return await self._inbox.receive()

    async def send(self, data: bytes) -> None:
        await self._response.write(data)

    def _hold(self, on: bool) -> None:
        transport = self._request.transport  # None once the connection is lost
        if transport is not None:
            (transport.pause_reading if on else transport.resume_reading)()


class _Tunnel:
    """The bytes in a WebSocket's binary messages, whatever their borders."""

    def __init__(self, websocket: web.WebSocketResponse) -> None:
        self._websocket = websocket

    async def receive(self) -> bytes:
        async for message in self._websocket:
            if message.type is aiohttp.WSMsgType.BINARY and message.data:
                return bytes(message.data)
        return b""

    async def send(self, data: bytes) -> None:
        await self._websocket.send_bytes(data)
