"""Garbage collection over any state of cloud and cluster, with lists that leave anything out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaito_api.karpenter import Machine
from kaito_ctrl.reconcilers.machine.fleet import share
from kaito_ctrl.runtime import ObjectKey
from kaito_provisioner import Instance
from tests.unit.reconcilers.test_gc import OLD, Bench, bench


@dataclass(frozen=True)
class Member:
    """One claim, its instance and its node, as far as they are there; and which lists leave it out."""

    claim: Literal["there", "deleting", "gone"]
    instance: bool
    node: Literal["True", "Unknown", "gone"]
    unlisted_claim: bool
    unlisted_instance: bool


MEMBERS = st.lists(
    st.builds(
        Member,
        st.sampled_from(("there", "there", "deleting", "gone")),
        st.booleans(),
        st.sampled_from(("True", "Unknown", "gone")),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


async def _build(world: Bench, members: Sequence[Member]) -> dict[str, str]:
    uids = {}
    for number, member in enumerate(members):
        name = f"m{number}"
        finalizers = ["example.org/kept"] if member.claim == "deleting" else []
        uids[name] = await world.claim(name, finalizers=finalizers)
        if member.instance:
            await world.instance(name, uids[name])
        known = {each.claim_uid: each.provider_id for each in await world.cloud.list()}
        await world.joined(name, known.get(uids[name], ""))
        if member.node != "gone":
            await world.node(name, uids[name], known.get(uids[name], ""))
            await world.report(name, member.node)
        if member.claim == "deleting":
            await world.user.delete(Machine, ObjectKey("", name))
        if member.claim == "gone":
            await world.strip(name)
    await asyncio.sleep(OLD)
    return uids


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MEMBERS)
def test_nothing_goes_that_has_its_counterpart_and_never_more_than_a_fifth_at_once(members: list[Member]) -> None:
    async def test(world: Bench) -> None:
        uids = await _build(world, members)
        names = dict(zip(uids, members, strict=True))
        hidden = {uids[name] for name, member in names.items() if member.unlisted_instance}
        world.way.lost = {name for name, member in names.items() if member.unlisted_claim}
        real = world.cloud.list

        async def partial() -> Sequence[Instance]:
            return [each for each in await real() if each.claim_uid not in hidden]

        world.cloud.list = partial  # type: ignore[method-assign]
        for _ in range(4):
            before = (set(await world.names(Machine)), await _running(real))
            await world.gc.collect()
            await asyncio.sleep(5)
            claims, instances = set(await world.names(Machine)), await _running(real)
            lost_claims, lost_instances = before[0] - claims, before[1] - instances
            assert not {name for name in lost_claims if names[name].instance}
            assert not {name for name in lost_instances if names[name].claim != "gone"}
            assert len(lost_claims) + len(lost_instances) <= share(len(members))

    bench(test)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MEMBERS)
def test_with_lists_that_are_whole_what_has_no_counterpart_is_gone_in_the_end(members: list[Member]) -> None:
    async def test(world: Bench) -> None:
        # Nodes without an instance fall silent, and the others are Ready: nothing contradicts itself.
        told = [
            Member(each.claim, each.instance, "True" if each.instance else "Unknown", False, False) for each in members
        ]
        await world.node("system", "")
        await world.report("system", "True")
        await _build(world, told)
        alive = [each for each in told if each.claim != "gone" and each.instance]
        for _ in range(2 * len(members) + 2):
            outcome = await world.gc.collect()
            await asyncio.sleep(5)
        if outcome == "refused":
            assert all(each.claim == "gone" for each in told), "nobody's instances with working nodes, and no claim"
            return
        assert len(await world.instances()) == len(alive)
        standing = [each for each in told if each.claim == "deleting" or (each.claim == "there" and each.instance)]
        assert len(await world.names(Machine)) == len(standing)

    bench(test)


async def _running(cloud_list: object) -> set[str]:
    assert callable(cloud_list)
    return {each.name for each in await cloud_list() if each.state != "Deleting"}
