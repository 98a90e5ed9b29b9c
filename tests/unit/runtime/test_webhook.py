"""Admission webhooks that register themselves: called over TLS, shared, renewed in time, and gone after a stop."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.certs import CertificateAuthority, merge_bundles
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import Forbidden, NotFound, TransportError
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.webhook import AdmissionRequest, AdmissionResponse, AdmissionServer, AdmissionWebhook

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
async def serving(server: ApiServer, **options: Any) -> AsyncIterator[AdmissionServer]:
    webhooks = AdmissionServer(
        Client(server.transport()), [WEBHOOK], **{"clock": SystemClock(), "check_every": 0.01, **options}
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
        each = AdmissionServer(Client(server.transport()), [WEBHOOK], clock=SystemClock(), check_every=0.01)
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
    async with serving(server, service=SERVICE), serving(server, service=SERVICE):
        assert len(await authorities(server)) == 2
        config = (await configuration(server))["webhooks"][0]["clientConfig"]
        assert config["service"] == {"namespace": "kaito", "name": "webhook", "port": 443, "path": "/validate"}
        version = (await configuration(server))["metadata"]["resourceVersion"]
        await asyncio.sleep(0.1)
        assert (await configuration(server))["metadata"]["resourceVersion"] == version
    assert len(await authorities(server)) == 2


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
    each = AdmissionServer(Client(wire), [WEBHOOK], clock=SystemClock(), check_every=0.01)
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
        AdmissionServer(client, [WEBHOOK], **far)
    with pytest.raises(ValueError, match="loopback"):
        AdmissionServer(client, [WEBHOOK], url="https://localhost:9443", **far)
    AdmissionServer(client, [WEBHOOK], url="https://10.0.0.7:9443", **far)
    AdmissionServer(client, [WEBHOOK], service=SERVICE, **far)
    AdmissionServer(client, [WEBHOOK], clock=SystemClock(), api_server_url="https://127.0.0.1:6443")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_to_listen_on_is_no_address_to_be_called_at(host: str) -> None:
    client = Client(ApiServer(clock=SystemClock()).transport())
    with pytest.raises(ValueError, match="url"):
        AdmissionServer(client, [WEBHOOK], clock=SystemClock(), host=host)


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
