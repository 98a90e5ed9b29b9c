"""What the caches of a process hold and what their watches go through, as metrics: what controller-runtime lacks.

Every series has a label ``cluster``, empty unless the cluster has a name, so that several clusters share a registry.
What can be counted when somebody asks is counted then, over the caches that are alive: nothing is kept alive by its
metrics, and nothing is paid between two scrapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["CacheSeries", "Census", "KindSeries"]

_EVENTS = ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")
_ENDS = ("closed", "broken", "silence", "refused", "error")
_LABELS = ("cluster", "kind")


@dataclass(frozen=True, slots=True)
class Census:
    """What a cache says of one kind. ``age`` is how many seconds ago its servers were last heard of."""

    cluster: str
    kind: str
    objects: int
    bytes: int
    undecodable: int
    unreadable: int
    age: float | None


class _Counted(Protocol):
    def census(self) -> Iterable[Census]: ...


class CacheSeries:
    """The series of all caches of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kaito_ctrl_{name}", text, (*_LABELS, *labels), registry=registry)

        self.events = counter("watch_events_total", "Events of watches, by type", "type")
        self.restarts = counter("watch_restarts_total", "Ends of watches that others followed, by reason", "reason")
        self.relists = counter("relists_total", "How often the full content was asked for again")
        self.ryw_waits = counter("ryw_waits_total", "Live reads to find out what became of a write without an answer")
        self.ryw_seconds = counter("ryw_waits_seconds_total", "Seconds spent on these reads")
        self._caches: WeakSet[_Counted] = WeakSet()
        registry.register(self)

    def add(self, cache: _Counted) -> None:
        """Count *cache* from now on, for as long as it exists."""
        self._caches.add(cache)

    def kind(self, kind: str, cluster: str = "") -> KindSeries:
        """The series of one kind of one cluster, all present at zero."""
        return KindSeries(self, (cluster, kind))

    def collect(self) -> Iterable[Metric]:
        """For the registry: what there is now."""
        found: dict[tuple[str, str], list[Census]] = defaultdict(list)
        for cache in self._caches:
            for each in cache.census():
                found[each.cluster, each.kind].append(each)
        gauges = {
            name: GaugeMetricFamily(f"kaito_ctrl_{name}", text, labels=_LABELS)
            for name, text in (
                ("cache_objects", "Cached objects"),
                ("cache_bytes", "Bytes that are kept of cached objects"),
                ("undecodable_objects", "Cached objects that do not fit their model, as far as read"),
                ("last_frame_age_seconds", "Since the server last sent anything on the quietest watch"),
            )
        }
        unreadable = CounterMetricFamily(
            "kaito_ctrl_unreadable", "Events and items that are no objects with metadata", labels=_LABELS
        )
        for labels, several in sorted(found.items()):
            gauges["cache_objects"].add_metric(labels, sum(each.objects for each in several))
            gauges["cache_bytes"].add_metric(labels, sum(each.bytes for each in several))
            gauges["undecodable_objects"].add_metric(labels, sum(each.undecodable for each in several))
            unreadable.add_metric(labels, sum(each.unreadable for each in several))
            ages = [each.age for each in several if each.age is not None]
            if ages:
                gauges["last_frame_age_seconds"].add_metric(labels, max(ages))
        return (*gauges.values(), unreadable)


class KindSeries:
    """Implements :class:`~kaito_ctrl.runtime.watch.WatchMetrics`, without a look-up of labels in the hot path."""

    def __init__(self, series: CacheSeries, labels: tuple[str, str]) -> None:
        self._events = {each: series.events.labels(*labels, each) for each in (*_EVENTS, "other")}
        self._restarts = {each: series.restarts.labels(*labels, each) for each in _ENDS}
        self._relists = series.relists.labels(*labels)
        self._ryw_waits = series.ryw_waits.labels(*labels)
        self._ryw_seconds = series.ryw_seconds.labels(*labels)

    def event(self, type: str) -> None:  # noqa: A002
        # A type that nobody has defined yet is whatever a server says it is, and labels have to be few.
        self._events[type if type in _EVENTS else "other"].inc()

    def restarted(self, reason: str) -> None:
        self._restarts[reason].inc()

    def relisted(self) -> None:
        self._relists.inc()

    def looked_up(self, seconds: float) -> None:
        """A live read settled a doubt, or failed to."""
        self._ryw_waits.inc()
        self._ryw_seconds.inc(seconds)
