"""The figures of the nodes' lives, under Karpenter's names.

For NodeClaim the names and labels are those of Karpenter v1 (``karpenter_nodeclaims_created_total{nodepool=...}``),
for Machine those of its v0.29, which had no ``_total`` and said ``provisioner``. What v0.29 did not have is called as
in v1 for both. What is Karpenter's alone (prices, pods that wait, consolidation) is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
from prometheus_client.core import GaugeMetricFamily, Metric

from kaito_api.core import Node
from kaito_api.karpenter import CAPACITY_TYPE_LABEL, ZONE_LABEL, Machine, NodeClaim, NodeRequest
from kaito_ctrl.runtime import Reader

__all__ = ["DISRUPTIONS", "ClaimMetrics", "Disruption", "GcOutcome"]

Disruption = Literal[
    "launch_timeout", "registration_timeout", "initialization_timeout", "unhealthy", "garbage_collected", "node_deleted"
]
"""Why a claim was deleted that nobody had asked to delete: the deadlines of its stages, its node's health, an instance
that is not there or has failed, a node that somebody has deleted."""
DISRUPTIONS: tuple[Disruption, ...] = get_args(Disruption)
GcOutcome = Literal["done", "held", "refused", "failed"]
"""How a pass of the garbage collection ended: done, as far as the brake lets it, not begun because the inventory and
the cluster contradict each other, or broken off at an error."""

_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5),
    *(1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 150.0, 300.0, 450.0, 600.0),
)
_HOUR, _DAY = 3600.0, 86400.0
_LIFETIMES = (
    *(900.0, 1800.0, _HOUR, 2 * _HOUR, 4 * _HOUR, 8 * _HOUR, 12 * _HOUR),
    *(_DAY, 2 * _DAY, 3 * _DAY, 5 * _DAY, 7 * _DAY, 10 * _DAY, 14 * _DAY, 21 * _DAY, 30 * _DAY, 90 * _DAY),
)
_POOLS: Mapping[type[NodeRequest], str] = {Machine: "default", NodeClaim: "kaito"}
"""What KAITO's own claims say that they were made for."""
_EVICTION_CODES = ("201", "404", "429", "500")


class ClaimMetrics:
    """All of it, for claims of *kind*. One per registry."""

    def __init__(self, kind: type[NodeRequest], registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._kind = kind
        self._pool = "provisioner" if kind is Machine else "nodepool"
        claims = f"karpenter_{kind.plural}"
        self._created = self._old(f"{claims}_created", "Claims created, by reason", "reason", self._pool)
        self._launched = self._old(f"{claims}_launched", "Claims for which an instance was granted", self._pool)
        self._registered = self._old(f"{claims}_registered", "Claims whose node has joined", self._pool)
        self._initialized = self._old(f"{claims}_initialized", "Claims whose node can be used", self._pool)
        ended = ("capacity_type",) if kind is Machine else ("capacity_type", "zone")
        self._terminated = self._old(f"{claims}_terminated", "Claims that have ended", self._pool, *ended)
        self._disrupted = self._old(
            f"{claims}_disrupted", "Claims deleted by the provisioner itself, by reason", "reason", self._pool,
            "capacity_type",
        )  # fmt: skip
        self._unhealthy = self._counter(
            f"{claims}_unhealthy_disrupted_total", "Claims deleted for their node's health, by its condition",
            *("condition", self._pool, "capacity_type", "image_id"),
        )  # fmt: skip
        self._termination_seconds = self._histogram(
            f"{claims}_termination_duration_seconds", "From a claim's deletion to its end", _SECONDS
        )
        self._instance_seconds = self._histogram(
            f"{claims}_instance_termination_duration_seconds",
            "From an instance's deletion until the cloud says that it is gone",
            _SECONDS,
        )
        self._nodes_created = self._old("karpenter_nodes_created", "Nodes that have joined", self._pool)
        self._nodes_terminated = self._old("karpenter_nodes_terminated", "Nodes that have ended", self._pool)
        self._nodes_drained = self._counter("karpenter_nodes_drained_total", "Nodes drained", self._pool)
        self._node_seconds = Summary(
            "karpenter_nodes_termination_duration_seconds",
            "From a node's deletion to its end",
            (self._pool,),
            registry=self.registry,
        )
        self._lifetimes = self._histogram(
            "karpenter_nodes_lifetime_duration_seconds", "Ages at which nodes have ended", _LIFETIMES
        )
        self._evictions = self._counter(
            "karpenter_nodes_eviction_requests_total", "Evictions asked for, by the API server's answer", "code"
        )
        self._pods_drained = self._counter(
            "karpenter_pods_drained_total", "Pods drained off nodes, by reason", "reason"
        )
        self._passes = self._counter("kaito_gc_passes_total", "Passes of the garbage collection, by outcome", "outcome")
        self._leaked = self._counter("kaito_gc_leaked_instances_total", "Instances without a claim that were deleted")
        self._start_at_zero()

    # -- a claim's life ------------------------------------------------------------------------------------------

    def created(self, claim: NodeRequest, reason: str = "provisioned") -> None:
        """Somebody has asked for a node."""
        self._bump(self._created, reason, self._pool_of(claim))

    def launched(self, claim: NodeRequest) -> None:
        """The cloud has granted an instance."""
        self._bump(self._launched, self._pool_of(claim))

    def registered(self, claim: NodeRequest) -> None:
        """Its node has joined."""
        self._bump(self._registered, self._pool_of(claim))
        self._bump(self._nodes_created, self._pool_of(claim))

    def initialized(self, claim: NodeRequest) -> None:
        """Its node can be used."""
        self._bump(self._initialized, self._pool_of(claim))

    def disrupted(self, claim: NodeRequest, reason: Disruption) -> None:
        """We have deleted a claim of our own accord."""
        self._bump(self._disrupted, reason, self._pool_of(claim), _capacity_type(claim))

    def unhealthy(self, claim: NodeRequest, condition: str, image_id: str = "") -> None:
        """That was for its node's *condition*, e.g. ``Ready``; counted as disrupted, too."""
        self.disrupted(claim, "unhealthy")
        self._unhealthy.labels(_snake(condition), self._pool_of(claim), _capacity_type(claim), image_id).inc()

    # -- its end -------------------------------------------------------------------------------------------------

    def terminated(self, claim: NodeRequest, now: datetime) -> None:
        """A claim was let go, all of it being gone."""
        pool = self._pool_of(claim)
        zone = () if self._kind is Machine else (claim.metadata.labels.get(ZONE_LABEL, ""),)
        self._bump(self._terminated, pool, _capacity_type(claim), *zone)
        if claim.metadata.deletion_timestamp is not None:
            self._termination_seconds.labels(pool).observe(_since(claim.metadata.deletion_timestamp, now))

    def instance_terminated(self, claim: NodeRequest, seconds: float) -> None:
        """The cloud says that the instance is gone, *seconds* after it was asked to delete it."""
        self._instance_seconds.labels(self._pool_of(claim)).observe(max(seconds, 0.0))

    def node_drained(self, claim: NodeRequest) -> None:
        """No pod that has to be waited for is left on its node. To be told once."""
        self._nodes_drained.labels(self._pool_of(claim)).inc()

    def node_terminated(self, claim: NodeRequest, node: Node, now: datetime) -> None:
        """Its node was let go. *node* as it was last."""
        pool = self._pool_of(claim)
        self._bump(self._nodes_terminated, pool)
        if node.metadata.deletion_timestamp is not None:
            self._node_seconds.labels(pool).observe(_since(node.metadata.deletion_timestamp, now))
        if node.metadata.creation_timestamp is not None:
            self._lifetimes.labels(pool).observe(_since(node.metadata.creation_timestamp, now))

    def evicted(self, code: int) -> None:
        """An eviction was answered with that HTTP status."""
        self._evictions.labels(str(code)).inc()

    def pod_drained(self, reason: str = "Forceful Termination") -> None:
        """A pod was evicted, or deleted, off a node that is ending."""
        self._pods_drained.labels(reason).inc()

    # -- garbage collection --------------------------------------------------------------------------------------

    def collected(self, outcome: GcOutcome) -> None:
        """A pass has ended."""
        self._passes.labels(outcome).inc()

    def leaked(self) -> None:
        """An instance without a claim was deleted."""
        self._leaked.inc()

    # -- what there is -------------------------------------------------------------------------------------------

    def count_conditions(self, cache: Reader) -> None:
        """Have whoever scrapes see every claim's conditions, read off *cache* then: ``operator_status_condition_count``
        as Karpenter's operator library has it."""
        self.registry.register(_Conditions(self._kind, cache))

    # -- inside --------------------------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _old(self, name: str, text: str, *labels: str) -> Counter | Gauge:
        """A counter, by the name that it had in the days of *kind*."""
        if self._kind is Machine:
            # The client's counters cannot but end in _total.
            return Gauge(name, text, labels, registry=self.registry)
        return self._counter(f"{name}_total", text, *labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, (self._pool,), buckets=buckets, registry=self.registry)

    @staticmethod
    def _bump(metric: Counter | Gauge, *labels: str) -> None:
        metric.labels(*labels).inc()

    def _pool_of(self, claim: NodeRequest) -> str:
        return claim.metadata.labels.get(claim.pool_label, "")

    def _start_at_zero(self) -> None:
        """Whatever is known before anything happens, so that rates and alerts work from the first time on."""
        pool = _POOLS[self._kind]
        for code in _EVICTION_CODES:
            self._evictions.labels(code)
        for outcome in get_args(GcOutcome):
            self._passes.labels(outcome)
        for reason in DISRUPTIONS:
            self._disrupted.labels(reason, pool, "on-demand")
        for metric in (self._launched, self._registered, self._initialized, self._nodes_created):
            metric.labels(pool)
        for histogram in (self._termination_seconds, self._instance_seconds, self._lifetimes):
            histogram.labels(pool)


class _Conditions:
    """A collector of what the claims in a cache say."""

    def __init__(self, kind: type[NodeRequest], cache: Reader) -> None:
        self._kind = kind
        self._cache = cache

    def describe(self) -> Iterable[Metric]:
        return (self._family(),)

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for claim in self._cache.list(self._kind):
            for each in claim.status.conditions:
                where = (self._kind.group, self._kind.kind, "", claim.name)
                family.add_metric((*where, each.type, each.status, each.reason), 1.0)
        return (family,)

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "operator_status_condition_count",
            "Conditions of objects, by type and status",
            labels=("group", "kind", "namespace", "name", "type", "status", "reason"),
        )


def _capacity_type(claim: NodeRequest) -> str:
    return claim.metadata.labels.get(CAPACITY_TYPE_LABEL, "")


def _since(moment: datetime, now: datetime) -> float:
    # The API server's clock and ours differ.
    return max((now - moment).total_seconds(), 0.0)


def _snake(word: str) -> str:
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in word).lstrip("_")
