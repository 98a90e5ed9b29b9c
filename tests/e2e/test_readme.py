"""The README's quick start, text for text."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def blocks() -> list[list[str]]:
    """The commands of each ``sh`` block of the quick start."""
    text = (ROOT / "README.md").read_text()
    section = text.split("## Quick start", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"```sh\n(.*?)```", section, re.S)
    return [[line for line in block.splitlines() if line] for block in found]


@contextmanager
def in_a_terminal(command: str, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=ROOT, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        yield process, master
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)


def read_until(process: subprocess.Popen[bytes], terminal: int, text: str, seconds: float) -> str:
    seen = ""
    end = time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                break
        elif process.poll() is not None:
            break
    assert text in seen, seen
    return seen


def bash(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=90
    )


def port_80_can_be_opened() -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.96.255.1", 80))
        except OSError:
            return False
    return True


@pytest.mark.skipif(
    not port_80_can_be_opened(), reason="without privilege the demo answers on another port, and says so"
)
def test_the_quick_start_works_as_it_is_written(tmp_path: Path) -> None:
    (first, second) = blocks()
    assert first == ["make demo"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "160"}
    env.pop("DEMO_EXIT", None)
    env.setdefault("VENV", str(ROOT / ".venv"))
    with in_a_terminal(first[0], env) as (demo, terminal):
        seen = read_until(demo, terminal, "stays up until Ctrl-C", 120)
        kubeconfig = re.search(r"export KUBECONFIG=(\S+)", seen)
        assert kubeconfig, seen
        env["KUBECONFIG"] = kubeconfig[1]
        script = "\n".join(f"echo '@@@'\n{line}" for line in second)
        done = bash(script, env)
        assert done.returncode == 0, done.stderr
        said = dict(zip(second, done.stdout.split("@@@\n")[1:], strict=True))
        assert said[second[0]].split()[-6:-1] == ["workspace-phi-3-mini", "Standard_NC6s_v3", "True", "True", "True"]
        assert "80/TCP,29500/TCP" in said[second[1]]
        assert '"Result"' in said[second[3]]
        assert "deleted" in said[second[-2]]
        assert said[second[-1]] == ""
        assert "No resources found" in done.stderr
        os.write(terminal, b"\x03")
        read_until(demo, terminal, "Stopping", 10)
        # The demo ends in peace; make, which Ctrl-C reaches too, reports the interrupt.
        assert demo.wait(20) in (0, 2, 130, -signal.SIGINT)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("kaito")] == []
