"""Prometheus metrics under the names that controller-runtime and client-go gave them, in a registry of the caller's.

Every series of a controller exists from its first scrape, at zero, so that rates and alerts work from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from kaito_ctrl.runtime.cachemetrics import CacheSeries

__all__ = ["ControllerMetrics", "Metrics", "WebhookMetrics", "WorkqueueMetrics"]

_RECONCILE_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5),
    *(1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0),
)
_HINT_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_PAUSE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_QUEUE_SECONDS = tuple(10.0**exponent for exponent in range(-8, 4))
EVENT_DROPS = ("queue_full", "rate_limited", "refused", "gave_up", "failed", "shutdown")
RESULTS = ("success", "requeue", "requeue_after", "error", "cancelled")


class Metrics:
    """All the runtime's metrics. One per process and registry; cheap to hand around."""

    def __init__(self, registry: CollectorRegistry | None = None, *, host: str = "") -> None:
        self.registry = registry or CollectorRegistry()
        self._host = host

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

        prefix = "controller_runtime"
        self.reconciles = counter(f"{prefix}_reconcile_total", "Reconciliations by result", "controller", "result")
        self.errors = counter(f"{prefix}_reconcile_errors_total", "Failed reconciliations", "controller")
        self.terminal = counter(
            f"{prefix}_terminal_reconcile_errors_total", "Reconciliations that failed for good", "controller"
        )
        self.timeouts = counter(f"{prefix}_reconcile_timeouts_total", "Reconciliations out of time", "controller")
        self.panics = counter(
            f"{prefix}_reconcile_panics_total", "Always zero: an exception is an error here", "controller"
        )
        self.hint_seconds = histogram(
            "kaito_ctrl_event_to_reconcile_seconds",
            "From a change seen by a watch to the reconcile that it leads to",
            _HINT_SECONDS,
            "controller",
        )
        self.ignored = counter(
            "kaito_ctrl_cancelled_ignored_total", "Reconciles that went on after they were cancelled", "controller"
        )
        self.seconds = histogram(
            f"{prefix}_reconcile_time_seconds", "Length of a reconciliation", _RECONCILE_SECONDS, "controller"
        )
        self.workers = gauge(f"{prefix}_max_concurrent_reconciles", "Reconciliations allowed at once", "controller")
        self.active = gauge(f"{prefix}_active_workers", "Reconciliations running", "controller")
        self.depth = gauge("workqueue_depth", "Keys ready to be worked on", "name", "controller")
        self.adds = counter("workqueue_adds_total", "Keys added", "name", "controller")
        self.retries = counter("workqueue_retries_total", "Keys added again after a failure", "name", "controller")
        self.queued = histogram(
            "workqueue_queue_duration_seconds", "From ready to being worked on", _QUEUE_SECONDS, "name", "controller"
        )
        self.worked = histogram(
            "workqueue_work_duration_seconds", "Being worked on", _QUEUE_SECONDS, "name", "controller"
        )
        self.unfinished = gauge(
            "workqueue_unfinished_work_seconds", "Being worked on so far, of all keys together", "name", "controller"
        )
        self.longest = gauge(
            "workqueue_longest_running_processor_seconds", "Being worked on so far, at most", "name", "controller"
        )
        self.lag = histogram(
            "kaito_ctrl_loop_lag_seconds", "How much later than asked for the event loop wakes up", _PAUSE_SECONDS
        )
        self.gc_pause = histogram(
            "kaito_ctrl_gc_pause_seconds", "For how long the garbage collector stopped everything", _PAUSE_SECONDS,
            "generation",
        )  # fmt: skip
        self.requests = counter("rest_client_requests_total", "API requests", "code", "method", "host")
        self.request_seconds = histogram(
            "rest_client_request_duration_seconds",
            "Length of an API request",
            (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0),
            "verb",
            "host",
        )
        self.caches = CacheSeries(self.registry)
        self.leading = gauge("leader_election_master_status", "Whether this process leads", "name")
        self.slow_renewals = counter(
            "leader_election_slowpath_total", "Renewals for which the lease had to be read again", "name"
        )
        self.webhook_requests = counter(
            f"{prefix}_webhook_requests_total", "Webhook requests answered, by HTTP status", "webhook", "code"
        )
        self.webhook_seconds = histogram(
            f"{prefix}_webhook_latency_seconds", "Length of a webhook request", Histogram.DEFAULT_BUCKETS, "webhook"
        )
        self.webhook_in_flight = gauge(
            f"{prefix}_webhook_requests_in_flight", "Webhook requests being answered", "webhook"
        )
        self.webhook_panics = counter(f"{prefix}_webhook_panics_total", "Admission handlers that failed")
        self.conversion_panics = counter(f"{prefix}_conversion_webhook_panics_total", "Conversions that failed")
        self.events_written = counter("kaito_ctrl_events_written_total", "Events and series written")
        self.events_dropped = counter("kaito_ctrl_events_dropped_total", "Events given up, by reason", "reason")
        for reason in EVENT_DROPS:
            self.events_dropped.labels(reason)

    def request(self, method: str, code: str, seconds: float) -> None:
        """One API request, for ``client.RequestMetrics``."""
        self.requests.labels(code, method, self._host).inc()
        self.request_seconds.labels(method, self._host).observe(seconds)

    def event_written(self) -> None:
        """One event, or the new count of a series, for ``events.EventMetrics``."""
        self.events_written.inc()

    def event_dropped(self, reason: str) -> None:
        """An event that will not be written."""
        self.events_dropped.labels(reason).inc()

    def add_process(self) -> None:
        """What every Prometheus client says of its process: CPU, memory, open files, the interpreter, its collector."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def webhook(self, path: str) -> WebhookMetrics:
        """The series of one webhook, all present at zero."""
        return WebhookMetrics(self, path)

    def controller(self, name: str, workers: int) -> ControllerMetrics:
        """The series of one controller, all present at zero."""
        return ControllerMetrics(self, name, workers)


class ControllerMetrics:
    """Bound children of :class:`Metrics` for one controller: no label look-up in the hot path."""

    def __init__(self, metrics: Metrics, name: str, workers: int) -> None:
        self.results = {result: metrics.reconciles.labels(name, result) for result in RESULTS}
        self.errors = metrics.errors.labels(name)
        self.terminal = metrics.terminal.labels(name)
        self.timeouts = metrics.timeouts.labels(name)
        self.seconds = metrics.seconds.labels(name)
        self.active = metrics.active.labels(name)
        self.hint_seconds = metrics.hint_seconds.labels(name)
        self.ignored = metrics.ignored.labels(name)
        metrics.panics.labels(name)
        metrics.workers.labels(name).set(workers)
        self.queue = WorkqueueMetrics(metrics, name)


class WebhookMetrics:
    """Bound children of :class:`Metrics` for one webhook."""

    def __init__(self, metrics: Metrics, path: str) -> None:
        self._requests = partial(metrics.webhook_requests.labels, path)
        self._seconds = metrics.webhook_seconds.labels(path)
        self.in_flight = metrics.webhook_in_flight.labels(path)
        for code in ("200", "500"):
            self._requests(code)

    def answered(self, code: int, seconds: float) -> None:
        """A request was answered with that HTTP status, or not any more."""
        self._requests(str(code)).inc()
        self._seconds.observe(seconds)


class WorkqueueMetrics:
    """Implements ``queue.QueueMetrics``."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._adds = metrics.adds.labels(name, name)
        self._retries = metrics.retries.labels(name, name)
        self._depth = metrics.depth.labels(name, name)
        self._queued = metrics.queued.labels(name, name)
        self._worked = metrics.worked.labels(name, name)
        self._unfinished = metrics.unfinished.labels(name, name)
        self._longest = metrics.longest.labels(name, name)

    def look_at(self, ages: Callable[[], Iterable[float]], depth: Callable[[], int]) -> None:
        """Have whoever scrapes ask *ages* for how long each key has been worked on, and *depth* how many are ready."""
        self._depth.set_function(depth)
        self._unfinished.set_function(lambda: sum(ages()))
        self._longest.set_function(lambda: max(ages(), default=0.0))

    def added(self) -> None:
        self._adds.inc()

    def retried(self) -> None:
        self._retries.inc()

    def queued_for(self, seconds: float) -> None:
        self._queued.observe(seconds)

    def worked_for(self, seconds: float) -> None:
        self._worked.observe(seconds)
