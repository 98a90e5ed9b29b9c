"""Processes that cannot outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from kaito_ctrl.devcluster.process import Exit, StartError, Supervisor, supervisor

ENV = {"PATH": os.environ["PATH"]}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(*pids: int) -> None:
    async with asyncio.timeout(10):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.01)


async def run(made: Supervisor, *argv: str, cwd: Path = Path("/"), env: dict[str, str] = ENV) -> tuple[Exit, bytes]:
    ours, theirs = os.pipe()
    try:
        process = await made.start(argv, env=env, cwd=cwd, stdout=theirs, stderr=theirs)
    finally:
        os.close(theirs)
    how = await process.wait()
    with os.fdopen(ours, "rb") as reader:
        return how, reader.read()


async def test_a_process_has_its_arguments_environment_folder_and_exit_code(tmp_path: Path) -> None:
    async with supervisor() as made:
        how, output = await run(
            made, "sh", "-c", 'echo "$0 $WHO $(pwd)"; exit 7', "zero", cwd=tmp_path, env={**ENV, "WHO": "me"}
        )
    assert output.decode() == f"zero me {tmp_path}\n"
    assert (how, how.status) == (Exit(7, 0), 7)


async def test_a_signalled_process_ends_with_128_plus_the_signal() -> None:
    async with supervisor() as made:
        process = await made.start(["sleep", "60"], env=ENV, cwd=Path("/"), stdout=1, stderr=2)
        process.signal(signal.SIGTERM)
        how = await process.wait()
    assert (how, how.status) == (Exit(0, 15), 143)


@pytest.mark.parametrize(
    ("argv", "cwd", "message"),
    [
        (["no-such-command"], "/", "No such file"),
        (["true"], "/no/such/folder", "No such file"),
        (["/etc"], "/", "denied"),
    ],
)
async def test_what_cannot_be_executed_is_said_so(argv: list[str], cwd: str, message: str) -> None:
    async with supervisor() as made:
        with pytest.raises(StartError, match=message):
            await made.start(argv, env=ENV, cwd=Path(cwd), stdout=1, stderr=2)
        assert (await run(made, "true"))[0] == Exit(0, 0)


@LINUX
async def test_what_a_process_leaves_behind_ends_with_it_even_in_a_session_of_its_own() -> None:
    async with supervisor() as made:
        _, output = await run(
            made,
            "sh",
            "-c",
            "sleep 60 >/dev/null 2>&1 & echo $!; (setsid sh -c 'echo $$; exec sleep 60 >/dev/null 2>&1' &) ; sleep 0.1",
        )
        pids = [int(word) for word in output.split()]
        assert len(pids) == 2
        await gone(*pids)


@LINUX
async def test_leaving_the_block_ends_everything() -> None:
    async with supervisor() as made:
        first = await made.start(["sleep", "60"], env=ENV, cwd=Path("/"), stdout=1, stderr=2)
        stubborn = ["sh", "-c", "trap '' TERM; sleep 60; sleep 60"]
        second = await made.start(stubborn, env=ENV, cwd=Path("/"), stdout=1, stderr=2)
        assert alive(first.pid)
        assert alive(second.pid)
    assert not alive(first.pid)
    assert not alive(second.pid)


@LINUX
async def test_nothing_survives_when_the_host_process_is_killed(tmp_path: Path) -> None:
    program = """
import asyncio, os, sys
from pathlib import Path
from kaito_ctrl.devcluster.process import supervisor
async def main():
    async with supervisor() as made:
        argv = ["sh", "-c", "sleep 300 & (setsid sleep 300 &); echo $$ $!; wait"]
        p = await made.start(argv, env=dict(os.environ), cwd=Path("/"), stdout=1, stderr=2)
        await p.wait()
asyncio.run(main())
"""
    host = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert host.stdout is not None
    pids = [int(word) for word in (await host.stdout.readline()).split()]
    assert all(alive(pid) for pid in pids)
    host.kill()
    await host.wait()
    await gone(*pids)
    # The pipe closes only when the last holder of it has ended, detached ones included.
    async with asyncio.timeout(10):
        assert await host.stdout.read() == b""


@LINUX
async def test_the_containers_end_with_a_killed_supervisor_and_the_error_surfaces() -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with supervisor() as made:
            process = await made.start(["sleep", "60"], env=ENV, cwd=Path("/"), stdout=1, stderr=2)
            parent = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(parent, signal.SIGKILL)
            await asyncio.sleep(10)
    assert "process supervisor has ended" in str(caught.value.exceptions[0])
    await gone(process.pid)
