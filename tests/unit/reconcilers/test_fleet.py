"""When what destroys nodes has to wait."""

from __future__ import annotations

import pytest

from kaito_api.karpenter import NodeClaim
from kaito_ctrl.reconcilers.machine.fleet import healthy, held, share
from kaito_provisioner import RepairPolicy
from tests.unit.reconcilers.fleetobjects import claim, fleet, node


@pytest.mark.parametrize(
    ("size", "dead", "waits"),
    [
        (1, 1, False),
        (2, 1, False),
        (2, 2, True),
        (3, 2, True),
        (5, 1, False),
        (5, 2, True),
        (6, 2, False),
        (6, 3, True),
    ],
)
def test_a_fifth_of_the_fleet_rounded_up_may_be_unhealthy(size: int, dead: int, waits: bool) -> None:
    assert (held(*fleet(size, dead)) is not None) is waits


def test_it_says_how_many_of_how_many_and_which() -> None:
    assert held(*fleet(3, 2)) == "2 of 3 nodes are unhealthy (n0, n1), more than the 1 that may be at once"


def test_nothing_is_destroyed_while_no_node_of_the_cluster_is_ready() -> None:
    assert held([node("system", "Unknown"), node("a", "False")], [claim("a")]) == (
        "none of the cluster's 2 nodes is Ready"
    )


def test_a_cluster_without_any_node_has_no_outage() -> None:
    assert held([], [claim("a", registered="False")]) is None


def test_a_node_that_is_not_there_is_unhealthy() -> None:
    assert held([node("system")], [claim("a"), claim("b")]) is not None


def test_what_has_not_registered_yet_is_not_of_the_fleet() -> None:
    nodes, claims = fleet(2, 1)
    assert held(nodes, [*claims, *(claim(f"new{each}", registered="Unknown") for each in range(5))]) is None


def test_nodes_that_are_being_replaced_count_as_unhealthy_until_they_are_gone() -> None:
    nodes, claims = fleet(4, 1)
    assert held(nodes, [*claims, claim("gone", deleting=True, replaced=True)]) is not None


def test_claims_that_somebody_deletes_are_no_disturbance() -> None:
    nodes, claims = fleet(4, 1)
    assert held(nodes, [*claims, *(claim(f"less{each}", deleting=True) for each in range(4))]) is None


def test_node_claims_are_told_by_their_own_conditions() -> None:
    names = ("a", "b")
    assert held([node("system")], [claim(name, kind=NodeClaim) for name in names]) is not None


def test_a_condition_that_a_policy_names_makes_a_ready_node_unhealthy() -> None:
    policy = RepairPolicy("AcceleratedHardwareReady", "False", 600.0)
    assert healthy(node("a", AcceleratedHardwareReady="False"))
    assert not healthy(node("a", AcceleratedHardwareReady="False"), [policy])
    assert healthy(node("a", AcceleratedHardwareReady="True"), [policy])
    broken = [node(name, AcceleratedHardwareReady="False") for name in ("a", "b")]
    assert held(broken, [claim("a"), claim("b")]) is None
    assert held(broken, [claim("a"), claim("b")], [policy]) is not None


@pytest.mark.parametrize(("size", "most"), [(0, 1), (1, 1), (5, 1), (6, 2), (100, 20)])
def test_a_share_is_a_fifth_rounded_up_and_never_nothing(size: int, most: int) -> None:
    assert share(size) == most
