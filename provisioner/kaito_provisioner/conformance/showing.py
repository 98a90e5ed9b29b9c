"""Promises about what is shown: ``find``, ``get``, ``list``, ``instance_types`` and ``repair_policies``."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from kaito_provisioner.cloud import ClaimRef, CloudError, Conflict, Instance, LaunchRequest, NotFound, OfferingError
from kaito_provisioner.conformance.bench import CONSISTENT, Bench, NotApplicable
from kaito_provisioner.conformance.case import Violation, case, require
from kaito_provisioner.conformance.claims import claim, exactly_one, ref
from kaito_provisioner.conformance.creating import running
from kaito_provisioner.conformance.life import Life
from kaito_provisioner.conformance.supervised import start

__all__ = ["SHOWING"]

_ROUND = 30.0
_PATIENCE = 6 * 3600.0
_LAG = 45.0
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_GROUP = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
_NONSENSE = ("nonsense", "https://example.invalid/operations/1?api-version=2025-01-01", "{}", "\x00\ufffd" * 100)


@case("a fresh process finds the instance by its claim alone")
async def _found(bench: Bench) -> None:
    request = claim(bench)
    await (await start(bench)).create(request)
    await bench.elapse(CONSISTENT)
    await (await start(bench)).find(ref(request))
    await running(bench, request)
    seen = await (await start(bench)).find(ref(request))
    require(seen.state == "Running", f"a running instance is found as {seen.state}")


@case("a fresh process resumes the operation that makes the instance")
async def _resumed(bench: Bench) -> None:
    request = claim(bench)
    begun = seen = await (await start(bench)).create(request)
    waited = 0.0
    while seen.state == "Creating":
        require(waited <= _PATIENCE, f"after {waited / 3600:g} h the instance is still said to be Creating")
        await bench.elapse(_ROUND)
        waited += _ROUND
        seen = await (await start(bench)).find(ref(request, seen))
    require(seen.state == "Running", f"the instance is {seen.state}")
    late = await (await start(bench)).find(ref(request, begun))
    require(late.state == "Running", f"asked with the operation that made it, which is over, find says {late.state}")
    require(not seen.operation, f"nothing is done to a running instance, and its operation is {seen.operation!r}")


@case("an operation that makes no sense is no obstacle")
async def _nonsense(bench: Bench) -> None:
    request = claim(bench)
    await (await start(bench)).create(request)
    await bench.elapse(CONSISTENT)
    for operation in _NONSENSE:
        await (await start(bench)).find(ClaimRef(request.name, request.uid, operation=operation))
    await running(bench, request)
    for operation in _NONSENSE:
        seen = await (await start(bench)).find(ClaimRef(request.name, request.uid, operation=operation))
        require(seen.state == "Running", f"with the operation {operation!r} a running instance is {seen.state}")


@case("what was never made is not found")
async def _never_made(bench: Bench) -> None:
    await running(bench, claim(bench, 1))
    provider, other = await start(bench), claim(bench, 2)
    await _missing(lambda: provider.find(ref(other)), "find of a claim for which nothing was made")


@case("a running instance is found by the provider id of its node, and not once it is gone")
async def _by_provider_id(bench: Bench) -> None:
    request = claim(bench)
    await running(bench, request)
    provider_id = exactly_one(bench, request, "when it runs").provider_id
    if not provider_id:
        raise NotApplicable("on this bench instances have no nodes")
    provider = await start(bench)
    seen = await provider.get(provider_id)
    require(seen.claim_uid == request.uid, f"get answered with the instance of claim uid {seen.claim_uid}")
    await Life(bench, request).take_down()
    await bench.elapse(CONSISTENT)
    await _missing(lambda: provider.get(provider_id), "get of an instance that is gone")


@case("nodes of different instances are told apart")
async def _told_apart(bench: Bench) -> None:
    first, second = [await running(bench, claim(bench, number)) for number in (1, 2)]
    if first.provider_id and second.provider_id:
        require(first.provider_id != second.provider_id, f"two instances have the provider id {first.provider_id}")
    else:
        require(
            not (first.node_labels.items() <= second.node_labels.items())
            and not (second.node_labels.items() <= first.node_labels.items()),
            f"the node labels of one instance fit the other's node: {first.node_labels}, {second.node_labels}",
        )


@case("list shows every instance with its claim's uid and kind, in whatever state, and nobody else's")
async def _listed(bench: Bench) -> None:
    going, ready, coming, failed = (
        claim(bench, number, kind=kind)
        for number, kind in ((1, "NodeClaim"), (2, "Machine"), (3, "NodeClaim"), (4, "Machine"))
    )
    await bench.foreign("theirs")
    kinds = {each.uid: each.kind for each in (going, ready, coming, failed)}
    old = await running(bench, going)
    await running(bench, ready)
    await _fails(bench, failed)
    provider = await start(bench)
    await provider.create(coming)
    await provider.delete(old)
    # By one that may remember, and by one that cannot.
    for process in (provider, await start(bench)):
        await bench.elapse(1.0)
        shown = {each.claim_uid: each for each in await process.list()}
        found = {uid: each.claim_kind for uid, each in shown.items()}
        expected = {each.uid: kinds[each.uid] for each in bench.truth() if each.uid}
        require(found == expected, f"list shows {found}, and there are {expected}")
        for request, states in (
            (going, ("Deleting",)),
            (ready, ("Running",)),
            (coming, ("Creating", "Running")),
            (failed, ("Failed",)),
        ):
            state = shown[request.uid].state if request.uid in shown else "gone"
            require(
                state in states or request.uid not in expected,
                f"list says {state} of {request.name}, which should be {' or '.join(states)}",
            )
        ages = [each.name for each in shown.values() if each.created is None]
        require(not ages, f"list does not say how old {ages} are: nothing can collect them")


@case("a cloud that shows late what it did neither doubles nor loses an instance")
async def _late(bench: Bench) -> None:
    bench.lag(_LAG)
    request = claim(bench)
    await (await start(bench)).create(request)
    try:
        await (await start(bench)).create(request)
    except Conflict as error:
        # A cloud may know that there is one and not show whose it is.
        require(error.retry_after is not None, f"create does not say when to ask again for what is not shown: {error}")
    exactly_one(bench, request, "after a create by each of two processes, before the cloud shows anything")
    await bench.elapse(CONSISTENT)
    fresh = await start(bench)
    await fresh.find(ref(request))
    require([each.claim_uid for each in await fresh.list()] == [request.uid], "list does not show the instance")
    life = Life(bench, request)
    await life.bring_up()
    await life.take_down()
    await life.settle()
    # And so for a claim that goes before anything is shown of it.
    early = Life(bench, claim(bench, 2), crash_after=(1,))
    await early.bring_up(steps=1)
    await early.take_down()
    await early.settle()


@case("the catalogue makes sense, and lists what is not to be had now as that")
async def _catalogue(bench: Bench) -> str:
    provider = await start(bench)
    types = await provider.instance_types()
    names = [each.name for each in types]
    require(len(set(names)) == len(names), f"instance types are listed twice: {sorted(names)}")
    for kind in types:
        require(kind.name, "an instance type has no name")
        for offering in kind.offerings:
            require(offering.instance_type == kind.name, f"{kind.name} lists an offering of {offering.instance_type}")
            require(offering.price is None or offering.price >= 0, f"{kind.name} costs {offering.price}")
        ways = [(each.capacity_type, each.zones) for each in kind.offerings]
        require(len(set(ways)) == len(ways), f"{kind.name} lists an offering twice: {ways}")
    scarce = bench.unavailable
    if scarce is None:
        return f"{len(types)} instance types"
    require(scarce.instance_type in names, f"{scarce.instance_type}, which is not to be had now, is not listed at all")
    listed = [
        each
        for kind in types
        for each in kind.offerings
        if (each.instance_type, each.capacity_type) == (scarce.instance_type, scarce.capacity_type)
    ]
    require(listed, f"{scarce} is not listed")
    require(not any(each.available for each in listed), f"{scarce.instance_type} is listed as to be had")
    try:
        made = await provider.create(claim(bench, offerings=[scarce]))
    except OfferingError:
        return f"{len(types)} instance types, not all to be had"
    raise Violation(f"create answered with {made}, of which the catalogue says that there is none")


@case("the backend has a name, and says whose claims it serves")
async def _named(bench: Bench) -> str:
    provider = (await start(bench)).provider
    require(_NAME.fullmatch(provider.name), f"{provider.name!r} is no name for metrics: write a lower-case word")
    for each in provider.node_classes:
        require(_GROUP.fullmatch(each.group), f"{each.group!r} is no API group")
        require(each.kind[:1].isupper() and each.kind.isalnum(), f"{each.kind!r} is no kind")
    return ", ".join([provider.name, *(f"{each.kind}.{each.group}" for each in provider.node_classes)])


@case("nodes are repaired after a time that makes sense")
async def _repairs(bench: Bench) -> str:
    policies = (await start(bench)).provider.repair_policies()
    keys = [(each.condition, each.status) for each in policies]
    require(len(set(keys)) == len(keys), f"two policies for one condition: {keys}")
    for policy in policies:
        require(policy.condition, "a policy is about no condition")
        require(policy.status in ("True", "False", "Unknown"), f"{policy.condition} is never {policy.status}")
        require(
            60 <= policy.toleration <= 86400,
            f"{policy.condition} {policy.status} is borne for {policy.toleration:g} s: a reboot takes minutes, and who "
            "pays for a node wants it within a day",
        )
    for status in ("False", "Unknown"):
        require(("Ready", status) in keys, f"a node that is Ready {status} is never replaced")
    return ", ".join(f"{each.condition} {each.status} for {each.toleration:g} s" for each in policies)


async def _fails(bench: Bench, request: LaunchRequest) -> None:
    """Make an instance that the cloud fails to make, if it is one of those that can."""
    scarce = request.offerings[0]
    try:
        bench.shortage(scarce, "capacity", late=True)
    except NotApplicable:
        return
    provider = await start(bench)
    seen = await provider.create(request)
    waited = 0.0
    while seen.state != "Failed":
        require(waited <= _PATIENCE, f"after {waited / 3600:g} h what could not be made is {seen.state}")
        await bench.elapse(_ROUND)
        waited += _ROUND
        seen = await provider.find(ref(request, seen))
    bench.shortage(scarce, None)


async def _missing(call: Callable[[], Awaitable[Instance]], what: str) -> None:
    try:
        found = await call()
    except NotFound:
        return
    except CloudError as error:
        raise Violation(f"{what} raised {type(error).__name__}, not NotFound: {error}") from error
    raise Violation(f"{what} answered with {found}")


SHOWING = (
    _found,
    _resumed,
    _nonsense,
    _never_made,
    _by_provider_id,
    _told_apart,
    _listed,
    _late,
    _catalogue,
    _named,
    _repairs,
)
