"""``port-forward``: TCP connections to a pod, each as a pair of channels: its bytes, and what went wrong.

Over SPDY (plain, or tunnelled through a WebSocket) any number of connections come and go: a pair of streams with the
headers ``port``, ``requestid`` and ``streamtype``, ``data`` or ``error``. A plain WebSocket (``v4.channel.k8s.io``) has
one connection for each port that the request names: channels 2n and 2n+1, each beginning with the port's number as
two bytes, little-endian.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Sequence
from contextlib import suppress

from aiohttp import web

from kaito_ctrl.devcluster.streaming.channels import Channel
from kaito_ctrl.devcluster.streaming.spdyconnection import SpdyConnection, SpdyStream
from kaito_ctrl.devcluster.streaming.upgrade import (
    UpgradeRefused,
    choose_spdy,
    choose_websocket,
    is_websocket,
    spdy_connection,
    tunnelled_connection,
    websocket_channels,
)

__all__ = ["forward_ports", "read_ports"]

_SPDY = "portforward.k8s.io"
_TUNNEL = f"SPDY/3.1+{_SPDY}"
_CHANNELS = "v4.channel.k8s.io"
_CHUNK = 64 * 1024


def read_ports(values: Sequence[str]) -> tuple[int, ...]:
    """The ``port`` parameters of a request. Raises :class:`.upgrade.UpgradeRefused`."""
    return tuple(_port(text) for value in values for text in value.split(","))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 65536:
        raise UpgradeRefused(400, f'unable to parse "{text}" as a port')
    return int(text)


async def forward_ports(request: web.BaseRequest, host: str, ports: Sequence[int]) -> web.StreamResponse:
    """Answer *request* with whichever protocol it asks for, and carry its connections to *host* until it ends.

    Raises :class:`.upgrade.UpgradeRefused`.
    """
    if not is_websocket(request):
        async with spdy_connection(request, choose_spdy(request, [_SPDY])) as (response, connection):
            await _serve(connection, host)
        return response
    protocol = choose_websocket(request, (_TUNNEL, _CHANNELS))
    if protocol == _TUNNEL:
        async with tunnelled_connection(request, protocol) as (response, connection):
            await _serve(connection, host)
        return response
    if not ports:
        raise UpgradeRefused(400, 'query parameter "port" is required')
    async with websocket_channels(request, protocol, 2 * len(ports)) as (response, many), asyncio.TaskGroup() as group:
        pairs = zip(ports, many.channels[::2], many.channels[1::2], strict=True)
        tasks = [group.create_task(_numbered(host, *pair)) for pair in pairs]
        watching = group.create_task(_cancel_when_set(many.gone, tasks))
        await asyncio.wait(tasks)
        watching.cancel()
    return response


async def _numbered(host: str, port: int, data: Channel, errors: Channel) -> None:
    with suppress(ConnectionError):
        for channel in (data, errors):
            await channel.send(struct.pack("<H", port))
        await _forward(host, port, data, errors)


async def _serve(connection: SpdyConnection, host: str) -> None:
    """Every pair of streams of *connection*, until it ends."""
    waiting: dict[str, SpdyStream] = {}
    async with asyncio.TaskGroup() as group:
        tasks: set[asyncio.Task[None]] = set()
        while (stream := await connection.accept()) is not None:
            kind = stream.headers.get("streamtype", "")
            request_id = stream.headers.get("requestid", "")
            first = waiting.pop(request_id, None)
            if first is None:
                waiting[request_id] = stream
                continue
            data, errors = (stream, first) if kind == "data" else (first, stream)
            task = group.create_task(_stream_pair(host, data, errors))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for task in tasks:
            task.cancel()


async def _stream_pair(host: str, data: SpdyStream, errors: SpdyStream) -> None:
    with suppress(ConnectionError):
        try:
            port = _port(data.headers.get("port", ""))
        except UpgradeRefused as error:
            await errors.send(str(error).encode())
        else:
            async with asyncio.TaskGroup() as group:
                forwarding = group.create_task(_forward(host, port, data, errors))
                watching = group.create_task(_cancel_when_set(data.reset, [forwarding]))
                await asyncio.wait([forwarding])
                watching.cancel()
        data.discard()
        await data.close()
        await errors.close()


async def _cancel_when_set(event: asyncio.Event, tasks: Sequence[asyncio.Task[None]]) -> None:
    await event.wait()
    for task in tasks:
        task.cancel()


async def _forward(host: str, port: int, data: Channel, errors: Channel) -> None:
    """One connection, until the pod's side has said all it has to say. What goes wrong is told to *errors*."""
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=_CHUNK)
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        message = f"error forwarding port {port} to pod: dial tcp {host}:{port}: connect: {why}"
        with suppress(ConnectionError):
            await errors.send(message.encode())
        return
    try:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_send(data, writer))
            # Who has answered and closed takes no more, whatever the client still has to say.
            with suppress(ConnectionError):
                while chunk := await reader.read(_CHUNK):
                    await data.send(chunk)
                await data.close()
            sending.cancel()
    finally:
        writer.transport.abort()


async def _send(data: Channel, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await data.receive():
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        data.discard()  # it takes no more; it may still have something to say
