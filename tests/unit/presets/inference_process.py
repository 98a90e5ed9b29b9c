"""The real server as a child process, for the tests that talk to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx


class InferenceProcess:
    """Starts ``python3 -m kaito_presets.inference`` on a free port of 127.0.0.1; killed on exit if still alive."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "kaito_presets.inference", "--port=0", "--host=127.0.0.1", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(env))
        self.lines: list[str] = []
        self._seen = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def event(self, name: str) -> dict[str, Any]:
        """The first log line with that event; fails if the process ends without it."""
        with self._seen:
            found = self._seen.wait_for(lambda: self._find(name) or self._ended, timeout=60)
        record = self._find(name)
        assert found, "no such event in time"
        assert record is not None, "\n".join(self.lines)
        return record

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.event('listening')['port']}"

    def wait(self, timeout: float = 30) -> int:
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._seen:
                self.lines.append(line.rstrip("\n"))
                self._seen.notify_all()
        with self._seen:
            self._ended = True
            self._seen.notify_all()

    def _find(self, name: str) -> dict[str, Any] | None:
        for line in self.lines:
            if line.startswith("{"):
                record: dict[str, Any] = json.loads(line)
                if record.get("event") == name:
                    return record
        return None


@dataclass(frozen=True)
class TinyServer:
    """One server in tiny mode, and what its health said before it was ready."""

    process: InferenceProcess
    client: httpx.Client
    early_health: httpx.Response
    early_chat: httpx.Response


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Ours, without what would change the server's mind; the hub is out of reach whatever it tries."""
    unset = ("KAITO_ADAPTERS_DIR", "KAITO_HOST", "KAITO_RANDOM_WEIGHTS", "LOCAL_RANK", "HF_HUB_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {**kept, "HF_ENDPOINT": "http://127.0.0.1:9", **(extra or {})}


def run_to_end(*flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The server with flags that it is expected not to survive."""
    command = [sys.executable, "-m", "kaito_presets.inference", "--host=127.0.0.1", "--port=0", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment(env))


def sse(response: httpx.Response) -> list[Any]:
    """The events of a finished stream, decoded; the last must be ``[DONE]`` and is left out."""
    events = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def metric(text: str, sample: str) -> float:
    """The value of one sample of an exposition, by its name and labels as printed."""
    for line in text.splitlines():
        if line.startswith(sample + " "):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no sample {sample}")


def texts(events: Sequence[dict[str, Any]], index: int = 0) -> str:
    """The text that a stream's chunks add up to, for one choice."""
    choices = [choice for event in events for choice in event.get("choices", ()) if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)
