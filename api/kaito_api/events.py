"""``events.k8s.io/v1``: what happened to an object, for ``kubectl describe`` and ``kubectl get events``.

The server requires ``eventTime``, ``reportingController``, ``reportingInstance``, ``action``, ``reason`` and ``type``,
and lets nothing but ``series`` change afterwards.
"""

from __future__ import annotations

from typing import Literal

from kaito_api.meta import MicroTime, Model, Resource, Time

__all__ = ["Event", "EventSeries", "EventType", "ObjectReference"]

EventType = Literal["Normal", "Warning"]


class ObjectReference(Model):
    """``corev1.ObjectReference``: an object of any kind; cluster-scoped ones have no namespace."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    field_path: str = ""

    @classmethod
    def of(cls, obj: Resource) -> ObjectReference:
        """The reference to *obj*, whichever version of it; its namespace only if it has one."""
        place = {"namespace": obj.namespace} if obj.namespace else {}
        return cls(api_version=obj.api_version(), kind=obj.kind, name=obj.name, uid=obj.uid, **place)


class EventSeries(Model):
    """The same event, seen ``count`` times (two at least) up to ``last_observed_time``."""

    count: int
    last_observed_time: MicroTime


class Event(Resource):
    """``events.k8s.io/v1 Event``. ``note`` holds 1,024 bytes at most, ``reporting_instance`` 128."""

    group, version, kind, plural = "events.k8s.io", "v1", "Event", "events"

    event_time: MicroTime | None = None
    regarding: ObjectReference = ObjectReference()
    related: ObjectReference | None = None
    reason: str = ""
    action: str = ""
    note: str = ""
    type: EventType = "Normal"
    reporting_controller: str = ""
    reporting_instance: str = ""
    series: EventSeries | None = None
    deprecated_first_timestamp: Time | None = None
    """Where recorders of the older kind say when it happened, and how often; they leave ``eventTime`` empty."""
    deprecated_last_timestamp: Time | None = None
    deprecated_count: int = 0
