"""Child processes and a temporary folder that do not outlive us, however we end.

A second, tiny process (this file, run as a script) holds one end of a pipe. When the pipe closes - because the block
was left, or because we were killed without a chance to clean up - it kills what is still running and removes the
folder. Each child is the leader of a process group of its own: a Ctrl-C in the terminal reaches us alone, and we stop
the children in order.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Keeper"]

_STOP_SECONDS = 5.0
_REMOVE_SECONDS = 10.0


class Keeper:
    """A context manager; *prefix* begins the name of :attr:`folder`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix=self._prefix))
        command = [sys.executable, "-I", "-S", __file__, str(self.folder)]
        try:
            self._script = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0)
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            for child in reversed(tuple(self._children.values())):
                self.kill(child)  # what a good end would save goes with the folder
        finally:
            assert self._script.stdin is not None
            self._script.stdin.close()
            self._script.wait()

    def start(self, command: Sequence[str], *, log: Path) -> subprocess.Popen[bytes]:
        """Run *command* in the folder; what it says is appended to *log*. Raises ``OSError``."""
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                process_group=0,
            )
        self._children[child.pid] = child
        self._tell("+", child)
        return child

    def stop(self, child: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and SIGKILL a few seconds later. Also ends one that is stopped, or has ended already."""
        child.terminate()
        child.send_signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_SECONDS)
        self.kill(child)

    def kill(self, child: subprocess.Popen[bytes]) -> None:
        """SIGKILL, and wait for its end."""
        child.kill()
        child.wait()
        if self._children.pop(child.pid, None) is not None:
            self._tell("-", child)

    def _tell(self, sign: str, child: subprocess.Popen[bytes]) -> None:
        assert self._script.stdin is not None
        self._script.stdin.write(f"{sign}{child.pid}\n".encode())
        self._script.stdin.flush()


def _keep(folder: str) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    running: set[int] = set()
    for line in sys.stdin.buffer:
        (running.add if line[:1] == b"+" else running.discard)(int(line[1:]))
    for pid in running:
        try:
            os.killpg(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    deadline = time.monotonic() + _REMOVE_SECONDS
    while Path(folder).exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)  # somebody who is just dying may still write into it
        time.sleep(0.01)


if __name__ == "__main__":
    _keep(sys.argv[1])
