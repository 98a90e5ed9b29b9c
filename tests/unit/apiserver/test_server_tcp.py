"""The same server over TLS: tokens, certificates, streams, bodies in protobuf."""

from __future__ import annotations

import base64
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import web
from apihelpers import CM, SVC, Api, config_map, fails

from kaito_ctrl.devcluster.apiserver import ApiServer, Endpoint, serve
from kaito_ctrl.devcluster.apiserver.protobuf import PROTOBUF


@asynccontextmanager
async def trusting(endpoint: Endpoint, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A session that knows the server's certificate; *headers* go with every request."""
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=endpoint.ca_pem))
    async with aiohttp.ClientSession(endpoint.url, connector=connector, headers=headers) as session:
        yield session


@asynccontextmanager
async def connected(token: str = "secret") -> AsyncIterator[tuple[Endpoint, aiohttp.ClientSession, ApiServer]]:
    server = ApiServer(rng=random.Random(1))
    async with serve(server, token="secret") as endpoint:
        async with trusting(endpoint, authorization=f"Bearer {token}") as session:
            yield endpoint, session, server
        await server.aclose()


async def test_the_right_token_opens_and_a_wrong_one_does_not() -> None:
    async with connected() as (_, session, _server), session.get("/api/v1/namespaces") as response:
        assert response.status == 200
        assert (await response.json())["kind"] == "NamespaceList"
    async with connected("wrong") as (_, session, _server):
        async with session.get("/api/v1/namespaces") as response:
            assert (response.status, (await response.json())["reason"]) == (401, "Unauthorized")
        async with session.get("/healthz", headers={"authorization": ""}) as response:
            assert await response.text() == "ok"


async def test_the_kubeconfig_holds_everything() -> None:
    async with connected() as (endpoint, _session, _server):
        config = endpoint.kubeconfig()
    cluster = config["clusters"][0]["cluster"]
    assert cluster["server"].startswith("https://127.0.0.1:")
    assert base64.b64decode(cluster["certificate-authority-data"]).startswith(b"-----BEGIN CERTIFICATE-----")
    assert config["users"][0]["user"] == {"token": "secret"}
    assert config["current-context"] == config["contexts"][0]["name"]


async def test_a_watch_streams_and_its_end_is_noticed() -> None:
    async with connected() as (_, session, server):
        async with session.get(CM, params={"watch": "true"}) as response:
            async with session.post(CM, json=config_map()) as made:
                assert made.status == 201
            event = msgspec.json.decode(await response.content.readline())
            assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "a")
            assert server.backend.watches == 1
        # The connection is closed: the next write to it ends the watch.
        while server.backend.watches:
            async with session.post(CM, json={"metadata": {"generateName": "x-"}}) as made:
                assert made.status == 201


async def test_paths_and_queries_are_decoded_once() -> None:
    async with connected() as (_, session, _server):
        path = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
        async with session.post(path, json={"metadata": {"name": "system:a b"}}) as response:
            assert response.status == 201
        async with session.get(f"{path}/system%3Aa%20b") as response:
            assert (await response.json())["metadata"]["name"] == "system:a b"


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


async def test_a_protobuf_body_is_read(api: Api) -> None:
    metadata = (
        field(1, b"p") + field(2, b"") + field(7, 0) + field(8, b"") + field(11, field(1, b"app") + field(2, b"x"))
    )
    entry = field(1, b"k") + field(2, b"v")
    raw = field(1, metadata) + field(2, entry)
    kind = field(1, b"v1") + field(2, b"ConfigMap")
    body = b"k8s\x00" + field(1, kind) + field(2, raw)
    made = await api.post(CM, body, media=PROTOBUF)
    assert made["data"] == {"k": "v"}
    assert made["metadata"]["labels"] == {"app": "x"}
    assert "generateName" not in made["metadata"]
    with fails(400):
        await api.post(CM, body[:-3], media=PROTOBUF)
    with fails(400):
        await api.post(CM, b"rubbish", media=PROTOBUF)


async def test_a_closed_transport_refuses(api: Api) -> None:
    from kaito_ctrl.runtime.errors import TransportError
    from kaito_ctrl.runtime.transport import Request

    transport = api.server.transport()
    await transport.aclose()
    with pytest.raises(TransportError):
        await transport.send(Request("GET", "/version"))


async def test_a_service_is_reached_through_the_server(api: Api) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        text = f"{request.method} {request.path_qs} {(await request.read()).decode()} {request.headers.get('x-a')}"
        return web.Response(text=text, status=201, headers={"x-b": "c"})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        await api.post(SVC, {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80, "name": "http"}]}})
        with fails(503, "ServiceUnavailable") as caught:
            await api.get(f"{SVC}/s:http/proxy/chat")
        assert caught.value.message == 'no endpoints available for service "s"'
        subset = {"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": port, "name": "http"}]}
        await api.post("/api/v1/namespaces/default/endpoints", {"metadata": {"name": "s"}, "subsets": [subset]})
        for name in ("s", "s:http", "s:80", "http:s:http"):
            assert await api.post(f"{SVC}/{name}/proxy/chat/x?a=b", b"hi") == b"POST /chat/x?a=b hi None"
            assert api.code == 201
        with fails(503):
            await api.get(f"{SVC}/s:99/proxy/")
    finally:
        await runner.cleanup()
