"""``exec`` and ``attach``: a command's input, outputs, terminal size and end, as channels of a connection.

Over SPDY the channels are streams with a ``streamtype`` header (``v4.channel.k8s.io``), over a WebSocket they are
numbers: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize (``v4``, and ``v5``, in which stdin can end by itself). The
error channel carries one ``v1.Status`` at the end, the resize channel ``{"Width": 80, "Height": 24}`` at each change.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from kaito_ctrl.devcluster.streaming.channels import Channel
from kaito_ctrl.devcluster.streaming.spdyconnection import SpdyConnection
from kaito_ctrl.devcluster.streaming.upgrade import (
    UpgradeRefused,
    choose_spdy,
    choose_websocket,
    is_websocket,
    spdy_connection,
    websocket_channels,
)

__all__ = ["Options", "RemoteCommand", "exited", "failed", "open_command", "succeeded"]

_WEBSOCKET = ("v5.channel.k8s.io", "v4.channel.k8s.io")
_SPDY = ("v4.channel.k8s.io",)
_STREAMS_SECONDS = 30.0
_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}


@dataclass(frozen=True, slots=True)
class Options:
    """What the client wants to be connected with."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """The kubelet's spelling: ``input``, ``output``, ``error``, ``tty``, each ``1``. Raises
        :class:`.upgrade.UpgradeRefused` for nothing at all."""
        stdin, stdout, stderr, tty = (query.get(name) == "1" for name in ("input", "output", "error", "tty"))
        if not (stdin or stdout or stderr):
            raise UpgradeRefused(400, "you must specify at least 1 of stdin, stdout, stderr")
        return cls(stdin, stdout, stderr and not tty, tty)  # a terminal has one output

    @property
    def names(self) -> frozenset[str]:
        """The channels that follow from it."""
        wanted = {"stdin": self.stdin, "stdout": self.stdout, "stderr": self.stderr, "resize": self.tty, "error": True}
        return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


def succeeded() -> dict[str, Any]:
    """The status of an end without fault."""
    return {"metadata": {}, "status": "Success"}


def exited(code: int) -> dict[str, Any]:
    """The status of a command that ended with that code."""
    if code == 0:
        return succeeded()
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: command terminated with exit code {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failed(message: str) -> dict[str, Any]:
    """The status of a command that never ran."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {message}",
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    }


class RemoteCommand:
    """The client's side of a command; made by :func:`open_command`."""

    def __init__(
        self,
        response: web.StreamResponse,
        options: Options,
        channels: Mapping[str, Channel],
        gone: asyncio.Event,
    ) -> None:
        self.response = response
        """What the HTTP handler has to return in the end."""
        self.options = options
        self.gone = gone
        """The client has gone."""
        self._channels = channels

    async def send(self, name: str, data: bytes) -> None:
        """To the client's ``stdout`` or ``stderr``, if it wants that. Raises ``ConnectionError``."""
        if name in self._channels:
            await self._channels[name].send(data)

    async def read_input(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Hand what the client types to *write*, until it ends; an ``OSError`` of *write* means nobody wants more."""
        stdin = self._channels.get("stdin")
        if stdin is None:
            return
        try:
            while data := await stdin.receive():
                await write(data)
        except OSError:
            stdin.discard()

    async def read_sizes(self, resize: Callable[[int, int], None]) -> None:
        """Call *resize* with each width and height of the client's terminal."""
        channel = self._channels.get("resize")
        if channel is None:
            return
        text = ""
        while data := await channel.receive():
            text += data.decode("utf-8", "replace")
            with suppress(ValueError):  # not yet complete
                while text := text.lstrip():
                    size, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:]
                    if isinstance(size, dict):
                        resize(_cells(size.get("Width")), _cells(size.get("Height")))

    async def finish(self, status: Mapping[str, Any]) -> None:
        """Tell the client how it ended. A client that has gone is not told."""
        with suppress(ConnectionError):
            for name in ("stdout", "stderr"):
                if name in self._channels:
                    await self._channels[name].close()
            await self._channels["error"].send(json.dumps(status).encode())
            await self._channels["error"].close()


def _cells(value: object) -> int:
    return min(max(value, 0), 0xFFFF) if isinstance(value, int) else 0


@asynccontextmanager
async def open_command(request: web.BaseRequest, options: Options) -> AsyncIterator[RemoteCommand]:
    """Answer *request* with whichever protocol it asks for. Raises :class:`.upgrade.UpgradeRefused` before that, and
    ``OSError`` when the client does not open its channels."""
    if is_websocket(request):
        protocol = choose_websocket(request, _WEBSOCKET)
        async with websocket_channels(request, protocol, len(_NUMBERS)) as (response, connection):
            named = {name: connection.channels[_NUMBERS[name]] for name in options.names}
            # So that the client knows at once that it is connected.
            first = next(name for name in ("stdout", "stderr", "error") if name in named)
            with suppress(ConnectionError):
                await named[first].send(b"")
            yield RemoteCommand(response, options, named, connection.gone)
        return
    protocol = choose_spdy(request, _SPDY)
    async with spdy_connection(request, protocol) as (response, streams):
        yield RemoteCommand(response, options, await _streams(streams, options.names), streams.gone)


async def _streams(connection: SpdyConnection, names: frozenset[str]) -> dict[str, Channel]:
    found: dict[str, Channel] = {}
    async with asyncio.timeout(_STREAMS_SECONDS):
        while names - found.keys():
            stream = await connection.accept()
            if stream is None:
                raise ConnectionResetError("the client has gone before it opened its streams")
            found[stream.headers.get("streamtype", "")] = stream
    return found
