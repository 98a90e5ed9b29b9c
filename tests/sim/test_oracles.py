"""Every invariant can fail: broken variants of the runtime, each caught by the invariant that it breaks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest

from kaito_ctrl.runtime import Client, Cluster, Context, Manager, ObjectKey, Result, watchstate
from kaito_ctrl.runtime.cache import Cache
from kaito_ctrl.runtime.codec import Record
from kaito_ctrl.runtime.errors import ApiError
from kaito_ctrl.runtime.feed import Feed
from kaito_ctrl.runtime.fence import Fence
from kaito_ctrl.runtime.finalizer import Finalizer
from kaito_ctrl.runtime.leader import Lease
from kaito_ctrl.runtime.queue import Queue, RetryPolicy
from kaito_ctrl.runtime.store import Store
from kaito_ctrl.runtime.transport import Response
from kaito_ctrl.runtime.watch import Reflector
from kaito_ctrl.runtime.worker import Worker
from kaito_ctrl.testing import run_virtual
from tests.sim import oracles
from tests.sim.runtime import DRAIN, GRACE, Make, live, manager


def caught(invariant: str, seeds: Iterable[int], make: Make = manager) -> bool:
    """Whether one of *seeds* shows that *invariant* does not hold."""
    assert invariant in oracles.INVARIANTS
    return any(
        violation.startswith(f"{invariant}:")
        for seed in seeds
        for violation in run_virtual(live(seed, make=make, quiet=60.0)).violations
    )


def test_a_queue_that_hands_out_a_key_in_work_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: Queue[Any], key: Any, *, after: float = 0.0, priority: int = 0) -> None:
        now = self._clock()
        self._put(key, priority, now + max(after, 0.0), now)

    def done(self: Queue[Any], key: Any) -> None:
        self._working.pop(key, None)
        if not self._working:
            self._rest.set()
        self._changed.set()

    monkeypatch.setattr(Queue, "add", add)
    monkeypatch.setattr(Queue, "done", done)
    assert caught(oracles.ONCE, range(100))


def test_a_queue_that_forgets_what_is_added_during_the_work_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Queue.add

    def add(self: Queue[Any], key: Any, *, after: float = 0.0, priority: int = 0) -> None:
        if key not in self._working:
            real(self, key, after=after, priority=priority)

    monkeypatch.setattr(Queue, "add", add)
    assert caught(oracles.WAKE, range(100))


def test_a_queue_that_forgets_to_come_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Queue.add

    def add(self: Queue[Any], key: Any, *, after: float = 0.0, priority: int = 0) -> None:
        if after < 10:
            real(self, key, after=after, priority=priority)

    monkeypatch.setattr(Queue, "add", add)
    assert caught(oracles.WAKE, range(100))


def test_a_store_that_drops_an_event_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = Feed.upsert, 0

    def upsert(self: Feed[Any], record: Record, *, initial: bool) -> None:
        nonlocal count
        count += not initial
        if initial or count % 5:
            real(self, record, initial=initial)

    monkeypatch.setattr(Feed, "upsert", upsert)
    assert caught(oracles.CACHE, range(100))


def test_an_index_that_is_not_kept_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store._index

    def index(self: Store[Any], entry: Any) -> None:
        if (entry.header.generation or 0) <= 1:
            real(self, entry)

    monkeypatch.setattr(Store, "_index", index)
    assert caught(oracles.CACHE, range(100))


def test_a_watch_that_goes_on_after_410_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchstate, "_restart", watchstate._again)
    assert caught(oracles.CACHE, range(300))


def test_a_watch_that_believes_any_silence_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Reflector.__init__

    def init(self: Reflector, *args: Any, **options: Any) -> None:
        real(self, *args, **{**options, "idle": 1e9})

    monkeypatch.setattr(Reflector, "__init__", init)
    assert caught(oracles.CACHE, range(300))


def test_a_fence_that_never_closes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "remaining", lambda self: 1e9 if self._until > -math.inf else -1.0)
    assert caught(oracles.FENCE, range(300))


def test_a_client_that_asks_no_fence_is_caught() -> None:
    class Unfenced(Manager):
        def client(self, field_manager: str, *, leader: bool = True, cluster: str | None = None) -> Client:
            return super().client(field_manager, leader=False, cluster=cluster)

    assert caught(
        oracles.FENCED, range(300), lambda cluster, lease: Unfenced(cluster, leader=lease, drain=DRAIN, grace=GRACE)
    )


def test_a_cache_that_does_not_hear_of_own_writes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "wrote", lambda self, raw: None)
    assert caught(oracles.OWN, range(10))


def test_a_cache_that_does_not_doubt_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "uncertain", lambda self, kind, key: None)
    assert caught(oracles.DOUBLE, range(300))


def test_a_drain_without_a_bound_is_caught() -> None:
    assert caught(oracles.DRAIN, range(300), lambda cluster, lease: Manager(cluster, leader=lease, drain=60.0))


class _Leaky(Manager):
    async def run(self) -> None:
        self.left = asyncio.create_task(asyncio.sleep(1e6), name="left")
        await super().run()


def test_a_manager_that_leaves_a_task_is_caught() -> None:
    def leaky(cluster: Cluster, lease: Lease | None) -> Manager:
        return _Leaky(cluster, leader=lease, drain=DRAIN, grace=GRACE)

    assert caught(oracles.LEAK, range(3), leaky)


def test_a_stream_that_is_not_closed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []

    async def aclose(self: Response) -> None:
        kept.append(self.chunks())

    monkeypatch.setattr(Response, "aclose", aclose)
    assert caught(oracles.LEAK, range(10))


def test_a_finalizer_that_stays_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def remove(self: Finalizer[Any], live: Any) -> None:
        pass

    monkeypatch.setattr(Finalizer, "remove", remove)
    assert caught(oracles.DELETION, range(3))


def test_writing_for_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Worker._reconcile

    async def reconcile(self: Worker[Any], key: ObjectKey, ctx: Context) -> Result:
        result = await real(self, key, ctx)
        with suppress(ApiError):
            await ctx.client.patch(self.controller.kind, key, {"metadata": {"annotations": {"seen": "yes"}}})
        return result

    monkeypatch.setattr(Worker, "_reconcile", reconcile)
    assert caught(oracles.QUIET, range(100))


def test_a_retry_without_a_delay_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetryPolicy, "delay", lambda self, failures, rng: 0.0)
    assert caught(oracles.RETRIES, range(300))


def test_an_apply_that_gives_way_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Client.apply

    async def apply(self: Client, obj: Any, **options: Any) -> Any:
        return await real(self, obj, **{**options, "force": False})

    monkeypatch.setattr(Client, "apply", apply)
    assert caught(oracles.OUTCOME, range(300))


def test_an_error_that_nobody_looks_at_is_caught() -> None:
    async def fail() -> None:
        raise OSError("nobody will ever know")

    class Careless(Manager):
        async def run(self) -> None:
            asyncio.create_task(fail())  # noqa: RUF006
            await super().run()

    assert caught(
        oracles.SILENCE, range(3), lambda cluster, lease: Careless(cluster, leader=lease, drain=DRAIN, grace=GRACE)
    )
