"""Our own watch against real servers: however a server lists, the cache holds what the server holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from kaito_api.core import ConfigMap
from kaito_api.meta import Resource
from kaito_ctrl.runtime import watch
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.store import Change, Store
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.runtime.watch import Listing, Reflector, State, Watching
from tests.conformance.objects import config_map
from tests.conformance.wire import Api

PATIENCE = 20.0


class ConfigMapMetadata(Resource):
    """A ConfigMap of which only the metadata is read."""

    group, version, kind, plural = "", "v1", "ConfigMap", "configmaps"


@dataclass
class Recorder:
    """A transport that remembers what was asked, and forgets the query parameters in *unknown*, as a server does that
    is older than they are."""

    inner: Transport
    unknown: frozenset[str] = frozenset()
    asked: list[tuple[dict[str, str], int]] = field(default_factory=list)

    async def send(self, request: Request) -> Response:
        known = tuple((name, value) for name, value in request.query if name not in self.unknown)
        response = await self.inner.send(replace(request, query=known))
        self.asked.append((dict(request.query), response.status))
        return response

    async def aclose(self) -> None:
        pass


@dataclass
class Watched:
    """A store, what feeds it, and a way to wait for what it is to hold."""

    store: Store[ConfigMap]
    reflectors: list[Reflector]
    asked: list[tuple[dict[str, str], int]]
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.store.listen(self._wake)

    def _wake(self, _: Change[ConfigMap]) -> None:
        self._changed.set()

    async def until(self, holds: Callable[[Store[ConfigMap]], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (self.store.synced and holds(self.store)):
                self._changed.clear()
                await self._changed.wait()

    def names(self, namespace: str) -> list[str]:
        """Of ours: a real server puts a ConfigMap of its own into every namespace."""
        return sorted(
            each.key.name
            for each in self.store.entries()
            if each.key.namespace == namespace and each.key.name != "kube-root-ca.crt"
        )


@asynccontextmanager
async def watching(
    api: Api,
    scope: Scope | None = None,
    *,
    kind: type[ConfigMap] = ConfigMap,
    unknown: frozenset[str] = frozenset(),
    start: State | None = None,
    streaming: bool = True,
    idle: float = 130.0,
) -> AsyncIterator[Watched]:
    scope = scope or Scope(namespace=api.namespace)
    store, wire = Store(kind, scope), Recorder(api.target.transport, unknown)
    watched = Watched(store, [], wire.asked)
    for feed in store.feeds:
        watched.reflectors.append(
            Reflector(
                wire,
                kind,
                feed,
                scope=scope,
                namespace=feed.namespace,
                rng=random.Random(1),
                streaming=streaming,
                idle=idle,
                on_state=lambda _: watched._changed.set(),
            )
        )
        watched.reflectors[-1].state = start or watched.reflectors[-1].state
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in watched.reflectors]
        yield watched
        for task in tasks:
            task.cancel()


async def test_a_server_is_asked_to_stream_and_listed_where_it_does_not(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map("before"))
    async with watching(api) as watched:
        await watched.until(lambda _: watched.names(api.namespace) == ["before"])
        asked, status = watched.asked[0]
        assert asked["sendInitialEvents"] == "true"
        if api.version >= (1, 32):
            assert [status for _, status in watched.asked] == [200]
        else:
            assert status == 422  # since 1.19, for the resourceVersionMatch that goes with it
            assert "watch" not in watched.asked[1][0]
        await api.post(api.at("configmaps"), config_map("after"))
        await api.delete(api.at("configmaps", "before"))
        await watched.until(lambda _: watched.names(api.namespace) == ["after"])


async def test_a_server_that_knows_nothing_of_streaming_and_ignores_it_is_found_out(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map("a"))
    ignored = frozenset({"sendInitialEvents", "resourceVersionMatch"})
    async with watching(api, unknown=ignored, idle=0.3) as watched:
        await watched.until(lambda _: watched.names(api.namespace) == ["a"])
        assert [asked.get("sendInitialEvents", "list") for asked, _ in watched.asked[:2]] == ["true", "list"]
        await api.post(api.at("configmaps"), config_map("b"))
        await watched.until(lambda _: watched.names(api.namespace) == ["a", "b"])


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_object_is_the_same_however_it_came(api: Api, streaming: bool) -> None:
    await api.post(api.at("configmaps"), config_map("a", {"k": 'quote " brace } é'}, labels={"app": "x"}))
    async with watching(api, streaming=streaming) as watched:
        await watched.until(lambda _: watched.names(api.namespace) == ["a"])
        first = watched.store.entry(ObjectKey(api.namespace, "a"))
        assert first is not None
        assert first.view().data == {"k": 'quote " brace } é'}
        assert first.header.labels == {"app": "x"}
        assert b"managedFields" not in first.raw
        await api.merge(api.at("configmaps", "a"), {"metadata": {"annotations": {"n": "1"}}})
        await watched.until(lambda store: store.entry(first.key) is not first)
        second = watched.store.entry(first.key)
        assert second is not None
        assert second.view().data == first.view().data
        assert second.uid == first.uid
        assert second.header.annotations == {"n": "1"}


async def test_a_list_comes_in_pages(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PAGE_SIZE", 2)
    wanted = [f"cm-{index}" for index in range(5)]
    for name in wanted:
        await api.post(api.at("configmaps"), config_map(name))
    async with watching(api, start=Listing("")) as watched:
        await watched.until(lambda _: watched.names(api.namespace) == wanted)
        pages = [asked for asked, _ in watched.asked if "limit" in asked]
        assert len(pages) >= 3
        assert all("continue" in asked for asked in pages[1:])


async def test_a_version_that_has_expired_is_compared_and_swept_while_the_store_serves(api: Api) -> None:
    kept = await api.post(api.at("configmaps"), config_map("kept"))
    lost = await api.post(api.at("configmaps"), config_map("lost"))
    async with watching(api, streaming=False) as before:
        await before.until(lambda _: before.names(api.namespace) == ["kept", "lost"])
    await api.delete(api.at("configmaps", "lost"))
    api.target.compact()
    scope = Scope(namespace=api.namespace)
    reflector = Reflector(
        api.target.transport, ConfigMap, before.store.feed(api.namespace), scope=scope, rng=random.Random(1)
    )
    reflector.state = Watching("1")
    changes: list[Change[ConfigMap]] = []
    gone = asyncio.Event()
    before.store.listen(changes.append)
    before.store.listen(lambda change: gone.set() if change.new is None else None)
    changes.clear()
    task = asyncio.create_task(reflector.run())
    async with asyncio.timeout(PATIENCE):
        await gone.wait()
    task.cancel()
    await asyncio.wait([task])
    assert before.names(api.namespace) == ["kept"]
    assert [change.key.name for change in changes] == [lost["metadata"]["name"]]
    entry = before.store.entry(ObjectKey(api.namespace, "kept"))
    assert entry is not None
    assert entry.uid == kept["metadata"]["uid"]


@pytest.mark.parametrize("streaming", [True, False])
async def test_several_namespaces_are_one_cache(api: Api, streaming: bool) -> None:
    other, foreign = f"{api.namespace}-b", f"{api.namespace}-c"
    for namespace in (other, foreign):
        await api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    for namespace in (api.namespace, other, foreign):
        await api.post(f"/api/v1/namespaces/{namespace}/configmaps", config_map("a"))
    async with watching(api, Scope(namespaces=(api.namespace, other)), streaming=streaming) as watched:
        await watched.until(lambda _: watched.names(api.namespace) == watched.names(other) == ["a"])
        assert watched.names(foreign) == []
        await api.delete(f"/api/v1/namespaces/{other}/configmaps/a")
        await watched.until(lambda _: watched.names(other) == [])
        assert watched.names(api.namespace) == ["a"]


@pytest.mark.parametrize("streaming", [True, False])
async def test_only_metadata_is_asked_for_and_kept(api: Api, streaming: bool) -> None:
    await api.post(api.at("configmaps"), config_map("a", {"secret": "x" * 100}, labels={"app": "x"}))
    scope = Scope(namespace=api.namespace, metadata_only=True)
    kind: type = ConfigMapMetadata
    async with watching(api, scope, kind=kind, streaming=streaming) as watched:
        await watched.until(lambda _: watched.names(api.namespace) == ["a"])
        await api.post(api.at("configmaps"), config_map("b", {"secret": "x"}))
        await watched.until(lambda _: watched.names(api.namespace) == ["a", "b"])
        bodies = [decode_json(each.raw) for each in watched.store.entries()]
        assert all(set(body) <= {"apiVersion", "kind", "metadata"} for body in bodies)
        entry = watched.store.entry(ObjectKey(api.namespace, "a"))
        assert entry is not None
        assert entry.view().metadata.labels == {"app": "x"}
