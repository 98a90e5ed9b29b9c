"""The streams of one process: pipes and terminals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kaito_ctrl.devcluster.process import Process, Supervisor, supervisor
from kaito_ctrl.devcluster.stdio import Stdio
from kaito_ctrl.devcluster.streaming.inbox import Inbox

ENV = {"PATH": os.environ["PATH"], "PS1": "$ "}


@asynccontextmanager
async def running(made: Supervisor, *argv: str, terminal: bool = False) -> AsyncIterator[tuple[Stdio, Process]]:
    async with Stdio.open(stdin=True, terminal=terminal) as stdio:
        stdin, stdout, stderr = stdio.theirs
        process = await made.start(
            argv, env=ENV, cwd=Path("/"), stdin=stdin, stdout=stdout, stderr=stderr, tty=terminal
        )
        stdio.started()
        yield stdio, process


async def everything(stdio: Stdio, name: str = "stdout") -> bytes:
    return b"".join([part async for part in parts(stdio, name)])


async def parts(stdio: Stdio, name: str) -> AsyncIterator[bytes]:
    while data := await stdio.read(name):
        yield data


async def until(stdio: Stdio, text: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(10):
        while text not in seen:
            data = await stdio.read("stdout")
            assert data, seen
            seen += data
    return seen


async def test_pipes_keep_outputs_apart_and_input_can_end() -> None:
    async with supervisor() as made, running(made, "sh", "-c", "cat; echo done >&2; exit 3") as (stdio, process):
        await stdio.write(b"over")
        await stdio.end_input()
        assert await everything(stdio) == b"over"
        assert await everything(stdio, "stderr") == b"done\n"
        assert (await process.wait()).status == 3


async def test_more_than_fits_into_a_pipe_passes_both_ways_at_the_pace_of_the_reader() -> None:
    payload = os.urandom(100_000)
    async with supervisor() as made, running(made, "cat") as (stdio, _):

        async def send() -> None:
            for _ in range(50):
                await stdio.write(payload)
            await stdio.end_input()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            received = group.create_task(everything(stdio))
        assert received.result() == payload * 50


async def test_input_that_nobody_reads_any_more_is_an_error_and_not_a_wait() -> None:
    async with supervisor() as made, running(made, "true") as (stdio, process):
        await process.wait()

        async def write_on() -> None:
            while True:
                await stdio.write(b"x" * 100_000)

        with pytest.raises(BrokenPipeError):
            await asyncio.wait_for(write_on(), 10)


async def test_a_terminal_has_a_size_and_changes_of_it_are_signalled() -> None:
    script = "trap 'stty size; exit 0' WINCH; stty size; while :; do sleep 0.05; done"
    async with supervisor() as made, Stdio.open(stdin=True, terminal=True) as stdio:
        stdio.resize(100, 40)
        stdin, stdout, stderr = stdio.theirs
        await made.start(
            ["sh", "-c", script], env=ENV, cwd=Path("/"), stdin=stdin, stdout=stdout, stderr=stderr, tty=True
        )
        stdio.started()
        await until(stdio, b"40 100\r\n")
        stdio.resize(77, 22)
        await until(stdio, b"22 77\r\n")


async def test_ctrl_c_on_a_terminal_reaches_the_foreground_and_its_end_of_input_ends_a_shell() -> None:
    async with supervisor() as made, running(made, "sh", "-i", terminal=True) as (stdio, process):
        await until(stdio, b"$ ")
        await stdio.write(b"cat\n")
        await until(stdio, b"cat\r\n")
        await stdio.write(b"here\n")
        await until(stdio, b"here\r\nhere\r\n")  # typed, and said again
        await stdio.write(b"\x03")
        await until(stdio, b"$ ")
        await stdio.write(b"exit_with() { return 9; }; exit_with\n")
        await until(stdio, b"$ ")
        await stdio.end_input()
        async with asyncio.timeout(10):
            assert (await process.wait()).status == 9


async def test_nothing_that_a_terminal_showed_is_lost_at_its_end() -> None:
    async with supervisor() as made, running(made, "seq", "5000", terminal=True) as (stdio, process):
        await process.wait()
        assert (await everything(stdio)).split() == [str(number).encode() for number in range(1, 5001)]


async def test_an_inbox_holds_its_filler_back_and_lets_it_go_on() -> None:
    held: list[bool] = []
    inbox = Inbox(limit=10, pause=lambda: held.append(True), resume=lambda: held.append(False))
    inbox.feed(b"123456")
    assert held == []
    inbox.feed(b"789012")
    assert held == [True]
    waiting = asyncio.create_task(inbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await inbox.receive() == b"123456"
    assert held == [True]
    assert await inbox.receive() == b"789012"
    assert held == [True, False]
    await waiting
    inbox.feed(b"last")
    inbox.end()
    inbox.feed(b"too late")
    assert [await inbox.receive(), await inbox.receive()] == [b"last", b""]


async def test_an_inbox_that_nobody_reads_swallows_what_comes() -> None:
    inbox = Inbox(limit=10)
    inbox.feed(b"x" * 100)
    inbox.discard()
    inbox.feed(b"x" * 100)
    await inbox.room()
    assert await inbox.receive() == b""
