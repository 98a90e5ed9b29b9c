"""``pods/portforward`` on the wire: TCP connections to a pod, in each of the three protocols."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import pytest_asyncio
from devworld import World, running, world
from streams import SpdyClient, Target, channels, pod_path, spdy_client, tunnel, upgrade

from kaito_api.meta import is_true
from kaito_ctrl.devcluster.kinds import Pod
from kaito_ctrl.devcluster.streaming import spdy

ECHO = """
import asyncio, os

async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"|end")
    writer.close()

async def main():
    server = await asyncio.start_server(serve, os.environ["KAITO_HOST"], 5000)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest_asyncio.fixture
async def it() -> AsyncIterator[World]:
    """A cluster with a pod ``p`` that sends back what it gets on port 5000, and then ``|end``."""
    async with world(tcp=True) as made:
        probe = {"tcpSocket": {"port": 5000}, "periodSeconds": 1}
        await made.pod("p", ECHO, command=[sys.executable, "-S", "-c", ECHO], readinessProbe=probe)
        await made.until(Pod, "p", lambda pod: is_true(pod.status.conditions, "Ready"))
        yield made


@asynccontextmanager
async def forwarding(it: World, protocol: str) -> AsyncIterator[SpdyClient]:
    target, path = Target.of(it.dev), pod_path("p", "portforward")
    opening = tunnel(target, path) if protocol == "tunnel" else spdy_client(target, path, "portforward.k8s.io")
    async with opening as client:
        yield client


async def connect(client: SpdyClient, request: str, port: int = 5000) -> tuple[int, int]:
    """The pair of streams of a connection: errors, data. As ``kubectl`` does, the first is closed at once."""
    pair = []
    for kind in ("error", "data"):
        pair.append(await client.open(streamtype=kind, port=str(port), requestid=request))
    await client.send(spdy.Data(pair[0], b"", fin=True))
    return pair[0], pair[1]


BOTH = pytest.mark.parametrize("protocol", ["spdy", "tunnel"])


@BOTH
async def test_a_connection_carries_bytes_both_ways_and_its_end(it: World, protocol: str) -> None:
    async with forwarding(it, protocol) as client:
        error, data = await connect(client, "0")
        await client.send(spdy.Data(data, b"hello"))
        await client.send(spdy.Data(data, b"", fin=True))
        await client.until_ended(error, data)
    assert client.received[data] == b"hello|end"
    assert client.received.get(error, b"") == b""


@BOTH
async def test_many_large_bodies_at_once_do_not_mix(it: World, protocol: str) -> None:
    bodies = [os.urandom(700_000) for _ in range(8)]
    async with forwarding(it, protocol) as client:
        pairs = [await connect(client, str(number)) for number in range(len(bodies))]

        async def upload() -> None:
            for at in range(0, 700_000, 32_768):
                for (_, data), body in zip(pairs, bodies, strict=True):
                    await client.send(spdy.Data(data, body[at : at + 32_768]))
            for _, data in pairs:
                await client.send(spdy.Data(data, b"", fin=True))

        async with asyncio.TaskGroup() as group:
            group.create_task(upload())
            await client.until_ended(*(stream for pair in pairs for stream in pair))
    for (_, data), body in zip(pairs, bodies, strict=True):
        assert client.received[data] == body + b"|end"


@BOTH
async def test_what_goes_wrong_with_one_connection_is_told_in_its_error_stream(it: World, protocol: str) -> None:
    async with forwarding(it, protocol) as client:
        error, data = await connect(client, "0", port=9)
        await client.until_ended(error, data)
        assert b"error forwarding port 9 to pod" in client.received[error]
        assert b"connection refused" in client.received[error]
        error, data = await connect(client, "1", port=99999)
        await client.until_ended(error, data)
        assert client.received[error] == b'unable to parse "99999" as a port'
        error, data = await connect(client, "2")
        await client.send(spdy.Data(data, b"still there", fin=True))
        await client.until_ended(error, data)
        assert client.received[data] == b"still there|end"


@BOTH
async def test_a_stream_that_is_reset_ends_its_connection_and_no_other(it: World, protocol: str) -> None:
    pod = await it.client.get(Pod, "p", "default")
    async with forwarding(it, protocol) as client:
        first, second = await connect(client, "0"), await connect(client, "1")
        for _, data in (first, second):
            await client.send(spdy.Data(data, b"x"))
        while len(client.received) < 2:
            assert await client.take()
        assert connections(pod) == 2
        await client.send(spdy.RstStream(first[1]))
        await client.until_ended(first[0])
        await client.send(spdy.Data(second[1], b"y", fin=True))
        await client.until_ended(*second)
        assert client.received[second[1]] == b"xy|end"


@BOTH
async def test_a_client_that_goes_takes_its_connections_along(it: World, protocol: str) -> None:
    pod = await it.client.get(Pod, "p", "default")
    async with forwarding(it, protocol) as client:
        _, data = await connect(client, "0")
        await client.send(spdy.Data(data, b"x"))
        while data not in client.received:
            assert await client.take()
        assert connections(pod) == 1
    async with asyncio.timeout(15):
        while connections(pod):
            await asyncio.sleep(0.02)


@BOTH
async def test_a_cluster_that_ends_does_not_wait_for_its_clients(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as connected:
        async with world(tcp=True) as it:
            await it.pod("p", "sleep 600")
            await it.until(Pod, "p", running)
            client = await connected.enter_async_context(forwarding(it, protocol))
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 10
        with suppress(ConnectionError):  # it may be gone before the last ping is answered
            async with asyncio.timeout(10):
                while await client.take():
                    pass
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def connections(pod: Pod) -> int:
    """Open connections to port 5000 of the pod, counted at its side."""
    local = "".join(f"{int(part):02X}" for part in reversed(pod.status.pod_ip.split("."))) + ":1388"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(words[1] == local and words[3] == "01" for words in lines)


async def test_a_websocket_has_two_channels_for_each_port(it: World) -> None:
    path = pod_path("p", "portforward", [("ports", "5000"), ("ports", "9")])
    async with channels(Target.of(it.dev), path, "v4.channel.k8s.io") as client:
        await client.until(3, b"connection refused")
        await client.send(0, b"hello")
        await client.until(0, b"hello")
    for channel, port in ((0, 5000), (1, 5000), (2, 9), (3, 9)):
        assert client.received[channel][:2] == struct.pack("<H", port)
    assert client.received[0][2:] == b"hello"
    assert client.received[1][2:] == b""


async def test_a_websocket_that_names_no_port_is_refused(it: World) -> None:
    headers = {
        "Upgrade": "websocket",
        "Sec-WebSocket-Protocol": "v4.channel.k8s.io",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }
    for query, text in (
        ([], 'query parameter "port" is required'),
        ([("ports", "x")], 'unable to parse "x" as a port'),
    ):
        path = pod_path("p", "portforward", query)
        status, answer, reader, writer = await upgrade(Target.of(it.dev), path, headers)
        assert status == 400
        assert text in (await reader.readexactly(int(answer["content-length"]))).decode()
        writer.close()
