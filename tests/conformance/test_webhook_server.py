"""The webhook server of the runtime, called by API servers: it registers itself, judges, changes, and converts."""

from __future__ import annotations

import asyncio
import base64
import copy
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from kaito_api.core import ConfigMap
from kaito_api.meta import Resource
from kaito_ctrl.runtime import Client, Metrics
from kaito_ctrl.runtime.admission import AdmissionRequest, AdmissionResponse, AdmissionWebhook, chain
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.webhook import Hook, WebhookServer
from tests.boxes import BOXES, boxes_crd
from tests.conformance.objects import config_map
from tests.conformance.wire import Api, Obj, Status, fails

CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"


@asynccontextmanager
async def serving(api: Api, hooks: Sequence[Hook], **options: Any) -> AsyncIterator[WebhookServer]:
    server = WebhookServer(
        Client(api.target.transport), hooks, **{"clock": SystemClock(), "check_every": 0.05, **options}
    )
    lifetime = Lifetime()
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run(lifetime))
        async with asyncio.timeout(20):
            await lifetime.wait_started()
        yield server
        lifetime.stop()


async def until(check: Callable[[], Any]) -> None:
    """An API server learns of a registration a moment after it is written."""
    async with asyncio.timeout(20):
        while not await check():
            await asyncio.sleep(0.05)


def admission(api: Api, kind: type[Resource], *handlers: Any, mutating: bool) -> AdmissionWebhook:
    return AdmissionWebhook(
        f"{'mutate' if mutating else 'validate'}.{api.namespace}.example.org",
        kind,
        chain(*handlers),
        "/mutate" if mutating else "/validate",
        mutating=mutating,
        namespace_selector={"matchLabels": {"hooked": api.namespace}},
    )


async def test_writes_are_changed_by_one_handler_after_the_other_then_judged(api: Api) -> None:
    await api.merge(api.cluster("namespaces", api.namespace), {"metadata": {"labels": {"hooked": api.namespace}}})

    def default(request: AdmissionRequest) -> AdmissionResponse:
        made = copy.deepcopy(request.object or {})
        made.setdefault("data", {}).setdefault("a/b~c", "1")
        return AdmissionResponse(True, object=made, warnings=("defaulted",))

    async def count(request: AdmissionRequest) -> AdmissionResponse:
        made = copy.deepcopy(request.object or {})
        made["data"]["count"] = str(len(made["data"]))
        return AdmissionResponse(True, object=made)

    def judge(request: AdmissionRequest) -> AdmissionResponse:
        data = (request.object or {})["data"]
        return AdmissionResponse("bad" not in data, f"{request.user} may not say bad", 422, "Invalid")

    # Keys of a config map hold neither slash nor tilde: what the first handler adds is taken out before the schema.
    def clean(request: AdmissionRequest) -> AdmissionResponse:
        made = copy.deepcopy(request.object or {})
        made["data"]["seen"] = str(made["data"].pop("a/b~c", None))
        return AdmissionResponse(True, object=made)

    hooks = [
        admission(api, ConfigMap, default, count, clean, mutating=True),
        admission(api, ConfigMap, judge, mutating=False),
    ]
    async with serving(api, hooks):

        async def called() -> bool:
            made = await api.post(api.at("configmaps"), config_map("probe"), dryRun="All")
            try:
                await api.post(api.at("configmaps"), {**config_map("probe"), "data": {"bad": "1"}}, dryRun="All")
            except Status:
                return "seen" in made["data"]
            return False

        await until(called)
        made = await api.post(api.at("configmaps"), config_map("fine"))
        assert made["data"] == {"k": "v", "count": "2", "seen": "1"}
        if api.version >= (1, 19):
            assert "defaulted" in api.headers["warning"]
        with fails(422, "Invalid"):
            await api.post(api.at("configmaps"), {**config_map("x"), "data": {"bad": "1"}})

    async def gone() -> bool:
        try:
            made = await api.post(api.at("configmaps"), config_map("probe"), dryRun="All")
        except Status:
            return False
        return "seen" not in made["data"]

    await until(gone)


def boxes(api: Api, version: str, name: str = "") -> str:
    return api.at(f"example.org/{version}/boxes", name)


@pytest.fixture
async def definition(api: Api) -> AsyncIterator[Obj]:
    yield boxes_crd()
    await api.delete(api.cluster(CRDS, "boxes.example.org"))

    async def gone() -> bool:
        return await api.missing(api.cluster(CRDS, "boxes.example.org"))

    await until(gone)


async def converts(api: Api, name: str) -> None:
    """Until every part of the server has learnt that there is a webhook."""

    async def converted() -> bool:
        try:
            return bool((await api.get(boxes(api, "v1", name)))["spec"].get("size"))
        except Status:
            return False

    await until(converted)


def box(version: str, name: str, **spec: Any) -> Obj:
    return {"apiVersion": f"example.org/{version}", "kind": "Box", "metadata": {"name": name}, "spec": spec}


async def test_objects_are_read_written_listed_and_watched_in_every_version(api: Api, definition: Obj) -> None:
    await api.define(definition)
    metrics = Metrics()
    async with serving(api, [BOXES], metrics=metrics):
        await api.post(boxes(api, "v2"), box("v2", "a", width=2, height=3, colour="red"))
        await converts(api, "a")
        old = await api.get(boxes(api, "v1", "a"))
        assert (old["apiVersion"], old["spec"]) == ("example.org/v1", {"size": "2x3"})
        assert (await api.get(boxes(api, "v3", "a")))["spec"] == {"dimensions": [2, 3], "colour": "red"}
        await api.post(boxes(api, "v1"), box("v1", "b", size="4x5"))
        await api.post(boxes(api, "v3"), box("v3", "c", dimensions=[6, 7]))
        listed = await api.get(boxes(api, "v1"))
        assert [each["spec"]["size"] for each in listed["items"]] == ["2x3", "4x5", "6x7"]
        assert (await api.get(boxes(api, "v2", "b")))["spec"] == {"width": 4, "height": 5, "colour": ""}
        version = listed["metadata"]["resourceVersion"]
        async with api.watch(boxes(api, "v3"), resourceVersion=version) as watch:
            await api.merge(boxes(api, "v1", "a"), {"spec": {"size": "9x9"}})
            event = await watch.event()
            assert event["object"]["apiVersion"] == "example.org/v3"
            assert event["object"]["spec"] == {"dimensions": [9, 9], "colour": "red"}
        assert (await api.get(boxes(api, "v2", "a")))["spec"]["colour"] == "red"
    assert metrics.registry.get_sample_value("controller_runtime_conversion_webhook_panics_total") == 0


async def test_what_cannot_be_converted_is_refused_with_the_reason(api: Api, definition: Obj) -> None:
    await api.define(definition)
    async with serving(api, [BOXES]):
        await api.post(boxes(api, "v2"), box("v2", "a", width=2, height=3, colour="blue"))
        await converts(api, "a")
        with pytest.raises(Status, match=r"conversion webhook for .*Kind=Box failed: .wide. is no size"):
            await api.post(boxes(api, "v1"), box("v1", "b", size="wide"))


class ManualClock(SystemClock):
    """Moves when told to; starts now, as certificates are checked by real time."""

    ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


async def test_objects_are_converted_while_certificates_are_renewed(api: Api, definition: Obj) -> None:
    await api.define(definition)
    clock = ManualClock()
    path = api.cluster(CRDS, "boxes.example.org")
    async with serving(api, [BOXES], clock=clock, lifetime=timedelta(minutes=30)):
        await api.post(boxes(api, "v2"), box("v2", "a", width=2, height=3, colour="blue"))
        await converts(api, "a")
        first = BOXES.client_config(await api.get(path))["caBundle"]
        for _ in range(2):
            before = BOXES.client_config(await api.get(path))["caBundle"]
            clock.ahead += timedelta(minutes=21)

            async def renewed(before: str = before) -> bool:
                return bool(BOXES.client_config(await api.get(path))["caBundle"] != before)

            await until(renewed)
            for _ in range(10):
                assert (await api.get(boxes(api, "v1", "a")))["spec"] == {"size": "2x3"}
                await asyncio.sleep(0.02)
        trusted = x509.load_pem_x509_certificates(
            base64.b64decode(BOXES.client_config(await api.get(path))["caBundle"])
        )
        assert len(trusted) == 2
        assert not set(trusted) & set(x509.load_pem_x509_certificates(base64.b64decode(first)))


async def test_a_definition_that_comes_later_or_is_replaced_is_registered_with_again(api: Api, definition: Obj) -> None:
    async with serving(api, [BOXES]) as server:
        await api.define(definition)
        path = api.cluster(CRDS, "boxes.example.org")

        async def registered() -> bool:
            found = await api.get(path)
            config = BOXES.client_config(found)
            return config.get("url") == f"{server.url}/convert/boxes.example.org"

        await until(registered)
        found = await api.get(path)
        found["spec"]["conversion"] = {"strategy": "None"}
        await api.put(path, found)
        await until(registered)
        await api.post(boxes(api, "v2"), box("v2", "a", width=2, height=3, colour="blue"))
        await converts(api, "a")
    # Without anybody to convert, nothing is served in a wrong version.
    assert BOXES.client_config(await api.get(path)) != {}
