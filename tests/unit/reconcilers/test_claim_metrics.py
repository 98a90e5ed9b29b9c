"""The figures of the nodes' lives, as Prometheus sees them."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_ctrl.reconcilers.machine.metrics import DISRUPTIONS, ClaimMetrics
from kaito_ctrl.runtime import Client, Cluster, Manager
from kaito_ctrl.testing import VirtualClock, run_virtual
from tests.unit.reconcilers.livefleet import LiveFleet, served

NOW = datetime(2026, 1, 1, 1, tzinfo=UTC)
POOLS: dict[type[NodeRequest], dict[str, str]] = {
    NodeClaim: {"karpenter.sh/nodepool": "kaito"},
    Machine: {"karpenter.sh/provisioner-name": "default"},
}


def claim(kind: type[NodeRequest]) -> NodeRequest:
    labels = {**POOLS[kind], "karpenter.sh/capacity-type": "spot", "topology.kubernetes.io/zone": "z1"}
    metadata = {"name": "ws1", "labels": labels, "deletionTimestamp": "2026-01-01T00:58:00Z"}
    return kind.model_validate({"metadata": metadata})


def shown(metrics: ClaimMetrics) -> list[str]:
    return generate_latest(metrics.registry).decode().splitlines()


def live(metrics: ClaimMetrics, made: NodeRequest) -> None:
    times = {"creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:59:00Z"}
    node = Node.model_validate({"metadata": {"name": "n", **times}})
    metrics.created(made)
    metrics.launched(made)
    metrics.registered(made)
    metrics.initialized(made)
    metrics.unhealthy(made, "MemoryPressure", "i")
    metrics.node_drained(made)
    metrics.instance_terminated(made, 42.0)
    metrics.node_terminated(made, node, NOW)
    metrics.terminated(made, NOW)


def test_node_claims_are_counted_under_the_names_of_karpenter_v1() -> None:
    metrics = ClaimMetrics(NodeClaim)
    live(metrics, claim(NodeClaim))
    lines = shown(metrics)
    unhealthy = 'capacity_type="spot",condition="memory_pressure",image_id="i",nodepool="kaito"'
    for line in (
        'karpenter_nodeclaims_created_total{nodepool="kaito",reason="provisioned"} 1.0',
        'karpenter_nodeclaims_launched_total{nodepool="kaito"} 1.0',
        'karpenter_nodeclaims_registered_total{nodepool="kaito"} 1.0',
        'karpenter_nodeclaims_initialized_total{nodepool="kaito"} 1.0',
        'karpenter_nodeclaims_disrupted_total{capacity_type="spot",nodepool="kaito",reason="unhealthy"} 1.0',
        f"karpenter_nodeclaims_unhealthy_disrupted_total{{{unhealthy}}} 1.0",
        'karpenter_nodeclaims_terminated_total{capacity_type="spot",nodepool="kaito",zone="z1"} 1.0',
        'karpenter_nodeclaims_termination_duration_seconds_sum{nodepool="kaito"} 120.0',
        'karpenter_nodeclaims_instance_termination_duration_seconds_sum{nodepool="kaito"} 42.0',
        'karpenter_nodes_created_total{nodepool="kaito"} 1.0',
        'karpenter_nodes_terminated_total{nodepool="kaito"} 1.0',
        'karpenter_nodes_drained_total{nodepool="kaito"} 1.0',
        'karpenter_nodes_termination_duration_seconds_sum{nodepool="kaito"} 60.0',
        'karpenter_nodes_lifetime_duration_seconds_sum{nodepool="kaito"} 3600.0',
    ):
        assert line in lines


def test_machines_are_counted_under_the_names_of_their_days() -> None:
    metrics = ClaimMetrics(Machine)
    live(metrics, claim(Machine))
    lines = shown(metrics)
    for line in (
        'karpenter_machines_created{provisioner="default",reason="provisioned"} 1.0',
        'karpenter_machines_launched{provisioner="default"} 1.0',
        'karpenter_machines_registered{provisioner="default"} 1.0',
        'karpenter_machines_initialized{provisioner="default"} 1.0',
        'karpenter_machines_disrupted{capacity_type="spot",provisioner="default",reason="unhealthy"} 1.0',
        'karpenter_machines_terminated{capacity_type="spot",provisioner="default"} 1.0',
        'karpenter_nodes_created{provisioner="default"} 1.0',
        'karpenter_nodes_terminated{provisioner="default"} 1.0',
    ):
        assert line in lines


def test_the_standard_buckets_are_karpenters() -> None:
    metrics = ClaimMetrics(NodeClaim)
    metrics.instance_terminated(claim(NodeClaim), 1.0)
    name = "karpenter_nodeclaims_instance_termination_duration_seconds_bucket"
    edges = [line.split('le="')[1].split('"')[0] for line in shown(metrics) if line.startswith(name)]
    assert (edges[0], edges[-2], len(edges)) == ("0.005", "600.0", 46)


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
def test_what_can_be_known_before_anything_happens_starts_at_zero(kind: type[NodeRequest]) -> None:
    lines = shown(ClaimMetrics(kind))
    assert 'karpenter_nodes_eviction_requests_total{code="429"} 0.0' in lines
    assert 'kaito_gc_passes_total{outcome="refused"} 0.0' in lines
    pool = next(iter(POOLS[kind].values()))
    for reason in DISRUPTIONS:
        assert any(f'reason="{reason}"' in line and f'"{pool}"' in line and line.endswith(" 0.0") for line in lines)


def test_a_clock_that_is_behind_the_servers_counts_no_negative_time() -> None:
    metrics = ClaimMetrics(NodeClaim)
    metrics.terminated(claim(NodeClaim), NOW - timedelta(hours=10))
    assert 'karpenter_nodeclaims_termination_duration_seconds_sum{nodepool="kaito"} 0.0' in shown(metrics)


def test_a_registry_has_them_once() -> None:
    registry = CollectorRegistry()
    ClaimMetrics(Machine, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        ClaimMetrics(Machine, registry)


@pytest.mark.parametrize("kind", [Machine, NodeClaim])
def test_the_conditions_of_all_claims_are_there_when_somebody_asks(kind: type[NodeRequest]) -> None:
    async def main() -> None:
        clock = VirtualClock()
        async with served(clock) as server:
            fleet = LiveFleet(user=Client(server.transport()), clock=clock, kind=kind)
            cluster = Cluster(server.transport(), clock=clock, rng=random.Random(1))
            cluster.cache.declare(kind)
            metrics, manager = ClaimMetrics(kind), Manager(cluster)
            metrics.count_conditions(cluster.cache)
            running = asyncio.create_task(manager.run())
            await manager.wait_ready()
            await fleet.claim("a")
            await fleet.joined("a", initialized=False)
            await asyncio.sleep(1)
            about = {"group": "karpenter.sh", "kind": kind.kind, "namespace": "", "name": "a"}
            said = {"type": kind.registered, "status": "True", "reason": "x"}
            assert metrics.registry.get_sample_value("operator_status_condition_count", {**about, **said}) == 1.0
            await fleet.strip("a")
            await asyncio.sleep(1)
            assert metrics.registry.get_sample_value("operator_status_condition_count", {**about, **said}) is None
            manager.stop()
            await running

    run_virtual(main())
