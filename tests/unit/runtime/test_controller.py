"""Controllers on a real API server: they converge, keep their promises, and stop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import structlog
from pydantic import field_validator

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import (
    Client,
    Cluster,
    Context,
    Controller,
    Manager,
    ObjectKey,
    Result,
    labels_changed,
    owns,
    reads,
    watches,
)
from kaito_ctrl.runtime.codec import Header
from kaito_ctrl.runtime.entry import Entry
from kaito_ctrl.runtime.errors import (
    ApiError,
    KubeError,
    LeaseLost,
    NotCached,
    NotFound,
    RetryAfter,
    TerminalError,
    TransportError,
)
from kaito_ctrl.runtime.queue import RetryPolicy
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing import VirtualClock, run_virtual


class Secretive(ConfigMap):
    """The same objects under another type: the kind that children have here."""


def config_map(name: str, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data=data)


@asynccontextmanager
async def running(
    transport: Transport, *controllers: Controller[ConfigMap], observe: Callable[..., None] | None = None
) -> AsyncIterator[Manager]:
    manager = Manager(Cluster(transport, rng=random.Random(1)), drain=1.0)
    for controller in controllers:
        manager.add(controller, observe=observe)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(manager.run())
        await asyncio.wait({task, group.create_task(manager.wait_ready())}, return_when=asyncio.FIRST_COMPLETED)
        yield manager
        manager.stop()


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.005)


class Mirror(Controller[ConfigMap]):
    """Every ConfigMap labelled ``mirror`` has a copy, which it owns."""

    name = "mirror"
    kind = ConfigMap
    sources = (owns(ConfigMap),)

    def __init__(self) -> None:
        self.calls = 0

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        self.calls += 1
        if obj.metadata.labels.get("mirror") != "yes":
            return Result.done()
        copy = config_map(f"{obj.name}-copy", **obj.data)
        present = ctx.cache.get(ConfigMap, copy.name, "default")
        if present is None or present.data != copy.data:
            await ctx.client.apply(copy, owner=obj)
        return Result.done()


def original(**data: str) -> ConfigMap:
    made = config_map("a", **data)
    return made.evolve(metadata=made.metadata.evolve(labels={"mirror": "yes"}))


async def test_a_child_is_made_follows_its_owner_and_is_made_again_when_lost(server: ApiServer) -> None:
    client = Client(server.transport())
    async with running(server.transport(), Mirror()) as manager:
        cache = manager.cluster.cache
        await client.create(original(x="1"))
        await until(lambda: cache.get(ConfigMap, "a-copy", "default") is not None)
        key = ObjectKey("default", "a")
        await client.patch(ConfigMap, key, {"data": {"x": "2"}})
        await until(lambda: (copy := cache.get(ConfigMap, "a-copy", "default")) is not None and copy.data == {"x": "2"})
        await client.delete(ConfigMap, ObjectKey("default", "a-copy"))
        await until(lambda: (copy := cache.get(ConfigMap, "a-copy", "default")) is not None and copy.data == {"x": "2"})


async def test_a_converged_cluster_is_left_alone(server: ApiServer) -> None:
    client = Client(server.transport())
    controller = Mirror()
    async with running(server.transport(), controller) as manager:
        await client.create(original(x="1"))
        await until(lambda: manager.cluster.cache.get(ConfigMap, "a-copy", "default") is not None)
        await until(lambda: all(worker.queue.idle for worker in manager.workers))
        calls, version = controller.calls, (await client.get(ConfigMap, "a-copy", "default")).metadata.resource_version
        await asyncio.sleep(0.1)
        assert controller.calls == calls
        assert (await client.get(ConfigMap, "a-copy", "default")).metadata.resource_version == version


class Counting(Controller[ConfigMap]):
    """Notes what it is called for, and fails as told."""

    name = "counting"
    kind = ConfigMap
    retry = RetryPolicy(base=0.001, cap=0.01)

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.seen: list[str] = []

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        self.seen.append(f"{obj.name}#{ctx.attempt}")
        if self.failures:
            raise self.failures.pop(0)
        return Result.done()


async def test_a_failure_is_retried_and_its_attempts_are_counted(server: ApiServer) -> None:
    await Client(server.transport()).create(config_map("x"))
    controller = Counting(ValueError("one"), ValueError("two"))
    async with running(server.transport(), controller):
        await until(lambda: "x#2" in controller.seen)


async def test_a_terminal_error_waits_for_a_change(server: ApiServer) -> None:
    client = Client(server.transport())
    await client.create(config_map("x"))
    controller = Counting(TerminalError("hopeless"))
    async with running(server.transport(), controller) as manager:
        await until(lambda: controller.seen != [])
        await until(lambda: manager.workers[0].queue.idle)
        assert controller.seen == ["x#0"]
        await client.patch(ConfigMap, ObjectKey("default", "x"), {"data": {"a": "b"}})
        await until(lambda: controller.seen == ["x#0", "x#0"])


class Finalizing(Controller[ConfigMap]):
    """Cleans up in two steps."""

    name = "finalizing"
    kind = ConfigMap
    finalizer = "example.org/cleanup"

    def __init__(self) -> None:
        self.cleaned = 0
        self.left: list[str] = []

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        assert self.finalizer in obj.metadata.finalizers
        return Result.done()

    async def cleanup(self, obj: ConfigMap, ctx: Context) -> Result:
        self.cleaned += 1
        return Result.done() if self.cleaned > 1 else Result.retry_in(0.01)

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        self.left.append(key.name)


async def test_a_finalizer_goes_on_first_and_comes_off_when_cleanup_is_done(server: ApiServer) -> None:
    client = Client(server.transport())
    controller = Finalizing()
    async with running(server.transport(), controller) as manager:
        await client.create(config_map("x"))
        cache = manager.cluster.cache
        await until(lambda: (obj := cache.get(ConfigMap, "x", "default")) is not None and bool(obj.metadata.finalizers))
        await client.delete(ConfigMap, ObjectKey("default", "x"))
        await until(lambda: controller.left == ["x"])
        assert controller.cleaned == 2
        with pytest.raises(NotFound):
            await client.get(ConfigMap, "x", "default")


async def test_only_our_own_finalizer_is_removed(server: ApiServer) -> None:
    client = Client(server.transport())
    made = config_map("x")
    await client.create(made.evolve(metadata=made.metadata.evolve(finalizers=("example.org/theirs",))))
    controller = Finalizing()
    async with running(server.transport(), controller) as manager:
        cache = manager.cluster.cache
        await until(
            lambda: (obj := cache.get(ConfigMap, "x", "default")) is not None and len(obj.metadata.finalizers) == 2
        )
        await client.delete(ConfigMap, ObjectKey("default", "x"))
        await until(
            lambda: (
                (obj := cache.get(ConfigMap, "x", "default")) is not None
                and obj.metadata.finalizers == ("example.org/theirs",)
            )
        )


class Choosy(Finalizing):
    """One of two controllers that share a finalizer."""

    name = "choosy"

    def concerns(self, entry: Entry[ConfigMap]) -> bool:
        return (entry.header.labels or {}).get("for") == self.name


async def test_what_is_not_a_controllers_concern_is_left_alone_in_its_life_and_at_its_end(server: ApiServer) -> None:
    client = Client(server.transport())
    controller = Choosy()
    for name, finalizers in (("theirs", (Choosy.finalizer,)), ("plain", ()), ("mine", ())):
        labels = {"for": "choosy"} if name == "mine" else {}
        metadata = ObjectMeta(name=name, namespace="default", labels=labels, finalizers=finalizers)
        await client.create(ConfigMap(metadata=metadata))
    await client.delete(ConfigMap, ObjectKey("default", "theirs"))
    async with running(server.transport(), controller) as manager:
        cache = manager.cluster.cache
        await until(
            lambda: (obj := cache.get(ConfigMap, "mine", "default")) is not None and bool(obj.metadata.finalizers)
        )
        await client.delete(ConfigMap, ObjectKey("default", "mine"))
        await until(lambda: controller.left == ["mine"])
        assert (await client.get(ConfigMap, "plain", "default")).metadata.finalizers == ()
        theirs = await client.get(ConfigMap, "theirs", "default")
        assert theirs.metadata.finalizers == (Choosy.finalizer,)
        assert controller.cleaned == 2
        # It goes by what the object says now: what has become ours is cleaned up after.
        await client.patch(ConfigMap, ObjectKey("default", "theirs"), {"metadata": {"labels": {"for": "choosy"}}})
        await until(lambda: controller.left == ["mine", "theirs"])


class Busy(Controller[ConfigMap]):
    """Slow enough to overlap, and notes when it does."""

    name = "busy"
    kind = ConfigMap
    workers = 4

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.overlaps = 0
        self.most = 0

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        self.overlaps += obj.name in self.inside
        self.inside.add(obj.name)
        self.most = max(self.most, len(self.inside))
        await asyncio.sleep(0.005)
        self.inside.discard(obj.name)
        return Result.done()


async def test_keys_are_worked_on_side_by_side_but_never_one_key_twice(server: ApiServer) -> None:
    client = Client(server.transport())
    for index in range(8):
        await client.create(config_map(f"x{index}"))
    controller = Busy()
    async with running(server.transport(), controller) as manager:
        for round_ in range(10):
            for index in range(8):
                await client.patch(ConfigMap, ObjectKey("default", f"x{index}"), {"data": {"r": str(round_)}})
        await until(lambda: manager.workers[0].queue.idle)
    assert controller.overlaps == 0
    assert 1 < controller.most <= 4


class Lossy:
    """Answers get lost: every write is carried out, and every second one has no answer."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.writes = 0

    async def send(self, request: Request) -> Response:
        response = await self.inner.send(request)
        if request.method != "GET":
            self.writes += 1
            if self.writes % 2:
                await response.aclose()
                raise TransportError("connection reset")
        return response

    async def aclose(self) -> None:
        await self.inner.aclose()


class Creating(Controller[ConfigMap]):
    """Creates a child unless the cache has one: what goes wrong when a cache is older than the last write."""

    name = "creating"
    kind = ConfigMap
    retry = RetryPolicy(base=0.001, cap=0.01)

    def __init__(self) -> None:
        self.collisions = 0

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        if obj.name != "parent" or ctx.cache.get(ConfigMap, "child", "default") is not None:
            return Result.done()
        try:
            await ctx.client.create(config_map("child"))
        except ApiError:
            self.collisions += 1
            raise
        return Result.done()


async def test_a_write_whose_answer_was_lost_is_looked_up_before_the_next_try(server: ApiServer) -> None:
    await Client(server.transport()).create(config_map("parent"))
    controller = Creating()
    outcomes: list[str] = []
    async with running(
        Lossy(server.transport()), controller, observe=lambda key, outcome: outcomes.append(outcome)
    ) as manager:
        await until(lambda: manager.cluster.cache.get(ConfigMap, "child", "default") is not None)
        await until(lambda: manager.workers[0].queue.idle and "error" in outcomes)
    assert controller.collisions == 0


class Refusing:
    """Answers writes with the statuses of a list, and carries the later ones out; says when each was asked for."""

    def __init__(self, inner: Transport, *answers: Response) -> None:
        self.inner = inner
        self.answers = list(answers)
        self.writes: list[float] = []

    async def send(self, request: Request) -> Response:
        if request.method == "GET":
            return await self.inner.send(request)
        self.writes.append(asyncio.get_running_loop().time())
        return self.answers.pop(0) if self.answers else await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


def refused_writes(*answers: Response, seconds: float) -> tuple[list[float], list[tuple[str, str]]]:
    """When a controller tried to write its first child in *seconds* of virtual time, and what it said of failures."""

    async def main() -> Refusing:
        server = ApiServer(clock=VirtualClock(), rng=random.Random(7))
        await Client(server.transport()).create(original(color="blue"))
        refusing = Refusing(server.transport(), *answers)
        async with running(refusing, Mirror()):
            await asyncio.sleep(seconds)
        await server.aclose()
        return refusing

    with structlog.testing.capture_logs() as logs:
        refusing = run_virtual(main())
    assert not refusing.answers
    said = [(each["log_level"], each["error"].split(":")[0]) for each in logs if each["event"] == "reconcile failed"]
    return refusing.writes, said


def test_whoever_is_asked_to_come_back_later_does() -> None:
    busy = Response.of(429, b'{"kind": "Status", "code": 429, "message": "too many requests"}', {"retry-after": "7"})
    writes, said = refused_writes(busy, busy, seconds=60)
    assert [later - earlier for earlier, later in pairwise(writes)] == [pytest.approx(7.35, abs=0.36)] * 2
    assert said == [("warning", "TooManyRequests")] * 2


def test_an_outage_is_no_error_until_it_has_lasted() -> None:
    answers = [Response.of(503, b"") for _ in range(20)]
    writes, said = refused_writes(*answers, seconds=3600)
    assert [level for level, _ in said] == ["warning"] * 4 + ["error"]
    # The fifth report is of the sixteenth failure.
    assert writes[15] - writes[0] > 60 > writes[7] - writes[0]


async def test_a_kind_that_was_not_declared_is_not_quietly_watched(server: ApiServer) -> None:
    async with running(server.transport(), Counting()) as manager:
        with pytest.raises(NotCached, match="declare it"):
            manager.cluster.cache.list(Secretive)


async def test_two_controllers_of_one_name_are_refused(server: ApiServer) -> None:
    manager = Manager(Cluster(server.transport()))
    manager.add(Counting())
    with pytest.raises(ValueError, match="counting"):
        manager.add(Counting())


class Stuck(Controller[ConfigMap]):
    """Never ends by itself."""

    name = "stuck"
    kind = ConfigMap

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = False

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return Result.done()


async def test_a_stop_drains_and_then_cancels(server: ApiServer) -> None:
    await Client(server.transport()).create(config_map("x"))
    controller = Stuck()
    outcomes: list[str] = []
    manager = Manager(Cluster(server.transport()), drain=0.1, grace=1.0)
    manager.add(controller, observe=lambda key, outcome: outcomes.append(outcome))
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(manager.run())
        await controller.started.wait()
        manager.stop()
    assert controller.cancelled
    assert outcomes == ["cancelled"]
    leftover = [task.get_name() for task in asyncio.all_tasks() if "stuck" in task.get_name()]
    assert leftover == []


async def test_mapped_changes_wake_whom_they_are_mapped_to(server: ApiServer) -> None:
    class Watching(Counting):
        name = "watching"
        sources = (
            watches(ConfigMap, lambda obj, _: [ObjectKey("default", obj.data["wakes"])] if "wakes" in obj.data else []),
        )

    client = Client(server.transport())
    await client.create(config_map("sleeper"))
    controller = Watching()
    async with running(server.transport(), controller) as manager:
        await until(lambda: controller.seen == ["sleeper#0"])
        await client.create(config_map("alarm", wakes="sleeper"))
        await until(lambda: controller.seen.count("sleeper#0") == 2)
        await until(lambda: manager.workers[0].queue.idle)


async def test_metrics_have_the_names_that_dashboards_know(server: ApiServer) -> None:
    from prometheus_client import generate_latest

    await Client(server.transport()).create(config_map("x"))
    controller = Counting()
    async with running(server.transport(), controller) as manager:
        await until(lambda: controller.seen != [])
        await until(lambda: manager.workers[0].queue.idle)
        text = generate_latest(manager.cluster.metrics.registry).decode()
    assert 'controller_runtime_reconcile_total{controller="counting",result="success"} 1.0' in text
    assert 'controller_runtime_reconcile_total{controller="counting",result="error"} 0.0' in text
    assert 'workqueue_depth{controller="counting",name="counting"} 0.0' in text


async def test_no_cluster_is_an_error_with_a_reason() -> None:
    from kaito_ctrl.runtime.connect import connect

    with pytest.raises(KubeError, match="cannot use kubeconfig"):
        await connect(kubeconfig="/no/such/file")


async def test_a_mapper_that_fails_is_reported_and_the_watch_goes_on(server: ApiServer) -> None:
    class Careless(Counting):
        name = "careless"
        sources = (watches(ConfigMap, lambda obj, _: [ObjectKey("default", obj.data["wakes"])]),)

    from prometheus_client import generate_latest

    client = Client(server.transport())
    await client.create(config_map("replayed"))
    controller = Careless()
    async with running(server.transport(), controller) as manager:
        await until(lambda: "replayed#0" in controller.seen)
        await client.create(config_map("x"))
        await until(lambda: "x#0" in controller.seen)
        text = generate_latest(manager.cluster.metrics.registry).decode()
    assert 'controller_runtime_reconcile_errors_total{controller="careless"} 2.0' in text


async def test_a_cancellation_from_elsewhere_is_a_failure_and_retried(server: ApiServer) -> None:
    class Forlorn(Counting):
        name = "forlorn"

        async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
            self.seen.append(f"{obj.name}#{ctx.attempt}")
            if not ctx.attempt:
                given_up = asyncio.get_running_loop().create_future()
                given_up.cancel()
                await given_up
            return Result.done()

    await Client(server.transport()).create(config_map("x"))
    controller, outcomes = Forlorn(), list[str]()
    async with running(server.transport(), controller, observe=lambda key, outcome: outcomes.append(outcome)):
        await until(lambda: outcomes == ["error", "success"])
    assert controller.seen == ["x#0", "x#1"]


class Strict(ConfigMap):
    """A model that is older than its API: it knows nothing of the key ``novel``."""

    @field_validator("data")
    @classmethod
    def _known(cls, data: Mapping[str, str]) -> Mapping[str, str]:
        if "novel" in data:
            raise ValueError("what is novel?")
        return data


KEY = ObjectKey("default", "x")
NOVEL = {"data": {"novel": "yes"}}


class Abandoning(Finalizing):
    """Knows how to let go of what it cannot read."""

    name = "abandoning"
    kind = Strict

    def __init__(self) -> None:
        super().__init__()
        self.abandoned: list[str] = []

    async def abandon(self, header: Header, ctx: Context) -> Result:
        self.abandoned.append(header.uid)
        return Result.done() if len(self.abandoned) > 1 else Result.retry_in(0.01)


async def test_a_deleted_object_that_does_not_decode_lets_go_of_its_finalizer(server: ApiServer) -> None:
    client = Client(server.transport())
    controller = Abandoning()
    async with running(server.transport(), controller) as manager:
        made = await client.create(config_map("x"))
        cache = manager.cluster.cache
        await until(lambda: (obj := cache.get(Strict, "x", "default")) is not None and bool(obj.metadata.finalizers))
        await client.patch(ConfigMap, KEY, NOVEL)
        await client.delete(ConfigMap, KEY)
        await until(lambda: controller.left == ["x"])
    assert controller.abandoned == [made.uid, made.uid]
    assert controller.cleaned == 0


async def test_an_undecodable_object_is_a_terminal_failure_and_keeps_its_finalizer(server: ApiServer) -> None:
    client = Client(server.transport())
    outcomes: list[str] = []

    class Narrow(Finalizing):
        name = "narrow"
        kind = Strict

    controller = Narrow()
    async with running(
        server.transport(), controller, observe=lambda key, outcome: outcomes.append(outcome)
    ) as manager:
        await client.create(config_map("x"))
        cache = manager.cluster.cache
        await until(lambda: (obj := cache.get(Strict, "x", "default")) is not None and bool(obj.metadata.finalizers))
        await until(lambda: manager.workers[0].queue.idle)
        await client.patch(ConfigMap, KEY, NOVEL)
        await until(lambda: outcomes[-1] == "error")
        await client.delete(ConfigMap, KEY)
        await until(lambda: outcomes[-2:] == ["error", "error"])
        await until(lambda: manager.workers[0].queue.idle)
        assert manager.workers[0].queue.failures(KEY) == 0
        entry = cache.store(Strict).entry(KEY)
        assert entry is not None
        assert entry.header.finalizers == (controller.finalizer,)


async def test_another_object_that_does_not_decode_is_an_ordinary_failure(server: ApiServer) -> None:
    client = Client(server.transport())
    await client.create(config_map("other", novel="yes"))
    await client.create(config_map("x"))

    class Reading(Counting):
        name = "reading"
        sources = (reads(Strict),)

        async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
            self.seen.append(f"{obj.name}#{ctx.attempt}")
            ctx.cache.get(Strict, "other", "default")
            return Result.done()

    controller = Reading()
    async with running(server.transport(), controller):
        await until(lambda: "x#1" in controller.seen)


class Misrouted:
    """A proxy that has lost its way answers reads of objects, once it is told to."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.lost = False

    async def send(self, request: Request) -> Response:
        if self.lost and request.method == "GET" and request.path.endswith("/x"):
            return Response.of(404, b"404 page not found")
        return await self.inner.send(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_a_404_that_is_not_about_the_object_does_not_end_its_cleanup(server: ApiServer) -> None:
    client = Client(server.transport())
    wire = Misrouted(server.transport())
    outcomes: list[str] = []
    controller = Finalizing()
    async with running(wire, controller, observe=lambda key, outcome: outcomes.append(outcome)) as manager:
        await client.create(config_map("x"))
        cache = manager.cluster.cache
        await until(lambda: (obj := cache.get(ConfigMap, "x", "default")) is not None and bool(obj.metadata.finalizers))
        wire.lost = True
        await client.delete(ConfigMap, KEY)
        await until(lambda: outcomes[-1:] == ["error"])
        wire.lost = False
        await until(lambda: controller.left == ["x"])
    assert controller.cleaned == 2


async def test_a_reconcile_that_returns_nothing_fails_alone_and_is_told_what_to_return(server: ApiServer) -> None:
    class Forgetful(Counting):
        name = "forgetful"

        async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
            self.seen.append(f"{obj.name}#{ctx.attempt}")
            return Result.done() if ctx.attempt else None  # type: ignore[return-value]

    await Client(server.transport()).create(config_map("x"))
    controller = Forgetful()
    with structlog.testing.capture_logs() as logs:
        async with running(server.transport(), controller):
            await until(lambda: controller.seen == ["x#0", "x#1"])
    [said] = [each["error"] for each in logs if each["event"] == "reconcile failed"]
    assert said == "TypeError: controller 'forgetful' returned None: return Result.done(), or when to look again"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RetryAfter(0.01), "requeue_after"),
        (TerminalError("hopeless"), "error"),
        (LeaseLost("gone"), "cancelled"),
    ],
)
async def test_what_a_task_group_wraps_means_what_it_means_outside(
    server: ApiServer, error: KubeError, outcome: str
) -> None:
    await Client(server.transport()).create(config_map("x"))
    controller, outcomes = Counting(ExceptionGroup("unhandled errors in a TaskGroup", [error])), list[str]()
    async with running(server.transport(), controller, observe=lambda key, each: outcomes.append(each)) as manager:
        await until(lambda: bool(outcomes))
        assert outcomes[0] == outcome
        if isinstance(error, TerminalError):
            count = "controller_runtime_terminal_reconcile_errors_total"
            assert manager.cluster.metrics.registry.get_sample_value(count, {"controller": "counting"}) == 1
        else:
            await until(lambda: outcomes == [outcome, "success"])


async def test_a_key_that_was_put_off_is_failing_no_longer(server: ApiServer) -> None:
    await Client(server.transport()).create(config_map("x"))
    controller = Counting(ValueError("one"), RetryAfter(60))
    async with running(server.transport(), controller) as manager:
        await until(lambda: controller.seen == ["x#0", "x#1"])
        await until(lambda: manager.workers[0].queue.idle)
        assert not manager.workers[0].failing


def test_a_server_cannot_put_a_key_off_for_longer_than_the_longest_back_off() -> None:
    away = [Response.of(503, b"", {"retry-after": seconds}) for seconds in ("86400", "inf", "nan", "-1")]
    writes, _ = refused_writes(*away, seconds=1200)
    assert len(writes) == 5
    assert max(later - earlier for earlier, later in pairwise(writes)) <= 330


async def test_a_deletion_is_seen_whatever_else_is_filtered(server: ApiServer) -> None:
    class Filtering(Finalizing):
        name = "filtering"
        when = labels_changed

    client = Client(server.transport())
    controller = Filtering()
    async with running(server.transport(), controller) as manager:
        await client.create(config_map("x"))
        cache = manager.cluster.cache
        await until(lambda: (obj := cache.get(ConfigMap, "x", "default")) is not None and bool(obj.metadata.finalizers))
        await client.delete(ConfigMap, ObjectKey("default", "x"))
        await until(lambda: controller.left == ["x"])


async def test_what_goes_wrong_on_the_way_out_of_a_cancelled_reconcile_is_no_failure_of_its_object(
    server: ApiServer,
) -> None:
    class Clumsy(Counting):
        name = "clumsy"

        async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
            self.seen.append(obj.name)
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("cannot clean up")
            return Result.done()

    await Client(server.transport()).create(config_map("x"))
    controller, outcomes = Clumsy(), list[str]()
    with structlog.testing.capture_logs() as logs:
        async with running(server.transport(), controller, observe=lambda key, outcome: outcomes.append(outcome)):
            await until(lambda: controller.seen == ["x"])
    assert outcomes == ["cancelled"]
    assert [each for each in logs if each["event"] == "reconcile failed"] == []
    assert [each["error"] for each in logs if each["event"] == "failed while it was cancelled"] == [
        "ValueError: cannot clean up"
    ]
