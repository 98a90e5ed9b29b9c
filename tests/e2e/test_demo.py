"""The demo as a command: it answers, says what it is, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
DEMO = [str(Path(sys.executable).parent / "kaito-ctrl"), "demo", "--boot", "0.5"]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "DEMO_EXIT": "1", "COLUMNS": "160"}


def strays(folder: Path) -> list[str]:
    """Processes that still have *folder* in their environment or command."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in text:
                found.append(entry.name)
    return found


@pytest.mark.parametrize("more", [(), ("--kill-controllers",)])
def test_it_exits_after_the_answer_and_leaves_nothing(tmp_path: Path, more: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*DEMO, *more], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Result" in done.stdout
    assert "random numbers" in done.stdout
    assert "export KUBECONFIG=" in done.stdout
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert strays(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_half_way_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    demo = subprocess.Popen(DEMO, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "EngineStarted" in line or "PodScheduled: done" in line:
            break
    demo.send_signal(number)
    assert demo.wait(20) == 130
    demo.stdout.close()
    assert list(tmp_path.iterdir()) == []
    assert strays(tmp_path) == []


def test_killing_it_leaves_no_process(tmp_path: Path) -> None:
    demo = subprocess.Popen(DEMO, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "PodScheduled: done" in line:
            break
    demo.kill()
    demo.wait()
    demo.stdout.close()
    end = time.monotonic() + 10
    while strays(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert strays(tmp_path) == []


def test_a_file_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "-f", "no-such.yaml"], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no-such.yaml" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
