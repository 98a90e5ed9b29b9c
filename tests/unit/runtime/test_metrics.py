"""Metrics: the names that Go's dashboards know, what is measured beside them, and that nothing is missing at zero."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
from typing import Any

from prometheus_client import generate_latest

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, Cluster, Context, Controller, Manager, Metrics, ObjectKey, Result
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.vitals import Vitals
from kaito_ctrl.testing import VirtualClock, run_virtual

GO = {
    "controller_runtime_reconcile_total": {"controller", "result"},
    "controller_runtime_reconcile_errors_total": {"controller"},
    "controller_runtime_terminal_reconcile_errors_total": {"controller"},
    "controller_runtime_reconcile_panics_total": {"controller"},
    "controller_runtime_reconcile_timeouts_total": {"controller"},
    "controller_runtime_reconcile_time_seconds_count": {"controller"},
    "controller_runtime_max_concurrent_reconciles": {"controller"},
    "controller_runtime_active_workers": {"controller"},
    "workqueue_depth": {"name", "controller"},
    "workqueue_adds_total": {"name", "controller"},
    "workqueue_retries_total": {"name", "controller"},
    "workqueue_unfinished_work_seconds": {"name", "controller"},
    "workqueue_longest_running_processor_seconds": {"name", "controller"},
    "workqueue_queue_duration_seconds_count": {"name", "controller"},
    "workqueue_work_duration_seconds_count": {"name", "controller"},
    "controller_runtime_webhook_latency_seconds_count": {"webhook"},
    "controller_runtime_webhook_requests_total": {"webhook", "code"},
    "controller_runtime_webhook_requests_in_flight": {"webhook"},
    "controller_runtime_webhook_panics_total": set(),
    "controller_runtime_conversion_webhook_panics_total": set(),
}


def test_every_series_is_there_from_the_start_with_the_labels_that_go_gives_it() -> None:
    metrics = Metrics()
    metrics.controller("mine", 4)
    metrics.webhook("/validate")
    found: dict[str, Any] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, sample)
    for name, labels in GO.items():
        assert set(found[name].labels) == labels, name
        assert found[name].value == (4 if name.endswith("max_concurrent_reconciles") else 0), name


def test_the_process_is_told_of_too() -> None:
    metrics = Metrics()
    metrics.add_process()
    text = generate_latest(metrics.registry).decode()
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "python_info", "python_gc_collections"):
        assert name in text


class Waiting(Controller[ConfigMap]):
    """Takes ten seconds for each object, and may be deaf to cancellation."""

    name = "waiting"
    kind = ConfigMap
    workers = 2
    deaf = False
    timeout = 60.0

    async def reconcile(self, obj: ConfigMap, ctx: Context) -> Result:
        try:
            await asyncio.sleep(float(obj.data["seconds"]))
        except asyncio.CancelledError:
            if not self.deaf:
                raise
        return Result.done()


def value(manager: Manager, metric: str, **labels: str) -> float:
    found = manager.cluster.metrics.registry.get_sample_value(metric, {"controller": "waiting", **labels})
    assert found is not None, metric
    return found


def during(body: Any, controller: Waiting) -> None:
    async def main() -> None:
        clock = VirtualClock()
        server = ApiServer(clock=clock, rng=random.Random(1))
        manager = Manager(Cluster(server.transport(), clock=clock, rng=random.Random(1)))
        manager.add(controller)
        client = Client(server.transport())
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run())
            await manager.wait_ready()
            await body(manager, client)
            manager.stop()
        await server.aclose()

    run_virtual(main())


def taking(seconds: float, name: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data={"seconds": str(seconds)})


def test_unfinished_work_is_seen_while_it_is_unfinished() -> None:
    async def body(manager: Manager, client: Client) -> None:
        queue = {"name": "waiting"}
        await client.create(taking(10, "a"))
        await asyncio.sleep(3)
        await client.create(taking(10, "b"))
        await asyncio.sleep(4)
        assert round(value(manager, "workqueue_unfinished_work_seconds", **queue)) == 11
        assert round(value(manager, "workqueue_longest_running_processor_seconds", **queue)) == 7
        await asyncio.sleep(10)
        assert value(manager, "workqueue_unfinished_work_seconds", **queue) == 0
        assert value(manager, "workqueue_longest_running_processor_seconds", **queue) == 0

    during(body, Waiting())


def test_the_way_from_a_change_to_its_reconcile_is_measured_once_from_the_first_change() -> None:
    async def body(manager: Manager, client: Client) -> None:
        for name in ("a", "b", "c"):  # for the third there is no worker until ten seconds later
            await client.create(taking(10, name))
        await asyncio.sleep(4)
        await client.patch(ConfigMap, ObjectKey("default", "c"), {"data": {"more": "x"}})
        await asyncio.sleep(20)
        assert value(manager, "kaito_ctrl_event_to_reconcile_seconds_count") == 3
        assert round(value(manager, "kaito_ctrl_event_to_reconcile_seconds_sum")) == 10

    during(body, Waiting())


def test_a_change_during_a_reconcile_waits_for_its_end() -> None:
    async def body(manager: Manager, client: Client) -> None:
        await client.create(taking(10, "a"))
        await asyncio.sleep(4)
        await client.patch(ConfigMap, ObjectKey("default", "a"), {"data": {"more": "x"}})
        await asyncio.sleep(20)
        assert value(manager, "kaito_ctrl_event_to_reconcile_seconds_count") == 2
        assert round(value(manager, "kaito_ctrl_event_to_reconcile_seconds_sum")) == 6

    during(body, Waiting())


def test_a_reconcile_that_does_not_care_that_it_is_out_of_time_is_counted() -> None:
    async def body(manager: Manager, client: Client) -> None:
        await client.create(taking(100, "a"))
        await asyncio.sleep(70)
        assert value(manager, "kaito_ctrl_cancelled_ignored_total") == 1

    controller = Waiting()
    controller.deaf = True
    during(body, controller)


def test_one_that_does_is_not() -> None:
    async def body(manager: Manager, client: Client) -> None:
        await client.create(taking(100, "a"))
        await asyncio.sleep(61)
        assert value(manager, "controller_runtime_reconcile_timeouts_total") == 1
        assert value(manager, "kaito_ctrl_cancelled_ignored_total") == 0

    during(body, Waiting())


async def test_a_loop_that_stands_still_is_late() -> None:
    metrics, lifetime = Metrics(), Lifetime()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        group.create_task(Vitals(metrics, every=0.01).run(lifetime))
        await lifetime.wait_started()
        await asyncio.sleep(0.015)
        until = loop.time() + 0.2
        while loop.time() < until:
            pass
        await asyncio.sleep(0.03)
        lifetime.stop()
    lag = metrics.registry.get_sample_value("kaito_ctrl_loop_lag_seconds_sum")
    assert lag is not None
    assert lag >= 0.15


async def test_collections_are_timed_and_nothing_is_left_of_it_afterwards() -> None:
    before = list(gc.callbacks)
    metrics, lifetime = Metrics(), Lifetime()
    seconds = itertools.count()
    async with asyncio.TaskGroup() as group:
        group.create_task(Vitals(metrics, every=0.01, timer=lambda: float(next(seconds))).run(lifetime))
        await lifetime.wait_started()
        gc.collect()
        lifetime.stop()
    assert gc.callbacks == before
    sample = metrics.registry.get_sample_value
    count = sample("kaito_ctrl_gc_pause_seconds_count", {"generation": "2"})
    assert count is not None
    assert count >= 1
    assert sample("kaito_ctrl_gc_pause_seconds_sum", {"generation": "2"}) == count
