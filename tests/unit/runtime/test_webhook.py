"""Webhooks that register themselves: called over TLS, shared, renewed in time, and gone after a stop."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.patch import json_patch as apply_patch
from kaito_ctrl.runtime import Client, Metrics
from kaito_ctrl.runtime.admission import AdmissionRequest, AdmissionResponse, AdmissionWebhook, chain, json_patch
from kaito_ctrl.runtime.certs import CertificateAuthority, merge_bundles
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.codec import decode_json, encode_json
from kaito_ctrl.runtime.errors import Forbidden, NotFound, TransportError
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.transport import Request, Response
from kaito_ctrl.runtime.webhook import WebhookServer
from tests.boxes import BOXES, box, boxes_crd

NAME = "no-bad-words.example.org"
PATH = f"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}"
SERVICE = ("kaito", "webhook", 443)


class ManualClock:
    """Starts now, as certificates are checked by real time; moves when told to."""

    def __init__(self) -> None:
        self.time = SystemClock().now()

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


def judge(request: AdmissionRequest) -> AdmissionResponse:
    return AdmissionResponse("bad" not in ((request.object or {}).get("data") or {}), "bad is forbidden")


WEBHOOK = AdmissionWebhook(NAME, ConfigMap, judge, "/validate")


def word(name: str, key: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data={key: "x"})


@asynccontextmanager
async def serving(server: ApiServer, **options: Any) -> AsyncIterator[WebhookServer]:
    hooks = options.pop("webhooks", [WEBHOOK])
    webhooks = WebhookServer(
        Client(server.transport()), hooks, **{"clock": SystemClock(), "check_every": 0.01, **options}
    )
    lifetime = Lifetime()
    task = asyncio.create_task(webhooks.run(lifetime))
    async with asyncio.timeout(5):
        await asyncio.wait((task, asyncio.ensure_future(lifetime.wait_started())), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield webhooks
    finally:
        lifetime.stop()
        async with asyncio.timeout(5):
            await task


async def configuration(server: ApiServer) -> dict[str, Any]:
    found = decode_json(await Client(server.transport()).request("GET", PATH))
    assert isinstance(found, dict)
    return found


async def authorities(server: ApiServer) -> list[x509.Certificate]:
    config = (await configuration(server))["webhooks"][0]["clientConfig"]
    return x509.load_pem_x509_certificates(base64.b64decode(config["caBundle"]))


async def until_there_are(server: ApiServer, check: Callable[[list[x509.Certificate]], bool]) -> None:
    async with asyncio.timeout(5):
        while not check(await authorities(server)):
            await asyncio.sleep(0.01)


async def test_a_webhook_is_called_and_after_an_orderly_stop_no_longer_registered(server: ApiServer) -> None:
    client = Client(server.transport())
    async with serving(server):
        await client.create(word("fine", "good"))
        with pytest.raises(Forbidden, match="bad is forbidden"):
            await client.create(word("refused", "bad"))
    with pytest.raises(NotFound):
        await configuration(server)
    await client.create(word("unguarded", "bad"))


async def test_a_stop_leaves_alone_what_another_process_has_taken_over(server: ApiServer) -> None:
    first, second = Lifetime(), Lifetime()
    tasks = []
    for lifetime in (first, second):
        each = WebhookServer(Client(server.transport()), [WEBHOOK], clock=SystemClock(), check_every=0.01)
        tasks.append(asyncio.create_task(each.run(lifetime)))
        await lifetime.wait_started()
    url = (await configuration(server))["webhooks"][0]["clientConfig"]["url"]
    await asyncio.sleep(0.05)
    first.stop()
    await tasks[0]
    assert (await configuration(server))["webhooks"][0]["clientConfig"]["url"] == url
    with pytest.raises(Forbidden):
        await Client(server.transport()).create(word("refused", "bad"))
    second.stop()
    await tasks[1]


async def test_a_deleted_registration_comes_back(server: ApiServer) -> None:
    async with serving(server):
        await Client(server.transport()).request("DELETE", PATH)
        async with asyncio.timeout(5):
            while True:
                try:
                    await configuration(server)
                except NotFound:
                    await asyncio.sleep(0.01)
                else:
                    break


async def test_behind_a_service_each_process_adds_its_authority_and_a_stop_takes_nothing_down(
    server: ApiServer,
) -> None:
    async with serving(server, service=SERVICE, instance="a"), serving(server, service=SERVICE, instance="b"):
        assert len(await authorities(server)) == 2
        config = (await configuration(server))["webhooks"][0]["clientConfig"]
        assert config["service"] == {"namespace": "kaito", "name": "webhook", "port": 443, "path": "/validate"}
        version = (await configuration(server))["metadata"]["resourceVersion"]
        await asyncio.sleep(0.1)
        assert (await configuration(server))["metadata"]["resourceVersion"] == version
    assert (await configuration(server))["webhooks"][0]["clientConfig"]["service"]["name"] == "webhook"


async def test_a_process_that_ends_takes_its_authority_out_unless_it_is_the_last(server: ApiServer) -> None:
    async with serving(server, service=SERVICE, instance="a"):
        (mine,) = await authorities(server)
        async with serving(server, service=SERVICE, instance="b"):
            assert len(await authorities(server)) == 2
        assert await authorities(server) == [mine]
    assert await authorities(server) == [mine]


async def test_a_process_that_was_killed_and_started_again_leaves_nothing_behind(server: ApiServer) -> None:
    async with serving(server, service=SERVICE, instance="a"):
        (mine,) = await authorities(server)
        for _ in range(3):
            task = asyncio.create_task(
                WebhookServer(
                    Client(server.transport()), [WEBHOOK], clock=SystemClock(), service=SERVICE, instance="b"
                ).run(lifetime := Lifetime())
            )
            await lifetime.wait_started()
            task.cancel()
            await asyncio.wait((task,))
        found = await authorities(server)
        assert len(found) == 2
        assert mine in found


async def test_a_definition_trusts_every_process_that_converts(server: ApiServer) -> None:
    client = Client(server.transport())
    await client.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=boxes_crd())
    options: dict[str, Any] = {"webhooks": [BOXES], "service": SERVICE}
    async with serving(server, instance="a", **options), serving(server, instance="b", **options):
        definition = decode_json(await client.request("GET", BOXES.resource_path))
        config = BOXES.client_config(definition)
        assert config["service"]["path"] == "/convert/boxes.example.org"
        assert len(x509.load_pem_x509_certificates(base64.b64decode(config["caBundle"]))) == 2
        assert definition["spec"]["names"]["kind"] == "Box"
    assert BOXES.client_config(decode_json(await client.request("GET", BOXES.resource_path)))["caBundle"]


async def test_many_replicas_that_start_at_once_are_all_trusted_in_the_end(server: ApiServer) -> None:
    lifetimes = [Lifetime() for _ in range(12)]
    async with asyncio.TaskGroup() as group:
        for number, lifetime in enumerate(lifetimes):
            each = WebhookServer(
                Client(server.transport()), [WEBHOOK], clock=SystemClock(), service=SERVICE, instance=f"pod-{number}"
            )
            group.create_task(each.run(lifetime))
        for lifetime in lifetimes:
            await lifetime.wait_started()
        assert len(await authorities(server)) == 12
        for lifetime in lifetimes:
            lifetime.stop()


async def test_a_certificate_is_renewed_while_the_old_one_is_still_trusted(server: ApiServer) -> None:
    clock = ManualClock()
    client = Client(server.transport())
    async with serving(server, clock=clock, lifetime=timedelta(minutes=30)):
        first = await authorities(server)
        clock.time += timedelta(minutes=21)
        await until_there_are(server, lambda found: len(found) == 2)
        assert first[0] in await authorities(server)
        with pytest.raises(Forbidden, match="bad is forbidden"):
            await client.create(word("refused", "bad"))
        clock.time += timedelta(minutes=21)
        await until_there_are(server, lambda found: len(found) == 2 and first[0] not in found)
        with pytest.raises(Forbidden, match="bad is forbidden"):
            await client.create(word("refused", "bad"))


async def test_a_renewed_certificate_is_presented_only_after_api_servers_had_time_to_hear_of_it(
    server: ApiServer,
) -> None:
    """They hear of a changed registration a moment after it was written, each by itself."""

    async def presented() -> bytes:
        where = urlsplit(webhooks.url)
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(where.hostname, where.port, ssl=trusting)
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.close()
        await writer.wait_closed()
        return certificate

    class Looking:
        """Notes which certificate is presented at each look at the registration, and after how many writes of it."""

        def __init__(self) -> None:
            self.inner = server.transport()
            self.writes = 0
            self.looks: list[tuple[int, bytes]] = []

        async def send(self, request: Request) -> Response:
            if request.method == "GET" and self.writes:
                self.looks.append((self.writes, await presented()))
            self.writes += request.method == "PATCH"
            return await self.inner.send(request)

        async def aclose(self) -> None: ...

    clock, wire, lifetime = ManualClock(), Looking(), Lifetime()
    webhooks = WebhookServer(Client(wire), [WEBHOOK], clock=clock, lifetime=timedelta(minutes=30), check_every=0.01)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(webhooks.run(lifetime))
        await lifetime.wait_started()
        first = await presented()
        clock.time += timedelta(minutes=21)
        while await presented() == first:
            await asyncio.sleep(0.01)
        lifetime.stop()
    # The look that finds it as it was just written, and the next round's.
    assert [certificate for writes, certificate in wire.looks if writes == 2][:2] == [first, first]


async def test_an_api_server_that_is_away_does_not_end_the_webhooks(server: ApiServer) -> None:
    class Flaky:
        broken = False

        def __init__(self) -> None:
            self.inner = server.transport()

        async def send(self, request: Any) -> Any:
            if self.broken:
                raise TransportError("connection refused")
            return await self.inner.send(request)

        async def aclose(self) -> None: ...

    wire = Flaky()
    lifetime = Lifetime()
    each = WebhookServer(Client(wire), [WEBHOOK], clock=SystemClock(), check_every=0.01)
    task = asyncio.create_task(each.run(lifetime))
    await lifetime.wait_started()
    wire.broken = True
    await asyncio.sleep(0.05)
    assert not task.done()
    lifetime.stop()
    await task


def test_a_loopback_address_is_not_given_to_an_api_server_elsewhere() -> None:
    client = Client(ApiServer(clock=SystemClock()).transport())
    far = {"clock": SystemClock(), "api_server_url": "https://10.0.0.1:6443"}
    with pytest.raises(ValueError, match="loopback"):
        WebhookServer(client, [WEBHOOK], **far)
    with pytest.raises(ValueError, match="loopback"):
        WebhookServer(client, [WEBHOOK], url="https://localhost:9443", **far)
    WebhookServer(client, [WEBHOOK], url="https://10.0.0.7:9443", **far)
    WebhookServer(client, [WEBHOOK], service=SERVICE, **far)
    WebhookServer(client, [WEBHOOK], clock=SystemClock(), api_server_url="https://127.0.0.1:6443")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_to_listen_on_is_no_address_to_be_called_at(host: str) -> None:
    client = Client(ApiServer(clock=SystemClock()).transport())
    with pytest.raises(ValueError, match="url"):
        WebhookServer(client, [WEBHOOK], clock=SystemClock(), host=host)


async def test_the_public_url_may_differ_from_where_it_listens(server: ApiServer) -> None:
    async with serving(server, host="127.0.0.1", url="https://gateway.example:8443/hooks"):
        config = (await configuration(server))["webhooks"][0]["clientConfig"]
        assert config["url"] == "https://gateway.example:8443/hooks/validate"


def test_bundles_are_merged_without_what_has_expired_and_without_end() -> None:
    now = SystemClock().now()
    mine = CertificateAuthority("mine", now=now).pem
    old = CertificateAuthority("old", now=now - timedelta(days=9), lifetime=timedelta(days=1)).pem
    others = [CertificateAuthority("other", now=now - timedelta(hours=each)).pem for each in range(6)]
    merged = merge_bundles([mine], [old, *others, b"not a certificate"], now=now, limit=4)
    found = x509.load_pem_x509_certificates(merged)
    assert len(found) == 4
    assert mine in merged
    assert old not in merged
    assert all(each in merged for each in others[:3])
    assert merge_bundles([mine], [merged], now=now, limit=4) == merged


def test_an_earlier_life_of_the_same_unit_is_not_carried_over() -> None:
    now = SystemClock().now()
    earlier = CertificateAuthority("hook", now=now - timedelta(hours=1), unit="pod-1" * 20)
    other = CertificateAuthority("hook", now=now, unit="pod-2")
    mine = CertificateAuthority("hook", now=now, unit="pod-1" * 20)
    merged = merge_bundles([mine.pem], [earlier.pem, other.pem], now=now, limit=9, unit="pod-1" * 20)
    assert set(x509.load_pem_x509_certificates(merged)) == set(x509.load_pem_x509_certificates(mine.pem + other.pem))


# -- answering -----------------------------------------------------------------------------------------------------


def label(request: AdmissionRequest) -> AdmissionResponse:
    made = dict(request.object or {})
    metadata = made["metadata"]
    made["metadata"] = {**metadata, "labels": {**(metadata.get("labels") or {}), "a/b.c": "1"}}
    return AdmissionResponse(True, object=made, warnings=("labelled",))


async def count_labels(request: AdmissionRequest) -> AdmissionResponse:
    await asyncio.sleep(0)
    made = dict(request.object or {})
    made["data"] = {"labels": str(len(made["metadata"].get("labels") or {}))}
    return AdmissionResponse(True, object=made, warnings=("counted",))


async def test_mutating_handlers_see_what_the_one_before_has_made(server: ApiServer) -> None:
    webhook = AdmissionWebhook("label.example.org", ConfigMap, chain(label, count_labels), "/mutate", mutating=True)
    async with serving(server, webhooks=[webhook]):
        made = await Client(server.transport()).create(word("a", "x"))
        assert made.metadata.labels == {"a/b.c": "1"}
        assert made.data == {"labels": "1"}


async def test_the_first_refusal_of_a_chain_is_its_answer_with_the_warnings_so_far() -> None:
    called: list[str] = []

    def refuse(request: AdmissionRequest) -> AdmissionResponse:
        return AdmissionResponse(False, "no", warnings=("refusing",))

    def late(request: AdmissionRequest) -> AdmissionResponse:
        called.append("late")
        return AdmissionResponse(True)

    request = AdmissionRequest("CREATE", "default", "a", {"metadata": {}}, None, "me", False)
    answer = chain(label, refuse, late)(request)
    assert not isinstance(answer, AdmissionResponse)
    response = await answer
    assert (response.allowed, response.message, response.warnings) == (False, "no", ("labelled", "refusing"))
    assert response.object is None
    assert called == []
    assert request.object == {"metadata": {}}


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "~/"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b/c", "d~e", ""]), inner),
)


@given(st.dictionaries(st.sampled_from(["a", "b/c", "d~e"]), plain), st.dictionaries(st.sampled_from("abc"), plain))
def test_a_patch_makes_the_one_object_into_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    operations = list(json_patch(old, new))
    assert sorted_json(apply_patch(copy.deepcopy(old), operations)) == sorted_json(new)
    assert (operations == []) is (sorted_json(old) == sorted_json(new))


def sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


async def post(hooks: WebhookServer, path: str, body: bytes) -> tuple[int, Any]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.post(f"{hooks.url}{path}", data=io.BytesIO(body)) as response,
    ):
        raw = await response.read()
        return response.status, decode_json(raw) if response.content_type == "application/json" else raw


def review(obj: Any = None) -> bytes:
    request = {"uid": "u-1", "operation": "CREATE", "object": obj, "userInfo": {"username": "me"}}
    return encode_json({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})


def broken(request: AdmissionRequest) -> AdmissionResponse:
    raise KeyError("spec")


async def slow(request: AdmissionRequest) -> AdmissionResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_handler_that_fails_fails_alone_and_says_that_it_was_not_a_refusal(server: ApiServer) -> None:
    metrics = Metrics()
    hooks = [
        WEBHOOK,
        AdmissionWebhook("broken.example.org", ConfigMap, broken, "/broken", operations=("CONNECT",)),
        AdmissionWebhook("slow.example.org", ConfigMap, slow, "/slow", operations=("CONNECT",), timeout=1),
        AdmissionWebhook("eager.example.org", ConfigMap, label, "/eager", operations=("CONNECT",)),
    ]
    obj = {"metadata": {"name": "a"}}
    async with serving(server, webhooks=hooks, metrics=metrics) as served:
        for path, said in (("/broken", "KeyError: 'spec'"), ("/slow", "took too long"), ("/eager", "only validates")):
            status, answer = await post(served, path, review(obj))
            assert status == 200
            assert answer["response"]["uid"] == "u-1"
            assert answer["response"]["allowed"] is False
            assert answer["response"]["status"]["code"] == 500
            assert said in answer["response"]["status"]["message"]
        _, answer = await post(served, "/validate", review(obj))
        assert answer["response"] == {"uid": "u-1", "allowed": True}
    sample = metrics.registry.get_sample_value
    assert sample("controller_runtime_webhook_panics_total") == 3
    assert sample("controller_runtime_conversion_webhook_panics_total") == 0
    assert sample("controller_runtime_webhook_requests_total", {"webhook": "/broken", "code": "200"}) == 1
    assert sample("controller_runtime_webhook_requests_total", {"webhook": "/broken", "code": "500"}) == 0
    assert sample("controller_runtime_webhook_requests_in_flight", {"webhook": "/slow"}) == 0
    assert (sample("controller_runtime_webhook_latency_seconds_sum", {"webhook": "/slow"}) or 0) >= 1


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"request": 7}', b'{"request": {"uid": 7}}', b"null", b"[" * 5000 + b"]" * 5000]
)
async def test_what_is_no_review_is_a_bad_request(server: ApiServer, body: bytes) -> None:
    metrics = Metrics()
    async with serving(server, metrics=metrics) as served:
        status, _ = await post(served, "/validate", body)
    assert status == 400
    labels = {"webhook": "/validate", "code": "400"}
    assert metrics.registry.get_sample_value("controller_runtime_webhook_requests_total", labels) == 1


async def test_a_body_of_seven_mebibytes_is_read_and_a_larger_one_refused(server: ApiServer) -> None:
    metrics = Metrics()
    async with serving(server, metrics=metrics) as served:
        empty = len(review({"metadata": {}, "x": ""}))
        status, answer = await post(served, "/validate", review({"metadata": {}, "x": "y" * (7 * 2**20 - empty)}))
        assert (status, answer["response"]["allowed"]) == (200, True)
        status, _ = await post(served, "/validate", review({"metadata": {}, "x": "y" * (7 * 2**20 - empty + 1)}))
        assert status == 413
    labels = {"webhook": "/validate", "code": "413"}
    assert metrics.registry.get_sample_value("controller_runtime_webhook_requests_total", labels) == 1


async def test_a_long_list_is_converted_in_one_go_while_others_are_answered(server: ApiServer) -> None:
    objects = [box("v1", f"box-{number}", size="2x3", filler="y" * 900) for number in range(12_000)]
    request = {"uid": "u-1", "desiredAPIVersion": "example.org/v2", "objects": objects}
    body = encode_json({"kind": "ConversionReview", "request": request})
    assert len(body) > 10 * 2**20
    async with serving(server, webhooks=[BOXES, WEBHOOK]) as served, asyncio.TaskGroup() as group:
        long = group.create_task(post(served, BOXES.path, body))
        answered = 0
        while not long.done():
            _, answer = await post(served, "/validate", review({"metadata": {}}))
            answered += answer["response"]["allowed"]
        status, answer = long.result()
        assert status == 200
        assert answer["response"]["result"] == {"status": "Success"}
        assert len(answer["response"]["convertedObjects"]) == 12_000
        assert answered > 1
