"""One start of a container, as those see it who watch and attach: what it prints, and what it is told."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from kaito_ctrl.devcluster.kinds import Container
from kaito_ctrl.devcluster.logs import ContainerLog
from kaito_ctrl.devcluster.stdio import Stdio
from kaito_ctrl.devcluster.streaming.remotecommand import RemoteCommand

__all__ = ["Console"]

KEPT_BYTES = 4 * 2**20


class Console:
    """Takes a container's output to its log and to everybody who is attached.

    A container that is meant for one client (``stdinOnce``, as ``kubectl run -i`` asks for) may have printed all it
    has to say before that client comes. So its output is kept for the first one, who sees it from its beginning; more
    than 4 MiB of it is only in the log. Who attaches to any other sees what is printed from then on.
    """

    def __init__(self, container: Container, log: ContainerLog, stdio: Stdio) -> None:
        self._once = container.stdin_once
        self._log = log
        self._stdio = stdio
        self._kept: deque[tuple[str, bytes]] | None = deque() if container.stdin_once else None
        self._kept_size = 0
        self._attached: set[RemoteCommand] = set()
        self._telling = asyncio.Lock()
        self._ended = asyncio.Event()

    @property
    def attachable(self) -> bool:
        """Whether there is, or will be, something to see."""
        return not self._ended.is_set() or self._kept is not None

    async def run(self) -> None:
        """Until the outputs end. Somebody attached who reads slowly slows the container down."""
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._stdio.outputs:
                    group.create_task(self._pump(name))
        finally:
            self._ended.set()

    async def _pump(self, name: str) -> None:
        while data := await self._stdio.read(name):
            self._log.write(name, data)
            async with self._telling:
                if self._kept is not None:
                    self._keep(name, data)
                for client in tuple(self._attached):
                    await self._tell(client, name, data)

    def _keep(self, name: str, data: bytes) -> None:
        assert self._kept is not None
        self._kept.append((name, data))
        self._kept_size += len(data)
        if self._kept_size > KEPT_BYTES:
            self._kept = None

    async def _tell(self, client: RemoteCommand, name: str, data: bytes) -> None:
        try:
            await client.send(name, data)
        except ConnectionError:
            client.gone.set()
            self._attached.discard(client)

    async def attach(self, client: RemoteCommand) -> None:
        """Until the container ends, or the client goes."""
        async with self._telling:
            kept, self._kept = self._kept or (), None
            self._attached.add(client)
            for name, data in kept:
                await self._tell(client, name, data)
        try:
            async with asyncio.TaskGroup() as group:
                ends = [group.create_task(event.wait()) for event in (self._ended, client.gone)]
                beside = [
                    group.create_task(self._listen(client)),
                    group.create_task(client.read_sizes(self._stdio.resize)),
                ]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in (*ends, *beside):
                    task.cancel()
        finally:
            self._attached.discard(client)
            await self._end_input(client)

    async def _listen(self, client: RemoteCommand) -> None:
        await client.read_input(self._stdio.write)
        await self._end_input(client)

    async def _end_input(self, client: RemoteCommand) -> None:
        if self._once and client.options.stdin:
            self._once = False
            with suppress(OSError):
                await self._stdio.end_input()
