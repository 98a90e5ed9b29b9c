"""A running cluster for the tests, and ways to wait for what happens in it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kaito_api.core import Service
from kaito_api.meta import Resource
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.devcluster.containerrunner import Timings
from kaito_ctrl.devcluster.images import ImageTable
from kaito_ctrl.devcluster.kinds import Deployment, Pod
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.clock import Clock

R = TypeVar("R", bound=Resource)

QUICK = Timings(crash_base=0.05, crash_cap=0.2, image_base=0.05, config_base=0.05, shutdown_grace=0.5)


class World:
    """A cluster with one client; objects are in the default namespace unless they say otherwise."""

    def __init__(self, dev: DevCluster) -> None:
        self.dev = dev
        self.client = Client(dev.transport(), "test")

    async def until(self, kind: type[R], name: str, holds: Callable[[R], object], *, namespace: str = "default") -> R:
        """The first version of the object for which *holds*; it is looked at at each change."""
        found: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        key = ObjectKey(namespace if kind.namespaced else "", name)
        store = self.dev.cluster.cache.store(kind)

        def look(change: Any) -> None:
            if change.key == key and change.new is not None and not found.done() and holds(change.new.view()):
                found.set_result(change.new.view())

        stop = store.listen(look)
        try:
            async with asyncio.timeout(20):
                return await found
        except TimeoutError:
            raise AssertionError(f"never came to hold; last seen: {store.get(key)!r}") from None
        finally:
            stop()

    async def until_gone(self, kind: type[Resource], name: str, *, namespace: str = "default") -> None:
        key = ObjectKey(namespace if kind.namespaced else "", name)
        store = self.dev.cluster.cache.store(kind)
        gone = asyncio.Event()
        stop = store.listen(lambda change: gone.set() if change.key == key and change.new is None else None)
        try:
            async with asyncio.timeout(20):
                if key in store:
                    await gone.wait()
        finally:
            stop()

    async def pod(self, name: str, script: str, *, shell: str = "sh", **fields: Any) -> Pod:
        """Create a pod of one container that runs *script*; container and pod fields may be given."""
        pod_fields = {key: fields.pop(key) for key in tuple(fields) if key in _POD_FIELDS}
        container = {"name": "main", "image": "local", "command": [shell, "-c", script], **fields}
        spec = {"containers": [container], **pod_fields}
        return await self.client.create(
            _exact(Pod, {"metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec})
        )

    async def deployment(self, name: str, container: dict[str, Any], *, replicas: int = 1, **spec: Any) -> Deployment:
        labels = {"app": name}
        template = {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "main", "image": "x", **container}]},
        }
        body = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template, **spec},
        }
        return await self.client.create(Deployment.model_validate(body))

    async def service(self, name: str, *ports: dict[str, Any], **spec: Any) -> Service:
        body = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"app": name}, "ports": list(ports), **spec},
        }
        return await self.client.create(Service.model_validate(body))

    async def logs(self, pod: str, **options: str) -> str:
        query = tuple(options.items())
        return (await self.client.request("GET", f"/api/v1/namespaces/default/pods/{pod}/log", query=query)).decode()

    async def settled(self) -> None:
        """Until every controller has looked at everything once more, and has nothing left to do."""
        for worker in self.dev.manager.workers:
            for entry in worker.store.entries():
                worker.queue.add(entry.key)
        async with asyncio.timeout(10):
            while not all(worker.queue.idle for worker in self.dev.manager.workers):
                await asyncio.sleep(0.01)


_POD_FIELDS = frozenset(
    {"restartPolicy", "initContainers", "volumes", "terminationGracePeriodSeconds", "nodeSelector", "tolerations"}
)


def _exact(kind: type[R], body: dict[str, Any]) -> R:
    return kind.model_validate(body)


@asynccontextmanager
async def world(
    *,
    nodes: tuple[str, ...] = ("n1",),
    root: Path | None = None,
    images: ImageTable | None = None,
    tcp: bool = False,
    clock: Clock | None = None,
) -> AsyncIterator[World]:
    """A fresh cluster with these nodes."""
    async with DevCluster.start(
        root=root,
        clock=clock,
        images=images,
        tcp=tcp,
        timings=QUICK,
        env={"PATH": os.environ["PATH"]},
        job_backoff=0.05,
    ) as dev:
        for name in nodes:
            await dev.kubelet.register(name)
        yield World(dev)


def http_server(body: str = "hello") -> dict[str, Any]:
    """A container that serves *body* and its pod's name on port 5000 of the pod's address."""
    return {"command": [sys.executable, "-S", str(Path(__file__).with_name("tiny_server.py")), "5000", body]}


READY_FAST = {"readinessProbe": {"tcpSocket": {"port": 5000}, "periodSeconds": 1}}


def terminated(pod: Pod) -> dict[str, Any]:
    """How its first container ended; empty while it has not."""
    statuses = pod.status.container_statuses
    return dict(statuses[0].state.terminated or {}) if statuses else {}


def waiting(pod: Pod) -> str:
    """Why its first container waits; empty when it does not."""
    statuses = pod.status.container_statuses
    return str((statuses[0].state.waiting or {}).get("reason", "")) if statuses else ""


def running(pod: Pod) -> bool:
    return pod.status.phase == "Running"


def pids(pod: Pod) -> list[int]:
    """The process ids of its containers."""
    ids = (status.container_id or "" for status in pod.status.container_statuses)
    return [int(each.removeprefix("process://")) for each in ids if each]
