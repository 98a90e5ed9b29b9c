"""What the end of a claim rests on: that an instance is absent, which nodes are meant, what can be read of them."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.core import Node
from kaito_api.karpenter import LAUNCHING_ANNOTATION, TERMINATION_FINALIZER, Machine, NodeClaim
from kaito_api.meta import rfc3339
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.reconcilers.machine.absence import SECOND_LOOK, doubt, moment
from kaito_ctrl.reconcilers.machine.drain import Occupant
from kaito_ctrl.reconcilers.machine.nodes import EXCLUDE_LABEL, NodeIdentity, close, release
from kaito_ctrl.reconcilers.machine.salvage import salvage
from kaito_ctrl.runtime import Cluster, Context, ObjectKey
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import Conflict, NotFound
from kaito_ctrl.runtime.logs import logger
from tests.sim.life import metrics

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = ObjectKey("", "n")


# -- absence -----------------------------------------------------------------------------------------------------------


def claim(launching: str | None = None) -> Machine:
    annotations = {LAUNCHING_ANNOTATION: launching} if launching is not None else {}
    return Machine.model_validate({"metadata": {"name": "ws1", "uid": "u", "annotations": annotations}})


def ago(seconds: float) -> str:
    return rfc3339(NOW - timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("launching", "looked", "left"),
    [
        (None, 0.0, SECOND_LOOK),
        (None, SECOND_LOOK, 0.0),
        (ago(10), 0.0, 60.0),
        (ago(10), 20.0, 40.0),
        # The clock by which that is told may have jumped.
        (ago(3600), 5.0, 55.0),
        (ago(-3600), 59.0, 1.0),
        (ago(-3600), 60.0, 0.0),
        ("soon", 30.0, 30.0),
    ],
)
def test_absence_is_doubted_for_as_long_as_an_instance_may_still_show(
    launching: str | None, looked: float, left: float
) -> None:
    assert doubt(claim(launching), looked, None) == left


@pytest.mark.parametrize(("alive", "left"), [(0.0, 120.0), (100.0, 20.0), (120.0, 0.0), (500.0, -15.0)])
def test_a_node_that_was_ready_a_moment_ago_speaks_for_its_instance(alive: float, left: float) -> None:
    assert doubt(claim(), 20.0, alive) == left


def test_moments() -> None:
    assert moment("2026-01-01T12:00:00Z") == moment("2026-01-01T12:00:00") == NOW
    assert moment("") is moment("2026-13-01T00:00:00Z") is None


# -- what does not fit its model ---------------------------------------------------------------------------------------


def test_of_an_object_that_fits_nothing_is_lost() -> None:
    raw = {"metadata": {"name": "ws1", "uid": "u"}, "status": {"providerID": "p"}}
    assert salvage(Machine, json.dumps(raw).encode()) == Machine.model_validate(raw)


def test_of_one_that_does_not_each_field_that_does_is_kept() -> None:
    raw = {
        "metadata": {"name": "ws1", "uid": "u", "labels": {"a": 1}, "annotations": {"b": "c"}, "finalizers": ["f"]},
        "spec": {"terminationGracePeriod": "5m", "taints": [{"key": "x", "effect": "Sometimes"}], "resources": 7},
        "status": {
            "providerID": "p",
            "conditions": [{"type": "A", "status": "Maybe"}, {"type": "B", "status": "True"}],
            "capacity": [],
        },
    }
    found = salvage(NodeClaim, json.dumps(raw).encode())
    assert (found.name, found.uid, dict(found.metadata.annotations)) == ("ws1", "u", {"b": "c"})
    assert found.metadata.finalizers == ("f",)
    assert (found.spec.termination_grace_period, found.spec.taints) == ("5m", ())
    assert found.status.provider_id == "p"
    assert [each.type for each in found.status.conditions] == ["B"]


@pytest.mark.parametrize(
    "raw", [{}, {"metadata": 3}, {"metadata": {"name": "a"}}, {"metadata": {"name": "a", "uid": "u", "namespace": 1}}]
)
def test_what_cannot_be_addressed_cannot_be_salvaged(raw: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Pod"):
        salvage(Occupant, json.dumps(raw).encode())


# -- nodes -------------------------------------------------------------------------------------------------------------


class World:
    """A server with nodes, and what a reconcile works with there."""

    def __init__(self) -> None:
        self.server = ApiServer(clock=SystemClock(), rng=random.Random(1))
        self.cluster = Cluster(self.server.transport(), rng=random.Random(1), metrics=metrics())
        self.client = self.cluster.client
        self.ctx = Context(ObjectKey("", "ws1"), 0, self.client, self.cluster.cache, SystemClock(), logger())

    async def node(self, name: str = "n", provider_id: str = "p", **metadata: Any) -> Node:
        body = {"metadata": {"name": name, **metadata}, "spec": {"providerID": provider_id}}
        return await self.client.create(Node.model_validate(body))


def wire(node: Node) -> tuple[Any, ...]:
    return (
        [each.key for each in node.spec.taints],
        node.metadata.labels.get(EXCLUDE_LABEL),
        node.metadata.finalizers,
        node.deleting,
    )


async def test_a_node_that_is_closed_takes_nothing_new_and_is_held() -> None:
    world = World()
    await close(await world.node(), world.client, holder=claim())
    found = await world.client.get(Node, "n")
    assert wire(found) == (
        ["node.kubernetes.io/not-ready", "karpenter.sh/disrupted"],
        "karpenter",
        (TERMINATION_FINALIZER,),
        True,
    )
    before = found.metadata.resource_version
    await close(found, world.client, holder=claim())
    assert (await world.client.get(Node, "n")).metadata.resource_version == before, "once is enough"


async def test_a_node_that_is_held_says_by_whom_whether_or_not_it_has_registered() -> None:
    """It was let go by nobody when the process ended between the end of its instance and that: who came next knew
    neither its provider id nor its labels, and the garbage collection not whose it was."""
    world = World()
    await close(await world.node(), world.client, holder=claim())
    [owner] = (await world.client.get(Node, "n")).metadata.owner_references
    assert (owner.kind, owner.name, owner.uid) == ("Machine", "ws1", "u")


async def test_a_node_that_somebody_has_written_to_meanwhile_is_not_closed_on_old_knowledge() -> None:
    world = World()
    seen = await world.node()
    await world.client.patch(Node, KEY, {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(Conflict):
        await close(seen, world.client)
    assert not (await world.client.get(Node, "n")).deleting


async def test_one_that_was_made_anew_under_the_same_name_is_left_alone() -> None:
    world = World()
    seen = await world.node()
    await world.client.delete(Node, KEY)
    await close(seen, world.client)  # there is none
    await world.node(finalizers=[TERMINATION_FINALIZER])
    assert not await release(seen, world.client)
    assert (await world.client.get(Node, "n")).metadata.finalizers == (TERMINATION_FINALIZER,)


async def test_only_our_finalizer_is_taken_off() -> None:
    world = World()
    seen = await world.node(finalizers=["example.com/theirs", TERMINATION_FINALIZER])
    assert await release(seen, world.client)
    assert (await world.client.get(Node, "n")).metadata.finalizers == ("example.com/theirs",)
    assert not await release(seen, world.client)


async def test_nodes_are_known_by_provider_id_or_by_labels_that_are_theirs_alone() -> None:
    world = World()
    await world.node("a", "p")
    await world.node("b", "q", labels={"kaito.sh/claim-uid": "u"})
    await world.node("c", "r", labels={"kaito.sh/claim-uid": "v"})
    labels = {"kaito.sh/claim-uid": "u"}
    for identity, names in (
        (NodeIdentity("p"), ["a"]),
        (NodeIdentity("", labels), ["b"]),
        (NodeIdentity("p", labels), ["a", "b"]),
        (NodeIdentity("x"), []),
        (NodeIdentity(), []),
    ):
        assert [each.name for each in await identity.listed(world.ctx)] == names


async def test_a_node_that_fits_no_model_is_still_its_claims() -> None:
    world = World()
    await world.node(finalizers=[TERMINATION_FINALIZER])
    status = {"conditions": [{"type": "GPU", "status": "Perhaps"}, {"type": "Ready", "status": "True"}]}
    await world.client.patch_raw(Node, KEY, {"status": status}, subresource="status")
    [found] = await NodeIdentity("p").listed(world.ctx)
    assert [each.type for each in found.status.conditions] == ["Ready"]
    await close(found, world.client)
    assert await release(found, world.client)
    with pytest.raises(NotFound):
        await world.client.get(Node, "n")
