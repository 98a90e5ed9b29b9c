"""A whole cluster in one process: API server, controllers, scheduler, kubelet and service proxy.

It is a development and test tool, and says so: production is any conformant Kubernetes.

The parts nest, and the nesting is the order in which they end: pods first, so that nothing runs unwatched; then the
controllers; then the server. An error in any part ends all of them and comes out of the block.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from kaito_ctrl.devcluster.apiserver import ApiServer, GarbageCollector, NamespaceController, serve
from kaito_ctrl.devcluster.apiserver.errors import StatusError
from kaito_ctrl.devcluster.deployment import DeploymentController
from kaito_ctrl.devcluster.endpoints import EndpointsController
from kaito_ctrl.devcluster.images import ImageTable
from kaito_ctrl.devcluster.job import JobController
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.devcluster.logs import LogOptions
from kaito_ctrl.devcluster.nodelifecycle import NodeLifecycle
from kaito_ctrl.devcluster.podrunner import Timings
from kaito_ctrl.devcluster.proxy import ServiceProxy
from kaito_ctrl.devcluster.replicaset import ReplicaSetController
from kaito_ctrl.devcluster.scheduler import Scheduler
from kaito_ctrl.devcluster.statefulset import StatefulSetController
from kaito_ctrl.runtime import Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random
from kaito_ctrl.runtime.errors import ApiError
from kaito_ctrl.runtime.transport import Transport

__all__ = ["DevCluster"]

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class DevCluster:
    """The running cluster; made by :meth:`start`."""

    def __init__(self, server: ApiServer, cluster: Cluster, kubelet: ProcessKubelet, proxy: ServiceProxy) -> None:
        self.server = server
        self.cluster = cluster
        self.kubelet = kubelet
        self.proxy = proxy
        self.endpoint: Any = None
        """Where the API server listens (``url``, ``ca_pem``, ``kubeconfig()``); ``None`` without TCP."""

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        *,
        root: Path | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        images: ImageTable | None = None,
        token: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        tcp: bool = True,
        env: Mapping[str, str] | None = None,
        timings: Timings | None = None,
        job_backoff: float = 10.0,
    ) -> AsyncIterator[Self]:
        """Run a cluster without nodes: :meth:`ProcessKubelet.register` adds them.

        *root* is for volumes and logs (default: a temporary folder), *env* what every container's environment begins
        with (default: PATH, HOME, locale and time zone of this process), *token* the bearer token of the
        administrator over TCP.
        """
        clock, rng = clock or SystemClock(), rng or system_random()
        async with AsyncExitStack() as stack:
            if root is None:
                root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaito-devcluster-"))) / "kubelet"
            server = ApiServer(clock=clock, rng=rng)
            stack.push_async_callback(server.aclose)
            cluster = Cluster(server.transport(), clock=clock, rng=rng)
            proxy = ServiceProxy()
            manager = _manager(cluster, proxy, job_backoff)
            kubelet = ProcessKubelet(
                cluster, root=root, images=images, env=_environment() if env is None else env, timings=timings
            )
            dev = cls(server, cluster, kubelet, proxy)
            server.set_log_source(dev._logs)
            if tcp:
                dev.endpoint = await stack.enter_async_context(
                    serve(server, host=host, port=port, token=token or secrets.token_urlsafe(24))
                )
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(GarbageCollector(server).run(), name="garbage-collector"),
                    group.create_task(NamespaceController(server).run(), name="namespace-controller"),
                ]
                managing = group.create_task(manager.run(), name="controllers")
                await manager.wait_ready()
                async with kubelet:
                    yield dev
                manager.stop()
                await managing
                for task in background:
                    task.cancel()

    def transport(self, *, user: str = "system:admin") -> Transport:
        """A transport into the API server without sockets; its requests come from *user*."""
        return self.server.transport(user=user)

    def kubeconfig_text(self) -> str:
        """A kubeconfig for ``kubectl``. Raises ``RuntimeError`` for a cluster without TCP."""
        if self.endpoint is None:
            raise RuntimeError("this cluster does not listen on TCP: start it with tcp=True for a kubeconfig")
        text: str = self.endpoint.kubeconfig()
        return text

    async def write_kubeconfig(self, path: Path) -> None:
        """Write :meth:`kubeconfig_text` to *path*, readable for its owner only, in one step."""
        text = self.kubeconfig_text()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        draft.replace(path)

    async def _logs(
        self, namespace: str, pod: str, container: str, options: Mapping[str, str]
    ) -> AsyncIterator[bytes]:
        try:
            chosen = _log_options(options, self.cluster.clock.now())
            return self.kubelet.read_log(ObjectKey(namespace, pod), container, chosen)
        except ApiError as error:
            raise StatusError(error.code, error.reason, error.message) from error
        except ValueError as error:
            raise StatusError(400, "BadRequest", f"invalid log options: {error}") from error


def _manager(cluster: Cluster, proxy: ServiceProxy, job_backoff: float) -> Manager:
    manager = Manager(cluster, drain=2.0, grace=5.0)
    manager.add_runnable(proxy)
    for controller in (
        DeploymentController(),
        ReplicaSetController(),
        StatefulSetController(),
        JobController(backoff=job_backoff),
        EndpointsController(),
        NodeLifecycle(),
        Scheduler(),
        proxy,
    ):
        manager.add(controller)
    return manager


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _log_options(query: Mapping[str, str], now: datetime) -> LogOptions:
    """The query of a log request. Raises ``ValueError``."""

    def flag(name: str) -> bool:
        return query.get(name, "").lower() in ("true", "1")

    def number(name: str) -> int | None:
        return int(query[name]) if query.get(name) else None

    since = None
    if query.get("sinceTime"):
        since = datetime.fromisoformat(query["sinceTime"])
    elif (seconds := number("sinceSeconds")) is not None:
        since = now - timedelta(seconds=seconds)
    tail = number("tailLines")
    return LogOptions(
        previous=flag("previous"),
        follow=flag("follow"),
        tail_lines=tail if tail is None or tail >= 0 else None,
        since=since,
        timestamps=flag("timestamps"),
        limit_bytes=number("limitBytes"),
    )
