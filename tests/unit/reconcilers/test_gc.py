"""Garbage collection against an API server and a cloud: what it destroys, and what keeps it from that."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_ctrl.reconcilers.machine.fleet import BLIP
from kaito_ctrl.reconcilers.machine.gc import GarbageCollection
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.events import EventSink
from kaito_ctrl.runtime.fence import Fence
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import VirtualClock, run_virtual
from kaito_provisioner import CloudError, Conflict, LaunchRequest, Throttled, Unauthorized, Unavailable
from kaito_provisioner.sim import SimCloud, SimInstanceType
from tests.unit.reconcilers.livefleet import LiveFleet, served

OLD = 301.0
"""Seconds after which an instance is old enough."""


@dataclass
class Editing:
    """A way to the server on which lists lose some items, and objects come to say what no model allows."""

    inner: Transport
    lost: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    forbidden: str = "-"
    """The end of the path of what may not be written."""

    async def send(self, request: Request) -> Response:
        self.log.append(f"{request.method} {request.path}")
        if request.method != "GET" and request.path.endswith(self.forbidden):
            status = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "a webhook denies it"}
            return Response.of(403, json.dumps(status).encode(), {"content-type": "application/json"})
        response = await self.inner.send(request)
        if request.method != "GET" or not (self.lost or self.broken):
            return response
        body = json.loads(await response.read())
        if "items" in body:
            body["items"] = [each for each in body["items"] if each["metadata"]["name"] not in self.lost]
        for each in body.get("items", [body]):
            if each.get("metadata", {}).get("name") in self.broken:
                each["spec"] = "nothing that anybody knows"
        return Response.of(response.status, json.dumps(body).encode(), response.headers)

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass(kw_only=True)
class Bench(LiveFleet):
    """A cluster, a cloud, and one collector."""

    cloud: SimCloud
    way: Editing
    metrics: ClaimMetrics
    gc: GarbageCollection
    events: list[tuple[str, str]]

    async def instance(self, name: str, uid: str = "") -> None:
        """An instance, for the claim of that uid."""
        await self.cloud.create(LaunchRequest(name, uid or f"uid-{name}", ("small",), kind=self.kind.kind))

    async def whole(self, name: str, *, instance: bool = True, ready: str = "True", **metadata: Any) -> str:
        """A registered claim with its instance and its node; its uid."""
        uid = await self.claim(name, **metadata)
        provider_id = ""
        if instance:
            await self.instance(name, uid)
            provider_id = next(each.provider_id for each in await self.cloud.list() if each.claim_uid == uid)
        await self.joined(name, provider_id)
        await self.node(name, uid, provider_id)
        await self.report(name, ready)
        return uid

    async def vanish(self, uid: str) -> None:
        """Somebody deletes the instance in the cloud, and it is gone."""
        [instance] = [each for each in await self.cloud.list() if each.claim_uid == uid]
        await self.cloud.delete(instance)
        await asyncio.sleep(5)

    async def instances(self) -> list[str]:
        """Those that are not on their way out."""
        return sorted(each.name for each in await self.cloud.list() if each.state != "Deleting")

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def bench(test: Callable[[Bench], Awaitable[None]], *, kind: type[NodeRequest] = Machine, off: float = 0.0) -> None:
    """Play *test* in virtual time. The local clock, not the server's nor the cloud's, is *off* by so many hours."""

    async def main() -> None:
        truth, local, rng = VirtualClock(), VirtualClock(), random.Random(5)
        local.jump(off * 3600)
        cloud = SimCloud([SimInstanceType("small", 1)], now=truth.now, boot=1.0, shutdown=1.0)
        events: list[tuple[str, str]] = []
        sink = EventSink(lambda _, about, reason, note, *__: events.append((reason, note)))
        async with served(truth) as server, asyncio.TaskGroup() as group:
            way, metrics = Editing(server.transport(user="gc")), ClaimMetrics(kind)
            gc = GarbageCollection(cloud, Client(way), kind, clock=local, rng=rng, events=sink, metrics=metrics)
            user = Client(server.transport())
            work = group.create_task(cloud.run())
            await test(
                Bench(user=user, clock=truth, kind=kind, cloud=cloud, way=way, metrics=metrics, gc=gc, events=events)
            )
            work.cancel()

    run_virtual(main())


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
def test_what_belongs_together_is_left_alone(kind: type[NodeRequest]) -> None:
    async def test(world: Bench) -> None:
        for name in ("a", "b"):
            await world.whole(name)
        await world.whole("c", ready="Unknown")
        await asyncio.sleep(OLD)
        world.way.log.clear()
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["a", "b", "c"]
        assert all(each.startswith("GET") for each in world.way.log)
        assert world.counted("kaito_gc_passes_total", outcome="done") == 1.0

    bench(test, kind=kind)


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
def test_an_instance_without_a_claim_is_deleted_once_it_is_old_enough_and_its_node_with_it(
    kind: type[NodeRequest],
) -> None:
    async def test(world: Bench) -> None:
        await world.whole("keep")
        await world.whole("lost")
        await world.strip("lost")
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["keep", "lost"], "it may be younger than what is known of its claim"
        await asyncio.sleep(OLD)
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["keep"]
        # The node is closed, and stays until the instance is gone: another process may let go of it.
        lost = await world.user.get(Node, "lost")
        assert lost.deleting
        assert "karpenter.sh/disrupted" in [each.key for each in lost.spec.taints]
        await asyncio.sleep(5)
        assert await world.gc.collect() == "done"
        assert await world.names(Node) == ["keep"]
        assert world.counted("kaito_gc_leaked_instances_total") == 1.0

    bench(test, kind=kind)


def test_a_claim_that_is_being_deleted_still_has_its_instance() -> None:
    async def test(world: Bench) -> None:
        await world.whole("a", finalizers=["karpenter.sh/termination"])
        await world.user.delete(Machine, ObjectKey("", "a"))
        await asyncio.sleep(OLD)
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["a"]

    bench(test)


def test_a_claim_that_nobody_can_read_still_has_its_instance() -> None:
    async def test(world: Bench) -> None:
        await world.whole("a")
        await world.whole("b")
        await asyncio.sleep(OLD)
        world.way.broken = {"a"}
        world.way.log.clear()
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["a", "b"]
        assert not [each for each in world.way.log if each.endswith("/machines/a")], "nobody even suspects it"

    bench(test)


def test_instances_of_the_other_kind_of_claim_are_not_ours() -> None:
    async def test(world: Bench) -> None:
        await world.cloud.create(LaunchRequest("theirs", "uid", ("small",), kind="NodeClaim"))
        await asyncio.sleep(OLD)
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["theirs"]

    bench(test)


@pytest.mark.parametrize("off", [-10.0, 10.0])
def test_the_age_is_by_the_servers_clock_however_far_off_the_local_one_is(off: float) -> None:
    async def test(world: Bench) -> None:
        await world.instance("lost")
        await asyncio.sleep(290)
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["lost"]
        await asyncio.sleep(15)
        assert await world.gc.collect() == "done"
        assert await world.instances() == []

    bench(test, off=off)


def test_an_instance_that_does_not_tell_its_age_is_as_old_as_what_was_seen_of_it() -> None:
    async def test(world: Bench) -> None:
        await world.instance("lost")
        real = world.cloud.list

        async def ageless() -> Any:
            return [replace(each, created=None) for each in await real()]

        world.cloud.list = ageless  # type: ignore[method-assign]
        await asyncio.sleep(3600)
        assert await world.gc.collect() == "done"
        await asyncio.sleep(200)
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["lost"], "no time of creation is no reason to delete at once"
        await asyncio.sleep(101)
        assert await world.gc.collect() == "done"
        assert await world.instances() == []

    bench(test)


def test_an_instance_of_the_future_is_as_old_as_what_was_seen_of_it() -> None:
    async def test(world: Bench) -> None:
        await world.instance("lost")
        real = world.cloud.list

        async def early() -> Any:
            return [replace(each, created=world.clock.now() + timedelta(hours=10)) for each in await real()]

        world.cloud.list = early  # type: ignore[method-assign]
        await asyncio.sleep(3600)
        assert await world.gc.collect() == "done"
        await asyncio.sleep(200)
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["lost"]
        await asyncio.sleep(101)
        assert await world.gc.collect() == "done"
        assert await world.instances() == []

    bench(test)


def test_a_claim_that_the_list_lacks_is_asked_for_by_name() -> None:
    async def test(world: Bench) -> None:
        await world.whole("a", ready="Unknown")
        await world.whole("b")
        await asyncio.sleep(OLD)
        world.way.lost = {"a"}
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["a", "b"]
        assert not (await world.user.get(Node, "a")).deleting

    bench(test)


def test_no_claims_at_all_beside_nodes_that_work_is_not_believed() -> None:
    async def test(world: Bench) -> None:
        for name in ("a", "b"):
            await world.whole(name)
            await world.strip(name)
        await asyncio.sleep(OLD)
        assert await world.gc.collect() == "refused"
        assert await world.instances() == ["a", "b"]
        assert world.counted("kaito_gc_passes_total", outcome="refused") == 1.0

    bench(test)


def test_a_claim_whose_instance_is_gone_is_deleted() -> None:
    async def test(world: Bench) -> None:
        await world.whole("keep")
        await world.vanish(await world.whole("lost", ready="Unknown"))
        # A machine that boots anew is silent, too.
        assert await world.gc.collect() == "done"
        assert await world.names(Machine) == ["keep", "lost"]
        await asyncio.sleep(BLIP)
        assert await world.gc.collect() == "done"
        assert await world.names(Machine) == ["keep"]
        assert world.events == [("GarbageCollected", "Machine lost event: its instance is gone")]
        assert world.counted(
            "karpenter_machines_disrupted", reason="garbage_collected", provisioner="", capacity_type=""
        )

    bench(test)


def test_instances_that_show_only_once_they_are_asked_after_keep_nothing_from_being_collected() -> None:
    async def test(world: Bench) -> None:
        # As pools of another provisioner, which say whose they are by their names alone.
        await world.whole("inherited")
        await world.instance("leaked")
        await asyncio.sleep(OLD)
        real, ask, asked = world.cloud.list, world.cloud.find, set[str]()

        async def find(ref: Any) -> Any:
            asked.add(ref.name)
            return await ask(ref)

        async def listed() -> Any:
            return [each for each in await real() if each.name != "inherited" or each.name in asked]

        world.cloud.find, world.cloud.list = find, listed  # type: ignore[method-assign]
        assert await world.gc.collect() == "done"
        await asyncio.sleep(5)
        assert await world.instances() == ["inherited"]
        assert await world.names(Machine) == ["inherited"]

    bench(test)


def test_a_claim_whose_instance_the_list_lacks_and_the_cloud_knows_is_kept() -> None:
    async def test(world: Bench) -> None:
        await world.whole("a", ready="Unknown")
        await world.whole("b")
        real = world.cloud.list

        async def partial() -> Any:
            return [each for each in await real() if each.name != "a"]

        world.cloud.list = partial  # type: ignore[method-assign]
        assert await world.gc.collect() == "done"
        assert await world.names(Machine) == ["a", "b"]

    bench(test)


def test_an_inventory_that_lacks_the_instance_of_a_ready_node_stops_everything() -> None:
    async def test(world: Bench) -> None:
        await world.whole("a")
        await world.instance("leaked")
        await world.vanish(await world.whole("gone", ready="Unknown"))
        await asyncio.sleep(OLD)
        real = world.cloud.list

        async def partial() -> Any:
            return [each for each in await real() if each.name != "a"]

        world.cloud.list = partial  # type: ignore[method-assign]
        assert await world.gc.collect() == "refused"
        assert await world.names(Machine) == ["a", "gone"]
        assert [each.name for each in await real()] == ["a", "leaked"]
        [(reason, note)] = world.events
        assert reason == "GarbageCollectionRefused"
        assert "its node is Ready" in note
        world.cloud.list = real  # type: ignore[method-assign]
        for _ in range(2):
            assert await world.gc.collect() == "done"
        assert await world.names(Machine) == ["a"]
        assert await world.instances() == ["a"]

    bench(test)


def test_claims_of_a_karpenter_beside_us_are_not_looked_at() -> None:
    async def test(world: Bench) -> None:
        await world.whole("theirs", instance=False, ready="Unknown", labels={"karpenter.sh/provisioner-name": "gpu"})
        await world.whole("working", instance=False, ready="True", labels={"karpenter.sh/provisioner-name": "gpu"})
        assert await world.gc.collect() == "done"
        assert await world.names(Machine) == ["theirs", "working"]

    bench(test)


def test_silent_nodes_whose_instances_are_there_keep_the_claims_beside_them() -> None:
    async def test(world: Bench) -> None:
        for name in ("a", "b", "c"):
            await world.whole(name, ready="Unknown")
        await world.whole("d")
        await world.vanish(await world.whole("gone", ready="Unknown"))
        assert await world.gc.collect() == "held"
        assert "gone" in await world.names(Machine)

    bench(test)


def test_a_fifth_of_the_fleet_goes_in_one_pass_and_no_more() -> None:
    async def test(world: Bench) -> None:
        for number in range(4):
            await world.whole(f"keep{number}")
        for number in range(6):
            await world.instance(f"lost{number}")
        await asyncio.sleep(OLD)
        left = []
        for _ in range(4):
            assert await world.gc.collect() == "done"
            await asyncio.sleep(5)
            left.append(len(await world.instances()))
        assert left == [8, 6, 4, 4]

    bench(test)


def test_an_error_of_the_cloud_ends_the_pass_and_the_next_one_goes_on() -> None:
    async def test(world: Bench) -> None:
        await world.whole("keep")
        await world.instance("leaked")
        uid = await world.whole("gone", ready="Unknown")
        await world.vanish(uid)
        await asyncio.sleep(OLD)
        for call in ("list", "find", "delete"):
            world.cloud.fault = lambda name, _, call=call: Throttled("slow down") if name == call else None
            assert await world.gc.collect() == "failed"
        world.cloud.fault = None
        assert await world.names(Machine) == ["gone", "keep"]
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["keep"]
        assert world.counted("kaito_gc_passes_total", outcome="failed") == 3.0

    bench(test)


def test_an_instance_that_cannot_be_deleted_yet_does_not_keep_the_others() -> None:
    async def test(world: Bench) -> None:
        await world.instance("busy")
        await asyncio.sleep(10)
        await world.instance("lost")
        await asyncio.sleep(OLD)
        busy = Conflict("it is being made")
        world.cloud.fault = lambda call, about: busy if (call, about) == ("delete", "busy") else None
        assert await world.gc.collect() == "done"
        assert await world.instances() == ["busy"]
        world.cloud.fault = None
        assert await world.gc.collect() == "done"
        assert await world.instances() == []

    bench(test)


@pytest.mark.parametrize("call", ["find", "delete"])
@pytest.mark.parametrize("error", [Unauthorized("the scope is locked"), Unavailable("no answer")])
def test_an_instance_that_can_never_be_deleted_does_not_keep_the_others(call: str, error: CloudError) -> None:
    async def test(world: Bench) -> None:
        for name in ("locked", "x", "y", "z"):
            await world.instance(name)
            await asyncio.sleep(1)
        await asyncio.sleep(OLD)
        # "find" names the claim, and "delete" the instance: here both are called the same.
        world.cloud.fault = lambda name, about: error if (name, about) == (call, "locked") else None
        outcomes = []
        for _ in range(8):
            outcomes.append(await world.gc.collect())
            await asyncio.sleep(5)
        assert outcomes[0] == outcomes[-1] == "failed"
        assert await world.instances() == ["locked"]
        [told] = {each for each in world.events if "locked" in each[1]}
        assert told == ("FailedTermination", f"Failed terminating, instance locked has no claim, and stays: {error}")
        world.cloud.fault = None
        assert await world.gc.collect() == "done"
        assert await world.instances() == []

    bench(test)


def test_a_node_that_cannot_be_let_go_does_not_keep_the_rest() -> None:
    async def test(world: Bench) -> None:
        for name in ("held", "left"):
            await world.node(name, f"uid-{name}")
            await world.report(name, "Unknown")
        await world.instance("leaked")
        await asyncio.sleep(OLD)
        world.way.forbidden = "/nodes/held"
        assert await world.gc.collect() == "failed"
        assert await world.names(Node) == ["held"]
        assert await world.instances() == []
        assert [reason for reason, _ in world.events] == ["FailedTermination"]
        world.way.forbidden = "-"
        assert await world.gc.collect() == "done"
        assert await world.names(Node) == []

    bench(test)


def test_a_claim_that_cannot_be_deleted_does_not_keep_the_others() -> None:
    async def test(world: Bench) -> None:
        for name in ("a", "b"):
            await world.whole(f"keep-{name}")
            await world.vanish(await world.whole(name, ready="Unknown"))
        await asyncio.sleep(OLD)
        world.way.forbidden = "/machines/a"
        assert await world.gc.collect() == "failed"
        assert await world.names(Machine) == ["a", "keep-a", "keep-b"]

    bench(test)


def test_a_defect_of_the_backend_ends_the_pass_and_nothing_else() -> None:
    async def test(world: Bench) -> None:
        world.cloud.fault = lambda *_: KeyError("provisioningState")
        assert await world.gc.collect() == "failed"

    bench(test)


def test_who_does_not_lead_any_more_deletes_nothing() -> None:
    async def test(world: Bench) -> None:
        await world.instance("leaked")
        await asyncio.sleep(OLD)
        fenced = Client(world.way, fence=Fence(world.clock, "lease"))
        gc = GarbageCollection(world.cloud, fenced, clock=world.clock, rng=random.Random(1))
        assert await gc.collect() == "failed"
        assert await world.instances() == ["leaked"]

    bench(test)


def test_a_node_whose_claim_and_instance_are_gone_is_let_go() -> None:
    async def test(world: Bench) -> None:
        await world.whole("keep")
        await world.node("left", "uid-left")
        await world.report("left", "Unknown")
        await world.node("theirs", "uid-theirs", mark="karpenter.sh/nodepool")
        assert await world.gc.collect() == "done"
        assert await world.names(Node) == ["keep", "theirs"]

    bench(test)


def test_a_pass_begins_every_two_minutes_until_it_is_told_to_stop() -> None:
    async def test(world: Bench) -> None:
        lifetime = Lifetime()
        moments: list[float] = []
        loop = asyncio.get_running_loop()
        real = world.cloud.list

        async def noted() -> Any:
            moments.append(loop.time())
            return await real()

        world.cloud.list = noted  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as group:
            group.create_task(world.gc.run(lifetime))
            await lifetime.wait_started()
            await asyncio.sleep(1300)
            lifetime.stop()
        gaps = [after - before for before, after in itertools.pairwise(moments)]
        assert len(moments) >= 10
        assert all(108.0 <= gap <= 132.0 for gap in gaps)
        assert len({round(gap, 3) for gap in gaps}) > 1

    bench(test)
