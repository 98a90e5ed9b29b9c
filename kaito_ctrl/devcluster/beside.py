"""Commands that run beside a container's own, where it runs: those of probes, and of ``kubectl exec``."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kaito_ctrl.devcluster.process import Process, StartError, Supervisor
from kaito_ctrl.devcluster.stdio import Stdio
from kaito_ctrl.devcluster.streaming.remotecommand import RemoteCommand, exited, failed
from kaito_ctrl.devcluster.volumes import Mounts

__all__ = ["Beside", "Command"]

HANG_UP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Command:
    """What a container executes, and where."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    mounts: Mounts


class Beside:
    """The commands beside one start of a container; they end with it."""

    def __init__(self, supervisor: Supervisor, command: Command) -> None:
        self._supervisor = supervisor
        self._command = command
        self._running: set[Process] = set()
        self._over = False

    async def probe(self, argv: Sequence[str]) -> int:
        """Run a probe's command; returns its exit status."""
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            async with self._process(argv, None, null, null) as process:
                return (await process.wait()).status
        except StartError:
            return 126
        finally:
            os.close(null)

    async def execute(self, argv: Sequence[str], client: RemoteCommand) -> None:
        """Run a client's command; whatever it starts ends with it, and it ends when the client goes."""
        tty = client.options.tty
        async with Stdio.open(stdin=client.options.stdin, terminal=tty) as stdio:
            try:
                async with self._process(argv, *stdio.theirs, tty=tty) as process:
                    stdio.started()
                    status = exited(await self._attend(process, stdio, client))
            except StartError as error:
                message = f'failed to exec in container: failed to start exec: exec: "{argv[0]}": {error}'
                status = failed(f"error executing command in container: {message}")
        await client.finish(status)

    async def _attend(self, process: Process, stdio: Stdio, client: RemoteCommand) -> int:
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(_feed(client, stdio)),
                group.create_task(client.read_sizes(stdio.resize)),
                group.create_task(_hang_up(client, process)),
            ]
            async with asyncio.TaskGroup() as outputs:
                for name in stdio.outputs:
                    outputs.create_task(_show(client, stdio, name))
            how = await process.wait()
            for task in beside:
                task.cancel()
        return how.status

    async def end(self) -> None:
        """Kill what runs, and wait for its end; nothing can be started any more."""
        self._over = True
        for process in self._running:
            process.signal(signal.SIGKILL)
        await asyncio.gather(*(process.wait() for process in self._running))

    @asynccontextmanager
    async def _process(
        self, argv: Sequence[str], stdin: int | None, stdout: int, stderr: int, *, tty: bool = False
    ) -> AsyncIterator[Process]:
        """Run *argv* for as long as the block does. Raises :class:`.process.StartError`."""
        command = self._command
        words = [command.mounts.rewrite(word) for word in argv]
        env = {"TERM": "xterm", **command.env} if tty else command.env
        process = await self._supervisor.start(
            words, env=env, cwd=command.cwd, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty
        )
        self._running.add(process)
        try:
            if self._over:
                process.signal(signal.SIGKILL)
            yield process
        finally:
            process.signal(signal.SIGKILL)  # only when this was cut short: to one that has ended it is nothing
            self._running.discard(process)


async def _feed(client: RemoteCommand, stdio: Stdio) -> None:
    await client.read_input(stdio.write)
    with suppress(OSError):
        await stdio.end_input()


async def _show(client: RemoteCommand, stdio: Stdio, name: str) -> None:
    """Carry an output to the client; one that has gone gets nothing more, and its command is about to end."""
    while data := await stdio.read(name):
        try:
            await client.send(name, data)
        except ConnectionError:
            client.gone.set()


async def _hang_up(client: RemoteCommand, process: Process) -> None:
    await client.gone.wait()
    process.signal(signal.SIGHUP)
    await asyncio.sleep(HANG_UP_SECONDS)
    process.signal(signal.SIGKILL)
