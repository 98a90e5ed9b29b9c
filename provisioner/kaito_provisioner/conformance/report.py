"""Trying a backend, and telling a person what came of it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kaito_provisioner.conformance.bench import MakeBench, NotApplicable
from kaito_provisioner.conformance.case import Case, Violation
from kaito_provisioner.conformance.creating import CREATING
from kaito_provisioner.conformance.deleting import DELETING
from kaito_provisioner.conformance.failing import FAILING
from kaito_provisioner.conformance.lives import LIVES
from kaito_provisioner.conformance.showing import SHOWING

__all__ = ["CASES", "Outcome", "Report", "Result", "check"]

CASES: Sequence[Case] = (*CREATING, *SHOWING, *DELETING, *FAILING, *LIVES)
"""Every promise, in the order in which they are best read."""

Outcome = Literal["kept", "broken", "not tried"]
_SIGNS: dict[Outcome, str] = {"kept": "  ok    ", "broken": "  BROKEN", "not tried": "  --    "}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one case."""

    case: Case
    outcome: Outcome
    detail: str = ""
    """What is worth telling: counts and times, how the promise was broken, or why it was not tried."""

    def __str__(self) -> str:
        if self.outcome == "broken":
            text = textwrap.fill(self.detail, 110, initial_indent=" " * 10, subsequent_indent=" " * 10)
            return f"{_SIGNS[self.outcome]}  {self.case}\n{text}"
        return f"{_SIGNS[self.outcome]}  {self.case}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all cases. Prints as text."""

    name: str
    results: Sequence[Result]

    @property
    def passed(self) -> bool:
        """Whether no promise was broken."""
        return not self.broken

    @property
    def broken(self) -> Sequence[Result]:
        """The cases that failed."""
        return [each for each in self.results if each.outcome == "broken"]

    def __str__(self) -> str:
        return "\n".join([self.name, *map(str, self.results), self.verdict])

    @property
    def verdict(self) -> str:
        """The last line."""
        counts = [(word, sum(each.outcome == word for each in self.results)) for word in _SIGNS]
        told = ", ".join(f"{count} {word}" for word, count in counts if count)
        return f"{self.name} {'keeps' if self.passed else 'breaks'} the protocol: {told}"


async def check(
    make_bench: MakeBench, cases: Sequence[Case] = CASES, *, tell: Callable[[Result], None] | None = None
) -> Report:
    """Whether a backend keeps the protocol. Cases are tried one after the other; *tell* hears of each as it ends."""
    async with make_bench() as bench:
        name = bench.name
    results: list[Result] = []
    for each in cases:
        result = await _tried(each, make_bench)
        results.append(result)
        if tell is not None:
            tell(result)
    return Report(name, results)


async def _tried(case: Case, make_bench: MakeBench) -> Result:
    try:
        return Result(case, "kept", await case.run(make_bench))
    except NotApplicable as reason:
        return Result(case, "not tried", str(reason))
    except Violation as violation:
        return Result(case, "broken", str(violation))
    except Exception as error:  # noqa: BLE001 - a backend that raises what it may not has failed as well
        return Result(case, "broken", f"{type(error).__name__}: {error}")
