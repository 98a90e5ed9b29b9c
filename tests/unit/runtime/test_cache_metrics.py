"""What caches and watches report, and that reporting it holds nothing alive."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from kaito_api.core import ConfigMap, Pod
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Metrics
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.transport import Request, Response


@asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[None]:
    lifetime = Lifetime()
    task = asyncio.create_task(cluster.cache.run(lifetime))
    await lifetime.wait_started()
    try:
        yield
    finally:
        lifetime.stop()
        await task


def read(registry: CollectorRegistry, name: str, kind: str = "ConfigMap", cluster: str = "", **more: str) -> float:
    value = registry.get_sample_value(f"kaito_ctrl_{name}", {"cluster": cluster, "kind": kind, **more})
    assert value is not None, f"there is no kaito_ctrl_{name}"
    return value


def config_map(name: str, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data=data)


async def seen(cluster: Cluster, name: str) -> None:
    heard = asyncio.Event()
    stop = cluster.cache.store(ConfigMap).listen(lambda change: heard.set() if change.key.name == name else None)
    async with asyncio.timeout(5):
        await heard.wait()
    stop()


async def test_a_cache_counts_its_objects_their_bytes_and_its_events(server: ApiServer) -> None:
    client = Client(server.transport(), "test")
    await client.create(config_map("a"))
    cluster = Cluster(server.transport(), rng=random.Random(1))
    store = cluster.cache.declare(ConfigMap)
    async with running(cluster):
        await client.create(config_map("b", k="x" * 100))
        await seen(cluster, "b")
        registry = cluster.metrics.registry
        assert read(registry, "cache_objects") == len(store)
        assert read(registry, "cache_bytes") == store.bytes > 100
        assert read(registry, "watch_events_total", type="ADDED") >= 2
        assert read(registry, "watch_events_total", type="DELETED") == 0
        assert 0 <= read(registry, "last_frame_age_seconds") < 60
        assert read(registry, "relists_total") == 0
        assert read(registry, "unreadable_total") == 0


class Cut:
    """A transport whose streams can be broken off, and whose writes can be lost."""

    def __init__(self, server: ApiServer) -> None:
        self._inner = server.transport()
        self.lost = False
        self.cut = asyncio.Event()

    async def send(self, request: Request) -> Response:
        if self.lost and request.method != "GET":
            raise TransportError("connection reset")
        response = await self._inner.send(request)
        if ("watch", "true") not in request.query:
            return response

        async def chunks() -> AsyncIterator[bytes]:
            stream = response.chunks()
            while not self.cut.is_set():
                turn = asyncio.ensure_future(anext(stream, None))
                broken = asyncio.ensure_future(self.cut.wait())
                try:
                    await asyncio.wait([turn, broken], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    broken.cancel()
                    if not turn.done():
                        turn.cancel()
                        await asyncio.wait([turn])
                if turn.cancelled() or (chunk := turn.result()) is None:
                    break
                yield chunk
            self.cut.clear()
            raise TransportError("connection reset")

        return Response(response.status, response.headers, chunks(), response.aclose)

    async def aclose(self) -> None:
        pass


async def test_a_watch_that_breaks_is_counted_as_restarted_and_not_as_relisted(server: ApiServer) -> None:
    wire = Cut(server)
    cluster = Cluster(wire, rng=random.Random(1))
    cluster.cache.declare(ConfigMap)
    async with running(cluster):
        wire.cut.set()
        await Client(server.transport(), "test").create(config_map("a"))
        await seen(cluster, "a")
        assert read(cluster.metrics.registry, "watch_restarts_total", reason="broken") == 1
        assert read(cluster.metrics.registry, "relists_total") == 0


async def test_a_look_at_what_became_of_a_write_is_counted(server: ApiServer) -> None:
    wire = Cut(server)
    cluster = Cluster(wire, rng=random.Random(1))
    cluster.cache.declare(ConfigMap)
    async with running(cluster):
        client, wire.lost = Client(wire, "test", cluster.cache), True
        with pytest.raises(TransportError):
            await client.create(config_map("a"))
        await cluster.cache.settle()
        assert read(cluster.metrics.registry, "ryw_waits_total") == 1
        assert read(cluster.metrics.registry, "ryw_waits_seconds_total") >= 0


async def test_clusters_share_a_registry_by_name(server: ApiServer) -> None:
    metrics = Metrics()
    other = ApiServer(rng=random.Random(2))
    for name in ("a", "b"):
        await Client(other.transport(), "test").create(config_map(name))
    east = Cluster(server.transport(), rng=random.Random(1), metrics=metrics, name="east")
    west = Cluster(other.transport(), rng=random.Random(1), metrics=metrics, name="west")
    stores = [cluster.cache.declare(ConfigMap) for cluster in (east, west)]
    async with running(east), running(west):
        counted = [read(metrics.registry, "cache_objects", cluster=name) for name in ("east", "west")]
        assert counted == [len(store) for store in stores]
        assert counted[1] == counted[0] + 2
    await other.aclose()


async def test_two_clusters_without_a_name_are_counted_together(server: ApiServer) -> None:
    metrics = Metrics()
    clusters = [Cluster(server.transport(), rng=random.Random(1), metrics=metrics) for _ in range(2)]
    stores = [cluster.cache.declare(ConfigMap) for cluster in clusters]
    async with running(clusters[0]), running(clusters[1]):
        assert read(metrics.registry, "cache_objects") == sum(map(len, stores))


async def test_a_cluster_that_is_gone_leaves_no_objects_in_the_registry(server: ApiServer) -> None:
    metrics = Metrics()
    cluster = Cluster(server.transport(), rng=random.Random(1), metrics=metrics)
    cluster.cache.declare(Pod)
    async with running(cluster):
        assert read(metrics.registry, "cache_objects", "Pod") == 0
    store = weakref.ref(cluster.cache)
    del cluster
    gc.collect()
    assert store() is None
    assert metrics.registry.get_sample_value("kaito_ctrl_cache_objects", {"cluster": "", "kind": "Pod"}) is None


async def test_a_declared_kind_is_counted_before_it_is_listed(server: ApiServer) -> None:
    cluster = Cluster(server.transport(), rng=random.Random(1))
    cluster.cache.declare(ConfigMap)
    assert read(cluster.metrics.registry, "cache_objects") == 0
    assert read(cluster.metrics.registry, "watch_restarts_total", reason="silence") == 0
