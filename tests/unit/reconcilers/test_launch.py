"""How a claim gets its instance: offering by offering, patiently, once, and nobody else's claims."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.meta import rfc3339
from kaito_ctrl.reconcilers.machine.launch import launch_request, patience
from kaito_ctrl.reconcilers.machine.managed import is_managed
from kaito_ctrl.runtime import ObjectKey
from kaito_provisioner import (
    CloudError,
    Instance,
    InsufficientCapacity,
    InvalidRequest,
    LaunchRequest,
    NodeClassKind,
    Offering,
    Throttled,
    Unauthorized,
    Unavailable,
)
from kaito_provisioner.sim import Scarcity, SimInstanceType
from tests.unit.reconcilers.claimworld import BOOT, A, Alone, B, alone, claim

KEY = ObjectKey("", "ws1")
LAUNCHING, OPERATION = "provisioner.kaito.sh/launching", "provisioner.kaito.sh/operation"
SPOT = {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["spot", "on-demand"]}


# -- whose ---------------------------------------------------------------------------------------------------------


def test_claims_are_ours_by_kaitos_labels_or_by_their_node_class() -> None:
    for labels in ({"kaito.sh/workspace": "none"}, {"kaito.sh/ragengine": "r"}):
        assert is_managed(Machine.model_validate({"metadata": {"labels": labels}}))
    assert not is_managed(Machine.model_validate({"metadata": {"labels": {"karpenter.sh/provisioner-name": "x"}}}))

    def of_class(group: str, kind: str) -> NodeClaim:
        ref = {"group": group, "kind": kind, "name": "default"}
        return NodeClaim.model_validate({"metadata": {}, "spec": {"nodeClassRef": ref}})

    assert is_managed(of_class("kaito.sh", "KaitoNodeClass"))
    theirs = of_class("karpenter.k8s.aws", "EC2NodeClass")
    assert not is_managed(theirs)
    assert is_managed(theirs, [NodeClassKind("karpenter.k8s.aws", "EC2NodeClass")])
    assert not is_managed(NodeClaim.model_validate({"metadata": {}, "spec": {}}))


@alone()
async def test_claims_of_a_karpenter_in_the_same_cluster_are_never_touched(world: Alone) -> None:
    theirs = claim(world.kind, "theirs", labels={"karpenter.sh/nodepool": "general"})
    if isinstance(theirs, NodeClaim):
        ref = theirs.spec.node_class_ref
        assert ref is not None
        other = ref.evolve(group="karpenter.k8s.aws", kind="EC2NodeClass")
        theirs = theirs.evolve(spec=theirs.spec.evolve(node_class_ref=other))
    going = theirs.evolve(metadata=theirs.metadata.evolve(name="going", finalizers=("karpenter.sh/termination",)))
    await world.user.create(theirs)
    await world.user.create(going)
    await world.user.delete(world.kind, ObjectKey("", "going"))
    await asyncio.sleep(3600)
    assert (world.writes, world.cloud.calls) == ([], {})
    assert (await world.get("going")).metadata.finalizers == ("karpenter.sh/termination",)
    await world.user.delete(world.kind, ObjectKey("", "theirs"))


KINDS: tuple[type[NodeRequest], ...] = (Machine, NodeClaim)

# -- what is asked for ---------------------------------------------------------------------------------------------


def test_a_request_says_all_that_a_backend_may_need() -> None:
    asked = claim(
        NodeClaim,
        *("ws1", A, B),
        requirements=[{"key": "kaito.sh/machine-type", "operator": "In", "values": ["gpu"]}],
        annotations={"kaito.sh/node-image-family": "ubuntu"},
        uid="u",
    )
    request = launch_request(asked)
    assert (request.name, request.uid, request.kind, request.group) == ("ws1", "u", "NodeClaim", "default/ws")
    assert request.labels == {**asked.metadata.labels, "kaito.sh/machine-type": "gpu"}
    assert request.disk == 100 * 2**30
    assert request.requirements == asked.spec.requirements
    assert request.annotations == {"kaito.sh/node-image-family": "ubuntu"}


def test_what_an_earlier_instance_was_is_not_asked_for() -> None:
    labels = {"kaito.sh/workspace": "ws", "node.kubernetes.io/instance-type": B, "karpenter.sh/capacity-type": "spot"}
    request = launch_request(claim(Machine, "ws1", A, labels=labels))
    assert request.labels == {"kaito.sh/workspace": "ws", "node.kubernetes.io/instance-type": A}
    assert request.group == "/ws"


@pytest.mark.parametrize(("storage", "gib"), [("0", 0), ("400", 400), ("50Gi", 50), ("2048", 2048)])
def test_a_machine_that_asks_for_a_disk_as_kaito_once_did_gets_it(storage: str, gib: int) -> None:
    assert launch_request(claim(Machine, storage=storage)).disk == gib * 2**30


@pytest.mark.parametrize(
    ("kind", "storage"),
    [(NodeClaim, "400"), *((kind, each) for kind in KINDS for each in ("4000", "1023Mi", "-1Gi", "lots"))],
)
def test_a_disk_that_cannot_be_meant_is_refused_with_a_fix(kind: type[NodeRequest], storage: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        launch_request(claim(kind, storage=storage))
    assert "resources.requests.storage" in caught.value.message
    assert "100Gi" in caught.value.fix


def test_patience_grows_with_the_claims_age_and_gives_way_to_what_the_cloud_says() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def of_age(seconds: float) -> NodeRequest:
        return claim(creationTimestamp=rfc3339(now - timedelta(seconds=seconds)))

    ages = {-3600.0: 5.0, 0.0: 5.0, 100.0: 25.0, 1e6: 300.0}
    assert {age: patience(of_age(age), CloudError("no"), now) for age in ages} == ages
    assert patience(of_age(100), Throttled("wait", retry_after=77.0), now) == 77.0
    # Nobody expects it to go better next time; but an error that is not understood may pass.
    assert patience(of_age(100), InvalidRequest("never"), now) == 600.0
    assert patience(of_age(86400), InvalidRequest("never"), now) == 1800.0


# -- granted -------------------------------------------------------------------------------------------------------


@alone()
async def test_a_claim_alone_becomes_a_node(world: Alone) -> None:
    told: list[NodeRequest] = []
    inner = world.cloud.create

    async def create(request: LaunchRequest) -> Instance:
        told.append(await world.get())
        return await inner(request)

    world.cloud.create = create  # type: ignore[method-assign]
    await world.ask()
    assert await world.until_ready() < BOOT + 10
    # The finalizer, and the note that the cloud is being asked, came before the cloud was.
    assert told[0].metadata.finalizers == ("karpenter.sh/termination",)
    assert LAUNCHING in told[0].metadata.annotations
    made = await world.get()
    assert made.metadata.annotations == {}
    assert made.metadata.labels["node.kubernetes.io/instance-type"] == A
    assert made.status.node_name == "ws1"
    node = await world.user.get(Node, "ws1")
    assert node.metadata.owner_references[0].uid == made.uid
    assert await world.events() == ["Initialized", "Launched", "OfferingChosen", "Registered"]
    await asyncio.sleep(60)
    world.writes.clear()
    await asyncio.sleep(3600)
    assert world.writes == []
    assert world.cloud.calls["create"] == 1


@alone(provider_ids="never", operations=True)
async def test_a_node_is_found_by_its_labels_where_the_cloud_does_not_know_its_provider_id(world: Alone) -> None:
    await world.ask()
    await asyncio.sleep(BOOT / 2)
    status, reason, message = await world.said(world.kind.launched)
    assert (status != "True", reason, message) == (True, "Launching", f"the cloud is making a {A}")
    assert (await world.get()).metadata.annotations == {OPERATION: "creations/0001"}
    await world.until_ready()
    made = await world.get()
    assert made.status.provider_id == (await world.user.get(Node, "ws1")).spec.provider_id != ""
    await asyncio.sleep(120)
    assert (await world.get()).metadata.annotations == {}


@alone(provider_ids="never", boot=1000.0)
async def test_a_node_that_joins_wakes_its_claim_before_the_cloud_is_done(world: Alone) -> None:
    uid = await world.ask()
    await asyncio.sleep(57)
    calls = dict(world.cloud.calls)
    [instance] = world.cloud.existing()
    await world.nodes.join(instance, LaunchRequest("ws1", uid, (A,)))
    await asyncio.sleep(0.1)
    assert (await world.get()).status.node_name == ""
    await world.until_ready(within=2.0)
    assert world.cloud.calls["find"] <= calls["find"] + 2


@alone(types=[SimInstanceType(A, 1, quota=200)])
async def test_a_hundred_claims_at_once_are_launched_together_for_a_call_each(world: Alone) -> None:
    names = [f"ws{number}" for number in range(100)]
    for name in names:
        await world.ask(name)
    await asyncio.sleep(10)
    assert len(world.cloud.existing()) == 100
    for name in names:
        await world.until_ready(name, within=BOOT + 10)
    assert (world.cloud.calls["create"], world.cloud.calls["instance_types"]) == (100, 1)
    # While a machine boots the cloud is asked every five seconds how far it is.
    assert world.cloud.calls["find"] <= 100 * (BOOT / 5 + 2)
    assert len(world.writes) == 100 * 6


# -- refused -------------------------------------------------------------------------------------------------------


@alone()
async def test_the_next_offering_is_asked_for_at_once_and_every_decision_is_told(world: Alone) -> None:
    world.cloud.scarce[Offering(A)] = Scarcity("quota")
    await world.ask("ws1", A, B)
    await asyncio.sleep(10)
    # Who comes within a minute does not ask for the first again.
    await world.ask("ws2", A, B)
    for name in ("ws1", "ws2"):
        await world.until_ready(name)
    assert world.cloud.calls["create"] == 3
    assert [each.instance_type for each in world.cloud.existing()] == [B, B]
    told = await world.events()
    assert told == ["Initialized", "Launched", "OfferingChosen", "OfferingUnavailable", "Registered"]


@alone(types=[SimInstanceType(A, 1, price=3.0, spot=1.0), SimInstanceType(B, 2, price=2.0, spot=0.5)])
async def test_the_cheapest_is_asked_for_first_then_the_next_capacity_type(world: Alone) -> None:
    for kind in (A, B):
        world.cloud.scarce[Offering(kind, "spot")] = Scarcity("capacity")
    await world.ask("ws1", A, B, requirements=[SPOT])
    await world.until_ready()
    made = await world.get()
    assert made.metadata.labels["node.kubernetes.io/instance-type"] == B
    assert made.metadata.labels["karpenter.sh/capacity-type"] == "on-demand"
    assert (await world.events()).count("OfferingUnavailable") == 2


@alone()
async def test_when_all_is_refused_the_claim_says_why_and_is_kept(world: Alone) -> None:
    world.cloud.scarce[Offering(A)] = Scarcity("capacity")
    world.cloud.scarce[Offering(B)] = Scarcity("quota")
    uid = await world.ask("ws1", A, B)
    await asyncio.sleep(5)
    status, reason, message = await world.said(world.kind.launched)
    assert (status, reason) == ("False" if world.kind is Machine else "Unknown", "InsufficientCapacity")
    assert message.startswith("all requested instance types were unavailable during launch: ")
    assert f"{A}: there is no {A}" in message
    assert f"{B}: the quota" in message
    assert "ask for more quota" in message
    assert "InsufficientCapacityError" in await world.events()
    assert LAUNCHING not in (await world.get()).metadata.annotations
    await asyncio.sleep(6 * 3600)
    assert (await world.get()).uid == uid
    assert world.cloud.existing() == ()


@alone()
async def test_a_shortage_costs_few_requests_whatever_the_number_of_claims_and_ends_by_itself(world: Alone) -> None:
    world.cloud.scarce[Offering(A)] = Scarcity("capacity")
    names = [f"ws{number}" for number in range(20)]
    for name in names:
        await world.ask(name)
    await asyncio.sleep(5)
    # Those that had been sent when the first refusal came are not called back.
    at_once = world.cloud.calls["create"]
    assert at_once <= len(names)
    await asyncio.sleep(3600)
    assert world.cloud.calls["create"] <= at_once + 10
    assert world.cloud.calls.get("find", 0) <= at_once
    world.cloud.scarce.clear()
    # One finds out when its rest is over; the others follow once its machine runs.
    for name in names:
        await world.until_ready(name, within=600 + 2 * BOOT + 60)
    assert len(world.cloud.existing()) == len(names)


@alone(provider_ids="when running", operations=True)
async def test_an_instance_that_cannot_be_made_after_all_makes_room_for_the_next_offering(world: Alone) -> None:
    world.cloud.scarce[Offering(A)] = Scarcity("capacity", late=True)
    await world.ask("ws1", A, B)

    async def failed() -> bool:
        return (await world.said(world.kind.launched))[1] == "InsufficientCapacity"

    await world.until(failed, BOOT + 10)
    await world.until_ready()
    assert [each.instance_type for each in world.cloud.existing()] == [B]
    assert (await world.get()).metadata.labels["node.kubernetes.io/instance-type"] == B
    assert (await world.user.get(Node, "ws1")).metadata.labels["node.kubernetes.io/instance-type"] == B
    told = await world.events()
    assert (told.count("OfferingChosen"), told.count("OfferingUnavailable"), told.count("Launched")) == (2, 1, 1)


@alone()
async def test_an_instance_that_fails_although_it_was_granted_is_replaced_under_the_same_claim(world: Alone) -> None:
    world.cloud.scarce[Offering(A)] = Scarcity("capacity", late=True)
    uid = await world.ask("ws1", A, B)
    await world.until_ready()
    made = await world.get()
    assert made.uid == uid
    [instance] = world.cloud.existing()
    assert (instance.instance_type, instance.provider_id) == (B, made.status.provider_id)


@alone()
async def test_a_cloud_that_will_not_delete_what_it_could_not_make_is_not_hurried(world: Alone) -> None:
    world.cloud.scarce[Offering(A)] = Scarcity("capacity", late=True)
    refusals: list[Exception] = [Throttled("busy", retry_after=300.0)]

    def refuse(call: str, _: str) -> Exception | None:
        return refusals.pop() if call == "delete" and refusals else None

    world.cloud.fault = refuse
    await world.ask("ws1", A, B)
    await asyncio.sleep(BOOT + 200)
    assert world.cloud.calls["delete"] == 1
    assert (await world.said(world.kind.launched))[1] == "InsufficientCapacity"
    await world.until_ready()


@alone()
async def test_what_a_claim_can_never_have_is_said_and_not_asked_for(world: Alone) -> None:
    await world.ask(storage="400Mi")
    await asyncio.sleep(3600)
    _, reason, message = await world.said(world.kind.launched)
    assert reason == "InvalidRequest"
    assert "write it with its unit, like 100Gi" in message
    assert "create" not in world.cloud.calls


# -- answers that are lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0.0, 30.0])
def test_an_answer_that_was_lost_is_noted_until_the_instance_is_found(lag: float) -> None:
    @alone(lag=lag)
    async def life(world: Alone) -> None:
        answers = [Unavailable("the connection broke")]

        def lose(call: str, _: str) -> Exception | None:
            return answers.pop() if call == "create" and answers else None

        world.cloud.lost = lose
        await world.ask()
        await asyncio.sleep(4)
        assert (await world.said(world.kind.launched))[1] == "CloudUnavailable"
        assert LAUNCHING in (await world.get()).metadata.annotations
        await world.until_ready(within=BOOT + 15)
        assert LAUNCHING not in (await world.get()).metadata.annotations
        assert len(world.cloud.existing()) == 1

    life()


@alone(lag=40.0, provider_ids="never")
async def test_an_instance_that_is_not_shown_yet_is_neither_gone_nor_made_again(world: Alone) -> None:
    await world.ask()
    await world.until_ready()
    assert world.cloud.calls["create"] == 1


@alone(lag=50.0)
async def test_a_claim_that_is_deleted_before_the_cloud_shows_its_instance_leaves_nothing(world: Alone) -> None:
    await world.ask()

    async def granted() -> bool:
        return (await world.said(world.kind.launched))[0] == "True"

    await world.until(granted)
    await world.user.delete(world.kind, KEY)
    await world.until_gone(within=150)
    assert world.cloud.existing() == ()


@alone(lag=50.0, boot=20.0)
async def test_a_node_that_joins_before_the_cloud_shows_its_instance_is_registered_and_noted_later(
    world: Alone,
) -> None:
    await world.ask()
    assert await world.until_ready() < 30
    assert LAUNCHING in (await world.get()).metadata.annotations
    await asyncio.sleep(120)
    made = await world.get()
    assert made.metadata.annotations == {}
    assert made.metadata.labels["kubernetes.io/arch"] == "amd64"


@alone()
async def test_a_cloud_that_throttles_is_heard(world: Alone) -> None:
    refusals: list[Exception] = [Throttled("place 3 in the queue", retry_after=120.0)]

    def refuse(call: str, _: str) -> Exception | None:
        return refusals.pop() if call == "create" and refusals else None

    world.cloud.fault = refuse
    await world.ask()
    await asyncio.sleep(100)
    assert (await world.said(world.kind.launched))[1:] == ("Throttled", "place 3 in the queue")
    assert world.cloud.calls["create"] == 1
    await world.until_ready(within=120 + BOOT)


@alone(kinds=(Machine,))
async def test_an_error_that_says_nothing_of_an_offering_does_not_keep_it_from_being_tried(world: Alone) -> None:
    asked = 0

    def fault(call: str, _: str) -> Exception | None:
        nonlocal asked
        if call != "create":
            return None
        asked += 1
        if asked == 4:
            return Unauthorized("the token has expired", retry_after=5.0)
        return InsufficientCapacity("none left") if asked < 4 else None

    async def hiccup() -> bool:
        return asked == 4

    world.cloud.fault = fault
    await world.ask()
    await world.until(hiccup, within=2000)
    await world.until_ready(within=BOOT + 20)


@alone()
async def test_a_claim_that_is_deleted_before_it_was_asked_for_buys_nothing(world: Alone) -> None:
    types: Any = world.cloud.instance_types

    async def slowly() -> Any:
        await world.user.delete(world.kind, KEY)
        return await types()

    world.cloud.instance_types = slowly  # type: ignore[method-assign]
    await world.ask()
    await world.until_gone()
    assert "create" not in world.cloud.calls
