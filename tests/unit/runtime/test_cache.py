"""The cache and doubtful writes: a live read settles them, and what it cannot settle stops only whom it concerns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import generate_latest

from kaito_api.core import ConfigMap, Pod
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, ObjectKey
from kaito_ctrl.runtime.errors import ServerError, TransportError
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.transport import Request, Response, Transport

KEY = ObjectKey("default", "child")
Intercept = Callable[[Transport, Request], Awaitable[Response]]


def child(**data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name="child", namespace="default"), data=data)


class Wire:
    """A transport with a fault in the middle: *through* decides what becomes of each request."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.through: Intercept | None = None

    async def send(self, request: Request) -> Response:
        if self.through is not None:
            return await self.through(self.inner, request)
        return await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


@asynccontextmanager
async def cached(wire: Wire) -> AsyncIterator[tuple[Cluster, Client]]:
    """A running cache of ConfigMaps and Pods, and a client whose writes it hears of."""
    cluster = Cluster(wire, rng=random.Random(1))
    cluster.cache.declare(ConfigMap)
    cluster.cache.declare(Pod)
    lifetime = Lifetime()
    task = asyncio.create_task(cluster.cache.run(lifetime))
    await lifetime.wait_started()
    try:
        yield cluster, Client(wire, "test", cluster.cache)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_objects_that_do_not_decode_are_a_metric(server: ApiServer) -> None:
    class Narrow(ConfigMap):
        data: dict[str, int] = {}  # type: ignore[assignment]  # noqa: RUF012

    await Client(server.transport()).create(child(a="word"))
    cluster = Cluster(server.transport(), rng=random.Random(1))
    cluster.cache.declare(Narrow)
    lifetime = Lifetime()
    task = asyncio.create_task(cluster.cache.run(lifetime))
    await lifetime.wait_started()
    assert cluster.cache.list(Narrow) == ()
    exposed = generate_latest(cluster.metrics.registry).decode()
    assert 'kaito_ctrl_undecodable_objects{cluster="",kind="ConfigMap"} 1.0' in exposed
    lifetime.stop()
    await task


async def lost(_: Transport, request: Request) -> Response:
    raise TransportError("connection reset")


async def doubtful_create(wire: Wire, client: Client, obj: ConfigMap) -> None:
    """A create that never reached the server, as its author cannot know."""
    wire.through = lost
    with pytest.raises(TransportError):
        await client.create(obj)
    wire.through = None


async def test_two_workers_settle_one_key_with_one_read(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        await doubtful_create(wire, client, child())
        reads = 0

        async def counted(inner: Transport, request: Request) -> Response:
            nonlocal reads
            reads += request.path.endswith("/child")
            await asyncio.sleep(0)
            return await inner.send(request)

        wire.through = counted
        await asyncio.gather(cluster.cache.settle(), cluster.cache.settle())
        assert reads == 1


async def test_a_late_not_found_does_not_hide_what_was_created_meanwhile(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        await doubtful_create(wire, client, child())
        answered, released = asyncio.Event(), asyncio.Event()

        async def held(inner: Transport, request: Request) -> Response:
            response = await inner.send(request)
            if request.method == "GET" and request.path.endswith("/child"):
                answered.set()
                await released.wait()
            return response

        wire.through = held
        settling = asyncio.create_task(cluster.cache.settle())
        await answered.wait()
        await client.create(child(v="1"))
        released.set()
        await settling
        assert cluster.cache.get(ConfigMap, "child", "default") is not None
        changed = asyncio.Event()
        cluster.cache.store(ConfigMap).listen(lambda change: changed.set() if not change.initial else None)
        await Client(server.transport()).patch(ConfigMap, KEY, {"data": {"v": "2"}})
        async with asyncio.timeout(5):
            await changed.wait()
        found = cluster.cache.get(ConfigMap, "child", "default")
        assert found is not None
        assert found.data == {"v": "2"}


async def test_a_doubtful_create_without_a_name_raises_no_doubt(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        nameless = ConfigMap(metadata=ObjectMeta(generate_name="x-", namespace="default"))
        await doubtful_create(wire, client, nameless)
        assert cluster.cache.store(ConfigMap).uncertain() == frozenset()
        await cluster.cache.settle()


def answering(code: int, body: bytes = b"") -> Intercept:
    async def answer(inner: Transport, request: Request) -> Response:
        if request.method == "GET" and request.path.endswith("/child"):
            return Response.of(code, body)
        return await inner.send(request)

    return answer


async def test_a_refused_read_ends_the_doubt(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        await doubtful_create(wire, client, child())
        wire.through = answering(403)
        await cluster.cache.settle()
        assert cluster.cache.store(ConfigMap).uncertain() == frozenset()


@pytest.mark.parametrize("code", [401, 404, 429, 503])
async def test_a_read_that_says_nothing_of_the_object_keeps_the_doubt(server: ApiServer, code: int) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        await doubtful_create(wire, client, child())
        wire.through = answering(code, b"404 page not found")
        with pytest.raises(Exception, match="404 page not found"):
            await cluster.cache.settle()
        assert cluster.cache.store(ConfigMap).uncertain() == {KEY}


async def test_a_key_that_cannot_be_settled_stops_only_those_who_read_its_kind(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        await doubtful_create(wire, client, child())
        other = child().evolve(metadata=ObjectMeta(name="other", namespace="default"))
        await doubtful_create(wire, client, other)
        wire.through = answering(503)
        await cluster.cache.settle(kinds=[Pod])
        with pytest.raises(ServerError):
            await cluster.cache.settle(kinds=[ConfigMap])
        assert cluster.cache.store(ConfigMap).uncertain() == {KEY}
