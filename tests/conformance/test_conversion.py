"""Custom kinds in several versions: renamed only, or converted by a webhook, and what happens when that fails."""

from __future__ import annotations

import base64
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from aiohttp import web

from kaito_ctrl.runtime.certs import CertificateAuthority
from tests.conformance.objects import crd
from tests.conformance.wire import Api, Obj, fails

CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"


def _port_to_address(obj: Obj) -> Obj:
    spec = obj.setdefault("spec", {})
    spec["address"] = f"{spec.pop('host', '')}:{spec.pop('port', 0)}"
    return obj


def _address_to_port(obj: Obj) -> Obj:
    spec = obj.setdefault("spec", {})
    host, _, port = spec.pop("address", "").partition(":")
    spec |= {"host": host, "port": int(port or 0)}
    return obj


class Converter:
    """A conversion webhook: v1 has an address, v2 a host and a port. ``answer`` replaces what it says."""

    def __init__(self, ca: bytes) -> None:
        self.url = ""
        self.ca_bundle = base64.b64encode(ca).decode()
        self.asked: list[Obj] = []
        self.answer: Callable[[Obj], Obj] = self.converted

    @staticmethod
    def converted(request: Obj) -> Obj:
        objects = []
        for obj in copy.deepcopy(request["objects"]):
            if obj["apiVersion"] != request["desiredAPIVersion"]:
                obj = _address_to_port(obj) if obj["apiVersion"].endswith("/v1") else _port_to_address(obj)
                obj["apiVersion"] = request["desiredAPIVersion"]
            objects.append(obj)
        return {"result": {"status": "Success"}, "convertedObjects": objects}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        review = msgspec.json.decode(await request.read())
        self.asked.append(review)
        asked = review.pop("request")
        response = web.json_response({**review, "response": {"uid": asked["uid"], **self.answer(asked)}})
        response.force_close()  # a connection that is kept outlives the server by one more answer
        return response

    @property
    def strategy(self) -> Obj:
        config = {"url": f"{self.url}/convert", "caBundle": self.ca_bundle}
        return {"strategy": "Webhook", "webhook": {"clientConfig": config, "conversionReviewVersions": ["v1"]}}


@asynccontextmanager
async def serving() -> AsyncIterator[Converter]:
    now = datetime.now(UTC)
    authority = CertificateAuthority("conformance conversion", now=now)
    converter = Converter(authority.pem)
    runner = web.ServerRunner(web.Server(converter.handle), shutdown_timeout=1.0)
    await runner.setup()
    context = authority.issue(["127.0.0.1"], now=now).server_context()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        converter.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        yield converter
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
async def _readable(api: Api, unique: str) -> AsyncIterator[None]:
    """What cannot be converted any more keeps a real garbage collector from working, for every case to come."""
    yield
    path = api.cluster(CRDS, f"routes.{unique}.kaito.sh")
    if not await api.missing(path):
        await api.merge(path, {"spec": {"conversion": {"strategy": "None", "webhook": None}}})


@pytest.fixture
async def converter() -> AsyncIterator[Converter]:
    async with serving() as found:
        yield found


def _schema(**spec: Obj) -> Obj:
    status = {"type": "object", "properties": {"replicas": {"type": "integer"}}}
    parts = {"replicas": {"type": "integer"}, **spec}
    return {"type": "object", "properties": {"spec": {"type": "object", "properties": parts}, "status": status}}


def definition(group: str, conversion: Obj | None = None, *, storage: str = "v1") -> Obj:
    """Routes in v1 and v2."""
    text, number = {"type": "string"}, {"type": "integer"}
    scale = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    made = crd("routes", "Route", {}, group=f"{group}.kaito.sh")
    made["spec"]["versions"] = [
        {
            "name": name,
            "served": True,
            "storage": name == storage,
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": scale},
        }
        for name, schema in (
            ("v1", _schema(address=text, old=text)),
            ("v2", _schema(host=text, port=number, new={"type": "string", "default": "fresh"})),
        )
    ]
    if conversion is not None:
        made["spec"]["conversion"] = conversion
    return made


class Routes:
    """The kind of one case, in both versions."""

    def __init__(self, api: Api, group: str) -> None:
        self.api = api
        self.group = f"{group}.kaito.sh"

    def at(self, version: str, name: str = "", sub: str = "") -> str:
        return self.api.at(f"{self.group}/{version}/routes", name, sub)

    def route(self, version: str, name: str = "r", /, **spec: Any) -> Obj:
        return {"apiVersion": f"{self.group}/{version}", "kind": "Route", "metadata": {"name": name}, "spec": spec}


async def served(api: Api, group: str, conversion: Obj | None = None, **options: Any) -> Routes:
    await api.define(definition(group, conversion, **options))
    routes = Routes(api, group)
    await api.eventually(lambda: _served(api, routes))
    return routes


async def _served(api: Api, routes: Routes) -> bool:
    return not await api.missing(routes.at("v2")) and not await api.missing(routes.at("v1"))


async def test_without_a_webhook_only_the_version_changes(api: Api, unique: str) -> None:
    routes = await served(api, unique)
    made = await api.post(routes.at("v1"), routes.route("v1", address="h:1", replicas=3))
    shown = await api.get(routes.at("v2", "r"))
    assert shown["apiVersion"] == f"{routes.group}/v2"
    assert shown["spec"]["replicas"] == 3
    assert "address" not in shown["spec"]
    assert shown["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert shown["metadata"]["generation"] == 1
    items = (await api.get(routes.at("v2")))["items"]
    assert [item["apiVersion"] for item in items] == [f"{routes.group}/v2"]


async def test_what_the_stored_version_does_not_know_is_lost(api: Api, unique: str) -> None:
    routes = await served(api, unique)
    await api.post(routes.at("v2"), routes.route("v2", host="h", replicas=3))
    shown = await api.get(routes.at("v2", "r"))
    assert shown["spec"]["replicas"] == 3
    assert "host" not in shown["spec"]


async def test_a_webhook_converts_on_the_way_in_and_out(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    made = await api.post(routes.at("v2"), routes.route("v2", host="h", port=80))
    assert made["spec"] == {"host": "h", "port": 80, "new": "fresh"} or made["spec"] == {"host": "h", "port": 80}
    assert (await api.get(routes.at("v1", "r")))["spec"]["address"] == "h:80"
    found = await api.get(routes.at("v2", "r"))
    assert (found["spec"]["host"], found["spec"]["port"]) == ("h", 80)
    assert found["metadata"]["uid"] == made["metadata"]["uid"]
    review = converter.asked[0]
    assert (review["kind"], review["apiVersion"]) == ("ConversionReview", "apiextensions.k8s.io/v1")


async def test_lists_are_converted(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    for number in range(3):
        await api.post(routes.at("v1"), routes.route("v1", f"r{number}", address=f"h:{number}"))
    listed = await api.get(routes.at("v2"))
    assert listed["apiVersion"] == f"{routes.group}/v2"
    assert [item["spec"]["port"] for item in listed["items"]] == [0, 1, 2]
    table = await api.get(routes.at("v2"), accept="application/json;as=Table;v=v1;g=meta.k8s.io")
    assert [row["cells"][0] for row in table["rows"]] == ["r0", "r1", "r2"]


async def test_a_watch_sees_its_own_version(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    await api.post(routes.at("v1"), routes.route("v1", "a", address="h:1"))
    version = (await api.get(routes.at("v2")))["metadata"]["resourceVersion"]
    async with api.watch(routes.at("v2"), resourceVersion=version) as watch:
        await api.post(routes.at("v1"), routes.route("v1", "b", address="h:2"))
        await api.merge(routes.at("v1", "a"), {"spec": {"address": "h:3"}})
        await api.delete(routes.at("v1", "b"))
        events = [await watch.event() for _ in range(3)]
    assert [(event["type"], event["object"]["spec"]["port"]) for event in events] == [
        ("ADDED", 2),
        ("MODIFIED", 3),
        ("DELETED", 2),
    ]
    assert {event["object"]["apiVersion"] for event in events} == {f"{routes.group}/v2"}


async def test_every_kind_of_write_works_in_either_version(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    made = await api.apply(routes.at("v2", "r"), routes.route("v2", host="h", port=1))
    assert made["metadata"]["managedFields"][0]["apiVersion"] == f"{routes.group}/v2"
    await api.merge(routes.at("v2", "r"), {"spec": {"port": 2}})
    assert (await api.get(routes.at("v1", "r")))["spec"]["address"] == "h:2"
    await api.json_patch(routes.at("v1", "r"), [{"op": "replace", "path": "/spec/address", "value": "h:3"}])
    found = await api.get(routes.at("v2", "r"))
    assert found["spec"]["port"] == 3
    assert found["metadata"]["generation"] == 3
    found["spec"]["port"] = 4
    await api.put(routes.at("v2", "r"), found)
    assert (await api.get(routes.at("v1", "r")))["spec"]["address"] == "h:4"
    await api.merge(routes.at("v2", "r", "status"), {"status": {"replicas": 5}})
    assert (await api.get(routes.at("v1", "r")))["status"] == {"replicas": 5}


async def test_a_scale_is_that_of_the_version_asked_for(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    await api.post(routes.at("v1"), routes.route("v1", address="h:1", replicas=2))
    assert (await api.get(routes.at("v2", "r", "scale")))["spec"] == {"replicas": 2}
    await api.merge(routes.at("v2", "r", "scale"), {"spec": {"replicas": 7}})
    assert (await api.get(routes.at("v1", "r")))["spec"] == {"address": "h:1", "replicas": 7}


async def test_a_stale_version_conflicts_in_any_version(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    made = await api.post(routes.at("v2"), routes.route("v2", host="h", port=1))
    await api.merge(routes.at("v1", "r"), {"spec": {"address": "h:2"}})
    with fails(409, "Conflict"):
        await api.put(routes.at("v2", "r"), made)


async def test_a_webhook_that_is_down_is_named(api: Api, unique: str) -> None:
    async with serving() as converter:
        routes = await served(api, unique, converter.strategy)
        await api.post(routes.at("v1"), routes.route("v1", address="h:1"))
    await api.get(routes.at("v1", "r"))
    with fails(500) as caught:
        await api.get(routes.at("v2", "r"))
    start = f"conversion webhook for {routes.group}/v1, Kind=Route failed: Post "
    assert caught.value.message.startswith(start), caught.value
    assert f"{converter.url}/convert?timeout=30s" in caught.value.message
    with fails(500) as caught:
        await api.post(routes.at("v2"), routes.route("v2", "s", host="h", port=1))
    assert caught.value.message.startswith(start.replace("/v1", "/v2")), caught.value
    assert await api.missing(routes.at("v1", "s"))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"result": {"status": "Failed", "message": "I will not"}}, "failed: I will not"),
        ({"result": {"status": "Failed"}}, "failed: response.result.status was 'Failed', not 'Success'"),
        ({"result": {"status": "Success"}}, "returned 0 objects, expected 1"),
        ({"uid": "x", "result": {"status": "Success"}}, "failed: expected response.uid="),
    ],
    ids=["refusal", "silent refusal", "nothing", "another's answer"],
)
async def test_a_webhook_that_answers_nonsense_is_quoted(
    api: Api, unique: str, converter: Converter, answer: Obj, why: str
) -> None:
    routes = await served(api, unique, converter.strategy)
    await api.post(routes.at("v1"), routes.route("v1", address="h:1"))
    converter.answer = lambda request: answer
    with fails(500) as caught:
        await api.get(routes.at("v2", "r"))
    assert f"conversion webhook for {routes.group}/v1, Kind=Route {why}" in caught.value.message


async def test_a_webhook_cannot_make_another_object_of_it(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    await api.post(routes.at("v1"), routes.route("v1", address="h:1"))

    def renamed(request: Obj) -> Obj:
        response = converter.converted(request)
        response["convertedObjects"][0]["metadata"]["name"] = "other"
        return response

    def unconverted(request: Obj) -> Obj:
        return {"result": {"status": "Success"}, "convertedObjects": request["objects"]}

    converter.answer = renamed
    with fails(500) as caught:
        await api.get(routes.at("v2", "r"))
    assert "must have the same name: r != other" in caught.value.message
    converter.answer = unconverted
    with fails(500) as caught:
        await api.get(routes.at("v2", "r"))
    assert "invalid groupVersion (expected " in caught.value.message


async def test_a_webhook_may_change_labels_and_annotations_only(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    made = await api.post(routes.at("v1"), routes.route("v1", address="h:1"))

    def meddling(request: Obj) -> Obj:
        response = converter.converted(request)
        for obj in response["convertedObjects"]:
            obj["metadata"] |= {
                "labels": {"a": "b"},
                "annotations": {"c": "d"},
                "generation": 99,
                "finalizers": ["x/y"],
            }
        return response

    converter.answer = meddling
    metadata = (await api.get(routes.at("v2", "r")))["metadata"]
    assert (metadata["labels"], metadata["annotations"]) == ({"a": "b"}, {"c": "d"})
    assert metadata["generation"] == made["metadata"]["generation"]
    assert "finalizers" not in metadata


async def test_objects_stay_in_the_version_they_were_stored_in(api: Api, unique: str, converter: Converter) -> None:
    routes = await served(api, unique, converter.strategy)
    await api.post(routes.at("v1"), routes.route("v1", address="h:1"))
    path = api.cluster(CRDS, f"routes.{routes.group}")
    live = await api.get(path)
    for version in live["spec"]["versions"]:
        version["storage"] = version["name"] == "v2"
    await api.put(path, live)
    stored = (await api.get(path))["status"]["storedVersions"]
    assert sorted(stored) == ["v1", "v2"]
    assert (await api.get(routes.at("v2", "r")))["spec"]["port"] == 1
    await api.merge(routes.at("v1", "r"), {"spec": {"address": "h:2"}})
    assert (await api.get(routes.at("v2", "r")))["spec"]["port"] == 2
    live = await api.get(path)
    live["spec"]["versions"] = [version for version in live["spec"]["versions"] if version["name"] == "v2"]
    with fails(422, "Invalid") as caught:
        await api.put(path, live)
    assert "status.storedVersions[0]" in caught.value.fields
    assert 'Invalid value: "v1": must appear in spec.versions' in caught.value.message


@pytest.mark.parametrize(
    ("conversion", "fields"),
    [
        ({"strategy": "Magic"}, ["spec.conversion.strategy"]),
        ({"strategy": "Webhook"}, ["spec.conversion.conversionReviewVersions", "spec.conversion.webhookClientConfig"]),
        (
            {"strategy": "Webhook", "webhook": {"clientConfig": {}, "conversionReviewVersions": ["v9"]}},
            ["spec.conversion.conversionReviewVersions", "spec.conversion.webhookClientConfig"],
        ),
        (
            {
                "strategy": "Webhook",
                "webhook": {"clientConfig": {"url": "http://a/b"}, "conversionReviewVersions": ["v1"]},
            },
            ["spec.conversion.webhookClientConfig.url"],
        ),
    ],
    ids=["strategy", "nothing", "neither", "no tls"],
)
async def test_a_conversion_is_validated(api: Api, unique: str, conversion: Obj, fields: list[str]) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.cluster(CRDS), definition(unique, conversion))
    assert caught.value.fields == fields
