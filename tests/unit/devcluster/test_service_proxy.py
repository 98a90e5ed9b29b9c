"""The service proxy against real listeners."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from devworld import World, world

from kaito_api.core import EndpointAddress, EndpointPort, Endpoints, EndpointSubset, Service
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.proxy import ADDRESS_ANNOTATION
from kaito_ctrl.runtime import ObjectKey


@asynccontextmanager
async def echo_until_eof() -> AsyncIterator[int]:
    """A server that reads everything and only then answers: it needs half-closed connections."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(data.upper())
        writer.write_eof()
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def routed(it: World, name: str, *targets: int) -> tuple[str, int]:
    """A service without a selector, whose endpoints are ports of this machine; where it is reached."""
    body = {"metadata": {"name": name, "namespace": "default"}, "spec": {"ports": [{"port": 9000}]}}
    await it.client.create(Service.model_validate(body))
    subsets = tuple(
        EndpointSubset(addresses=(EndpointAddress(ip="127.0.0.1"),), ports=(EndpointPort(port=port),))
        for port in targets
    )
    await it.client.create(Endpoints(metadata=ObjectMeta(name=name, namespace="default"), subsets=subsets))
    await it.until(Endpoints, name, lambda found: len(found.subsets) == len(targets))
    await it.settled()
    address = it.dev.proxy.address("default", name, 9000)
    assert address is not None
    return address


async def exchange(address: tuple[str, int], data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


async def test_bytes_pass_both_ways_and_each_side_may_finish_first() -> None:
    async with echo_until_eof() as port, world(nodes=()) as it:
        address = await routed(it, "echo", port)
        payload = b"abc" * 200_000
        assert await exchange(address, payload) == payload.upper()


async def test_a_dead_endpoint_is_passed_over() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = unused.getsockname()[1]
    async with echo_until_eof() as port, world(nodes=()) as it:
        address = await routed(it, "echo", port, dead)
        assert [await exchange(address, b"x") for _ in range(4)] == [b"X"] * 4


async def test_a_service_without_endpoints_refuses() -> None:
    async with world(nodes=()) as it:
        address = await routed(it, "empty")
        with pytest.raises(OSError, match=r"reset|not connected|closed"):
            await exchange(address, b"x")


async def test_endpoints_that_change_are_followed() -> None:
    async with echo_until_eof() as port, world(nodes=()) as it:
        address = await routed(it, "late")
        subset = EndpointSubset(addresses=(EndpointAddress(ip="127.0.0.1"),), ports=(EndpointPort(port=port),))
        await it.client.patch(Endpoints, ObjectKey("default", "late"), {"subsets": [subset.to_wire()]})
        await it.until(Endpoints, "late", lambda found: found.subsets)
        await it.settled()
        assert await exchange(address, b"x") == b"X"


async def test_a_port_that_is_taken_moves_and_the_service_says_where_to() -> None:
    async with world(nodes=()) as it:
        made = await it.client.create(
            Service.model_validate(
                {
                    "metadata": {"name": "first", "namespace": "default"},
                    "spec": {"clusterIP": "127.96.77.77", "ports": [{"port": 9000}]},
                }
            )
        )
        await it.settled()
        assert it.dev.proxy.address("default", "first", 9000) == (made.spec.cluster_ip, 9000)
        await it.client.delete(Service, ObjectKey("default", "first"))
        await it.until_gone(Service, "first")
        await it.settled()
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.96.77.77", 9000))
            squatter.listen()
            await it.client.create(
                Service.model_validate(
                    {
                        "metadata": {"name": "second", "namespace": "default"},
                        "spec": {"clusterIP": "127.96.77.77", "ports": [{"port": 9000}]},
                    }
                )
            )
            moved = await it.until(Service, "second", lambda found: found.metadata.annotations)
        assert moved.metadata.annotations == {f"{ADDRESS_ANNOTATION}9000": "127.96.77.77:17000"}
        assert it.dev.proxy.address("default", "second", 9000) == ("127.96.77.77", 17000)
