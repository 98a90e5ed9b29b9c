"""What containers print, kept as a container runtime keeps it: a line, when it came, and from which stream.

One file for each start of a container, of at most about 20 MB: when it is full, its older half goes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

__all__ = ["ContainerLog", "LogOptions"]

MAX_BYTES = 20 * 2**20
_MAX_LINE = 16 * 1024


@dataclass(frozen=True, slots=True)
class LogOptions:
    """``corev1.PodLogOptions``: of which start of the container, and which of its lines."""

    previous: bool = False
    follow: bool = False
    tail_lines: int | None = None
    since: datetime | None = None
    timestamps: bool = False
    limit_bytes: int | None = None

    @classmethod
    def of(cls, query: Mapping[str, str], now: datetime) -> Self:
        """The query of a request for a log. Raises ``ValueError``."""

        def flag(name: str) -> bool:
            return query.get(name, "").lower() in ("true", "1")

        def number(name: str) -> int | None:
            return int(query[name]) if query.get(name) else None

        since = None
        if query.get("sinceTime"):
            since = datetime.fromisoformat(query["sinceTime"])
        elif (seconds := number("sinceSeconds")) is not None:
            since = now - timedelta(seconds=seconds)
        tail = number("tailLines")
        return cls(
            previous=flag("previous"),
            follow=flag("follow"),
            tail_lines=tail if tail is None or tail >= 0 else None,
            since=since,
            timestamps=flag("timestamps"),
            limit_bytes=number("limitBytes"),
        )


def stamp(moment: datetime) -> str:
    """RFC 3339 with nanoseconds, as in the files of a container runtime."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


class ContainerLog:
    """The log of one start of a container. Written by the kubelet, read by any number of readers at the same time."""

    def __init__(self, path: Path, now: Callable[[], datetime], *, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._now = now
        self._max = max_bytes
        self._partial: dict[str, bytes] = {}
        self._grown = asyncio.Event()
        self._closed = False
        self._cut = 0
        """Bytes that were dropped from the front so far, so that readers keep their place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def write(self, stream: str, data: bytes) -> None:
        """Take in a chunk; chunk borders mean nothing."""
        if self._closed:
            return
        *lines, rest = (self._partial.pop(stream, b"") + data).split(b"\n")
        self._append(stream, lines, "F")
        while len(rest) > _MAX_LINE:
            self._append(stream, [rest[:_MAX_LINE]], "P")
            rest = rest[_MAX_LINE:]
        if rest:
            self._partial[stream] = rest

    def close(self) -> None:
        """No more will come: what has no end of line is a line as well, and followers end."""
        if not self._closed:
            for stream, rest in self._partial.items():
                self._append(stream, [rest], "F")
            self._closed = True
            self._file.close()
            self._wake()

    def remove(self) -> None:
        """Close it and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    async def read(self, options: LogOptions) -> AsyncGenerator[bytes, None]:
        """The lines, oldest first; with ``follow`` until the container ends."""
        left = options.limit_bytes
        position, lines = self._from(0)
        chosen = [line for line in lines if options.since is None or _moment(line) >= options.since]
        if options.tail_lines is not None:
            chosen = list(deque(chosen, maxlen=options.tail_lines))
        while True:
            data = b"".join(_shown(line, options.timestamps) for line in chosen)
            if left is not None:
                data, left = data[:left], left - len(data[:left])
            if data:
                yield data
            if not options.follow or left == 0:
                return
            grown = self._grown
            position, chosen = self._from(position)
            if not chosen:
                if self._closed:
                    return
                await grown.wait()

    def tail(self, *, lines: int, max_bytes: int) -> str:
        """The end of what was printed: at most that much, once the log is closed."""
        _, printed = self._from(0)
        text = b"".join(_shown(line, timestamps=False) for line in printed[-lines:])
        return text[-max_bytes:].decode(errors="replace")

    def _from(self, position: int) -> tuple[int, list[bytes]]:
        """The whole lines from *position* on, counted over everything ever written, and where they end."""
        if not self.path.exists():
            return position, []
        with self.path.open("rb") as file:
            file.seek(max(position - self._cut, 0))
            data = file.read()
        return max(position, self._cut) + len(data), data.splitlines(keepends=True)

    def _append(self, stream: str, lines: list[bytes], tag: str) -> None:
        if not lines:
            return
        head = f"{stamp(self._now())} {stream} {tag} ".encode()
        self._file.write(b"".join(head + line + b"\n" for line in lines))
        self._file.flush()
        if self._file.tell() > self._max:
            self._halve()
        self._wake()

    def _halve(self) -> None:
        data = self.path.read_bytes()
        keep = data.find(b"\n", len(data) // 2) + 1
        self._file.close()
        self.path.write_bytes(data[keep:])
        self._cut += keep
        self._file = self.path.open("ab")

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


def _moment(line: bytes) -> datetime:
    text = line.split(b" ", 1)[0].decode()
    return datetime.fromisoformat(text[:26] + "+00:00")


def _shown(line: bytes, timestamps: bool) -> bytes:
    moment, _, tag, text = line.split(b" ", 3)
    if tag == b"P":
        text = text.removesuffix(b"\n")
    return moment + b" " + text if timestamps else text
