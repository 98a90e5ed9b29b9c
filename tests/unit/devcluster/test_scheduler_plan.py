"""Where a pod goes, and what is said when it can go nowhere."""

from __future__ import annotations

from typing import Any

import pytest
from devobjects import node, pod

from kaito_ctrl.devcluster.scheduler import Bound, Unschedulable, pod_requests, schedule

GPU = {"cpu": "4", "memory": "8Gi", "pods": "10", "nvidia.com/gpu": "1"}
TAINT = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}


def wanting(**requests: str) -> dict[str, Any]:
    return {"containers": [{"name": "main", "resources": {"requests": requests}}]}


def affinity(*expressions: dict[str, Any], fields: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    term = {"matchExpressions": list(expressions), "matchFields": list(fields)}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"affinity": {"nodeAffinity": required}}


def test_the_message_counts_nodes_by_reason_as_kube_scheduler_does() -> None:
    subject = pod("p", node="", containers=[{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}])
    found = schedule(subject, [node("a"), node("b", capacity=GPU, taints=[TAINT])], {})
    assert found == Unschedulable(
        "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint {sku: gpu}."
    )
    assert schedule(subject, [], {}) == Unschedulable("no nodes available to schedule pods")


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (node(unschedulable=True), "1 node(s) were unschedulable"),
        (node(ready="Unknown"), "1 node(s) were not ready"),
        (node(labels={"zone": "b"}), "1 node(s) didn't match Pod's node affinity/selector"),
        (
            node(labels={"zone": "a"}, capacity={"cpu": "1", "memory": "1Gi"}),
            "1 Insufficient cpu, 1 Insufficient memory",
        ),
        (node(labels={"zone": "a"}, capacity={"cpu": "9", "memory": "9Gi", "pods": "0"}), "1 Too many pods"),
    ],
)
def test_each_reason_has_its_words(there: Any, reason: str) -> None:
    subject = pod("p", node="", nodeSelector={"zone": "a"}, **wanting(cpu="2", memory="2Gi"))
    assert schedule(subject, [there], {}) == Unschedulable(f"0/1 nodes are available: {reason}.")


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "zone", "operator": "In", "values": ["c"]}, False),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "other", "operator": "NotIn", "values": ["a"]}, True),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "zone", "operator": "DoesNotExist"}, False),
        ({"key": "gpus", "operator": "Gt", "values": ["3"]}, True),
        ({"key": "gpus", "operator": "Lt", "values": ["4"]}, False),
        ({"key": "zone", "operator": "Gt", "values": ["4"]}, False),
    ],
)
def test_every_operator_of_node_affinity(expression: dict[str, Any], fits: bool) -> None:
    there = node(labels={"zone": "a", "gpus": "4"})
    found = schedule(pod("p", node="", **affinity(expression)), [there], {})
    assert isinstance(found, Bound) is fits


def test_a_node_can_be_asked_for_by_name() -> None:
    wants = affinity(fields=({"key": "metadata.name", "operator": "In", "values": ["b"]},))
    assert schedule(pod("p", node="", **wants), [node("a"), node("b")], {}) == Bound("b")


def test_a_toleration_lets_a_pod_onto_a_tainted_node() -> None:
    tolerant = pod("p", node="", tolerations=[{"key": "sku", "operator": "Equal", "value": "gpu"}])
    assert schedule(tolerant, [node("a", taints=[TAINT])], {}) == Bound("a")


def test_pods_that_are_there_count_and_finished_ones_do_not() -> None:
    busy = pod("q", node="a", containers=[{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}])
    subject = pod("p", node="", containers=[{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}])
    there = node("a", capacity=GPU)
    assert isinstance(schedule(subject, [there], {"a": [busy]}), Unschedulable)
    done = busy.evolve(status=busy.status.evolve(phase="Succeeded"))
    assert schedule(subject, [there], {"a": [done]}) == Bound("a")


def test_an_init_container_counts_as_a_maximum() -> None:
    containers = [{"name": n, "resources": {"requests": {"cpu": "500m"}}} for n in "ab"]
    first = [{"name": "i", "resources": {"requests": {"cpu": "2"}}}]
    assert pod_requests(pod("p", containers=containers, initContainers=first))["cpu"] == 2
    first[0]["resources"] = {"requests": {"cpu": "100m"}}
    assert pod_requests(pod("p", containers=containers, initContainers=first))["cpu"] == 1


def test_the_emptiest_node_wins_and_ties_go_by_name() -> None:
    there = [node("b"), node("a")]
    assert schedule(pod("p", node=""), there, {}) == Bound("a")
    assert schedule(pod("p", node=""), there, {"a": [pod("q", node="a")]}) == Bound("b")
