"""Runs the tasks: one server per task, one fresh process per run, everybody in turn and never twice at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.objects import GROUP, WIDGETS
from tests.bench.tasks import OURS, Row, Task

__all__ = ["Outcome", "Result", "Runner", "write_kubeconfig"]

ROOT = Path(__file__).parents[2]
WIDGET_COUNT = 100
_MODULES = {
    OURS: "kaito",
    "floor": "floor",
    "kopf": "kopf",
    "kubernetes-asyncio": "kubernetes_asyncio",
    "lightkube": "lightkube",
    "kr8s": "kr8s",
}
_IMPORTS = {
    (OURS, "named"): "import kaito_ctrl",
    (OURS, "loaded"): "from kaito_ctrl import Client, Controller, Manager",
    (OURS, "connected"): "from kaito_ctrl import Client, Controller, Manager; import kaito_ctrl.runtime.connect",
    ("kopf", ""): "import kopf",
    ("kubernetes-asyncio", ""): "import kubernetes_asyncio.client, kubernetes_asyncio.watch",
    ("lightkube", ""): "import lightkube; from lightkube.resources.core_v1 import Pod",
    ("kr8s", ""): "import kr8s.asyncio",
}
_IMPORT = """
import resource, sys, time
def resident():
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
known, before, began = len(sys.modules), resident(), time.perf_counter()
{statement}
wall = time.perf_counter() - began
held, modules = resident() - before, len(sys.modules) - known
import json
print(json.dumps({{"wall_s": wall, "held_bytes": held, "modules": modules}}))
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. ``status`` is "ok", "timeout", "memory" or "failed"; ``count`` is how far it came."""

    status: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    count: int = 0
    message: str = ""


@dataclass(slots=True)
class Result:
    """All runs of one row of one task."""

    task: Task
    row: Row
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def status(self) -> str:
        """That of the runs, which is the worst of them."""
        return next((each.status for each in self.outcomes if each.status != "ok"), "ok")


class Runner:
    """``pythons`` are the interpreters by participant; rows of others are left out. ``memory`` is in bytes, 0 for no
    limit; with ``profiles`` every run is profiled, and its figures are worth nothing."""

    def __init__(
        self,
        pythons: Mapping[str, Path],
        *,
        memory: int = 0,
        profiles: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._pythons = pythons
        self._memory = memory
        self._profiles = profiles
        self._say = say

    def rows(self, task: Task) -> list[Row]:
        """Those of the task's rows that can be run."""
        return [row for row in task.rows if row.participant in self._pythons]

    def run(self, task: Task) -> list[Result]:
        """Every row ``task.repeats`` times, in an order that turns; a row that has failed is not repeated."""
        results = [Result(task, row) for row in self.rows(task)]
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            if task.program == "import":
                self._rounds(results, lambda row: self._import(row))
                return results
            self._say(f"{task.name}: preparing {task.pods:,} pods")
            with self._server(task) as url:
                kubeconfig = write_kubeconfig(Path(folder), url)
                self._rounds(results, lambda row: self._client(task, row, url, kubeconfig))
        return results

    def _rounds(self, results: Sequence[Result], run: Callable[[Row], Outcome]) -> None:
        if not results:
            return
        for number in range(results[0].task.repeats):
            turn = number * len(results) // max(results[0].task.repeats, 1)
            for result in (*results[turn:], *results[:turn]):
                if result.status == "ok":
                    self._say(f"{result.task.name}: {result.row.label} ({number + 1} of {result.task.repeats})")
                    result.outcomes.append(run(result.row))

    def _import(self, row: Row) -> Outcome:
        statement = _IMPORTS[row.participant, row.variant]
        command = [str(self._pythons[row.participant]), "-c", _IMPORT.format(statement=statement)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=_variables(row),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return Outcome("failed", message=_last_line(done.stderr))
        return Outcome("ok", json.loads(done.stdout))

    def _client(self, task: Task, row: Row, url: str, kubeconfig: Path) -> Outcome:
        path = kubeconfig.with_name("result.json")
        path.unlink(missing_ok=True)
        profile = ""
        if self._profiles is not None:
            self._profiles.mkdir(parents=True, exist_ok=True)
            profile = str(self._profiles / f"{task.name}-{row.label.replace(', ', '-')}.prof")
        spec = {
            "task": task.program,
            "variant": row.variant,
            "url": url,
            "kubeconfig": str(kubeconfig),
            "result": str(path),
            "pods": task.pods,
            "events": task.events,
            "limit": task.limit,
            "memory": self._memory,
            "quiet": task.quiet,
            "spacing": task.spacing,
            "rounds": task.rounds,
            "group": GROUP,
            "widgets": WIDGETS,
            "widget_count": WIDGET_COUNT,
            "profile": profile,
        }
        command = [
            str(self._pythons[row.participant]),
            "-m",
            f"tests.bench.clients.{_MODULES[row.participant]}",
            json.dumps(spec),
        ]
        variables = {**_variables(row), "KUBECONFIG": str(kubeconfig)}
        with kubeconfig.with_name("stderr").open("w+") as stderr:
            with _child(command, variables, stdout=stderr, stderr=stderr) as child:
                try:
                    child.wait(timeout=task.limit + 15)
                except subprocess.TimeoutExpired:
                    return Outcome("timeout", message="and did not heed its time limit")
            stderr.seek(0)
            said = stderr.read()
        if profile:
            self._say(said)
        if not path.exists():
            return Outcome("failed", message=_last_line(said) or f"exit {child.returncode}")
        outcome: dict[str, Any] = json.loads(path.read_text())
        return Outcome(outcome["status"], outcome["metrics"], outcome["count"])

    @contextmanager
    def _server(self, task: Task) -> Iterator[str]:
        command = [sys.executable, "-m", "tests.bench.replay"]
        command += ["--pods", str(task.pods), "--events", str(task.events)]
        with _child(command, dict(os.environ), stdout=subprocess.PIPE, stderr=None) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise RuntimeError("the replay server did not start")
            yield f"http://127.0.0.1:{json.loads(line)['port']}"


@contextmanager
def _child(
    command: Sequence[str], variables: Mapping[str, str], *, stdout: Any, stderr: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, and, because it reads our end of a pipe, with us at the latest.

    In a group of its own, so that a terminal's Ctrl-C is ours alone to answer.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        text=True,
        process_group=0,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _variables(row: Row) -> dict[str, str]:
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    ours = {} if row.participant == OURS else {"PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name.lower() not in proxies and name not in ours}


def write_kubeconfig(folder: Path, url: str) -> Path:
    """A kubeconfig in *folder* for the server at *url*, with credentials that nobody asks for."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": {"server": url}}],
        "users": [{"name": "bench", "user": {"token": "bench"}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench", "namespace": "default"}}],
        "current-context": "bench",
    }
    path.write_text(json.dumps(config))  # which is YAML as well
    return path


def _last_line(text: str) -> str:
    """Of a traceback the error; the frames and rulers of an exception group are not it."""
    lines = [line.strip(" |+-") for line in text.splitlines()]
    lines = [line for line in lines if line]
    return lines[-1][:200] if lines else ""
