"""What is garbage, and when what was read is not to be believed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.meta import OwnerReference
from kaito_ctrl.reconcilers.machine.inventory import CLAIM_UID_LABEL, Inventory
from kaito_provisioner import Instance
from tests.unit.reconcilers.fleetobjects import claim, instance, node


def inventory(
    instances: Sequence[Instance] = (),
    nodes: Sequence[Node] = (),
    claims: Sequence[NodeRequest] = (),
    others: Sequence[str] = (),
) -> Inventory:
    return Inventory(Machine, instances, nodes, claims, frozenset((*(each.uid for each in claims), *others)))


def leftover(name: str, *, mark: str = CLAIM_UID_LABEL, kind: type[NodeRequest] = Machine) -> Node:
    ref = OwnerReference(api_version=kind.api_version(), kind=kind.kind, name=name, uid=f"uid-{name}")
    made = node(name, "Unknown", labels={mark: "x"})
    held = made.metadata.evolve(owner_references=(ref,), finalizers=("karpenter.sh/termination",))
    return made.evolve(metadata=held)


def test_an_instance_without_a_claim_is_leaked() -> None:
    found = inventory([instance("a"), instance("b")], claims=[claim("a")])
    assert [each.name for each in found.leaked()] == ["b"]


def test_an_instance_whose_claim_is_being_deleted_or_is_somebody_elses_is_not() -> None:
    found = inventory([instance("a"), instance("b")], claims=[claim("a", deleting=True)], others=["uid-b"])
    assert found.leaked() == []


def test_an_instance_that_is_going_or_has_no_claims_uid_is_left_alone() -> None:
    found = inventory([instance("a", "Deleting"), Instance("b", "", "Running", "small")], claims=[claim("c")])
    assert found.leaked() == []


@pytest.mark.parametrize("ready", ["False", "Unknown", None])
def test_a_claim_whose_instance_is_missing_and_whose_node_is_not_ready_is_forsaken(ready: str | None) -> None:
    nodes = [node("a", ready)] if ready is not None else []
    assert [each.name for each in inventory([], nodes, [claim("a")]).forsaken()] == ["a"]


def test_a_claim_that_has_not_registered_or_is_being_deleted_is_not() -> None:
    claims = [claim("a", registered="Unknown"), claim("b", deleting=True)]
    assert inventory([], [], claims).forsaken() == []


def test_an_inventory_that_lacks_the_instance_of_a_ready_node_is_not_believed() -> None:
    claims = [claim("a"), claim("b")]
    refused = inventory([instance("a")], [node("a"), node("b")], claims).contradiction()
    assert refused is not None
    assert refused[0] == claims[1]
    assert "lacks its instance" in refused[1]
    assert inventory([instance("a")], [node("a"), node("b", "Unknown")], claims).contradiction() is None


def test_a_cluster_without_any_claim_beside_instances_that_work_is_not_believed() -> None:
    both = [instance("a"), instance("b")]
    refused = inventory(both, [node("a"), node("b")]).contradiction()
    assert refused is not None
    assert refused[1] == "there is no Machine at all, and 2 instances have nodes that are Ready"
    assert inventory(both, [node("a")]).contradiction() is None, "one may be what is left of the last claim"
    assert inventory(both, [node("a"), node("b")], others=["uid-c"]).contradiction() is None


def test_claims_whose_instance_is_gone_are_no_outage_and_others_are() -> None:
    system, claims = node("system"), [claim("a"), claim("b"), claim("c")]
    assert inventory([], [system], claims).held() is None
    assert inventory([instance("b"), instance("c")], [system], claims).held() is not None


def test_the_only_node_of_a_cluster_may_be_the_one_whose_instance_is_gone() -> None:
    assert inventory([], [node("a", "Unknown")], [claim("a")]).held() is None
    both = [node("a", "Unknown"), node("b", "Unknown")]
    assert inventory([], both, [claim("a"), claim("b")]).held() == "none of the cluster's 2 nodes is Ready"


def test_a_node_is_found_by_the_labels_that_its_instance_gives_it() -> None:
    known = instance("a", provider_id="", node_labels={CLAIM_UID_LABEL: "uid-a"})
    mine, other = node("x", labels={CLAIM_UID_LABEL: "uid-a"}), node("y", labels={CLAIM_UID_LABEL: "uid-y"})
    assert inventory([known], [mine, other]).nodes_of(known) == (mine,)
    nothing = instance("a", provider_id="")
    assert inventory([nothing], [mine, other]).nodes_of(nothing) == ()


@pytest.mark.parametrize("mark", [CLAIM_UID_LABEL, "kaito.sh/workspace", "kaito.sh/ragengine"])
def test_a_node_that_our_finalizer_holds_for_a_claim_that_is_gone_is_left(mark: str) -> None:
    found = inventory(nodes=[leftover("a", mark=mark)])
    assert [(each.name, name, uid) for each, name, uid in found.left()] == [("a", "a", "uid-a")]


def test_a_node_of_a_karpenter_beside_us_or_of_a_claim_that_is_there_is_not() -> None:
    nodes = [leftover("a", mark="karpenter.sh/nodepool"), leftover("b"), leftover("c"), leftover("d", kind=NodeClaim)]
    found = inventory([instance("c")], nodes, others=["uid-b"])
    assert found.left() == []
