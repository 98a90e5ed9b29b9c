"""Events: one storage, two spellings (``v1`` and ``events.k8s.io/v1``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.kinds import Strategy
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["EventStrategy", "EventsV1Strategy", "event_fields", "events_v1_from_core", "events_v1_to_core"]


class EventStrategy(Strategy):
    """``v1 Event``."""

    generation = False
    create_on_update = True

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        namespace = obj["metadata"].get("namespace")
        about = (obj.get("involvedObject") or {}).get("namespace") or ""
        if about and about != namespace:
            yield FieldError.invalid("involvedObject.namespace", about, "does not match event.namespace")


class EventsV1Strategy(EventStrategy):
    """``events.k8s.io/v1 Event``: what was optional in the core group is required here."""

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        namespace = obj["metadata"].get("namespace")
        about = (obj.get("regarding") or {}).get("namespace") or ""
        if about != namespace and not (namespace == "default" and not about):
            yield FieldError.invalid("involvedObject.namespace", about, "does not match event.namespace")
        if not obj.get("eventTime"):
            yield FieldError.required("eventTime")
            return
        for key in ("reportingController", "reportingInstance", "action", "reason"):
            if not obj.get(key):
                yield FieldError.required(key)
        if obj.get("type") not in {"Normal", "Warning"}:
            yield FieldError.invalid("type", obj.get("type") or "", f"has invalid value: {obj.get('type') or ''}")


_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}
_EVENT_NAMES_BACK = {new: old for old, new in _EVENT_NAMES.items()}


def events_v1_from_core(obj: Obj) -> Obj:
    """``v1 Event`` as ``events.k8s.io/v1`` shows it."""
    return {**{_EVENT_NAMES.get(key, key): value for key, value in obj.items()}, "apiVersion": "events.k8s.io/v1"}


def events_v1_to_core(obj: Obj) -> Obj:
    """The other way."""
    return {**{_EVENT_NAMES_BACK.get(key, key): value for key, value in obj.items()}, "apiVersion": "v1"}


def event_fields(obj: Mapping[str, Any]) -> dict[str, str]:
    """The field selectors of events, under the names of both groups."""
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    metadata = obj["metadata"]
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    fields = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata.get("namespace", ""),
        "reason": obj.get("reason", ""),
        "type": obj.get("type", ""),
        "source": source.get("component", "") or obj.get("reportingComponent", ""),
        "reportingComponent": obj.get("reportingComponent") or obj.get("reportingController") or "",
    }
    for key in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"):
        fields[f"involvedObject.{key}"] = fields[f"regarding.{key}"] = about.get(key, "")
    return fields
