"""``python -m tests.scale --count 1000``: see :mod:`tests.scale.fleet`."""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import pstats
import sys

import structlog

from tests.scale.fleet import Figures, measure

__all__: list[str] = []


def _say(found: Figures) -> None:
    print(f"{found.count} workspaces ready after {found.seconds:.1f} s ({found.count / found.seconds:.0f} a second)")
    print(f"API writes for each: {found.writes_each:.2f}, and {found.events / found.count:.2f} events")
    for kind, amount in found.writes.items():
        print(f"  {amount / found.count:6.2f}  {kind}")
    for controller, amount in found.reconciles.items():
        print(f"reconciles for each, {controller}: {amount / found.count:.2f}")
    print(f"peak RSS, API server included: {found.peak / 2**20:.0f} MiB")
    print(f"writes in the quiet time afterwards: {len(found.quiet)} {' '.join(found.quiet[:5])}")


def main() -> int:
    """Measure and print; 1 when a quiet fleet is written to."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many workspaces")
    parser.add_argument("--quiet", type=float, default=60.0, help="seconds to watch them once they are ready")
    parser.add_argument("--profile", action="store_true", help="say where the time goes (it takes twice as long)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    profile = cProfile.Profile()
    if options.profile:
        profile.enable()
    found = asyncio.run(measure(options.count, quiet=options.quiet))
    profile.disable()
    _say(found)
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    return 1 if found.quiet else 0


if __name__ == "__main__":
    sys.exit(main())
