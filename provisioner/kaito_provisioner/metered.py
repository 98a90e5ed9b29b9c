"""How often, and for how long, a cloud is asked what, under Karpenter's names.

:class:`MeteredCloud` stands before any :class:`~kaito_provisioner.cloud.CloudProvider` and changes nothing of what it
answers. The controllers share one :class:`CloudMetrics`, and each has a decorator of its own, so that the series tell
them apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from kaito_provisioner.cloud import (
    ClaimRef,
    CloudError,
    CloudProvider,
    Instance,
    InstanceType,
    InsufficientCapacity,
    LaunchRequest,
    NodeClassKind,
    NotFound,
    RepairPolicy,
)

__all__ = ["CloudMetrics", "MeteredCloud"]

T = TypeVar("T")
_LABELS = ("controller", "method", "provider")
_METHODS = ("Create", "Delete", "Find", "Get", "GetInstanceTypes", "List")
_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5),
    *(1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 150.0, 300.0, 450.0, 600.0),
)


class CloudMetrics:
    """The series of all controllers and clouds of one registry. One per registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "karpenter_cloudprovider_duration_seconds",
            "Length of the calls of cloud provider methods",
            _LABELS,
            buckets=_SECONDS,
            registry=registry,
        )
        self.errors = Counter(
            "karpenter_cloudprovider_errors_total",
            "Cloud provider methods that have failed",
            (*_LABELS, "error"),
            registry=registry,
        )


class MeteredCloud:
    """*cloud*, as *controller* uses it. An implementation of ``CloudProvider`` itself."""

    def __init__(self, cloud: CloudProvider, metrics: CloudMetrics, controller: str) -> None:
        self.name = cloud.name
        self.node_classes: Sequence[NodeClassKind] = cloud.node_classes
        self._cloud = cloud
        self._errors = metrics.errors
        self._labels = {method: (controller, method, cloud.name) for method in _METHODS}
        self._seconds = {method: metrics.seconds.labels(*labels) for method, labels in self._labels.items()}

    async def create(self, request: LaunchRequest) -> Instance:
        return await self._measured("Create", self._cloud.create(request))

    async def get(self, provider_id: str) -> Instance:
        return await self._measured("Get", self._cloud.get(provider_id))

    async def find(self, claim: ClaimRef) -> Instance:
        return await self._measured("Find", self._cloud.find(claim))

    async def list(self) -> Sequence[Instance]:
        return await self._measured("List", self._cloud.list())

    async def delete(self, instance: Instance) -> Instance:
        return await self._measured("Delete", self._cloud.delete(instance))

    async def instance_types(self) -> Sequence[InstanceType]:
        return await self._measured("GetInstanceTypes", self._cloud.instance_types())

    def repair_policies(self) -> Sequence[RepairPolicy]:
        return self._cloud.repair_policies()

    async def _measured(self, method: str, call: Awaitable[T]) -> T:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            return await call
        except Exception as error:
            self._errors.labels(*self._labels[method], _kind(error)).inc()
            raise
        finally:
            self._seconds[method].observe(clock() - began)


def _kind(error: Exception) -> str:
    """Karpenter's word for *error* where it has one, else our reason; nothing for what is no error of a cloud's."""
    match error:
        case NotFound():
            return "NodeClaimNotFoundError"
        case InsufficientCapacity():
            return "InsufficientCapacityError"
        case CloudError():
            return error.reason
        case _:
            return ""
