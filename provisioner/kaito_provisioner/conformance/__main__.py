"""``python -m kaito_provisioner.conformance BENCH``: whether a backend keeps the protocol. Exits with 1 if not."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from kaito_provisioner.conformance.bench import MakeBench
from kaito_provisioner.conformance.report import CASES, Report, check

__all__ = ["main"]

_OURS = {"sim": "kaito_provisioner.conformance.sim:make_bench"}
Run = Callable[[Coroutine[Any, Any, Report]], Report]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 where every promise that was tried is kept, 1 where one is broken."""
    parser = argparse.ArgumentParser("python -m kaito_provisioner.conformance", description=__doc__.partition("\n")[0])
    parser.add_argument("bench", metavar="BENCH", help=f"{', '.join(_OURS)}, or where to find yours: module:make_bench")
    parser.add_argument(
        "--run",
        metavar="MODULE:FUNCTION",
        default="asyncio:run",
        help="what runs a coroutine: asyncio:run, or that of a loop whose clock jumps",
    )
    parser.add_argument("-k", metavar="WORDS", default="", help="only the cases whose sentence has these words in it")
    options = parser.parse_args(arguments)
    cases = [each for each in CASES if options.k.lower() in str(each).lower()]
    if not cases:
        parser.error(f"there is no case with {options.k!r} in it")
    try:
        make_bench: MakeBench = _load(_OURS.get(options.bench, options.bench))
        run: Run = _load(options.run)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(str(error))
    report = run(check(make_bench, cases, tell=_tell))
    _tell(report.verdict)
    return 0 if report.passed else 1


def _tell(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _load(path: str) -> Any:
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"{path!r} is not of the form module:name")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())
