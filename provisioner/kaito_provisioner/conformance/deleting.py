"""Promises about ``delete``."""

from __future__ import annotations

import asyncio

from kaito_provisioner.cloud import CloudError, Instance, NotFound
from kaito_provisioner.conformance.bench import CONSISTENT, Bench
from kaito_provisioner.conformance.case import Violation, case, require
from kaito_provisioner.conformance.claims import claim, exactly_one, none_left, of
from kaito_provisioner.conformance.creating import running
from kaito_provisioner.conformance.life import Life
from kaito_provisioner.conformance.supervised import Supervised, start

__all__ = ["DELETING"]

_ROUND = 30.0
_PATIENCE = 6 * 3600.0


@case("delete of what was never made says that it is not found")
async def _unknown(bench: Bench) -> None:
    request, other = claim(bench, 1), claim(bench, 2)
    await running(bench, other)
    never = Instance(request.name, request.uid, "Running", request.offerings[0].instance_type)
    try:
        going = await (await start(bench)).delete(never)
    except NotFound:
        pass
    else:
        raise Violation(f"delete of what was never made answered with {going}")
    exactly_one(bench, other, "after the delete of something else")


@case("delete answers at once, and says NotFound only when nothing is left")
async def _orderly(bench: Bench) -> str:
    request = claim(bench)
    instance = await running(bench, request)
    provider, waited, before = await start(bench), 0.0, bench.calls
    pause = 1.0
    while await _going(provider, instance):
        require(waited <= _PATIENCE, f"after {waited / 3600:g} h the instance is still going")
        await bench.elapse(pause)
        waited += pause
        pause = min(_ROUND, 2 * pause)
    none_left(bench, request, "after NotFound")
    require(not await _going(provider, instance), "what is gone is going again")
    return f"gone after {waited:.0f} s; requests: {bench.calls - before}"


@case("an instance that is deleted while it is being made ends up gone")
async def _while_creating(bench: Bench) -> None:
    for number in (1, 2):
        request = claim(bench, number)
        provider = await start(bench)
        made = await provider.create(request)
        # By the process that made it, and by another.
        process = provider if number == 1 else await start(bench)
        await _until_gone(bench, process, made)
        none_left(bench, request, "after NotFound")
        await bench.elapse(_PATIENCE)
        none_left(bench, request, "long after NotFound")


@case("an instance that two processes delete ten times each, all at once, ends up gone")
async def _contended(bench: Bench) -> None:
    request, other = claim(bench, 1), claim(bench, 2)
    await running(bench, other)
    instance = await running(bench, request)
    first, second = await start(bench), await start(bench)
    answers = await asyncio.gather(*(_try(each, instance) for each in (first, second) * 10))
    for error in answers:
        require(
            not isinstance(error, CloudError)
            or (error.retryable and not (isinstance(error, NotFound) and of(bench, request.uid))),
            f"delete of what is there raised {type(error).__name__}: {error}",
        )
    await _until_gone(bench, first, instance)
    none_left(bench, request, "after NotFound")
    exactly_one(bench, other, "after the delete of something else")


@case("a claim whose instance is gone can be given another one")
async def _again(bench: Bench) -> None:
    request = claim(bench)
    life = Life(bench, request)
    await life.bring_up()
    await life.take_down()
    await life.settle()
    await running(bench, request)
    exactly_one(bench, request, "when it runs again")


@case("an instance that is going is not given to its claim as a new one")
async def _not_revived(bench: Bench) -> None:
    request = claim(bench)
    instance = await running(bench, request)
    provider = await start(bench)
    await provider.delete(instance)
    try:
        seen = await provider.create(request)
    except CloudError as error:
        require(error.retryable, f"create raised {type(error).__name__} for good while the old one goes: {error}")
    else:
        exactly_one(bench, request, "after a create while the old one goes")
        require(seen.state in ("Deleting", "Creating"), f"create says {seen.state} of an instance that goes")
    await Life(bench, request).take_down()
    await bench.elapse(CONSISTENT)
    none_left(bench, request, "after NotFound")


async def _going(provider: Supervised, instance: Instance) -> bool:
    try:
        seen = await provider.delete(instance)
    except NotFound:
        return False
    require(seen.state == "Deleting", f"what is being deleted is {seen.state}")
    return True


async def _until_gone(bench: Bench, provider: Supervised, instance: Instance) -> None:
    waited = 0.0
    while not isinstance(answer := await _try(provider, instance), NotFound):
        require(not isinstance(answer, CloudError) or answer.retryable, f"delete ends with {answer}")
        require(waited <= _PATIENCE, f"after {waited / 3600:g} h the instance is still there: {answer}")
        await bench.elapse(_ROUND)
        waited += _ROUND


async def _try(provider: Supervised, instance: Instance) -> Instance | CloudError:
    try:
        return await provider.delete(instance)
    except CloudError as error:
        return error


DELETING = (_unknown, _orderly, _while_creating, _contended, _again, _not_revived)
