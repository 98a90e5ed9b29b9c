"""A claim's whole life: with a fault at each request in turn, with pairs of them, with a crash between any two steps.

What a life needs without faults says where faults can strike. After each life nothing may be left, at no moment may
there have been two instances, and every life comes to its end.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from kaito_provisioner.conformance.bench import Bench, Fault, MakeBench, NotApplicable
from kaito_provisioner.conformance.case import Violation, wide_case
from kaito_provisioner.conformance.claims import claim
from kaito_provisioner.conformance.life import Life

__all__ = ["LIVES"]

Phase = Literal["creation", "deletion"]
_LIKELY = (Fault.LOST, Fault.DROPPED, Fault.THROTTLED)
"""Those that come in pairs: what an unsteady network and a busy cloud do."""
_LAG = 45.0
"""Seconds by which a slow cloud's views lag behind what it did."""
_OUTAGE = 20
"""Requests in a row that fail in an outage."""
_RETRIES = 2
"""Requests that a fault may add, so that the second of a pair can strike those too."""


@dataclass(frozen=True, slots=True)
class _Length:
    """What an undisturbed life takes: requests to the cloud, and calls of the provider's methods."""

    creation: int
    deletion: int
    create_steps: int
    steps: int


@dataclass(frozen=True, slots=True)
class _Strike:
    """Where a life is disturbed."""

    faults: tuple[tuple[Fault, int], ...] = ()
    """Each with the number of the request, counted from the phase's beginning."""
    phase: Phase = "creation"
    crash_on_error: bool = False
    crash_after: tuple[int, ...] = ()
    stop_after: int | None = None
    """The claim is deleted after so many steps."""

    def __str__(self) -> str:
        parts = [f"{fault} at request {nth} of the {self.phase}" for fault, nth in self.faults[:2]]
        parts += [f"and so on until request {self.faults[-1][1]}"] if len(self.faults) > 2 else []
        parts += ["the process dies of it"] if self.crash_on_error else []
        parts += [f"the process dies after step {step}" for step in self.crash_after]
        parts += [f"the claim is deleted after step {self.stop_after}"] if self.stop_after is not None else []
        return ", ".join(parts)


async def _measure(make_bench: MakeBench) -> _Length:
    async with make_bench() as bench:
        life = Life(bench, claim(bench))
        await life.bring_up()
        creation, create_steps = bench.calls, life.steps
        await life.take_down()
        deletion = bench.calls - creation
        steps = life.steps
        await life.settle()
    return _Length(creation, deletion, create_steps, steps)


async def _live(bench: Bench, strike: _Strike) -> None:
    life = Life(
        bench,
        claim(bench),
        crash_on_error=strike.crash_on_error and strike.phase == "creation",
        crash_after=strike.crash_after,
    )
    if strike.phase == "creation":
        _arm(bench, strike)
    if strike.stop_after != 0:
        await life.bring_up(steps=strike.stop_after)
    if strike.phase == "deletion":
        life.crash_on_error = strike.crash_on_error
        _arm(bench, strike)
    await life.take_down()
    await life.settle()


def _arm(bench: Bench, strike: _Strike) -> None:
    for fault, nth in strike.faults:
        bench.fail(fault, nth=nth)


async def _live_all(make_bench: MakeBench, strikes: Iterable[_Strike], length: _Length) -> str:
    lives = 0
    for strike in strikes:
        async with make_bench() as bench:
            try:
                await _live(bench, strike)
            except Violation as violation:
                raise Violation(f"{strike}: {violation}") from violation
        lives += 1
    if not lives:
        raise NotApplicable("the bench knows none of these faults")
    return f"lives: {lives}; requests of an undisturbed one: {length.creation} to come, {length.deletion} to go"


async def _faults(make_bench: MakeBench, among: Sequence[Fault] = tuple(Fault)) -> list[Fault]:
    async with make_bench() as bench:
        return [fault for fault in among if fault in bench.faults]


def _singles(faults: Sequence[Fault], phase: Phase, requests: int) -> Iterable[_Strike]:
    for fault, nth, crash in itertools.product(faults, range(1, requests + 1), (False, True)):
        yield _Strike(((fault, nth),), phase, crash_on_error=crash)


def _pairs(faults: Sequence[Fault], phase: Phase, requests: int) -> Iterable[_Strike]:
    places = itertools.combinations(range(1, requests + _RETRIES + 1), 2)
    for (first, second), one, other, crash in itertools.product(places, faults, faults, (False, True)):
        yield _Strike(((one, first), (other, second)), phase, crash_on_error=crash)


@wide_case("an instance comes and goes whatever happens to any one request of its creation")
async def _creation(make_bench: MakeBench) -> str:
    length = await _measure(make_bench)
    return await _live_all(make_bench, _singles(await _faults(make_bench), "creation", length.creation), length)


@wide_case("an instance goes whatever happens to any one request of its deletion")
async def _deletion(make_bench: MakeBench) -> str:
    length = await _measure(make_bench)
    return await _live_all(make_bench, _singles(await _faults(make_bench), "deletion", length.deletion), length)


@wide_case("an instance comes and goes whatever happens to any two requests of its creation")
async def _creation_pairs(make_bench: MakeBench) -> str:
    length = await _measure(make_bench)
    return await _live_all(make_bench, _pairs(await _faults(make_bench, _LIKELY), "creation", length.creation), length)


@wide_case("an instance goes whatever happens to any two requests of its deletion")
async def _deletion_pairs(make_bench: MakeBench) -> str:
    length = await _measure(make_bench)
    return await _live_all(make_bench, _pairs(await _faults(make_bench, _LIKELY), "deletion", length.deletion), length)


@wide_case("an instance comes and goes through a crash after any one or two steps, before anything is written down")
async def _crashes(make_bench: MakeBench) -> str:
    length = await _measure(make_bench)
    steps = range(1, length.steps + 1)
    places = [(step,) for step in steps] + list(itertools.combinations(steps, 2))
    return await _live_all(make_bench, (_Strike(crash_after=place) for place in places), length)


@wide_case("nothing is left of a claim that is deleted at any moment of its creation, whatever was lost until then")
async def _early_ends(make_bench: MakeBench) -> str:
    length = await _measure(make_bench)
    moments = range(length.create_steps + 1)
    strikes = [_Strike(stop_after=moment) for moment in moments]
    strikes += [
        _Strike(((fault, nth),), crash_on_error=crash, stop_after=moment)
        for fault, nth, moment, crash in itertools.product(
            await _faults(make_bench, (Fault.LOST, Fault.LATE_ERROR, Fault.THROTTLED)),
            range(1, length.creation + 1),
            moments[1:],
            (False, True),
        )
    ]
    strikes += [
        _Strike(((fault, nth),), "deletion", crash_on_error=crash, stop_after=moment)
        for fault, nth, moment, crash in itertools.product(
            await _faults(make_bench, (Fault.LOST, Fault.THROTTLED)),
            range(1, length.deletion + 1),
            moments[1:],
            (False, True),
        )
    ]
    return await _live_all(make_bench, strikes, length)


@wide_case("an instance comes and goes through long outages")
async def _outages(make_bench: MakeBench) -> str:
    length = await _measure(make_bench)
    phases: tuple[Phase, ...] = ("creation", "deletion")
    strikes = [
        _Strike(tuple((fault, nth) for nth in range(first, first + _OUTAGE)), phase)
        for fault in await _faults(make_bench, (Fault.UNREACHABLE, Fault.ERROR, Fault.THROTTLED, Fault.FORBIDDEN))
        for phase in phases
        for first in (1, 2, 3)
    ]
    return await _live_all(make_bench, strikes, length)


@wide_case(
    "a claim gets its next offering when the first runs out late, whatever happens to any one request until then"
)
async def _fallbacks(make_bench: MakeBench) -> str:
    @asynccontextmanager
    async def short() -> AsyncIterator[Bench]:
        async with make_bench() as bench:
            bench.shortage(bench.offerings[0], "capacity", late=True)
            yield bench

    length = await _measure(short)
    strikes = [
        *_singles(await _faults(make_bench, (*_LIKELY, Fault.LATE_ERROR)), "creation", length.creation),
        *(_Strike(crash_after=(step,)) for step in range(1, length.steps + 1)),
        *(_Strike(stop_after=step) for step in range(1, length.create_steps + 1)),
    ]
    return await _live_all(short, strikes, length)


@wide_case("an instance comes and goes in a cloud that shows late what it did, whatever happens to any one request")
async def _late_views(make_bench: MakeBench) -> str:
    @asynccontextmanager
    async def late() -> AsyncIterator[Bench]:
        async with make_bench() as bench:
            bench.lag(_LAG)
            yield bench

    length = await _measure(late)
    likely = await _faults(make_bench, _LIKELY)
    strikes = [
        *_singles(likely, "creation", length.creation),
        *_singles(likely, "deletion", length.deletion),
        *(_Strike(crash_after=(step,)) for step in range(1, length.steps + 1)),
        *(
            _Strike(((fault, 1),), crash_on_error=crash, stop_after=step)
            for fault, step, crash in itertools.product(likely, range(1, length.create_steps + 1), (False, True))
        ),
    ]
    return await _live_all(late, strikes, length)


LIVES = (
    _creation,
    _deletion,
    _creation_pairs,
    _deletion_pairs,
    _crashes,
    _early_ends,
    _outages,
    _fallbacks,
    _late_views,
)
