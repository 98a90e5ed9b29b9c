"""The cache and doubtful writes: a live read settles them, and what it cannot settle stops only whom it concerns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from kaito_api.core import ConfigMap, Node, Pod
from kaito_api.meta import ObjectMeta, Resource
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, ObjectKey
from kaito_ctrl.runtime.codec import encode_json
from kaito_ctrl.runtime.errors import DecodeError, NotFound, ServerError, TransportError
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.scope import Scope
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
    """A running cache of ConfigMaps, Nodes and Pods, and a client whose writes and reads it hears of."""
    cluster = Cluster(wire, rng=random.Random(1))
    for kind in (ConfigMap, Node, Pod):
        cluster.cache.declare(kind)
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


def answers_to(method: str, body: bytes, *, done: bool) -> Intercept:
    """Answers such a request with *body*, after it was carried out or without that."""

    async def answer(inner: Transport, request: Request) -> Response:
        if request.method != method:
            return await inner.send(request)
        if done:
            await (await inner.send(request)).read()
        return Response.of(200, body)

    return answer


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b""])
async def test_an_answer_that_says_nothing_of_a_write_leaves_it_in_doubt(server: ApiServer, body: bytes) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        wire.through = answers_to("POST", body, done=True)
        with pytest.raises(DecodeError):
            await client.create(child())
        wire.through = None
        await cluster.cache.settle()
        assert cluster.cache.get(ConfigMap, "child", "default") is not None


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b"{}"])
async def test_a_read_that_is_no_object_keeps_the_doubt(server: ApiServer, body: bytes) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        await doubtful_create(wire, client, child())
        wire.through = answers_to("GET", body, done=False)
        with pytest.raises(DecodeError):
            await cluster.cache.settle([ConfigMap])
        assert cluster.cache.store(ConfigMap).uncertain() == {KEY}


async def test_the_answer_of_a_subresource_is_not_taken_for_the_object(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        known = await client.create(child(v="1"))
        later = str(int(known.metadata.resource_version or "") + 1)
        metadata = {**known.metadata.to_wire(), "resourceVersion": later}
        scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata}

        async def scaled(inner: Transport, request: Request) -> Response:
            if request.method != "PATCH":
                return await inner.send(request)
            response = await inner.send(replace(request, path=request.path.removesuffix("/scale")))
            assert response.status == 200
            await response.read()
            return Response.of(200, encode_json(scale))

        wire.through = scaled
        await client.patch_raw(ConfigMap, KEY, {"data": {"v": "2"}}, subresource="scale")
        wire.through = None
        await cluster.cache.settle()
        found = cluster.cache.get(ConfigMap, "child", "default")
        assert found is not None
        assert found.data == {"v": "2"}


async def test_a_deleted_object_that_the_server_answers_with_is_gone(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        made = await client.create(child())

        async def returned(inner: Transport, request: Request) -> Response:
            response = await inner.send(request)
            if request.method != "DELETE":
                return response
            await response.read()
            return Response.of(200, encode_json(made.to_wire()))  # as for Services, claims and pods without a grace

        wire.through = returned
        await client.delete(ConfigMap, KEY)
        assert cluster.cache.get(ConfigMap, "child", "default") is None


async def muted(inner: Transport, request: Request) -> Response:
    """Lists come, and then nothing is ever heard of a watch."""
    if ("sendInitialEvents", "true") in request.query:
        return Response.of(422, b"")
    if ("watch", "true") not in request.query:
        return await inner.send(request)

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    return Response(200, {}, silence())


async def test_what_a_live_read_has_shown_the_cache_knows_although_its_watch_is_silent(server: ApiServer) -> None:
    wire = Wire(server.transport())
    others = Client(server.transport())
    await others.create(child(v="1"))
    wire.through = muted
    async with cached(wire) as (cluster, client):
        await others.patch(ConfigMap, KEY, {"data": {"v": "2"}})
        assert (await client.get(ConfigMap, *reversed(KEY))).data == {"v": "2"}
        found = cluster.cache.get(ConfigMap, "child", "default")
        assert found is not None
        assert found.data == {"v": "2"}
        await others.delete(ConfigMap, KEY)
        with pytest.raises(NotFound):
            await client.get(ConfigMap, *reversed(KEY))
        assert cluster.cache.get(ConfigMap, "child", "default") is None


async def test_a_live_not_found_does_not_hide_what_was_created_meanwhile(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):

        async def late(inner: Transport, request: Request) -> Response:
            response = await inner.send(request)
            if request.method == "GET" and request.path.endswith("/child"):
                await client.create(child())
            return response

        wire.through = late
        with pytest.raises(NotFound):
            await client.get(ConfigMap, *reversed(KEY))
        assert cluster.cache.get(ConfigMap, "child", "default") is not None


async def test_an_outage_is_noticed_once_and_not_for_each_doubt(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        for name in ("a", "b", "c"):
            await doubtful_create(wire, client, child().evolve(metadata=ObjectMeta(name=name, namespace="default")))
        asked: list[str] = []

        async def away(inner: Transport, request: Request) -> Response:
            asked.append(request.path)
            raise TransportError("no route")

        wire.through = away
        with pytest.raises(TransportError):
            await cluster.cache.settle([ConfigMap])
        assert len([each for each in asked if "/configmaps/" in each]) == 1


async def test_a_cache_that_is_not_listed_yet_stops_at_once(server: ApiServer) -> None:
    async def nothing(inner: Transport, request: Request) -> Response:
        raise TransportError("no route")

    wire = Wire(server.transport())
    wire.through = nothing
    cluster = Cluster(wire, rng=random.Random(1))
    cluster.cache.declare(ConfigMap)
    lifetime = Lifetime()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(cluster.cache.run(lifetime))
        await asyncio.sleep(0)
        lifetime.stop()
    assert not lifetime.is_started


async def test_a_cached_read_addresses_objects_as_a_live_one_does(server: ApiServer) -> None:
    wire = Wire(server.transport())
    async with cached(wire) as (cluster, client):
        await client.create(child())
        with pytest.raises(ValueError, match="say in which namespace"):
            cluster.cache.get(ConfigMap, "child")
        await client.create(Node(metadata=ObjectMeta(name="n")))
        await until_known(cluster, Node, "n")
        assert cluster.cache.get(Node, "n", "default") is not None
        assert len(cluster.cache.list(Node, "default")) == 1


async def until_known(cluster: Cluster, kind: type[Resource], name: str) -> None:
    known = asyncio.Event()
    store = cluster.cache.store(kind)
    store.listen(lambda change: known.set() if change.key.name == name else None)
    async with asyncio.timeout(5):
        await known.wait()


async def test_a_cache_of_some_labels_knows_what_we_wrote_with_them_and_nothing_else(server: ApiServer) -> None:
    wire = Wire(server.transport())
    wire.through = muted
    cluster = Cluster(wire, rng=random.Random(1))
    cluster.cache.declare(ConfigMap, scope=Scope(labels="app in (web, db),!gone"))
    client, lifetime = Client(wire, "test", cluster.cache), Lifetime()

    def labelled(name: str, **labels: str) -> ConfigMap:
        return ConfigMap(metadata=ObjectMeta(name=name, namespace="default", labels=labels))

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(cluster.cache.run(lifetime))
        await lifetime.wait_started()
        for name, labels in (("a", {"app": "web"}), ("b", {"app": "mail"}), ("c", {"app": "db", "gone": "yes"})):
            await client.create(labelled(name, **labels))
        wire.through = answers_to("POST", b"", done=True)  # the watch stays silent
        for name, app in (("d", "db"), ("e", "mail")):
            with pytest.raises(DecodeError):
                await client.create(labelled(name, app=app))
        await cluster.cache.settle()
        assert [each.name for each in cluster.cache.list(ConfigMap)] == ["a", "d"]
        assert cluster.cache.store(ConfigMap).uncertain() == frozenset()
        lifetime.stop()
