"""The three streams between us and one process: pipes, or a pseudo-terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

from kaito_ctrl.devcluster.streaming.inbox import Inbox

__all__ = ["Stdio"]

_END_OF_INPUT = b"\x04"
"""What a terminal takes for the end of input (VEOF, Ctrl-D)."""


class _Source(asyncio.Protocol):
    """The reading end of a pipe or terminal. When a terminal's other side is closed, reading it is an error (EIO):
    asyncio's own reader would forget what it had read before."""

    def __init__(self) -> None:
        self._transport: asyncio.ReadTransport | None = None
        self.inbox = Inbox(pause=lambda: self._hold(True), resume=lambda: self._hold(False))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.ReadTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.inbox.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.inbox.end()

    def _hold(self, on: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.pause_reading if on else self._transport.resume_reading)()


class _Sink(asyncio.BaseProtocol):
    """The writing end of a pipe or terminal."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._room.set()

    async def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise BrokenPipeError
        self._transport.write(data)
        await self._room.wait()

    @property
    def descriptor(self) -> int | None:
        """``None`` once it is closed: the number may then be somebody else's."""
        return self._transport.get_extra_info("pipe").fileno() if self._transport is not None else None

    def close(self) -> None:
        """What has been written still arrives."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(slots=True)
class Stdio:
    """Made by :meth:`open`. ``theirs`` is for the process: stdin (``None``: /dev/null), stdout, stderr."""

    theirs: tuple[int | None, int, int]
    terminal: bool
    _outputs: Mapping[str, Inbox]
    _input: _Sink | None
    _lent: ExitStack = field(repr=False)

    @classmethod
    @asynccontextmanager
    async def open(cls, *, stdin: bool, terminal: bool) -> AsyncIterator[Self]:
        """Leaving the block closes everything; a process that still writes gets SIGPIPE, or SIGHUP."""
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            lent = stack.enter_context(ExitStack())
            give: int | None = None
            if terminal:
                ours, theirs = os.openpty()
                lent.callback(os.close, theirs)
                read = {"stdout": ours}
                # Reading and writing end at different times, so each has a descriptor of its own.
                give = os.dup(ours)
                handed: tuple[int | None, int, int] = (theirs, theirs, theirs)
            else:
                pipes = {name: os.pipe() for name in ("stdout", "stderr")}
                read = {name: ends[0] for name, ends in pipes.items()}
                take = None
                if stdin:
                    take, give = os.pipe()
                handed = (take, pipes["stdout"][1], pipes["stderr"][1])
                for descriptor in handed:
                    if descriptor is not None:
                        lent.callback(os.close, descriptor)
            outputs = {}
            for name, descriptor in read.items():
                file = os.fdopen(descriptor, "rb", buffering=0)
                reading, source = await loop.connect_read_pipe(_Source, file)
                stack.callback(reading.close)
                outputs[name] = source.inbox
            sink = None
            if give is not None:
                _, sink = await loop.connect_write_pipe(_Sink, os.fdopen(give, "wb", buffering=0))
                stack.callback(sink.abort)
            yield cls(handed, terminal, outputs, sink, lent)

    def started(self) -> None:
        """The process has its ends, or there will be none: let go of them, so that its end can be seen."""
        self._lent.close()

    @property
    def outputs(self) -> tuple[str, ...]:
        """``stdout`` and ``stderr``; a terminal has ``stdout`` alone."""
        return tuple(self._outputs)

    async def read(self, name: str) -> bytes:
        """The next bytes of that output, ``b""`` once every process that could write there has ended."""
        return await self._outputs[name].receive()

    async def write(self, data: bytes) -> None:
        """To the process's stdin, when it has room. Raises ``OSError`` when nobody reads it any more."""
        if self._input is not None:
            await self._input.write(data)

    async def end_input(self) -> None:
        """No more input will come: on a terminal that is a character, as its output goes on."""
        if self._input is not None and self.terminal:
            await self._input.write(_END_OF_INPUT)
        elif self._input is not None:
            self._input.close()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; who runs in its foreground gets SIGWINCH. Nothing for pipes."""
        screen = self._input.descriptor if self._input is not None and self.terminal else None
        if screen is not None:
            with suppress(OSError):
                fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
