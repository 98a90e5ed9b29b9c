"""The manager: what it runs starts in order, is asked before it is cancelled, and cannot hold it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Cluster, Manager
from kaito_ctrl.runtime.errors import ShutdownTimeout, TransportError
from kaito_ctrl.runtime.lifetime import Lifetime, Runnable
from kaito_ctrl.runtime.transport import Request, Response
from tests.unit.runtime.test_controller import Counting


class Stubborn:
    """Ignores both the polite request and cancellation, until freed."""

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def run(self, lifetime: Lifetime) -> None:
        lifetime.started()
        while not self.free.is_set():
            try:
                await self.free.wait()
            except asyncio.CancelledError:
                continue


class Courteous:
    """Needs a moment to wind down, and notes which way it ended."""

    def __init__(self, ends: list[str] | None = None, name: str = "asked") -> None:
        self.ends: list[str] = ends if ends is not None else []
        self.name = name

    async def run(self, lifetime: Lifetime) -> None:
        lifetime.started()
        try:
            await lifetime.wait_stopping()
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append(self.name)


class Deaf:
    """Never looks whether it is asked to stop."""

    async def run(self, lifetime: Lifetime) -> None:
        lifetime.started()
        await asyncio.Event().wait()


class Failing:
    """Fails, before or after it is up."""

    def __init__(self, *, up: bool) -> None:
        self.up = up

    async def run(self, lifetime: Lifetime) -> None:
        if self.up:
            lifetime.started()
            await asyncio.sleep(0)
        raise OSError("address in use")


@asynccontextmanager
async def managed(server: ApiServer, *runnables: Runnable, drain: float, grace: float) -> AsyncIterator[Manager]:
    """A manager that is up, stopped at the end of the block; what it raises comes out."""
    manager = Manager(Cluster(server.transport()), drain=drain, grace=grace)
    manager.add(Counting())
    for runnable in runnables:
        manager.add_runnable(runnable)
    task = asyncio.create_task(manager.run())
    await manager.wait_ready()
    yield manager
    manager.stop()
    await asyncio.wait([task], timeout=5)
    assert task.done(), "run() hangs"
    task.result()


async def test_a_task_that_ignores_cancellation_is_named_within_the_bound(server: ApiServer) -> None:
    stubborn = Stubborn()
    loop = asyncio.get_running_loop()
    try:
        with pytest.raises(ShutdownTimeout, match="Stubborn") as caught:
            async with managed(server, stubborn, drain=0.05, grace=0.2):
                began = loop.time()
        assert loop.time() - began < 1.0
        assert caught.value.tasks == ("Stubborn",)
    finally:
        stubborn.free.set()  # else the loop could not be closed
    async with asyncio.timeout(1):
        while any(task.get_name() == "Stubborn" for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


async def test_everything_is_asked_before_it_is_cancelled(server: ApiServer) -> None:
    courteous = Courteous()
    async with managed(server, courteous, drain=1.0, grace=1.0):
        pass
    assert courteous.ends == ["asked"]


async def test_what_stops_last_is_asked_even_when_another_has_used_up_the_drain(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport()), drain=0.05, grace=1.0)
    ends: list[str] = []
    manager.add_server(Courteous(ends, "server"))
    manager.add_webhook(Courteous(ends, "webhook"))
    manager.add_runnable(Deaf())
    manager.add(Counting())
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(manager.run())
        await manager.wait_ready()
        manager.stop()
    assert ends == ["webhook", "server"]


async def test_a_stop_takes_no_longer_than_drain_and_grace_together(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport()), drain=0.1, grace=0.3)
    stubborn = [Stubborn() for _ in range(3)]
    for add, each in zip((manager.add_server, manager.add_webhook, manager.add_runnable), stubborn, strict=True):
        add(each)
    task = asyncio.create_task(manager.run())
    await manager.wait_ready()
    loop = asyncio.get_running_loop()
    began = loop.time()
    manager.stop()
    try:
        await asyncio.wait([task], timeout=5)
        assert loop.time() - began < 0.6
        with pytest.raises(ShutdownTimeout):
            task.result()
    finally:
        for each in stubborn:
            each.free.set()


async def test_a_manager_without_controllers_runs_what_it_has(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport()))
    courteous = Courteous()
    manager.add_runnable(courteous)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(manager.run())
        await manager.wait_ready()
        await asyncio.sleep(0.01)
        manager.stop()
    assert courteous.ends == ["asked"]


@pytest.mark.parametrize("up", [True, False])
async def test_what_a_runnable_raises_ends_the_manager_and_comes_out(server: ApiServer, up: bool) -> None:
    manager = Manager(Cluster(server.transport()), drain=0.1, grace=0.1)
    courteous = Courteous()
    manager.add_server(courteous)
    manager.add_runnable(Failing(up=up))
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="address in use"):
            await manager.run()
    assert len(courteous.ends) == 1


async def test_waiting_for_a_manager_that_fails_to_start_tells_why(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport()), drain=0.1, grace=0.1)
    manager.add_runnable(Failing(up=False))
    waiting = asyncio.create_task(manager.wait_ready())
    with pytest.raises(OSError, match="address in use"):
        await manager.run()
    async with asyncio.timeout(1):
        with pytest.raises(OSError, match="address in use"):
            await waiting


async def test_waiting_for_a_manager_that_has_ended_is_an_error(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport()))
    manager.stop()
    await manager.run()
    async with asyncio.timeout(1):
        with pytest.raises(RuntimeError, match="stopped"):
            await manager.wait_ready()


async def test_a_cancelled_manager_skips_the_drain_and_leaves_nothing(server: ApiServer) -> None:
    before = asyncio.all_tasks()
    manager = Manager(Cluster(server.transport()), drain=60.0, grace=1.0)
    manager.add_runnable(Deaf())
    manager.add(Counting())
    task = asyncio.create_task(manager.run())
    await manager.wait_ready()
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    assert asyncio.all_tasks() == before


async def test_a_second_cancellation_waits_for_nobody_and_names_only_what_ignores_it(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport()), drain=60.0, grace=60.0)
    stubborn, slow = Stubborn(), Courteous()
    for runnable in (stubborn, slow, Deaf()):
        manager.add_runnable(runnable)
    manager.add(Counting())
    task = asyncio.create_task(manager.run())
    await manager.wait_ready()
    loop = asyncio.get_running_loop()
    began = loop.time()
    with structlog.testing.capture_logs() as logs:
        try:
            task.cancel()
            while manager.ready:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=5)
            assert task.cancelled()
            assert loop.time() - began < 1.0
            assert [each["task"] for each in logs if each["event"] == "ignores cancellation"] == ["Stubborn"]
        finally:
            stubborn.free.set()


async def test_a_manager_that_waits_for_its_first_list_stops_at_once(server: ApiServer) -> None:
    class Away:
        async def send(self, request: Request) -> Response:
            raise TransportError("no route")

        async def aclose(self) -> None: ...

    manager = Manager(Cluster(Away()), drain=60.0, grace=60.0)
    manager.add(Counting())
    task = asyncio.create_task(manager.run())
    await asyncio.sleep(0.01)
    manager.stop()
    async with asyncio.timeout(5):
        await task
