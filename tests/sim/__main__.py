"""Many simulated lives on all cores: ``python -m tests.sim [--lives runtime|workspace|both] [--count N]``.

A life that goes wrong prints its seed, its faults, and the shortest list of faults that goes wrong in the same way.
``--replay runtime:SEED`` runs one life again, with ``--faults "..."`` under exactly those, and prints its tape.
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
from dataclasses import dataclass
from typing import Any

import structlog
from rich.progress import Progress

from kaito_ctrl.runtime.errors import leaf_errors
from kaito_ctrl.testing import Fault, parse_faults, run_virtual, shrink
from tests.sim import runtime, workspace
from tests.sim.life import Life

LIVES: dict[str, Callable[..., Coroutine[Any, Any, Life]]] = {"runtime": runtime.live, "workspace": workspace.live}
_CHUNK = 8


@dataclass(frozen=True)
class Outcome:
    """What is told of one life across processes."""

    kind: str
    seed: int
    wrong: str
    faults: str
    struck: dict[str, int]
    numbers: tuple[float, int, int, int, int, int]
    """Virtual seconds, requests, crashes, leaders, late writes, and requests of the busiest process in a minute."""


def _drop(*_: object) -> object:
    raise structlog.DropEvent


def _prepare() -> None:
    """Once for each worker. An interrupt is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    structlog.configure(processors=[_drop])
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def live(job: tuple[str, int]) -> Outcome:
    """One life, whatever becomes of it."""
    kind, seed = job
    try:
        life = run_virtual(LIVES[kind](seed))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the other seeds are wanted too
        text = "; ".join(f"{type(leaf).__name__}: {leaf}" for leaf in leaf_errors(error))
        return Outcome(kind, seed, text, "", {}, (0.0, 0, 0, 0, 0, 0))
    faults = ""
    if life.violations:
        faults = " ".join(map(str, _shrunk(kind, life)))
    numbers = (life.seconds, life.calls, life.crashes, life.leaders, life.late_writes, life.busiest)
    return Outcome(kind, seed, "; ".join(life.violations[:3]), faults, life.struck, numbers)


def _shrunk(kind: str, life: Life) -> Sequence[Fault]:
    invariant = life.violations[0].partition(":")[0]

    def fails(faults: Sequence[Fault]) -> bool:
        try:
            again = run_virtual(LIVES[kind](life.seed, faults))
        except Exception:  # noqa: BLE001 - another way to go wrong
            return False
        return any(violation.startswith(invariant) for violation in again.violations)

    return shrink(life.faults, fails, tries=60)


def _outcomes(jobs: Sequence[tuple[str, int]], workers: int) -> Iterator[Outcome]:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with context.Pool(workers, _prepare) as pool:
        yield from pool.imap_unordered(live, jobs, chunksize=_CHUNK if len(jobs) > 10 * _CHUNK * workers else 1)


def _replay(kind: str, seed: int, faults: str | None) -> int:
    structlog.configure(processors=[_drop])
    life = run_virtual(LIVES[kind](seed, parse_faults(faults) if faults is not None else None))
    print("\n".join(life.tape.lines))
    print(f"tape {life.tape.digest}")
    print("\n".join(life.violations) or "nothing has gone wrong")
    return 1 if life.violations else 0


def _tell(outcomes: Sequence[Outcome], asked: int) -> None:
    struck: Counter[str] = Counter()
    for outcome in outcomes:
        struck.update(outcome.struck)
    nothing = (0.0, 0, 0, 0, 0, 0)
    columns = zip(nothing, *(outcome.numbers for outcome in outcomes), strict=True)
    seconds, calls, crashes, leaders, late, _ = (sum(column) for column in columns)
    bad = [f"{outcome.kind}:{outcome.seed}" for outcome in outcomes if outcome.wrong]
    kinds = Counter(outcome.kind for outcome in outcomes)
    print(
        f"{len(outcomes)} of {asked} lives ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}), "
        f"{seconds / 3600:.0f} virtual hours, {calls} requests, {crashes} crashes, {leaders} times a leader, "
        f"{late} late writes, at most {max((outcome.numbers[5] for outcome in outcomes), default=0)} requests a minute"
    )
    print("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(struck.items())))
    print(f"violations: {len(bad)} {' '.join(bad[:50])}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--lives", choices=("both", *LIVES), default="both", help="lives of what")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many lives")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--replay", metavar="KIND:SEED", help="run this one again and print its tape")
    parser.add_argument("--faults", help="with --replay: exactly these")
    options = parser.parse_args()
    if options.replay:
        kind, _, seed = options.replay.partition(":")
        return _replay(kind, int(seed), options.faults)
    chosen = tuple(LIVES) if options.lives == "both" else (options.lives,)
    seeds = range(options.first, options.first + (options.count + len(chosen) - 1) // len(chosen))
    jobs = [(kind, seed) for seed in seeds for kind in chosen][: options.count]
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        with Progress() as progress:
            for outcome in progress.track(_outcomes(jobs, options.jobs), total=len(jobs), description="lives"):
                outcomes.append(outcome)
                if outcome.wrong:
                    again = f"python -m tests.sim --replay {outcome.kind}:{outcome.seed}"
                    progress.console.print(f"{outcome.kind}:{outcome.seed}: {outcome.wrong}", markup=False)
                    progress.console.print(
                        f'  again: {again} --faults "{outcome.faults}"', markup=False, soft_wrap=True
                    )
    except KeyboardInterrupt:
        interrupted = True
    _tell(outcomes, len(jobs))
    return 130 if interrupted else 1 if any(outcome.wrong for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
