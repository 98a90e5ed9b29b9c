"""``python -m tests.sim [--first N] [--count N]``: that many lives, with progress, and the seeds that went wrong."""

from __future__ import annotations

import argparse
import sys

import structlog
from rich.progress import Progress

from kaito_ctrl.runtime.errors import leaf_errors
from kaito_ctrl.testing import FaultPlan, run_virtual
from tests.sim.world import live


def _drop(*_: object) -> object:
    raise structlog.DropEvent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    options = parser.parse_args()
    structlog.configure(processors=[_drop])
    bad: list[int] = []
    crashes, hours = 0, 0.0
    with Progress() as progress:
        for seed in progress.track(range(options.first, options.first + options.count), description="lives"):
            try:
                life = run_virtual(live(seed, FaultPlan()))
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the other seeds are wanted too
                bad.append(seed)
                progress.console.print(f"seed {seed}: {'; '.join(str(leaf) for leaf in leaf_errors(error))}")
            else:
                crashes += life.crashes
                hours += life.seconds / 3600
    print(
        f"{options.count} lives, {hours:.0f} virtual hours, {crashes} crashes: {len(bad)} violations {bad[:20] or ''}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
