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
from pathlib import Path
from typing import Self

import yaml

from kaito_ctrl.devcluster.apiserver import ApiServer, Endpoint, User, serve
from kaito_ctrl.devcluster.apiserver.errors import StatusError
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.apiserver.namespaces import NamespaceController
from kaito_ctrl.devcluster.containerrunner import Timings
from kaito_ctrl.devcluster.deployment import DeploymentController
from kaito_ctrl.devcluster.endpoints import EndpointsController
from kaito_ctrl.devcluster.images import ImageTable
from kaito_ctrl.devcluster.job import JobController
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.devcluster.logs import LogOptions
from kaito_ctrl.devcluster.nodelifecycle import NodeLifecycle
from kaito_ctrl.devcluster.proxy import ServiceProxy
from kaito_ctrl.devcluster.replicaset import ReplicaSetController
from kaito_ctrl.devcluster.scheduler import Scheduler
from kaito_ctrl.devcluster.statefulset import StatefulSetController
from kaito_ctrl.runtime import Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.clock import Clock, SystemClock, system_random
from kaito_ctrl.runtime.errors import ApiError, leaf_errors
from kaito_ctrl.runtime.transport import Transport

__all__ = ["DevCluster"]

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")


class DevCluster:
    """The running cluster; made by :meth:`start`."""

    def __init__(
        self, server: ApiServer, cluster: Cluster, kubelet: ProcessKubelet, proxy: ServiceProxy, manager: Manager
    ) -> None:
        self.server = server
        self.cluster = cluster
        self.kubelet = kubelet
        self.proxy = proxy
        self.manager = manager
        self.endpoint: Endpoint | None = None
        """Where the API server listens; ``None`` without TCP."""

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
        rbac: bool = False,
        env: Mapping[str, str] | None = None,
        timings: Timings | None = None,
        job_backoff: float = 10.0,
    ) -> AsyncIterator[Self]:
        """Run a cluster without nodes: :meth:`ProcessKubelet.register` adds them.

        *root* is for volumes and logs (default: a temporary folder), *env* what every container's environment begins
        with (default: PATH, HOME, locale and time zone of this process), *token* the bearer token of the
        administrator over TCP. With *rbac*, roles and bindings decide who may do what.
        """
        body: list[BaseException] = []
        try:
            async with cls._running(
                root=root,
                clock=clock or SystemClock(),
                rng=rng or system_random(),
                images=images,
                token=token or secrets.token_urlsafe(24),
                host=host,
                port=port,
                tcp=tcp,
                rbac=rbac,
                env=_environment() if env is None else env,
                timings=timings,
                job_backoff=job_backoff,
            ) as dev:
                try:
                    yield dev
                except BaseException as error:
                    body.append(error)
                    raise
        except BaseExceptionGroup as group:
            # What the block itself raised comes out as it went in; what a part raised, as a group.
            if body and all(leaf is body[0] for leaf in leaf_errors(group)):
                raise body[0] from body[0].__cause__
            raise

    @classmethod
    @asynccontextmanager
    async def _running(
        cls,
        *,
        root: Path | None,
        clock: Clock,
        rng: random.Random,
        images: ImageTable | None,
        token: str,
        host: str,
        port: int,
        tcp: bool,
        rbac: bool,
        env: Mapping[str, str],
        timings: Timings | None,
        job_backoff: float,
    ) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            if root is None:
                root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaito-devcluster-"))) / "kubelet"
            server = ApiServer(clock=clock, rng=rng, rbac=rbac)
            stack.push_async_callback(server.aclose)
            cluster = Cluster(server.transport(), clock=clock, rng=rng)
            proxy = ServiceProxy()
            manager = _manager(cluster, proxy, job_backoff)
            kubelet = ProcessKubelet(cluster, root=root, images=images, env=env, timings=timings)
            dev = cls(server, cluster, kubelet, proxy, manager)
            server.set_log_source(dev._logs)
            server.kubelet = kubelet.api
            if tcp:
                dev.endpoint = await stack.enter_async_context(serve(server, host=host, port=port, token=token))
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

    def transport(self, *, user: User | str = "system:admin") -> Transport:
        """A transport into the API server without sockets, for *user*; a name alone is that of an administrator."""
        return self.server.transport(user=user)

    def kubeconfig_text(self) -> str:
        """A kubeconfig for ``kubectl``. Raises ``RuntimeError`` for a cluster without TCP."""
        if self.endpoint is None:
            raise RuntimeError("this cluster does not listen on TCP: start it with tcp=True for a kubeconfig")
        return str(yaml.safe_dump(self.endpoint.kubeconfig(), sort_keys=False))

    async def write_kubeconfig(self, path: Path) -> None:
        """Write :meth:`kubeconfig_text` to *path*, readable for its owner only, in one step."""
        text = self.kubeconfig_text()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        draft.replace(path)

    async def _logs(self, namespace: str, pod: str, container: str, options: Mapping[str, str]) -> AsyncIterator[bytes]:
        try:
            chosen = LogOptions.of(options, self.cluster.clock.now())
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
