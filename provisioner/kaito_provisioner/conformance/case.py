"""One promise of the protocol, as something that can be tried."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kaito_provisioner.conformance.bench import Bench, MakeBench

__all__ = ["Case", "Violation", "case", "require", "wide_case"]


class Violation(AssertionError):
    """The backend broke a promise; the text says which, and how."""


@dataclass(frozen=True, slots=True)
class Case:
    """A promise, as a sentence, and what tries it."""

    sentence: str
    body: Callable[[MakeBench], Awaitable[str]]

    def __str__(self) -> str:
        return self.sentence

    async def run(self, make_bench: MakeBench) -> str:
        """What is worth telling about the trial, maybe nothing. Raises :class:`Violation` where the promise is broken,
        and ``NotApplicable`` where the bench cannot try it."""
        return await self.body(make_bench)


def require(kept: object, otherwise: str) -> None:
    """Raises :class:`Violation` unless *kept*."""
    if not kept:
        raise Violation(otherwise)


def case(sentence: str) -> Callable[[Callable[[Bench], Awaitable[str | None]]], Case]:
    """A case that needs one bench."""

    def decorate(body: Callable[[Bench], Awaitable[str | None]]) -> Case:
        async def run(make_bench: MakeBench) -> str:
            async with make_bench() as bench:
                return await body(bench) or ""

        return Case(sentence, run)

    return decorate


def wide_case(sentence: str) -> Callable[[Callable[[MakeBench], Awaitable[str]]], Case]:
    """A case that goes through many benches."""
    return lambda body: Case(sentence, body)
