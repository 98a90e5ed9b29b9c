"""The simulated cloud: kind by default, and as unkind as real ones where it is asked to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from kaito_ctrl.testing import VirtualClock, run_virtual
from kaito_provisioner.cloud import (
    ClaimRef,
    Conflict,
    Instance,
    InsufficientCapacity,
    LaunchRequest,
    NotFound,
    Offering,
    OfferingError,
    QuotaExceeded,
    Throttled,
    Unavailable,
    UnknownInstanceType,
)
from kaito_provisioner.conformance import CASES, Bench, Case, check
from kaito_provisioner.conformance.sim import SimBench
from kaito_provisioner.sim import Limit, Scarcity, SimCloud, SimInstanceType

SMALL = SimInstanceType("small", 1, price=1.0, spot=0.3)
LARGE = SimInstanceType("large", 4, zones=("sim-2", "sim-3"))
HERE = ClaimRef("ws1", "uid-1")


def simulated(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Runs it in virtual time."""

    def run() -> None:
        run_virtual(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def cloud(**options: Any) -> SimCloud:
    return SimCloud([SMALL, LARGE], now=VirtualClock().now, **{"boot": 90.0, "shutdown": 30.0, **options})


def request(*offerings: Offering, number: int = 1, types: tuple[str, ...] = ()) -> LaunchRequest:
    return LaunchRequest(
        f"ws{number}", f"uid-{number}", types or tuple(each.instance_type for each in offerings), offerings
    )


@simulated
async def test_an_instance_boots_and_goes_in_its_time_and_nobody_has_to_wait_for_it() -> None:
    sim = cloud()
    made = await sim.create(request(Offering("small")))
    assert (made.state, made.offering, made.claim_kind) == ("Creating", Offering("small"), "Machine")
    await asyncio.sleep(90)
    assert (await sim.find(HERE)).state == "Running"
    assert (await sim.delete(made)).state == "Deleting"
    await asyncio.sleep(29)
    assert (await sim.find(HERE)).state == "Deleting"
    await asyncio.sleep(1)
    with pytest.raises(NotFound):
        await sim.find(HERE)
    assert sim.existing() == ()


@simulated
async def test_the_first_offering_is_the_one_that_is_made_or_refused() -> None:
    sim = cloud()
    sim.scarce[Offering("small", "spot")] = Scarcity("capacity")
    with pytest.raises(InsufficientCapacity) as refused:
        await sim.create(request(Offering("small", "spot", price=0.3), Offering("small")))
    assert refused.value.offering == Offering("small", "spot", price=0.3)
    assert refused.value.fix
    made = await sim.create(request(Offering("large", zones=("sim-3",))))
    assert (made.instance_type, made.labels["topology.kubernetes.io/zone"]) == ("large", "sim-3")


@pytest.mark.parametrize(
    "offering",
    [Offering("none"), Offering("large", "spot"), Offering("small", "reserved"), Offering("large", zones=("sim-9",))],
)
def test_what_is_not_offered_is_unknown(offering: Offering) -> None:
    with pytest.raises(UnknownInstanceType) as refused:
        run_virtual(cloud().create(request(offering)))
    assert refused.value.offering == offering


@simulated
async def test_a_request_without_offerings_gets_the_first_of_its_types_that_is_there() -> None:
    sim = cloud()
    sim.types = {**sim.types, "small": replace(SMALL, available=False)}
    made = await sim.create(request(types=("none", "small", "large")))
    assert made.instance_type == "large"
    with pytest.raises(InsufficientCapacity, match="types were unavailable during launch: there"):
        await sim.create(request(types=("none", "small"), number=2))
    sim.types = {"small": replace(SMALL, available=False), "large": replace(LARGE, quota=1)}
    with pytest.raises(QuotaExceeded):
        await sim.create(request(types=("small", "large"), number=2))
    for nothing in ((), ("none",)):
        with pytest.raises(UnknownInstanceType):
            await sim.create(request(types=nothing, number=2))


@simulated
async def test_a_quota_is_free_again_when_its_instance_is_gone() -> None:
    sim = SimCloud([replace(SMALL, quota=1)], now=VirtualClock().now)
    made = await sim.create(request(Offering("small")))
    with pytest.raises(QuotaExceeded) as refused:
        await sim.create(request(Offering("small"), number=2))
    assert isinstance(refused.value, OfferingError)
    await sim.delete(made)
    await asyncio.sleep(sim.shutdown)
    await sim.create(request(Offering("small"), number=2))


@simulated
async def test_a_late_shortage_leaves_a_failed_instance_that_counts_until_it_is_deleted() -> None:
    sim = cloud()
    sim.scarce[Offering("small")] = Scarcity("capacity", late=True)
    made = await sim.create(request(Offering("small", price=1.0)))
    assert made.state == "Creating"
    await asyncio.sleep(90)
    failed = await sim.create(request(Offering("large")))
    assert failed.state == "Failed"
    assert isinstance(failed.error, InsufficientCapacity)
    assert failed.error.offering == Offering("small", price=1.0)
    assert [each.state for each in await sim.list()] == ["Failed"]
    await sim.delete(failed)
    await asyncio.sleep(30)
    assert (await sim.create(request(Offering("large")))).instance_type == "large"


@simulated
async def test_what_was_done_is_shown_late() -> None:
    sim = cloud(lag=20.0)
    made = await sim.create(request(Offering("small")))
    for look in (sim.find(HERE), sim.get(made.provider_id)):
        with pytest.raises(NotFound):
            await look
    assert await sim.list() == ()
    assert (await sim.create(request(Offering("small")))).provider_id == made.provider_id, "who makes it knows it"
    await asyncio.sleep(20)
    assert await sim.find(HERE) == await sim.get(made.provider_id) == made
    await sim.delete(made)
    await asyncio.sleep(49)
    assert (await sim.find(HERE)).state == "Deleting", "and it is gone for 19 seconds"
    assert len(await sim.list()) == 1
    with pytest.raises(NotFound):
        await sim.delete(made)
    await asyncio.sleep(1)
    assert await sim.list() == ()


@pytest.mark.parametrize(
    ("when", "told"), [("at once", (True, True)), ("when running", (False, True)), ("never", (False, False))]
)
def test_provider_ids_are_told_at_once_late_or_never(when: str, told: tuple[bool, bool]) -> None:
    async def test() -> None:
        nodes = _Nodes()
        sim = cloud(provider_ids=when, joiner=nodes)
        async with _running(sim):
            made = await sim.create(request(Offering("small")))
            await asyncio.sleep(91)
            seen = await sim.find(HERE)
            assert (bool(made.provider_id), bool(seen.provider_id)) == told
            [node] = nodes.there
            assert node.provider_id, "the node knows it"
            assert seen.node_labels.items() <= node.labels.items()
            assert (await sim.get(node.provider_id)).claim_uid == "uid-1"

    run_virtual(test())


@simulated
async def test_nodes_join_when_their_instances_run_and_leave_before_they_go() -> None:
    nodes = _Nodes(slow=10.0)
    sim = cloud(joiner=nodes)
    async with _running(sim):
        first = await sim.create(request(Offering("small")))
        second = await sim.create(request(Offering("small"), number=2))
        await asyncio.sleep(50)
        await sim.delete(second)
        await asyncio.sleep(50)
        assert [each.name for each in nodes.there] == ["ws1"], "what goes before it runs never joins"
        await sim.delete(first)
        await asyncio.sleep(9)
        assert [each.name for each in nodes.there] == ["ws1"]
        await asyncio.sleep(30)
        assert nodes.there == []
        assert [each.name for each in sim.existing()] == ["ws1"], "it goes once its node has left"
        await asyncio.sleep(1)
        assert sim.existing() == ()


@simulated
async def test_creations_are_limited_as_they_are_by_a_bucket() -> None:
    sim = cloud(limit=Limit(2, 60.0))
    for number in (1, 2):
        await sim.create(request(Offering("small"), number=number))
    with pytest.raises(Throttled) as refused:
        await sim.create(request(Offering("small"), number=3))
    assert refused.value.retry_after == 60.0
    assert not refused.value.ambiguous
    await sim.create(request(Offering("small"), number=1))
    await asyncio.sleep(59)
    with pytest.raises(Throttled):
        await sim.create(request(Offering("small"), number=3))
    await asyncio.sleep(1)
    await sim.create(request(Offering("small"), number=3))
    await asyncio.sleep(3600)
    for number in (4, 5):
        await sim.create(request(Offering("small"), number=number))
    with pytest.raises(Throttled):
        await sim.create(request(Offering("small"), number=6))


@simulated
async def test_a_call_fails_before_it_takes_effect_or_after() -> None:
    sim = cloud()
    sim.fault = lambda call, name: Unavailable(f"{call} {name}")
    with pytest.raises(Unavailable, match="create ws1"):
        await sim.create(request(Offering("small")))
    assert sim.existing() == ()
    sim.fault, sim.lost = None, sim.fault
    with pytest.raises(Unavailable):
        await sim.create(request(Offering("small")))
    assert len(sim.existing()) == 1
    with pytest.raises(Unavailable):
        await sim.find(ClaimRef("ws2", "uid-2"))
    assert sim.calls == {"create": 2, "find": 1}


@simulated
async def test_a_name_has_one_owner() -> None:
    sim = cloud()
    sim.foreign.add("ws2")
    made = await sim.create(request(Offering("small")))
    for taken in ("ws1", "ws2"):
        with pytest.raises(Conflict):
            await sim.create(replace(request(Offering("small"), number=3), name=taken))
    await sim.delete(made)
    await asyncio.sleep(30)
    await sim.create(replace(request(Offering("small"), number=3), name="ws1"))


@simulated
async def test_the_catalogue_has_prices_spot_and_zones_and_says_what_is_not_to_be_had() -> None:
    sim = SimCloud([SMALL, LARGE, SimInstanceType("rare", 8, available=False)], now=VirtualClock().now)
    small, large, rare = await sim.instance_types()
    assert small.offerings == (Offering("small", price=1.0), Offering("small", "spot", price=0.3))
    assert small.capacity["nvidia.com/gpu"] == "1"
    assert large.offerings == (Offering("large", zones=("sim-2", "sim-3")),)
    assert [each.available for each in rare.offerings] == [False]


UNKIND: list[dict[str, Any]] = [
    {"provider_ids": "never"},
    {"provider_ids": "at once", "operations": False},
    {"limit": Limit(5, 60.0), "boot": 200.0, "shutdown": 60.0},
    {"boot": 0.0, "shutdown": 0.0},
    {"latency": 0.2},
]


@pytest.mark.parametrize("options", UNKIND, ids=str)
def test_it_keeps_the_protocol_however_unkind_it_is(options: dict[str, Any]) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Bench]:
        yield SimBench(**options)

    cases: list[Case] = [each for each in CASES if "any two" not in str(each)]
    report = run_virtual(check(make, cases))
    assert report.passed, str(report)


class _Nodes:
    def __init__(self, slow: float = 0.0) -> None:
        self.there: list[Instance] = []
        self._slow = slow

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        self.there.append(instance)

    async def leave(self, instance: Instance) -> None:
        await asyncio.sleep(self._slow)
        self.there = [each for each in self.there if each.name != instance.name]


@asynccontextmanager
async def _running(sim: SimCloud) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(sim.run())
        yield
        task.cancel()
