"""What is measured: the tasks, who does each in which way, what is read from it, and what we promise to reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["BUDGETS", "FLOOR", "OURS", "TASKS", "Budget", "Metric", "Row", "Task", "quick"]

OURS = "kaito-ctrl"
FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Row:
    """One participant's way of doing a task."""

    participant: str
    variant: str = ""
    note: str = ""
    """What is not equal about it."""
    equal: bool = True
    """Whether it does enough of the work to count as the best peer."""

    @property
    def label(self) -> str:
        return f"{self.participant}, {self.variant}" if self.variant else self.participant


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure: how it follows from what a run measured, and how it is shown."""

    name: str
    title: str
    unit: str
    of: Callable[[Mapping[str, float], Task], float | None]
    better: Literal["less", "more"] = "less"
    ratio: bool = False
    """Whether participants are compared by it."""


@dataclass(frozen=True, slots=True)
class Task:
    """``program`` is what the participants' programs know it by; ``limit`` is the seconds after which one gives up."""

    name: str
    title: str
    program: str
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    pods: int = 0
    events: int = 0
    limit: float = 60.0
    repeats: int = 3
    quiet: float = 20.0
    spacing: float = 0.02
    rounds: int = 20

    @property
    def reference(self) -> Row:
        """The row that the others are compared with: the first of ours, which does all the work that anybody does."""
        return next(row for row in self.rows if row.participant == OURS)


@dataclass(frozen=True, slots=True)
class Budget:
    """A line of the design's budgets: the median of *metric* in *row*'s runs of *task* against *limit*."""

    text: str
    task: str
    row: Row
    metric: str
    limit: float
    against_peers: bool = False
    """The limit is on the factor to the best peer that does the same work, instead of on the figure itself."""


def _raw(name: str) -> Callable[[Mapping[str, float], Task], float | None]:
    return lambda seen, _: seen.get(name)


def _wall(seen: Mapping[str, float], _: Task) -> float | None:
    return seen.get("wall_s")


def _per_pod(name: str, scale: float) -> Callable[[Mapping[str, float], Task], float | None]:
    return lambda seen, task: seen[name] * scale / task.pods if name in seen else None


def _per_event(name: str, scale: float) -> Callable[[Mapping[str, float], Task], float | None]:
    return lambda seen, task: seen[name] * scale / task.events if name in seen else None


def _rate(seen: Mapping[str, float], task: Task) -> float | None:
    return task.events / seen["wall_s"] if "wall_s" in seen else None


def _per_reconcile(name: str) -> Callable[[Mapping[str, float], Task], float | None]:
    return lambda seen, task: seen[name] * 1e6 / (task.pods * task.rounds) if name in seen else None


def _share(seen: Mapping[str, float], _: Task) -> float | None:
    return 100 * seen["cpu_s"] / seen["wall_s"] if "wall_s" in seen else None


_RECONCILE = Row(OURS, "reconcile")
_WHOLE = Row(OURS, "whole", "a model of nearly the whole pod")
_CACHE = Row(OURS, "cache", "no reconciles")
_COMPACT = Row(OURS, "compact", "no reconciles")
_QUEUE = Row(OURS, "queue", "into the queue, not out of it")

_SYNC_ROWS = (
    _RECONCILE,
    Row(OURS, "watchlist"),
    _WHOLE,
    _CACHE,
    _COMPACT,
    Row("kopf", "index", "a task per object; no queue by key"),
    Row("kopf", "event", "holds no objects; a task per object", equal=False),
    Row("kubernetes-asyncio", "list", "a dict; no queue"),
    Row("kubernetes-asyncio", "watch", "a dict; no queue"),
    Row("lightkube", "", "a dict; no queue"),
    Row("kr8s", "", "a dict; no queue"),
    Row(FLOOR, "", "reads, discards"),
)
_SYNC_METRICS = (
    Metric("wall", "wall", "s", _wall, ratio=True),
    Metric("cpu", "CPU", "s", _raw("cpu_s"), ratio=True),
    Metric("memory", "memory/object", "B", _per_pod("held_bytes", 1), ratio=True),
    Metric("peak", "peak/object", "B", _per_pod("peak_bytes", 1)),
    Metric("stall", "stall max", "ms", _raw("stall_max_ms")),
    Metric("stall_p999", "stall p99.9", "ms", _raw("stall_p999_ms")),
    Metric("stall_cpu", "own CPU in it", "ms", _raw("stall_cpu_ms")),
)
_PEERS_WATCHING = (
    Row("kopf", "event", "holds no objects; a task per object"),
    Row("kubernetes-asyncio", "watch", "a dict; no queue"),
    Row("lightkube", "", "a dict; no queue"),
    Row("kr8s", "", "a dict; no queue"),
)

TASKS = (
    Task(
        "import",
        "Import, in a fresh process",
        "import",
        (
            Row(OURS, "connected", "everything, with what connecting needs"),
            Row(OURS, "loaded", "Manager, Controller and Client, before connecting"),
            Row(OURS, "named", "the package alone: each name is loaded when first used"),
            Row("kopf"),
            Row("kubernetes-asyncio"),
            Row("lightkube", "", "and its generated models"),
            Row("kr8s"),
        ),
        (
            Metric("wall", "time", "ms", lambda seen, _: seen["wall_s"] * 1e3, ratio=True),
            Metric("memory", "memory", "MB", lambda seen, _: seen["held_bytes"] / 1e6),
            Metric("modules", "modules", "", _raw("modules")),
        ),
        repeats=5,
    ),
    Task(
        "sync",
        "Initial content: {pods:,} pods of 6 KB, each held and handed to a handler once",
        "sync",
        _SYNC_ROWS,
        _SYNC_METRICS,
        pods=20_000,
        limit=90,
    ),
    Task(
        "events",
        "Events: {events:,}, each of another one of {pods:,} pods, as fast as they are read",
        "events",
        (_RECONCILE, _WHOLE, _QUEUE, *_PEERS_WATCHING, Row(FLOOR, "", "reads, counts lines")),
        (
            Metric("rate", "events/s", "1/s", _rate, better="more", ratio=True),
            Metric("cpu", "CPU/event", "µs", _per_event("cpu_s", 1e6), ratio=True),
            Metric("stall", "stall max", "ms", _raw("stall_max_ms")),
            Metric("stall_cpu", "own CPU in it", "ms", _raw("stall_cpu_ms")),
        ),
        pods=20_000,
        events=20_000,
        limit=120,
    ),
    Task(
        "latency",
        "Event to handler, one event at a time ({events:,} of them, about 20 ms apart)",
        "latency",
        (_RECONCILE, *_PEERS_WATCHING, Row(FLOOR, "", "sees the line")),
        (
            Metric("p50", "p50", "ms", _raw("p50_ms"), ratio=True),
            Metric("p99", "p99", "ms", _raw("p99_ms"), ratio=True),
            Metric("max", "max", "ms", _raw("max_ms")),
        ),
        pods=1_000,
        events=500,
    ),
    Task(
        "noop",
        "A reconcile that does nothing, from queue to done ({pods:,} keys, {rounds} times)",
        "noop",
        (Row(OURS, "reconcile", "nobody else has a queue of keys: compare with CPU/event above"),),
        (
            Metric("cpu", "CPU/reconcile", "µs", _per_reconcile("cpu_s"), ratio=True),
            Metric("wall", "wall/reconcile", "µs", _per_reconcile("wall_s"), ratio=True),
        ),
        pods=1_000,
    ),
    Task(
        "idle",
        "A quiet daemon with 10 watches of 100 objects, for {quiet:g} s",
        "idle",
        (_RECONCILE, *_PEERS_WATCHING, Row(FLOOR, "", "10 open sockets")),
        (
            Metric("share", "CPU", "%", _share, ratio=True),
            Metric("cpu", "CPU time", "ms", lambda seen, _: seen["cpu_s"] * 1e3),
        ),
        repeats=1,
    ),
    Task(
        "sync-large",
        "Initial content: {pods:,} pods of 6 KB, each held and handed to a handler once",
        "sync",
        _SYNC_ROWS,
        _SYNC_METRICS,
        pods=100_000,
        limit=120,
        repeats=2,
    ),
)

BUDGETS = (
    Budget("import kaito_ctrl with Manager, Controller and Client, ms", "import", Row(OURS, "loaded"), "wall", 150),
    Budget("loop stall while syncing 20,000 objects, ms", "sync", _RECONCILE, "stall", 10),
    Budget("loop stall while syncing 20,000 objects, cache alone, ms", "sync", _CACHE, "stall", 10),
    Budget("memory per cached object, bytes", "sync", _CACHE, "memory", 8192),
    Budget("memory per cached object in compact form, bytes", "sync", _COMPACT, "memory", 1536),
    Budget("events/s through cache, handlers and queue", "events", _QUEUE, "rate", 20_000),
    Budget("event to reconcile when idle, p99, ms", "latency", _RECONCILE, "p99", 2),
    Budget("library CPU per no-op reconcile, µs", "noop", _RECONCILE, "cpu", 60),
    Budget("CPU of a quiet daemon, %", "idle", _RECONCILE, "share", 0.2),
    Budget("sync: CPU of the best peer over ours, cache alone", "sync", _CACHE, "cpu", 10, against_peers=True),
    Budget("sync: memory of the best peer over ours, cache alone", "sync", _CACHE, "memory", 10, against_peers=True),
    Budget("events: CPU of the best peer over ours, into the queue", "events", _QUEUE, "cpu", 10, against_peers=True),
)


def quick(task: Task) -> Task | None:
    """*task* in seconds instead of minutes: good for trying the instrument, not for quoting; ``None``: left out."""
    if task.name == "sync-large":
        return None
    few = {row.label: row for row in task.rows if row.variant not in ("watchlist", "whole", "list", "index")}
    return replace(
        task,
        rows=tuple(few.values()),
        pods=min(task.pods, 3_000),
        events=min(task.events, 3_000 if task.program == "events" else 150),
        repeats=1,
        limit=30,
        quiet=3,
        rounds=10,
    )
