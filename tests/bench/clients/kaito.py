"""kaito-ctrl itself, as its own examples use it: a manager with one controller per kind, whose reconcile does nothing.

Variants: ``reconcile`` (the default), ``watchlist`` (the same, over a streamed list), ``whole`` (the same, with a model
of nearly the whole pod), ``cache`` (a cluster's cache and nothing else), ``compact`` (the same, in compact form),
``queue`` (a controller without workers: changes end in its queue).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import structlog

import kaito_ctrl.runtime.connect  # noqa: F401 - what is measured begins with connecting, not with importing
from kaito_api import core
from kaito_api.meta import Model, Resource
from kaito_ctrl import Cluster, Context, Controller, Manager, Result
from kaito_ctrl.runtime import Scope
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.store import Change
from kaito_ctrl.runtime.worker import Worker
from tests.bench.clients.harness import Bench, main


class _PodSpec(Model):
    node_name: str = ""


class _PodStatus(Model):
    phase: str = ""


class _Pod(Resource):
    """As an operator declares it that reads where a pod runs and how it is: a model names what is read, and no more."""

    group, version, kind, plural = "", "v1", "Pod", "pods"

    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _Widget(Resource):
    spec: Mapping[str, Any] = {}


def _kinds(bench: Bench) -> list[type[Resource]]:
    if bench.spec.task != "idle":
        return [core.Pod if bench.spec.variant == "whole" else _Pod]
    return [
        type(kind, (_Widget,), {"group": group, "version": version, "kind": kind, "plural": plural})
        for group, version, kind, plural in bench.spec.resources
    ]


def _controller(bench: Bench, of: type[Resource]) -> Controller[Any]:
    class Nothing(Controller[Resource]):
        name = of.plural
        kind = of
        workers = 0 if bench.spec.variant == "queue" else Controller.workers

        async def reconcile(self, obj: Resource, ctx: Context) -> Result:
            await bench.handle(obj.metadata.resource_version)
            return Result.done()

    return Nothing()


def _scope(variant: str) -> Scope | None:
    if variant != "compact":
        return None
    if "compact" not in {field.name for field in fields(Scope)}:
        raise NotImplementedError("this version's Scope has no compact form")
    options: dict[str, Any] = {"compact": True}
    return Scope(**options)


async def _run(bench: Bench) -> None:
    spec = bench.spec
    async with Cluster.connect(kubeconfig=spec.kubeconfig, streaming=spec.variant == "watchlist") as cluster:
        await bench.connected()
        if spec.variant in ("cache", "compact"):
            await _cache_only(bench, cluster)
        else:
            manager = Manager(cluster)
            workers = [manager.add(_controller(bench, kind)) for kind in _kinds(bench)]
            if spec.variant == "queue":
                # After the controller's own listener, so that what is counted is in the queue.
                async with asyncio.TaskGroup() as group:
                    group.create_task(manager.run())
                    await manager.wait_ready()
                    workers[0].store.listen(_counter(bench))
            else:
                await manager.run()


async def _cache_only(bench: Bench, cluster: Cluster) -> None:
    store = cluster.cache.declare(_Pod, scope=_scope(bench.spec.variant))
    store.listen(_counter(bench))
    await cluster.cache.run(Lifetime())


def _counter(bench: Bench) -> Any:
    def count(change: Change[Any]) -> None:
        assert change.new is not None
        bench.seen(change.new.header.resource_version)

    return count


async def _noop(bench: Bench) -> None:
    """Every key once more, several times over: what a reconcile costs apart from what the reconciler does."""
    spec = bench.spec
    async with Cluster.connect(kubeconfig=spec.kubeconfig) as cluster, asyncio.TaskGroup() as group:
        manager = Manager(cluster)
        worker: Worker[Any] = manager.add(_controller(bench, _Pod))
        running = group.create_task(manager.run())
        await bench.until(spec.pods)
        keys = [entry.key for entry in worker.store.entries()]
        await bench.begin(ticking=False)
        for number in range(2, spec.rounds + 2):
            for key in keys:
                worker.queue.add(key)
            await bench.until(number * spec.pods)
        bench.end()
        manager.stop()
        await running


if __name__ == "__main__":
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()], cache_logger_on_first_use=True)
    main(_run, tasks={"noop": _noop})
