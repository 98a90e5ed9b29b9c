"""``python -m tests.bench``: see ``docs/benchmark.md``, or ``--help``."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.status import Status

from tests.bench import machine, peers, report
from tests.bench.runner import ROOT, Result, Runner
from tests.bench.tasks import BUDGETS, FLOOR, OURS, TASKS, Task, quick

_TOLD = ("aiohttp", "httpx", "httpx2", "kubernetes_asyncio", "lightkube-models", "msgspec", "pydantic", "pydantic_core")


def _arguments(arguments: Sequence[str], known: Sequence[str]) -> argparse.Namespace:
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="kaito-ctrl and its peers at the same work, side by side."
    )

    def listed(allowed: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            if unknown := set(chosen) - set(allowed):
                raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}; there are: {', '.join(allowed)}")
            return chosen

        return parse

    parser.add_argument("--tasks", type=listed(names), default=names, metavar="A,B", help=", ".join(names))
    parser.add_argument("--peers", type=listed(known), default=list(known), metavar="A,B", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="about a minute: to try it, not to quote it")
    parser.add_argument("--repeats", type=int, help="runs of each, instead of the task's own number")
    parser.add_argument("--limit", type=float, help="seconds for one run, instead of the task's own limit")
    parser.add_argument("--memory", type=float, help="GiB for one run (default: half of the machine's; 0: no limit)")
    parser.add_argument("--json", type=Path, help="where the figures go (default: build/bench.json)")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="profile every run; its figures mean nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a budget is missed")
    parser.add_argument("--date", help="the date of the report (default: now)")
    return parser.parse_args(arguments)


def _environments(chosen: Sequence[str], console: Console) -> dict[str, Path]:
    pythons = {OURS: Path(sys.executable), FLOOR: Path(sys.executable)}
    pins = peers.read_pins()
    for name in chosen:
        if name in pins:
            try:
                with console.status(f"{name}: environment"):
                    pythons[name] = peers.environment(name, pins[name])
            except peers.Unavailable as error:
                console.print(f"[yellow]goes on without it:[/] {error}", highlight=False)
    return {name: python for name, python in pythons.items() if name in chosen}


def _chosen(options: argparse.Namespace) -> list[Task]:
    tasks = [task for task in TASKS if task.name in options.tasks]
    if options.quick:
        tasks = [short for task in tasks if (short := quick(task)) is not None]
    if options.repeats:
        tasks = [replace(task, repeats=options.repeats) for task in tasks]
    if options.limit:
        tasks = [replace(task, limit=options.limit) for task in tasks]
    return tasks


def _memory(gibibytes: float | None) -> int:
    if gibibytes is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return int(gibibytes * 2**30)


def _build() -> Path:
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")  # as tools do with folders of their own making
    return folder


def _measure(tasks: Sequence[Task], runner: Runner, console: Console) -> list[Result]:
    everything: list[Result] = []
    for task in tasks:
        results = runner.run(task)
        everything += results
        if results:
            console.print()
            console.print(report.table(results))
            for note in report.notes(results):
                console.print(f"  {note}", style="dim", highlight=False)
    return everything


def main(arguments: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress is wanted in a log as well
    console = Console() if sys.stdout.isatty() else Console(width=160)
    known = (OURS, *peers.read_pins(), FLOOR)
    options = _arguments(arguments, known)
    pythons = _environments(options.peers, console)
    described = machine.describe()
    versions = {
        name: peers.versions(python, (name.replace("_", "-"), *(each.replace("_", "-") for each in _TOLD)))
        for name, python in pythons.items()
        if name != FLOOR
    }
    console.print(
        f"{described['cpu']}, {described['cores']} cores, Python {described['python']}, {described['system']}",
        *(
            f"  {name}: {', '.join(f'{key} {value}' for key, value in found.items())}"
            for name, found in versions.items()
        ),
        sep="\n",
        highlight=False,
    )
    with Status("", console=console) as status:

        def say(text: str) -> None:
            if console.is_terminal and options.profile is None:
                status.update(text)
            else:
                console.print(text, markup=False, highlight=False)

        runner = Runner(pythons, memory=_memory(options.memory), profiles=options.profile, say=say)
        results = _measure(_chosen(options), runner, console)
    verdicts = report.judge(BUDGETS, results)
    console.print()
    console.print(report.verdicts(verdicts))
    path = options.json or _build() / "bench.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    date = options.date or datetime.now(UTC).isoformat(timespec="seconds")
    told = {"quick": options.quick, "tasks": options.tasks, "peers": list(pythons)}
    figures = report.as_json(results, verdicts, date=date, machine=described, versions=versions, options=told)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(f"{date}: figures in {path}", highlight=False)
    return 1 if options.check and any(verdict.passed is False for verdict in verdicts) else 0


if __name__ == "__main__":
    # Asked to end in whatever way, leave nothing behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
