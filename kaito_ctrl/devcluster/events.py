"""Events, for ``kubectl describe`` and ``kubectl get events``: what happened to an object, and how often.

An event's name is a hash of what it says, so that the same one again is counted instead of repeated. Events are a
courtesy: failing to write one never fails what it tells of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import structlog

from kaito_api.meta import ObjectMeta, Resource, Time
from kaito_ctrl.devcluster.kinds import safe_hash
from kaito_ctrl.runtime import Client, key_of
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import AlreadyExists, KubeError

__all__ = ["Event", "EventType", "record"]

EventType = Literal["Normal", "Warning"]


class Event(Resource):
    """``v1 Event``."""

    group, version, kind, plural = "", "v1", "Event", "events"

    involved_object: Mapping[str, Any] = {}
    reason: str = ""
    message: str = ""
    type: EventType = "Normal"
    source: Mapping[str, str] = {}
    reporting_component: str = ""
    first_timestamp: Time | None = None
    last_timestamp: Time | None = None
    count: int = 1


async def record(
    client: Client,
    clock: Clock,
    about: Resource,
    reason: str,
    message: str,
    *,
    type: EventType = "Normal",  # noqa: A002 - the field's own name
    component: str = "",
) -> None:
    """Write, or count, an event about an object; *component* says who saw it (default: the client's field manager)."""
    component = component or client.field_manager
    now = clock.now().replace(microsecond=0)
    digest = safe_hash([about.uid, component, type, reason, message], 12)
    event = Event(
        metadata=ObjectMeta(name=f"{about.name}.{digest}", namespace=about.namespace or "default"),
        involved_object={
            "apiVersion": about.api_version(),
            "kind": about.kind,
            "name": about.name,
            "uid": about.uid,
            **({"namespace": about.namespace} if about.namespace else {}),
        },
        reason=reason,
        message=message,
        type=type,
        source={"component": component},
        reporting_component=component,
        first_timestamp=now,
        last_timestamp=now,
        count=1,
    )
    key = key_of(event)
    try:
        try:
            await client.create(event)
        except AlreadyExists:
            known = await client.get(Event, key.name, key.namespace)
            await client.patch(
                Event, key, {"count": known.count + 1, "lastTimestamp": event.to_wire()["lastTimestamp"]}
            )
    except KubeError as error:
        structlog.get_logger("kaito_ctrl").debug("event not written", reason=reason, about=str(about), error=str(error))
