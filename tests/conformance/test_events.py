"""Events as the recorder writes them: servers take them, and show them in both spellings."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kaito_api.core import ConfigMap, Namespace
from kaito_api.events import Event
from kaito_ctrl.runtime import Client, Metrics
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.events import EventRecorder, EventSink
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.metrics import EVENT_DROPS
from tests.conformance.objects import config_map
from tests.conformance.wire import Api, Obj


@asynccontextmanager
async def recording(api: Api) -> AsyncIterator[EventSink]:
    """Everything is written, and nothing was refused, at the end of the block."""
    metrics = Metrics()
    recorder = EventRecorder(
        Client(api.target.transport), clock=SystemClock(), rng=random.Random(api.namespace), instance="h" * 200,
        metrics=metrics,
    )  # fmt: skip
    lifetime = Lifetime()
    async with asyncio.TaskGroup() as group:
        group.create_task(recorder.run(lifetime))
        yield recorder.named("conformance.kaito.sh/tester")
        lifetime.stop()
    for reason in EVENT_DROPS:
        assert metrics.registry.get_sample_value("kaito_ctrl_events_dropped_total", {"reason": reason}) == 0, reason


async def made(api: Api) -> ConfigMap:
    return ConfigMap.model_validate(await api.post(api.at("configmaps"), config_map()))


async def core_events(api: Api, obj: ConfigMap) -> list[Obj]:
    """What ``kubectl describe`` asks for."""
    fields = f"involvedObject.name={obj.name},involvedObject.namespace={obj.namespace},involvedObject.uid={obj.uid}"
    found = await api.get(api.at("events"), fieldSelector=fields)
    items: list[Obj] = found["items"]
    return items


async def test_an_event_is_found_as_kubectl_looks_for_it(api: Api) -> None:
    obj = await made(api)
    async with recording(api) as events:
        events.warning(obj, "Broken", "It is broken", action="Mend", related=obj)
    (event,) = await core_events(api, obj)
    assert (event["reason"], event["message"], event["type"], event["action"]) == (
        "Broken", "It is broken", "Warning", "Mend",
    )  # fmt: skip
    assert event["reportingComponent"] == "conformance.kaito.sh/tester"
    assert len(event["reportingInstance"]) == 128
    assert event["involvedObject"]["kind"] == "ConfigMap"
    assert event["related"]["uid"] == obj.uid
    assert event.get("firstTimestamp") is None
    assert event["eventTime"] is not None


async def test_a_series_is_counted_in_place(api: Api) -> None:
    obj = await made(api)
    async with recording(api) as events:
        events.normal(obj, "Seen", "It was seen")
        async with asyncio.timeout(10):
            while not await core_events(api, obj):
                await asyncio.sleep(0.02)
        for _ in range(4):
            events.normal(obj, "Seen", "It was seen")
    (event,) = await core_events(api, obj)
    assert event["series"]["count"] == 5
    typed = Event.model_validate(await api.get(api.at("events.k8s.io/v1/events", event["metadata"]["name"])))
    assert typed.series is not None
    assert typed.event_time is not None
    assert typed.series.last_observed_time >= typed.event_time


async def test_events_of_what_has_no_namespace_are_in_default_or_where_an_old_server_wants_them(api: Api) -> None:
    space = Namespace.model_validate(await api.get(api.cluster("namespaces", api.namespace)))
    async with recording(api) as events:
        events.normal(space, "Opened", "It is open")
    (event,) = (await api.get("/api/v1/events", fieldSelector=f"involvedObject.uid={space.uid}"))["items"]
    assert event["reason"] == "Opened"
    assert event["metadata"]["namespace"] == ("default" if api.version > (1, 20) else "kube-system")


@pytest.mark.parametrize("note", ["x" * 5000, "é" * 1000, "", "two\nlines"])
async def test_any_note_is_taken(api: Api, note: str) -> None:
    obj = await made(api)
    async with recording(api) as events:
        events.normal(obj, "R" * 300, note, action="A" * 300)
    (event,) = await core_events(api, obj)
    assert event.get("message", "")[:100] == note[:100]
