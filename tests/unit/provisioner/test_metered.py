"""A cloud whose calls are counted answers as it would without."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from kaito_ctrl.testing import run_virtual
from kaito_provisioner import ClaimRef, CloudProvider, InsufficientCapacity, LaunchRequest, NotFound, QuotaExceeded
from kaito_provisioner.metered import CloudMetrics, MeteredCloud
from kaito_provisioner.sim import SimCloud, SimInstanceType

REQUEST = LaunchRequest("ws1", "uid-1", ("small",))


def clouds(controller: str = "machine") -> tuple[SimCloud, MeteredCloud, CollectorRegistry]:
    registry = CollectorRegistry()
    cloud = SimCloud(
        [SimInstanceType("small", 1)], now=lambda: datetime(2026, 1, 1, tzinfo=UTC), latency=2.0, boot=60.0
    )
    return cloud, MeteredCloud(cloud, CloudMetrics(registry), controller), registry


def value(registry: CollectorRegistry, name: str, method: str, **labels: str) -> float | None:
    where = {"controller": "machine", "method": method, "provider": "sim", **labels}
    return registry.get_sample_value(f"karpenter_cloudprovider_{name}", where)


def test_every_method_answers_what_the_cloud_answers_and_its_seconds_are_counted() -> None:
    async def main() -> None:
        cloud, metered, registry = clouds()
        provider: CloudProvider = metered
        made = await provider.create(REQUEST)
        assert made == await provider.find(ClaimRef("ws1", "uid-1")) == await provider.get(made.provider_id)
        assert list(await provider.list()) == [made]
        assert await provider.instance_types() == await cloud.instance_types()
        assert (await provider.delete(made)).state == "Deleting"
        assert (provider.name, provider.repair_policies()) == ("sim", cloud.repair_policies())
        for method in ("Create", "Find", "Get", "List", "GetInstanceTypes", "Delete"):
            assert value(registry, "duration_seconds_count", method) == 1.0
            assert value(registry, "duration_seconds_sum", method) == pytest.approx(2.0)

    run_virtual(main())


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (NotFound("no"), "NodeClaimNotFoundError"),
        (InsufficientCapacity("no"), "InsufficientCapacityError"),
        (QuotaExceeded("no"), "QuotaExceeded"),
        (OSError("no"), ""),
    ],
)
def test_an_error_comes_through_and_is_counted_by_its_kind(error: Exception, label: str) -> None:
    async def main() -> None:
        cloud, metered, registry = clouds()
        cloud.fault = lambda *_: error
        with pytest.raises(type(error)) as caught:
            await metered.create(REQUEST)
        assert caught.value is error
        assert value(registry, "errors_total", "Create", error=label) == 1.0
        assert value(registry, "duration_seconds_count", "Create") == 1.0

    run_virtual(main())


def test_a_call_that_is_cancelled_is_no_error() -> None:
    async def main() -> None:
        _, metered, registry = clouds()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await metered.list()
        assert value(registry, "duration_seconds_sum", "List") == pytest.approx(1.0)
        assert not [
            sample for family in registry.collect() for sample in family.samples if sample.name.endswith("errors_total")
        ]

    run_virtual(main())


def test_controllers_share_the_metrics_and_are_told_apart() -> None:
    async def main() -> None:
        cloud, _, _ = clouds()
        registry = CollectorRegistry()
        metrics = CloudMetrics(registry)
        for name, calls in (("machine", 1), ("gc", 2)):
            metered = MeteredCloud(cloud, metrics, name)
            for _ in range(calls):
                await metered.list()
        assert value(registry, "duration_seconds_count", "List") == 1.0
        assert value(registry, "duration_seconds_count", "List", controller="gc") == 2.0

    run_virtual(main())
