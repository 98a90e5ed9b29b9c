"""The supervisor: a small process of its own that starts the containers' processes and outlives none of them.

It runs as a script (``python -I -S spawn.py FD``), so it imports the standard library only, and starts fast. It talks
to the kubelet through the socket FD. When that closes, for whatever reason, SIGKILL of the kubelet included, it kills
every process below it and ends. On Linux it is a child subreaper: a process that detaches itself from its container
becomes the supervisor's child, and is killed when its container ends. Should the supervisor itself be killed, the
kernel kills the containers (``PR_SET_PDEATHSIG``).

A message is a length (4 bytes, big-endian) and that much JSON; the three file descriptors of a start (stdin, stdout,
stderr) come with its length. In: ``start`` (id, argv, env, cwd, tty: the descriptors are a terminal, which is to be
the process's controlling one) and ``signal`` (id, signal). Out: ``started`` (id, pid), ``refused`` (id, errno,
message), ``exited`` (id, code, signal).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
from typing import Any

TAG = "KAITO_DEV_CONTAINER"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_RESTORED = ("SIGPIPE", "SIGXFSZ", "SIGCHLD", "SIGTERM", "SIGINT", "SIGHUP")


def _prctl() -> Any:
    if sys.platform != "linux":
        return lambda *_: 0
    return ctypes.CDLL(None, use_errno=True).prctl


class Supervisor:
    """The state: which containers run, by id and by pid."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.prctl = _prctl()
        self.pids: dict[int, int] = {}
        self.ids: dict[int, int] = {}
        self.stopping = False

    def run(self) -> None:
        self.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, self._stop)
        try:
            while not self.stopping:
                readable, _, _ = select.select([self.control.fileno(), woken], [], [])
                if woken in readable:
                    os.read(woken, 4096)
                    self._reap()
                if self.control.fileno() in readable and not self._serve():
                    return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            self._kill_all()

    def _stop(self, *_: object) -> None:
        self.stopping = True

    # -- messages ------------------------------------------------------------------------------------------------

    def _serve(self) -> bool:
        head, fds, _, _ = socket.recv_fds(self.control, 4, 3)
        for fd in fds:
            os.set_inheritable(fd, False)
        if not head:
            return False
        message = json.loads(self._exactly(struct.unpack(">I", head + self._exactly(4 - len(head)))[0]))
        if message["op"] == "start":
            self._start(message, fds)
        elif message["op"] == "signal" and message["id"] in self.pids:
            _kill_group(self.pids[message["id"]], message["signal"])
        for fd in fds:
            os.close(fd)
        return True

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.control.recv(size)
            if not part:
                raise BrokenPipeError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _send(self, **message: object) -> None:
        payload = json.dumps(message).encode()
        self.control.sendall(struct.pack(">I", len(payload)) + payload)

    # -- processes -----------------------------------------------------------------------------------------------

    def _start(self, message: dict[str, Any], fds: list[int]) -> None:
        # The pipe closes on exec: what comes through it is the reason why there was none.
        failed, fail = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become(message, fds, fail)
        os.close(fail)
        with os.fdopen(failed) as reader:
            problem = reader.read()
        if problem:
            os.waitpid(pid, 0)
            number, text = problem.split(" ", 1)
            self._send(event="refused", id=message["id"], errno=int(number), message=text)
            return
        self.pids[message["id"]] = pid
        self.ids[pid] = message["id"]
        self._send(event="started", id=message["id"], pid=pid)

    def _become(self, message: dict[str, Any], fds: list[int], fail: int) -> None:
        try:
            os.setsid()
            self.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            for name in _RESTORED:
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), signal.SIG_DFL)
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
            if message["tty"]:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            os.chdir(message["cwd"])
            env = {**message["env"], TAG: str(message["id"])}
            os.execvpe(message["argv"][0], message["argv"], env)  # noqa: S606 - no shell is the point
        except OSError as error:
            os.write(fail, f"{error.errno or errno.EIO} {error.strerror}".encode())
        except BaseException as error:  # noqa: BLE001 - this is the child: nobody above may see it
            os.write(fail, f"{errno.EINVAL} {error}".encode())
        finally:
            os._exit(127)

    def _reap(self) -> None:
        while (ended := self._next_ended()) is not None:
            pid, status = ended
            number = self.ids.pop(pid, None)
            if number is not None:
                del self.pids[number]
                code = os.waitstatus_to_exitcode(status)
                self._send(event="exited", id=number, code=max(code, 0), signal=max(-code, 0))
            self._kill_strays()

    def _next_ended(self) -> tuple[int, int] | None:
        """A child that has ended, and its wait status; the rest of its group has been killed."""
        try:
            if not hasattr(os, "waitid"):  # macOS, before Python 3.13
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid in self.ids:
                    _kill_group(pid, signal.SIGKILL)
                return (pid, status) if pid else None
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return None
        if ended is None:
            return None
        if ended.si_pid in self.ids:
            # Before the wait: until then the number cannot belong to anybody else.
            _kill_group(ended.si_pid, signal.SIGKILL)
        return os.waitpid(ended.si_pid, 0)

    def _kill_strays(self) -> None:
        """Whoever left its container by a session of its own ends with it."""
        for pid in _children():
            if pid not in self.ids and _tag(pid) not in self.pids:
                _kill(pid, signal.SIGKILL)

    def _kill_all(self) -> None:
        for pid in self.ids:
            _kill_group(pid, signal.SIGKILL)
        while True:
            for pid in _children():
                _kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as listing:  # noqa: PTH123 - pathlib takes long to load
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return []


def _tag(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as listing:  # noqa: PTH123
            variables = listing.read().split(b"\0")
    except OSError:
        return None
    mark = TAG.encode() + b"="
    return next((int(each[len(mark) :]) for each in variables if each.startswith(mark)), None)


def _kill(pid: int, number: int) -> None:
    try:  # noqa: SIM105 - contextlib takes long to load
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _kill_group(pid: int, number: int) -> None:
    try:  # noqa: SIM105
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


if __name__ == "__main__":
    Supervisor(socket.socket(fileno=int(sys.argv[1]))).run()
