"""The debug page and the health checks: what they say, to whom, and that a stuck reconcile is found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request

from kaito_api.core import ConfigMap, Node
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Context, Controller, Lease, Manager, ObjectKey, Result, reads
from kaito_ctrl.runtime.debug import DEBUG_PATH, debug_page, snapshot
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.queue import RetryPolicy
from kaito_ctrl.runtime.serving import HealthServer, HttpServer
from kaito_ctrl.runtime.stacks import stack_of
from kaito_ctrl.testing import VirtualClock, run_virtual


class Mixed(Controller[ConfigMap]):
    """Gets stuck, fails, or comes back later, as the object says."""

    name = "mixed"
    kind = ConfigMap
    workers = 1
    retry = RetryPolicy(base=60.0, jitter=0.0)

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        match obj.data["do"]:
            case "stick":
                await self.wait_for_the_world()
            case "fail":
                raise ValueError("of no use")
            case "later":
                return Result.retry_in(600)
        return Result.done()

    async def wait_for_the_world(self) -> None:
        async with asyncio.timeout(200):
            await self.free.wait()


def object_that(do: str, name: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data={"do": do})


@dataclass
class Running:
    manager: Manager
    controller: Mixed
    client: Client

    def seen(self, **options: Any) -> dict[str, Any]:
        return snapshot(self.manager, **options)

    def mixed(self, **options: Any) -> dict[str, Any]:
        (found,) = self.seen(**options)["controllers"]
        assert isinstance(found, dict)
        return found


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Running]:
    clock = VirtualClock()
    server = ApiServer(clock=clock, rng=random.Random(1))
    manager = Manager(Cluster(server.transport(), clock=clock, rng=random.Random(1)), **options)
    controller = Mixed()
    manager.add(controller)
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.run())
        await manager.wait_leading()
        yield Running(manager, controller, Client(server.transport()))
        controller.free.set()
        manager.stop()
    await server.aclose()


def test_a_stuck_reconcile_is_listed_with_its_age_and_where_it_waits() -> None:
    async def main() -> None:
        async with running() as it:
            await it.client.create(object_that("stick", "a"))
            await asyncio.sleep(30)
            await it.client.create(object_that("nothing", "b"))
            await it.client.patch(ConfigMap, ObjectKey("default", "a"), {"data": {"more": "x"}})
            await asyncio.sleep(10)
            seen = it.mixed()
            (run,) = seen["running"]
            assert (run["key"], run["again"]) == ("default/a", True)
            assert run["age"] == pytest.approx(40, abs=1)
            where = [line.rpartition(" in ")[2] for line in run["stack"]]
            assert where[0] == "Worker._process"
            assert where[-3:-1] == ["Mixed.wait_for_the_world", "Event.wait"]
            assert where[-1].startswith("awaiting Future")
            assert seen["ready"] == 1
            (waiting,) = seen["queue"]
            assert (waiting["key"], waiting["state"], waiting["priority"]) == ("default/b", "ready", 0)
            assert waiting["age"] == pytest.approx(10, abs=1)

    run_virtual(main())


def test_what_fails_is_listed_with_its_error_and_when_it_is_tried_again() -> None:
    async def main() -> None:
        async with running() as it:
            await it.client.create(object_that("fail", "a"))
            await it.client.create(object_that("later", "b"))
            await asyncio.sleep(70)
            seen = it.mixed()
            (error,) = seen["errors"]
            assert (error["key"], error["error"], error["times"]) == ("default/a", "ValueError: of no use", 2)
            assert error["since"] == pytest.approx(70, abs=1)
            assert error["last"] == pytest.approx(10, abs=1)
            first, second = seen["queue"]
            assert (first["key"], first["state"], first["failures"]) == ("default/a", "delayed", 2)
            assert first["due"] == pytest.approx(110, abs=1)
            assert (second["key"], second["state"], second["failures"]) == ("default/b", "delayed", 0)
            assert 530 <= second["due"] <= 600
            assert (seen["delayed"], seen["failing"], seen["running"]) == (2, 1, [])
            await it.client.patch(ConfigMap, ObjectKey("default", "a"), {"data": {"do": "nothing"}})
            await asyncio.sleep(1)
            assert it.mixed()["errors"] == []

    run_virtual(main())


def test_a_long_queue_is_counted_and_listed_in_part() -> None:
    async def main() -> None:
        async with running() as it:
            for number in range(20):
                await it.client.create(object_that("later", f"a-{number}"))
            await asyncio.sleep(1)
            seen = it.mixed(limit=3)
            assert (seen["delayed"], len(seen["queue"])) == (20, 3)

    run_virtual(main())


def test_caches_and_the_lease_are_told() -> None:
    async def main() -> None:
        async with running(leader=Lease("mixed", namespace="default", identity="me")) as it:
            await it.client.create(object_that("nothing", "a"))
            await asyncio.sleep(5)
            seen = it.seen()
            assert (seen["ready"], seen["leading"]) == (True, True)
            lease = seen["lease"]
            assert (lease["name"], lease["identity"], lease["leads"]) == ("default/mixed", "me", True)
            assert 0 < lease["remaining"] <= 10
            (cache,) = seen["caches"]
            assert (cache["cluster"], cache["resource"]) == ("", "configmaps")
            assert (cache["objects"], cache["synced"]) == (1, True)
            (watch,) = cache["watches"]
            assert watch["state"] == "watching"
            assert watch["resourceVersion"]
            assert 4 <= watch["lastFrame"] <= 6

    run_virtual(main())


def test_caches_of_other_clusters_are_told_too() -> None:
    class Elsewhere(Mixed):
        sources = (reads(Node, cluster="far"),)

    async def main() -> None:
        clock, rng = VirtualClock(), random.Random(1)
        near, far = ApiServer(clock=clock, rng=rng), ApiServer(clock=clock, rng=rng)
        manager = Manager(Cluster(near.transport(), clock=clock, rng=rng))
        manager.add_cluster("far", Cluster(far.transport(), clock=clock, rng=rng))
        manager.add(Elsewhere())
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            await manager.wait_ready()
            found = {(each["cluster"], each["resource"]): each["synced"] for each in snapshot(manager)["caches"]}
            assert found == {("", "configmaps"): True, ("far", "nodes"): True}
            manager.stop()
        await near.aclose()
        await far.aclose()

    run_virtual(main())


async def test_the_innermost_coroutine_is_found() -> None:
    async def inner() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    async def outer() -> None:
        async for _ in inner():
            pass

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    assert "outer" in stack_of(task)[0]
    task.cancel()
    await asyncio.wait((task,))
    assert stack_of(task) == ["awaiting coroutine"]


# -- over HTTP -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(server: HttpServer) -> AsyncIterator[str]:
    lifetime = Lifetime()
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run(lifetime))
        await lifetime.wait_started()
        assert server.address is not None
        yield f"http://127.0.0.1:{server.address[1]}"
        lifetime.stop()


async def get(url: str, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def test_the_page_is_json_and_text_for_people(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport(), rng=random.Random(1)))
    controller = Mixed()
    manager.add(controller)
    pages = HttpServer("127.0.0.1", 0)
    pages.add_page(DEBUG_PATH, debug_page(manager))
    for do in ("stick", "fail"):
        await Client(server.transport()).create(object_that(do, do))
    async with asyncio.TaskGroup() as group, serving(pages) as url:
        group.create_task(manager.run())
        await manager.wait_ready()
        async with asyncio.timeout(5):
            while not manager.workers[0].running:
                await asyncio.sleep(0.01)
        status, text = await get(f"{url}{DEBUG_PATH}")
        assert status == 200
        assert '"controllers":[{"name":"mixed","kind":"ConfigMap","workers":1' in text
        status, text = await get(f"{url}{DEBUG_PATH}?pretty")
        assert status == 200
        assert "CONTROLLER   KIND        WORKERS   RUNNING   READY   DELAYED   FAILING" in text
        assert "mixed        ConfigMap   1         1" in text
        assert "in Mixed.wait_for_the_world" in text
        assert "-         configmaps   v1        *" in text
        assert (await get(f"{url}{DEBUG_PATH}?limit=x"))[0] == 400
        status, text = await get(f"{url}{DEBUG_PATH}", host="example.org")
        assert (status, "port-forward" in text) == (403, True)
        controller.free.set()
        manager.stop()


class Peer:
    """As much of a connection as tells who is at its other end."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.address, 40000) if name == "peername" else default


@pytest.mark.parametrize(
    ("peer", "host", "allowed"),
    [
        ("127.0.0.1", "localhost:8081", True),
        ("127.8.8.8", "127.0.0.1:8081", True),
        ("::1", "[::1]:8081", True),
        ("::ffff:127.0.0.1", "localhost", True),
        ("10.0.0.7", "localhost:8081", False),
        ("::ffff:10.0.0.7", "localhost:8081", False),
        ("127.0.0.1", "rebound.example.org", False),
    ],
)
async def test_only_callers_on_this_machine_are_told(server: ApiServer, peer: str, host: str, allowed: bool) -> None:
    manager = Manager(Cluster(server.transport(), rng=random.Random(1)))
    request = make_mocked_request("GET", DEBUG_PATH, headers={"Host": host}, transport=Peer(peer))
    if allowed:
        assert (await debug_page(manager)(request)).status == 200
    else:
        with pytest.raises(aiohttp.web.HTTPForbidden):
            await debug_page(manager)(request)


@pytest.fixture
async def health() -> AsyncIterator[str]:
    def broken() -> str | None:
        raise ValueError("the password is swordfish")

    checks = {"ping": lambda: None, "caches": lambda: "not listed yet: pods", "broken": broken}
    async with serving(HealthServer(live={"ping": lambda: None}, ready=checks, host="127.0.0.1", port=0)) as url:
        yield url


UNREADY = """\
[+]ping ok
[-]caches failed: not listed yet: pods
[-]broken failed: internal error, see the log
readyz check failed
"""
EXCLUDED = """\
[+]ping ok
[+]caches excluded: ok
[+]broken excluded: ok
warn: some health checks cannot be excluded: no matches for moon
readyz check passed
"""


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/healthz", 200, "ok"),
        ("/healthz?verbose", 200, "[+]ping ok\nhealthz check passed\n"),
        ("/healthz/ping", 200, "ok"),
        ("/healthz/caches", 404, "no such check"),
        ("/readyz", 500, UNREADY),
        ("/readyz/caches", 500, "not listed yet: pods"),
        ("/readyz?exclude=caches&exclude=broken", 200, "ok"),
        ("/readyz?exclude=caches,broken", 200, "ok"),
        ("/readyz?exclude=caches,broken,moon&verbose", 200, EXCLUDED),
    ],
)
async def test_health_is_told_as_kubernetes_components_do(health: str, path: str, status: int, text: str) -> None:
    assert await get(health + path) == (status, text)
