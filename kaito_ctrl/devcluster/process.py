"""Local processes that cannot outlive us: the kubelet's side of :mod:`kaito_ctrl.devcluster.spawn`."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaito_ctrl.devcluster import spawn

__all__ = ["Exit", "Process", "StartError", "Supervisor", "supervisor"]


class StartError(Exception):
    """The command could not be executed; the message is what a container runtime says."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: by itself with ``code``, or by a signal."""

    code: int
    signal: int

    @property
    def status(self) -> int:
        """As a shell, and Kubernetes, count it: 128 + n for signal n."""
        return 128 + self.signal if self.signal else self.code


class Process:
    """A running process and everything it started."""

    def __init__(self, supervisor: Supervisor, number: int, pid: int) -> None:
        self.pid = pid
        self._supervisor = supervisor
        self._number = number
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> bool:
        return not self._ended.done()

    async def wait(self) -> Exit:
        """Until it has ended; whatever it left running has then been killed."""
        return await asyncio.shield(self._ended)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group; to one that has ended, nothing."""
        if self.running:
            self._supervisor.post({"op": "signal", "id": self._number, "signal": int(number)})

    def _exited(self, how: Exit) -> None:
        if not self._ended.done():
            self._ended.set_result(how)


class Supervisor:
    """Starts processes through the supervisor process. Made by :func:`supervisor`."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._numbers = itertools.count(1)
        self._starting: dict[int, asyncio.Future[Process]] = {}
        self._running: dict[int, Process] = {}
        self._outbox: asyncio.Queue[tuple[bytes, tuple[int, ...]]] = asyncio.Queue()

    async def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdout: int,
        stderr: int,
        stdin: int | None = None,
        tty: bool = False,
    ) -> Process:
        """Execute *argv* in a session of its own, found on the PATH of *env*. The descriptors stay the caller's.

        Without *stdin* it reads from /dev/null; with *tty*, *stdin* is its controlling terminal. Raises
        :class:`StartError` when there is no such executable or folder. Cancelled, it leaves no process.
        """
        number = next(self._numbers)
        started: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._starting[number] = started
        message = {"op": "start", "id": number, "argv": list(argv), "env": dict(env), "cwd": str(cwd), "tty": tty}
        with ExitStack() as stack:
            stack.callback(self._starting.pop, number, None)
            if stdin is None:
                stdin = os.open(os.devnull, os.O_RDONLY)
                stack.callback(os.close, stdin)
            self.post(message, (stdin, stdout, stderr))
            return await started

    def post(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message, in order; its descriptors are duplicated at once."""
        payload = json.dumps(message).encode()
        self._outbox.put_nowait((struct.pack(">I", len(payload)) + payload, tuple(os.dup(fd) for fd in fds)))

    async def deliver(self) -> None:
        """Send what was posted. A task of its own, so that no cancellation can cut a message in two."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                data, fds = await self._outbox.get()
                if fds:
                    # The descriptors go with the message's length: the other side takes them in with it.
                    while (sent := self._try_send(data[:4], fds)) is None:
                        await self._writable()
                    data = data[sent:]
                    for fd in fds:
                        os.close(fd)
                await loop.sock_sendall(self._control, data)
        finally:
            while not self._outbox.empty():
                for fd in self._outbox.get_nowait()[1]:
                    os.close(fd)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(self._control, room.set)
        try:
            await room.wait()
        finally:
            loop.remove_writer(self._control)

    def _try_send(self, head: bytes, fds: Sequence[int]) -> int | None:
        try:
            return socket.send_fds(self._control, [head], list(fds))
        except BlockingIOError:
            return None

    async def listen(self) -> None:
        """Take in the supervisor's messages. Raises ``RuntimeError`` when it ends."""
        loop = asyncio.get_running_loop()
        buffer = b""
        while True:
            data = await loop.sock_recv(self._control, 65536)
            if not data:
                self.end()
                raise RuntimeError("the process supervisor has ended: the containers of this cluster are gone with it")
            buffer += data
            while len(buffer) >= 4 and len(buffer) >= 4 + (size := struct.unpack(">I", buffer[:4])[0]):
                self._take(json.loads(buffer[4 : 4 + size]))
                buffer = buffer[4 + size :]

    def end(self) -> None:
        """The supervisor has ended, and everything that it had started with it."""
        for process in self._running.values():
            process._exited(Exit(0, signal.SIGKILL))
        self._running.clear()

    def _take(self, message: Mapping[str, Any]) -> None:
        number = message["id"]
        started = self._starting.get(number)
        match message["event"]:
            case "started":
                process = self._running[number] = Process(self, number, message["pid"])
                if started is not None and not started.done():
                    started.set_result(process)
                else:
                    process.signal(signal.SIGKILL)  # whoever wanted it has been cancelled meanwhile
            case "refused":
                if started is not None and not started.done():
                    started.set_exception(StartError(message["message"]))
            case "exited":
                self._running.pop(number)._exited(Exit(message["code"], message["signal"]))


@asynccontextmanager
async def supervisor() -> AsyncIterator[Supervisor]:
    """Run a supervisor process. Leaving the block kills every process that it started, and waits for their end."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            script = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", spawn.__file__, str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for us; the pods are then stopped in order
            )
        ours.setblocking(False)
        made = Supervisor(ours)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work(), name="process-supervisor") for work in (made.listen, made.deliver)]
                yield made
                for task in tasks:
                    task.cancel()
        finally:
            ours.close()
            await script.wait()
            made.end()
