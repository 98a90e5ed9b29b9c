"""What every participant's program shares: the specification that it is started with, the clocks, and the result.

A participant supplies one coroutine, ``run(bench)``: watch ``bench.spec.resources`` (list them first, if that is its
way), hold the objects in memory if that is its way, and call :meth:`Bench.handle` once for every object and every
event, from wherever its documentation puts a handler. The harness does the rest, the same for everybody.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import json
import os
import pstats
import resource
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.request import ProxyHandler, build_opener

__all__ = ["Bench", "Run", "Spec", "main"]

TICK = 0.001


@dataclass(frozen=True)
class Spec:
    """One run, as ``runner`` writes it. Times in seconds, memory in bytes."""

    task: str
    variant: str
    url: str
    kubeconfig: str
    result: str
    pods: int
    events: int
    limit: float
    memory: int
    quiet: float
    spacing: float
    rounds: int
    group: str
    widgets: int
    widget_count: int
    profile: str = ""

    @property
    def resources(self) -> list[tuple[str, str, str, str]]:
        """What to watch, as (group, version, kind, plural)."""
        if self.task == "idle":
            return [(self.group, "v1", f"Widget{kind}", f"widget{kind}s") for kind in range(self.widgets)]
        return [("", "v1", "Pod", "pods")]

    @property
    def present(self) -> int:
        """How many objects there are before anything happens."""
        return self.widgets * self.widget_count if self.task == "idle" else self.pods


class Bench:
    """Counts what is handled, and measures one stretch of time."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.count = 0
        """Objects and events handled so far."""
        self.metrics: dict[str, float] = {}
        self._target = 0
        self._reached = asyncio.Event()
        self._stamps: list[tuple[str, int]] | None = None
        self._gaps: list[tuple[float, float]] = []
        self._ticker: asyncio.Task[None] | None = None

    async def handle(self, version: str) -> None:
        """The handler or reconciler of everybody: it does nothing with an object of that resourceVersion."""
        self.seen(version)

    def seen(self, version: str) -> None:
        """The same, for handlers that are plain functions."""
        if self._stamps is not None:
            self._stamps.append((version, time.monotonic_ns()))
        self.count += 1
        if self.count == self._target:
            self._reached.set()

    async def until(self, count: int) -> None:
        """Until *count* objects and events have been handled."""
        self._target = count
        self._reached.clear()
        if self.count < count:
            await self._reached.wait()

    def stamp(self) -> None:
        """Note from now on when each version is handled."""
        self._stamps = []

    async def begin(self, *, ticking: bool = True) -> None:
        """Measure from here."""
        gc.collect()
        _reset_peak()
        if ticking:
            # A few times before it counts: the collection above is none of the participant's doing.
            self._ticker = asyncio.create_task(self._tick())
            await asyncio.sleep(10 * TICK)
            self._gaps.clear()
        self._resident = resident()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    async def connected(self) -> None:
        """To be called with a client at hand, before it lists or watches: stalls count from here on. Reading the
        machine's certificates alone, once, would otherwise be the worst of them for most participants."""
        if self._ticker is not None:
            await asyncio.sleep(10 * TICK)
            self._gaps.clear()

    def end(self) -> None:
        """Measure to here: ``wall_s``, ``cpu_s``, the loop's stalls, and with a collection after it the memory."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.metrics |= {"wall_s": wall, "cpu_s": cpu}
        if self._ticker is not None:
            self._ticker.cancel()
            self.metrics |= stalls(self._gaps)
        self.metrics["peak_bytes"] = peak() - self._resident
        gc.collect()
        self.metrics["held_bytes"] = resident() - self._resident

    async def play(self, *, spacing: float = 0.0) -> None:
        """Have the server send its events; returns once it begins."""
        await asyncio.to_thread(self._get, f"/bench/play?count={self.spec.events}&spacing={spacing}")

    async def latencies(self) -> None:
        """From the server's sending to our handling, as ``p50_ms``, ``p99_ms`` and ``max_ms``."""
        sent = await asyncio.to_thread(self._get, "/bench/sent")
        handled = dict(self._stamps or ())
        first = min(int(version) for version in handled)
        waits = sorted((handled[str(first + number)] - when) / 1e6 for number, when in enumerate(sent))
        self.metrics |= {"p50_ms": quantile(waits, 0.5), "p99_ms": quantile(waits, 0.99), "max_ms": waits[-1]}

    def _get(self, path: str) -> Any:
        with build_opener(ProxyHandler({})).open(self.spec.url + path, timeout=60) as response:
            return json.load(response)

    async def _tick(self) -> None:
        last, used = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(TICK)
            now, cpu = time.perf_counter(), time.thread_time()
            self._gaps.append((now - last - TICK, cpu - used))
            last, used = now, cpu


Run = Callable[[Bench], Awaitable[None]]


def stalls(gaps: list[tuple[float, float]]) -> dict[str, float]:
    """How late a callback that is due every millisecond came, in ms: at worst, and for 99.9 % of the time.

    ``stall_cpu_ms`` is the most CPU time that passed between two of them: what of the worst is the program's own
    doing, and not that of a busy machine.
    """
    if not gaps:
        return {}
    late = []
    for gap, _ in gaps:
        # While one is late, the others that were due meanwhile are late as well.
        while gap > 0:
            late.append(gap * 1e3)
            gap -= TICK
    late.sort()
    return {
        "stall_max_ms": max(gap for gap, _ in gaps) * 1e3,
        "stall_p999_ms": quantile(late, 0.999) if late else 0.0,
        "stall_cpu_ms": max(cpu for _, cpu in gaps) * 1e3,
    }


def quantile(ordered: list[float], share: float) -> float:
    """The value below which *share* of *ordered* lies."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def resident() -> int:
    """Bytes of this process in memory."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except FileNotFoundError:  # not Linux: the peak is all there is
        return peak()


def peak() -> int:
    """The most that :func:`resident` has been, since :func:`_reset_peak` where that works."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _reset_peak() -> None:
    with suppress(OSError):  # the peak is then that of the whole life
        Path("/proc/self/clear_refs").write_text("5")


async def _measure(bench: Bench, run: Run) -> None:
    spec = bench.spec
    ticking = spec.task == "sync"
    if ticking:
        await bench.begin()
    running = asyncio.ensure_future(run(bench))
    try:
        await _or_failure(bench.until(spec.present), running)
        if spec.task == "events":
            await bench.begin()
            await bench.play()
            await _or_failure(bench.until(spec.present + spec.events), running)
        elif spec.task == "latency":
            await asyncio.sleep(0.5)
            bench.stamp()
            await bench.begin(ticking=False)
            await bench.play(spacing=spec.spacing)
            await _or_failure(bench.until(spec.present + spec.events), running)
        elif spec.task == "idle":
            await asyncio.sleep(2.0)
            await bench.begin(ticking=False)
            await _or_failure(asyncio.sleep(spec.quiet), running)
        bench.end()
        if spec.task == "latency":
            await bench.latencies()
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=5)


async def _or_failure(awaitable: Awaitable[None], running: asyncio.Future[None]) -> None:
    waiting = asyncio.ensure_future(awaitable)
    await asyncio.wait([waiting, running], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        waiting.cancel()
        running.result()
        raise RuntimeError("the participant ended by itself")


def main(run: Run, *, tasks: dict[str, Run] | None = None) -> None:
    """Run what the specification in the first argument asks for. *tasks* are those that the participant measures by
    itself, from ``begin`` to ``end``, by name."""
    spec = Spec(**json.loads(sys.argv[1]))
    _die_with_the_parent()
    if spec.memory:
        resource.setrlimit(resource.RLIMIT_AS, (spec.memory, spec.memory))
    state: dict[str, Bench] = {}

    def finish(status: str, **more: object) -> None:
        bench = state.get("bench")
        done = {"status": status, "count": bench.count if bench else 0, "metrics": bench.metrics if bench else {}}
        Path(spec.result).write_text(json.dumps({**done, **more}))

    def too_late(*_: object) -> NoReturn:
        # Also when a library has the interpreter to itself for minutes.
        finish("timeout")
        os._exit(0)

    async def measured() -> None:
        bench = state["bench"] = Bench(spec)
        if tasks and spec.task in tasks:
            await tasks[spec.task](bench)
        else:
            await _measure(bench, run)

    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, spec.limit)
    try:
        if spec.profile:
            profile = cProfile.Profile()
            profile.runcall(asyncio.run, measured())
            profile.dump_stats(spec.profile)
            pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)
        else:
            asyncio.run(measured())
    except MemoryError:
        finish("memory")
        os._exit(0)
    finish("ok")
    # What is left of threads and sessions is none of our business.
    sys.stderr.flush()
    os._exit(0)


def _die_with_the_parent() -> None:
    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
