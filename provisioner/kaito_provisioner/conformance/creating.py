"""Promises about ``create``."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from kaito_provisioner.cloud import (
    CloudError,
    Conflict,
    Instance,
    InsufficientCapacity,
    InvalidRequest,
    LaunchRequest,
    NotFound,
    Offering,
    OfferingError,
    QuotaExceeded,
    UnknownInstanceType,
)
from kaito_provisioner.conformance.bench import CONSISTENT, Bench, Shortage
from kaito_provisioner.conformance.case import Violation, case, require
from kaito_provisioner.conformance.claims import claim, exactly_one, none_left, of, ref
from kaito_provisioner.conformance.life import Life
from kaito_provisioner.conformance.supervised import Supervised, start

__all__ = ["CREATING", "running"]

_MANY = 20
_ROUND = 30.0
_PATIENCE = 6 * 3600.0


async def running(bench: Bench, request: LaunchRequest) -> Instance:
    """The claim's instance, once it runs. Raises ``Violation`` where that never happens."""
    instance = await Life(bench, request).bring_up()
    assert instance is not None
    return instance


@case("create answers at once, while the instance is being made")
async def _promptly(bench: Bench) -> str:
    provider, request = await start(bench), claim(bench)
    before = bench.calls
    made = await provider.create(request)
    require(made.state in ("Creating", "Running"), f"what was just begun is {made.state}")
    exactly_one(bench, request, "after create")
    return f"requests: {bench.calls - before}"


@case("the instance says what it was made for")
async def _labelled(bench: Bench) -> None:
    for number, kind in enumerate(("NodeClaim", "Machine"), start=1):
        request = claim(bench, number, kind=kind)
        made = await (await start(bench)).create(request)
        found = await running(bench, request)
        for each, where in ((made, "create"), (found, "find")):
            said = (each.name, each.claim_uid, each.claim_kind, each.instance_type)
            asked = (request.name, request.uid, request.kind, request.offerings[0].instance_type)
            require(said == asked, f"{where} answered with {said} for {asked}")
            if each.offering is not None:
                wanted = request.offerings[0]
                found_as = (each.offering.instance_type, each.offering.capacity_type)
                require(
                    found_as == (wanted.instance_type, wanted.capacity_type),
                    f"{where} answered with the offering {each.offering}, and {wanted} was asked for first",
                )
        require(found.created is not None, "a running instance does not say how old it is: nothing can collect it")


@case("asked again, create answers with the instance that is there")
async def _idempotent(bench: Bench) -> None:
    provider, request = await start(bench), claim(bench)
    await provider.create(request)
    await provider.create(request)
    exactly_one(bench, request, "after two creates")
    await running(bench, request)
    again = await provider.create(replace(request, offerings=tuple(reversed(request.offerings))))
    require(again.state == "Running", f"asked again for what runs, create answered with {again.state}")
    exactly_one(bench, request, "after a create with other offerings")


@case("a process that has just started is answered with the instance that is there")
async def _adopted(bench: Bench) -> None:
    request = claim(bench)
    await (await start(bench)).create(request)
    await (await start(bench)).create(request)
    exactly_one(bench, request, "after a create by each of two processes")
    await running(bench, request)
    await (await start(bench)).create(request)
    exactly_one(bench, request, "after a create by a third process, when it runs")


@case("two processes that ask for one claim ten times each, all at once, get one instance")
async def _contended(bench: Bench) -> None:
    first, second, request = await start(bench), await start(bench), claim(bench)
    answers = await asyncio.gather(*(_try(each, request) for each in (first, second) * 10))
    for error in answers:
        require(not isinstance(error, CloudError) or error.retryable, f"an end to what nothing is wrong with: {error}")
    await running(bench, request)
    exactly_one(bench, request, "after twenty creates at once")


@case("twenty claims that are asked for at once get an instance each")
async def _many(bench: Bench) -> str:
    provider = await start(bench)
    requests = [claim(bench, number, offerings=bench.offerings[:1]) for number in range(1, _MANY + 1)]
    waiting, first, waited = list(requests), bench.calls, 0.0
    while waiting:
        answers = await asyncio.gather(*(_try(provider, each) for each in waiting))
        for request, answer in zip(waiting, answers, strict=True):
            require(
                not isinstance(answer, CloudError) or answer.retryable,
                f"claim {request.name} is refused for good: {answer}",
            )
            require(len(of(bench, request.uid)) <= 1, f"{len(of(bench, request.uid))} instances of {request.name}")
        waiting = [
            request
            for request, answer in zip(waiting, answers, strict=True)
            if isinstance(answer, CloudError) or answer.state != "Running"
        ]
        require(waited <= _PATIENCE, f"{len(waiting)} of {_MANY} claims still wait after {waited / 3600:g} h")
        await bench.elapse(_ROUND)
        waited += _ROUND
    for request in requests:
        exactly_one(bench, request, "when all run")
    require(len(bench.truth()) == _MANY, f"{len(bench.truth())} instances exist for {_MANY} claims")
    return f"all run after {waited:.0f} s and {bench.calls - first} requests"


@case("a name that is taken by somebody else's instance is a conflict, and that instance stays as it is")
async def _taken(bench: Bench) -> None:
    request = claim(bench)
    await bench.foreign(request.name)
    before = list(bench.truth())
    provider = await start(bench)
    error = await _refused(provider, request)
    require(isinstance(error, Conflict), f"create raised {type(error).__name__} for a name that is taken: {error}")
    try:
        found = await provider.find(ref(request))
        raise Violation(f"find answered with somebody else's instance: {found}")
    except NotFound:
        pass
    require(not await provider.list(), "list shows somebody else's instance")
    theirs = Instance(request.name, request.uid, "Running", request.offerings[0].instance_type)
    try:
        await provider.delete(theirs)
    except (NotFound, Conflict):
        pass
    else:
        raise Violation("delete took somebody else's instance of that name for the claim's")
    await bench.elapse(_PATIENCE)
    require(list(bench.truth()) == before, f"somebody else's instance was touched: {bench.truth()}, was {before}")


@case("a claim is not given the instance of an earlier claim of the same name")
async def _same_name(bench: Bench) -> None:
    earlier = claim(bench, 1)
    later = claim(bench, 2, name=earlier.name)
    old = await running(bench, earlier)
    provider = await start(bench)
    # Whether it is made beside the old one or has to wait for its end is the cloud's affair.
    error = await _try(provider, later)
    require(
        not isinstance(error, CloudError) or isinstance(error, Conflict),
        f"create raised {type(error).__name__} for a name that an earlier claim's instance has: {error}",
    )
    exactly_one(bench, earlier, "after a create for a later claim")
    life = Life(bench, earlier)
    await life.take_down()
    await running(bench, later)
    with contextlib.suppress(NotFound, Conflict):
        await provider.delete(old)
    await bench.elapse(_PATIENCE)
    exactly_one(bench, later, "after the earlier claim's instance was deleted once more")


@case("an offering that the cloud has none of is refused at once, and nothing is made")
async def _no_capacity(bench: Bench) -> None:
    await _short(bench, "capacity", InsufficientCapacity)


@case("an offering for which the quota is used up is refused at once, and nothing is made")
async def _no_quota(bench: Bench) -> None:
    await _short(bench, "quota", QuotaExceeded)


async def _short(bench: Bench, what: Shortage, kind: type[OfferingError]) -> None:
    scarce, other = bench.offerings[:2]
    bench.shortage(scarce, what)
    request, provider = claim(bench, offerings=[scarce]), await start(bench)
    error = await _refused(provider, request)
    require(isinstance(error, kind), f"create raised {type(error).__name__}, not {kind.__name__}: {error}")
    assert isinstance(error, OfferingError)
    _same(error.offering, scarce)
    require(error.retryable and not error.ambiguous, f"{kind.__name__} is definite, and may pass")
    await bench.elapse(CONSISTENT)
    none_left(bench, request, "after a refusal")
    # Under the same claim, something else.
    await running(bench, claim(bench, offerings=[other]))
    bench.shortage(scarce, None)
    await running(bench, claim(bench, 2, offerings=[scarce]))


@case(
    "a shortage that comes out late is seen as a Failed instance with its error, and another one is had under the claim"
)
async def _late(bench: Bench) -> None:
    scarce, other = bench.offerings[:2]
    bench.shortage(scarce, "capacity", late=True)
    request, provider = claim(bench, offerings=[scarce]), await start(bench)
    seen = await provider.create(request)
    waited = 0.0
    while seen.state == "Creating":
        require(waited <= _PATIENCE, f"after {waited / 3600:g} h the instance is still said to be Creating")
        await bench.elapse(_ROUND)
        waited += _ROUND
        seen = await provider.find(ref(request, seen))
    require(seen.state == "Failed", f"an instance that the cloud could not make is {seen.state}")
    for found, where in (
        (seen, "find"),
        (await (await start(bench)).find(ref(request)), "find by a fresh process"),
        (await provider.create(request), "create"),
        *((each, "list") for each in await provider.list()),
    ):
        require(found.state == "Failed", f"{where} says {found.state} of an instance that could not be made")
        require(
            isinstance(found.error, InsufficientCapacity),
            f"{where} gives {type(found.error).__name__} as why the cloud had none: {found.error}",
        )
        assert isinstance(found.error, OfferingError)
        _same(found.error.offering, scarce)
    require(len(await provider.list()) == 1, "list does not show the Failed instance, which counts all the same")
    await Life(bench, request).take_down()
    await running(bench, claim(bench, offerings=[other]))


@case("a claim whose first offering runs out late ends up with the next one")
async def _falls_back(bench: Bench) -> None:
    scarce, other = bench.offerings[:2]
    bench.shortage(scarce, "capacity", late=True)
    request = claim(bench, offerings=[scarce, other])
    found = await running(bench, request)
    require(found.instance_type == other.instance_type, f"the claim got {found.instance_type}, which is not to be had")
    exactly_one(bench, request, "when it runs")


@case("an instance type that there is not is refused for good")
async def _unknown(bench: Bench) -> None:
    request = claim(bench, offerings=[Offering("no-such-type")])
    error = await _refused(await start(bench), request)
    require(
        isinstance(error, UnknownInstanceType | InvalidRequest),
        f"create raised {type(error).__name__} for an instance type that there is not: {error}",
    )
    require(not error.retryable, f"{type(error).__name__} may pass, it says: {error}")
    await bench.elapse(CONSISTENT)
    none_left(bench, request, "after a refusal")


async def _try(provider: Supervised, request: LaunchRequest) -> Instance | CloudError:
    try:
        return await provider.create(request)
    except CloudError as error:
        return error


async def _refused(provider: Supervised, request: LaunchRequest) -> CloudError:
    answer = await _try(provider, request)
    if isinstance(answer, CloudError):
        return answer
    raise Violation(f"create answered with {answer}, and should have refused")


def _same(found: Offering | None, asked: Offering) -> None:
    key = (found.instance_type, found.capacity_type) if found is not None else None
    require(key == (asked.instance_type, asked.capacity_type), f"the error is about {found}, and {asked} was asked for")


CREATING = (
    _promptly,
    _labelled,
    _idempotent,
    _adopted,
    _contended,
    _many,
    _taken,
    _same_name,
    _no_capacity,
    _no_quota,
    _late,
    _falls_back,
    _unknown,
)
