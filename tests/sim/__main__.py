"""Many simulated lives on all cores: ``python -m tests.sim [--lives runtime|workspace|provisioner|all] [--count N]``.

A life that goes wrong prints its seed, its faults, and the shortest list of faults that goes wrong in the same way.
``--replay runtime:SEED`` runs one life again, with ``--faults "..."`` under exactly those, and prints its tape.
``--singles runtime:SEED`` runs one life under each single fault that it can meet with, one after the other.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.progress import Progress

from kaito_ctrl.runtime.errors import leaf_errors
from kaito_ctrl.testing import Fault, Recording, parse_faults, run_virtual, shrink, single_faults
from tests.sim import provisioner, runtime, workspace
from tests.sim.life import Life, silence

LIVES: dict[str, Callable[..., Coroutine[Any, Any, Life]]] = {
    "runtime": runtime.live,
    "workspace": workspace.live,
    "provisioner": provisioner.live,
}
_CHUNK = 8


@dataclass(frozen=True)
class Job:
    """One life to be run; its faults are drawn from the seed unless they are given."""

    kind: str
    seed: int
    faults: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.seed}"

    def run(self) -> Life:
        return run_virtual(LIVES[self.kind](self.seed, parse_faults(self.faults) if self.faults is not None else None))


@dataclass(frozen=True)
class Outcome:
    """What is told of one life across processes."""

    job: Job
    wrong: str
    faults: str
    struck: dict[str, int]
    numbers: tuple[float, int, int, int, int, int]
    """Virtual seconds, requests, crashes, leaders, late writes, and requests of the busiest process in a minute."""


def _prepare() -> None:
    """Once for each worker. An interrupt is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(5)
    silence()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def live(job: Job) -> Outcome:
    """One life, whatever becomes of it."""
    try:
        life = job.run()
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the other seeds are wanted too
        text = "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaf_errors(error))
        return Outcome(job, text, job.faults or "", {}, (0.0, 0, 0, 0, 0, 0))
    faults = ""
    if life.violations:
        faults = " ".join(map(str, _shrunk(job.kind, life)))
    numbers = (life.seconds, life.calls, life.crashes, life.leaders, life.late_writes, life.busiest)
    return Outcome(job, "; ".join(life.violations[:3]), faults, life.struck, numbers)


def _shrunk(kind: str, life: Life) -> Sequence[Fault]:
    invariant = life.violations[0].partition(":")[0]

    def fails(faults: Sequence[Fault]) -> bool:
        try:
            again = run_virtual(LIVES[kind](life.seed, faults))
        except Exception:  # noqa: BLE001 - another way to go wrong
            return False
        return any(violation.startswith(invariant) for violation in again.violations)

    return shrink(life.faults, fails, tries=60)


def _outcomes(jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(workers, _prepare) as pool:
        yield from pool.imap_unordered(live, jobs, chunksize=_CHUNK if len(jobs) > 10 * _CHUNK * workers else 1)


def _singles(place: Job) -> list[Job]:
    recording = Recording()
    run_virtual(LIVES[place.kind](place.seed, recording=recording))
    return [Job(place.kind, place.seed, str(fault)) for fault in single_faults(recording.spots)]


def _replay(job: Job) -> int:
    life = job.run()
    print("\n".join(life.tape.lines))
    print(f"tape {life.tape.digest}")
    print("\n".join(life.violations) or "nothing has gone wrong")
    return 1 if life.violations else 0


def _place(text: str) -> Job:
    kind, _, seed = text.partition(":")
    if kind not in LIVES:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(f'{kind}:SEED' for kind in LIVES)}")
    return Job(kind, int(seed))


def _tell(outcomes: Sequence[Outcome], asked: int) -> None:
    struck: Counter[str] = Counter()
    for outcome in outcomes:
        struck.update(outcome.struck)
    nothing = (0.0, 0, 0, 0, 0, 0)
    columns = zip(nothing, *(outcome.numbers for outcome in outcomes), strict=True)
    seconds, calls, crashes, leaders, late, _ = (sum(column) for column in columns)
    bad = [str(outcome.job) for outcome in outcomes if outcome.wrong]
    kinds = Counter(outcome.job.kind for outcome in outcomes)
    print(
        f"{len(outcomes)} of {asked} lives ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}), "
        f"{seconds / 3600:.0f} virtual hours, {calls} requests, {crashes} crashes, {leaders} times a leader, "
        f"{late} late writes, at most {max((outcome.numbers[5] for outcome in outcomes), default=0)} requests a minute"
    )
    print("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(struck.items())))
    print(f"violations: {len(bad)} {' '.join(bad[:50])}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--lives", choices=("all", *LIVES), default="all", help="lives of what")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many lives")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--replay", type=_place, metavar="KIND:SEED", help="run this one again and print its tape")
    parser.add_argument("--faults", help="with --replay: exactly these")
    parser.add_argument("--singles", type=_place, metavar="KIND:SEED", help="run this one under each single fault")
    options = parser.parse_args()
    silence()
    if options.replay:
        return _replay(replace(options.replay, faults=options.faults))
    chosen = tuple(LIVES) if options.lives == "all" else (options.lives,)
    seeds = range(options.first, options.first + (options.count + len(chosen) - 1) // len(chosen))
    jobs = [Job(kind, seed) for seed in seeds for kind in chosen][: options.count]
    if options.singles:
        jobs = _singles(options.singles)
    outcomes: list[Outcome] = []
    interrupted = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Progress() as progress:
            for outcome in progress.track(_outcomes(jobs, options.jobs), total=len(jobs), description="lives"):
                outcomes.append(outcome)
                if not progress.console.is_terminal and len(outcomes) % 500 == 0:
                    print(f"{len(outcomes)} of {len(jobs)} lives", flush=True)
                if outcome.wrong:
                    again = f'python -m tests.sim --replay {outcome.job} --faults "{outcome.faults}"'
                    text = f"{outcome.job}: {outcome.wrong}\n  again: {again}"
                    progress.console.print(text, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        interrupted = True
    _tell(outcomes, len(jobs))
    return 130 if interrupted else 1 if any(outcome.wrong for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
