"""One thing that is wrong with an object, in words that help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Problem", "describe", "did_you_mean"]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Where, what, and what to do about it."""

    field: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message} ({self.fix})"


def describe(problems: Iterable[Problem]) -> str:
    """All problems as one text for people."""
    return "validation failed:\n" + "\n".join(f"- {problem}" for problem in problems)


def did_you_mean(names: Iterable[str]) -> str:
    """A fix that offers *names*, or nothing without any."""
    listed = ", ".join(names)
    return f"did you mean {listed}?" if listed else ""
