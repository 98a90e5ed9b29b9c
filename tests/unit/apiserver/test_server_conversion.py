"""Versions of custom kinds: what only the embedded server, and the components that live in it, can be asked."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from apihelpers import CM, CRDS, Api, Obj, SteppingClock, config_map, fails

from kaito_api.core import ConfigMap
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.apiserver.webhook_client import WebhookError
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.errors import Conflict

V1, V2 = (f"/apis/example.com/{version}/namespaces/default/routes" for version in ("v1", "v2"))


class InProcess:
    """Answers reviews without a network, and remembers where they were sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, float]] = []
        self.convert: Callable[[Obj], Obj] = lambda obj: obj

    async def post(
        self, url: str, review: Mapping[str, Any], *, ca_bundle: str, server_name: str, timeout: float
    ) -> Obj:
        self.sent.append((url, server_name, timeout))
        request = review["request"]
        objects = [
            {**self.convert(copy.deepcopy(obj)), "apiVersion": request["desiredAPIVersion"]}
            for obj in request["objects"]
        ]
        response = {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}
        return {"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response}

    async def aclose(self) -> None:
        pass


def definition(**served: bool) -> Obj:
    """Routes, converted by a service's webhook; v1 is what is stored."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    service = {"namespace": "default", "name": "converter", "path": "/convert"}
    webhook = {"clientConfig": {"service": service}, "conversionReviewVersions": ["v1"]}
    versions = [
        {
            "name": name,
            "served": served.get(name, True),
            "storage": name == "v1",
            "schema": {"openAPIV3Schema": schema},
        }
        for name in ("v1", "v2")
    ]
    return {
        "metadata": {"name": "routes.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"kind": "Route", "plural": "routes"},
            "versions": versions,
            "conversion": {"strategy": "Webhook", "webhook": webhook},
        },
    }


def route(version: str, name: str = "r", **metadata: Any) -> Obj:
    return {"apiVersion": f"example.com/{version}", "kind": "Route", "metadata": {"name": name, **metadata}}


@pytest.fixture
async def converter() -> InProcess:
    return InProcess()


@pytest.fixture
async def api(clock: SteppingClock, converter: InProcess) -> AsyncIterator[Api]:
    server = ApiServer(clock=clock, rng=random.Random(7), webhooks=converter)
    yield Api(server, clock)
    await server.aclose()


async def test_a_service_is_called_where_it_answers(api: Api, converter: InProcess) -> None:
    await api.post(CRDS, definition())
    await api.post(V1, route("v1"))
    with fails(500) as caught:
        await api.get(f"{V2}/r")
    assert 'https://converter.default.svc:443/convert?timeout=30s": service "converter" not found' in (
        caught.value.message
    )
    api.server.resolve_service(lambda namespace, name, port: f"https://127.0.0.1:9{port}")
    await api.get(f"{V2}/r")
    assert converter.sent == [("https://127.0.0.1:9443/convert?timeout=30s", "converter.default.svc", 30)]


async def test_an_object_is_converted_once_for_every_reader(api: Api, converter: InProcess) -> None:
    api.server.resolve_service(lambda namespace, name, port: "https://here")
    await api.post(CRDS, definition())
    for name in "abc":
        await api.post(V1, route("v1", name))
    for _ in range(3):
        assert len((await api.get(V2))["items"]) == 3
    assert len(converter.sent) == 1
    await api.merge(f"{V1}/a", {"spec": {"x": 1}})
    await api.get(V2)
    assert len(converter.sent) == 2


async def test_a_watch_that_cannot_convert_says_so_and_ends(api: Api, converter: InProcess) -> None:
    api.server.resolve_service(lambda namespace, name, port: "https://here")
    await api.post(CRDS, definition())
    async with api.watch(V2, resourceVersion=api.server.store.rv) as watch:

        def broken(obj: Obj) -> Obj:
            raise WebhookError("no")

        converter.convert = broken
        await api.post(V1, route("v1"))
        event = await watch.event()
        assert event["type"] == "ERROR"
        assert event["object"]["message"] == "conversion webhook for example.com/v1, Kind=Route failed: no"
        assert await watch.ended()


async def test_garbage_is_collected_when_the_stored_version_is_not_served(api: Api) -> None:
    api.server.resolve_service(lambda namespace, name, port: "https://here")
    await api.post(CRDS, definition(v1=False))
    async with asyncio.TaskGroup() as tasks:
        collecting = tasks.create_task(GarbageCollector(api.server).run())
        owner = await api.post(CM, config_map("owner"))
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
        async with api.watch(V2, resourceVersion=api.server.store.rv) as watch:
            await api.post(V2, route("v2", ownerReferences=[reference]))
            await api.delete(f"{CM}/owner")
            while (await watch.event())["type"] != "DELETED":
                pass
        collecting.cancel()


async def test_a_patch_for_another_uid_is_a_conflict_to_the_runtime(api: Api) -> None:
    await api.post(CM, config_map())
    client = Client(api.server.transport())
    with pytest.raises(Conflict):
        await client.patch(ConfigMap, ObjectKey("default", "a"), {"metadata": {"uid": "other"}})
