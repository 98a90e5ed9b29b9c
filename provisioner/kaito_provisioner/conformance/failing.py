"""Promises about what is raised when something goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from kaito_provisioner.cloud import (
    CloudError,
    Instance,
    LaunchRequest,
    NotFound,
    OfferingError,
    Throttled,
    Unauthorized,
    Unavailable,
)
from kaito_provisioner.conformance.bench import RETRY_AFTER, SLOW, Bench, Fault, MakeBench, NotApplicable
from kaito_provisioner.conformance.case import Violation, require, wide_case
from kaito_provisioner.conformance.claims import claim, exactly_one, of, ref
from kaito_provisioner.conformance.creating import running
from kaito_provisioner.conformance.life import Life
from kaito_provisioner.conformance.supervised import Supervised, start

__all__ = ["FAILING"]

_EXPECTED: Mapping[Fault, type[CloudError]] = {
    Fault.UNREACHABLE: Unavailable,
    Fault.DROPPED: Unavailable,
    Fault.LOST: Unavailable,
    Fault.ERROR: CloudError,
    Fault.LATE_ERROR: CloudError,
    Fault.THROTTLED: Throttled,
    Fault.FORBIDDEN: Unauthorized,
    Fault.SLOW: Unavailable,
}
_UNCERTAIN = (Fault.DROPPED, Fault.LOST, Fault.LATE_ERROR, Fault.SLOW)
"""After which nobody can know whether the request has taken effect."""
_TURNS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
"""Turns of the event loop after which a call is cancelled."""
_DEEP = 3
"""Requests of one call that are struck in turn."""


@wide_case("a throttled call says when to come back, and asks no more")
async def _throttled(make_bench: MakeBench) -> str:
    async def trial(
        bench: Bench, method: _Method, process: Supervised, request: LaunchRequest, instance: Instance
    ) -> bool:
        before = bench.calls
        bench.fail(Fault.THROTTLED)
        error = await _error(method.call(process, request, instance))
        if bench.calls == before:
            return False
        require(isinstance(error, Throttled), f"{method.name} raised {_kind(error)} when it was throttled: {error}")
        assert error is not None
        require(
            error.retry_after is not None and error.retry_after >= RETRY_AFTER,
            f"{method.name} says to come back after {error.retry_after} s, and the cloud said {RETRY_AFTER:g}",
        )
        require(not error.ambiguous, f"{method.name} was throttled, which has no effect, and says that it may have had")
        require(
            bench.calls == before + 1,
            f"{method.name} made {bench.calls - before - 1} more requests after it was told to come back later",
        )
        return True

    struck = [method.name for method in _METHODS if await _with(make_bench, (Fault.THROTTLED,), method, trial)]
    return f"of {', '.join(struck)}"


@wide_case("whatever goes wrong is a CloudError that says what, and what to do; it is never taken for an absence")
async def _named(make_bench: MakeBench) -> str:
    trials = 0
    for fault in Fault:
        for method in _METHODS:
            for nth in range(1, _DEEP + 1):
                struck = await _with(make_bench, (fault,), method, _strike_at(fault, nth))
                trials += struck
                if not struck:
                    break
    if not trials:
        raise NotApplicable("the bench knows no faults")
    return f"faults: {trials}"


@wide_case("a creation whose answer was lost says that it may have happened")
async def _ambiguous(make_bench: MakeBench) -> str:
    trials = 0
    for fault in (Fault.LOST, Fault.LATE_ERROR):
        for nth in range(1, _DEEP + 1):
            async with make_bench() as bench:
                if fault not in bench.faults:
                    break
                request, process, before = claim(bench), await start(bench), bench.calls
                bench.fail(fault, nth=nth)
                error = await _error(process.create(request))
                if bench.calls < before + nth:
                    break
                trials += 1
                if error is not None and of(bench, request.uid):
                    require(error.ambiguous, f"{fault}, and create raised {_kind(error)} as if it had not: {error}")
    if not trials:
        raise NotApplicable("the bench loses no answers")
    return ""


class _Method:
    """One method of the protocol, asked about an instance that is there."""

    def __init__(
        self,
        name: str,
        call: Callable[[Supervised, LaunchRequest, Instance], Awaitable[object]],
        *,
        present: bool = True,
    ) -> None:
        self.name = name
        self.call = call
        self.present = present


_METHODS = (
    _Method("create", lambda process, request, _: process.create(request)),
    _Method("find", lambda process, request, instance: process.find(ref(request, instance))),
    _Method("get", lambda process, _, instance: process.get(instance.provider_id)),
    _Method("list", lambda process, *_: process.list()),
    _Method("delete", lambda process, _, instance: process.delete(instance)),
    _Method("instance_types", lambda process, *_: process.instance_types()),
)

_Trial = Callable[[Bench, _Method, Supervised, LaunchRequest, Instance], Awaitable[bool]]


async def _with(make_bench: MakeBench, faults: Iterable[Fault], method: _Method, trial: _Trial) -> bool:
    """*trial*, on a bench where there is what *method* is asked about, by a process that remembers nothing."""
    async with make_bench() as bench:
        if not all(fault in bench.faults for fault in faults):
            return False
        request = claim(bench)
        instance = Instance(request.name, request.uid, "Creating", request.offerings[0].instance_type)
        if method.name != "create":
            instance = await running(bench, request)
            instance = replace(instance, provider_id=exactly_one(bench, request, "when it runs").provider_id)
        if method.name == "get" and not instance.provider_id:
            return False
        return await trial(bench, method, await start(bench), request, instance)


def _strike_at(fault: Fault, nth: int) -> _Trial:
    async def trial(
        bench: Bench, method: _Method, process: Supervised, request: LaunchRequest, instance: Instance
    ) -> bool:
        before = bench.calls
        bench.fail(fault, nth=nth)
        what = f"{fault} at request {nth} of {method.name}"
        answer: object = None
        error = None
        try:
            answer = await method.call(process, request, instance)
        except CloudError as raised:
            error = raised
        if bench.calls < before + nth:
            return False
        if error is None:
            # It may have got over it. What it says has to be true, then.
            if method.name == "list":
                found = [each.claim_uid for each in answer if isinstance(each, Instance)]  # type: ignore[attr-defined]
                require(found == [request.uid], f"{what}: it answered {found}, and there is {request.uid}")
            return True
        require(not isinstance(error, NotFound), f"{what}: it raised NotFound, and the instance is there")
        require(not isinstance(error, OfferingError), f"{what}: it raised {_kind(error)}, and there is enough")
        require(isinstance(error, _EXPECTED[fault]), f"{what}: it raised {_kind(error)}: {error}")
        require(error.retryable, f"{what}: it raised {_kind(error)} as if it would never pass: {error}")
        if fault in _UNCERTAIN and method.name == "create" and of(bench, request.uid):
            require(error.ambiguous, f"{what}: it raised {_kind(error)} as if nothing had happened, and there is one")
        return True

    return trial


async def _outcome(
    method: _Method, process: Supervised, request: LaunchRequest, instance: Instance
) -> CloudError | Violation | None:
    """What it raised, as a value: in a group of tasks it would end the others."""
    try:
        return await _error(method.call(process, request, instance))
    except Violation as violation:
        return violation


async def _error(call: Awaitable[object]) -> CloudError | None:
    try:
        await call
    except CloudError as error:
        return error
    return None


def _kind(error: CloudError | None) -> str:
    return type(error).__name__ if error is not None else "nothing"


@wide_case("a call that is cancelled at any moment harms no other")
async def _cancelled(make_bench: MakeBench) -> str:
    trials = 0
    for method in _METHODS:
        for turns in _TURNS:
            trials += await _with(make_bench, (), method, _cancel_after(turns))
        for nth in range(1, _DEEP + 1):
            trials += await _with(make_bench, (Fault.SLOW,), method, _cancel_while_waiting_for(nth))
    return f"calls cancelled: {trials}"


def _cancel_after(turns: int) -> _Trial:
    async def begin(bench: Bench) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    return _cancel_when(begin)


def _cancel_while_waiting_for(nth: int) -> _Trial:
    async def begin(bench: Bench) -> None:
        bench.fail(Fault.SLOW, nth=nth)
        await bench.elapse(SLOW / 2)

    return _cancel_when(begin)


def _cancel_when(begin: Callable[[Bench], Awaitable[None]]) -> _Trial:
    async def trial(
        bench: Bench, method: _Method, process: Supervised, request: LaunchRequest, instance: Instance
    ) -> bool:
        async with asyncio.TaskGroup() as group:
            cancelled, other = (group.create_task(_outcome(method, process, request, instance)) for _ in range(2))
            await begin(bench)
            under_way = cancelled.cancel()
        error = other.result()
        if isinstance(error, Violation):
            raise error
        require(
            error is None or error.retryable,
            f"{method.name} raised {_kind(error)} when another call of it was cancelled: {error}",
        )
        # Nor does it harm what the same process is asked later.
        life = Life(bench, request, process=process)
        if method.name != "delete":
            await life.bring_up()
        await life.take_down()
        await life.settle()
        return under_way

    return trial


FAILING = (_throttled, _named, _ambiguous, _cancelled)
