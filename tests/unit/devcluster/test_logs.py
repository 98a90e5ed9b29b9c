"""Container logs: written in chunks, read in lines."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kaito_ctrl.devcluster.logs import ContainerLog, LogOptions


class Ticking:
    """A clock that moves one second at each look."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


@pytest.fixture
def log(tmp_path: Path) -> ContainerLog:
    return ContainerLog(tmp_path / "logs" / "0.log", Ticking())


async def text(log: ContainerLog, **options: object) -> str:
    return b"".join([part async for part in log.read(LogOptions(**options))]).decode()  # type: ignore[arg-type]


async def test_lines_are_whole_whatever_the_chunks_and_keep_stream_and_time(log: ContainerLog) -> None:
    log.write("stdout", b"one\ntw")
    log.write("stderr", b"oops\n")
    log.write("stdout", b"o\n")
    log.close()
    assert await text(log) == "one\noops\ntwo\n"
    assert log.path.read_text().splitlines()[1] == "2026-01-01T00:00:02.000000000Z stderr F oops"
    assert (await text(log, timestamps=True)).startswith("2026-01-01T00:00:01.000000000Z one\n")


async def test_tail_since_and_limit_choose(log: ContainerLog) -> None:
    for number in range(5):
        log.write("stdout", f"{number}\n".encode())
    log.close()
    assert await text(log, tail_lines=2) == "3\n4\n"
    assert await text(log, since=datetime(2026, 1, 1, 0, 0, 4, tzinfo=UTC)) == "3\n4\n"
    assert await text(log, limit_bytes=3) == "0\n1"
    assert await text(log, tail_lines=0) == ""


async def test_the_end_of_a_log_has_at_most_so_many_lines_and_bytes(log: ContainerLog) -> None:
    for number in range(5):
        log.write("stderr", f"line {number}\n".encode())
    log.close()
    assert log.tail(lines=2, max_bytes=100) == "line 3\nline 4\n"
    assert log.tail(lines=5, max_bytes=9) == "3\nline 4\n"


async def test_a_follower_sees_every_line_and_ends_with_the_container(log: ContainerLog) -> None:
    log.write("stdout", b"before\n")
    async with asyncio.TaskGroup() as group:
        following = group.create_task(text(log, follow=True))
        await asyncio.sleep(0)
        log.write("stdout", b"after\n")
        await asyncio.sleep(0)
        log.write("stdout", b"last\n")
        log.close()
    assert following.result() == "before\nafter\nlast\n"


async def test_a_very_long_line_is_kept_in_parts_and_shown_in_one(log: ContainerLog) -> None:
    line = b"x" * 40_000
    log.write("stdout", line + b"\n")
    log.write("stdout", b"y" * 40_000)
    log.write("stdout", b"\n")
    log.close()
    assert await text(log) == "x" * 40_000 + "\n" + "y" * 40_000 + "\n"


async def test_a_full_log_loses_its_older_half_and_no_line_of_the_rest(tmp_path: Path) -> None:
    log = ContainerLog(tmp_path / "0.log", Ticking(), max_bytes=2000)
    for number in range(100):
        log.write("stdout", f"line {number}\n".encode())
    log.close()
    lines = (await text(log)).splitlines()
    assert lines == [f"line {number}" for number in range(100 - len(lines), 100)]
    assert log.path.stat().st_size <= 2000
