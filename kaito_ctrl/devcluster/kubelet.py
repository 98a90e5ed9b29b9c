"""The process kubelet: nodes whose containers are local processes.

One kubelet serves any number of nodes. It tells nothing but the truth: a pod is Running because a process runs, and
Ready because a probe said so. What it cannot do, it says: there are no images (see :mod:`.images`), no mounts (see
:mod:`.volumes`), no network namespaces (a pod has an address of its own, given as ``KAITO_HOST``, but a program that
listens on 0.0.0.0 takes that port on all of them), no isolation, no lifecycle hooks, and no GPUs.
"""

from __future__ import annotations

import asyncio
import platform
import random
import shutil
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
import structlog

from kaito_api.coordination import Lease, LeaseSpec
from kaito_api.core import Namespace, NodeAddress, NodeSpec, Taint
from kaito_api.meta import ObjectMeta, find_condition
from kaito_ctrl.devcluster.containerrunner import Host, Timings
from kaito_ctrl.devcluster.images import ImageTable
from kaito_ctrl.devcluster.kinds import Node, NodeCondition, NodeStatus, Pod
from kaito_ctrl.devcluster.kubeletapi import KubeletApi, KubeletPort, serve_kubelet
from kaito_ctrl.devcluster.logs import LogOptions
from kaito_ctrl.devcluster.nodelifecycle import LEASE_NAMESPACE
from kaito_ctrl.devcluster.podaddresses import PodAddresses, local_block
from kaito_ctrl.devcluster.podrunner import PodRunner
from kaito_ctrl.devcluster.pods import is_finished
from kaito_ctrl.devcluster.process import supervisor
from kaito_ctrl.devcluster.writes import patch_status
from kaito_ctrl.runtime import Client, Cluster, ObjectKey, key_of
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import AlreadyExists, ApiError, KubeError, NotFound
from kaito_ctrl.runtime.store import Change

__all__ = ["VERSION", "ProcessKubelet"]

VERSION = "v1.32.0-kaito-ctrl"


class ProcessKubelet:
    """An async context manager: leaving it ends every pod, and leaves no process and no file.

    *cluster*'s cache must run while the kubelet does, and be declared before: create the kubelet first. *root* is
    where volumes and logs go; it is made if it is not there, and then removed at the end. *env* is what every
    container's environment begins with.

    As a node of a real cluster it needs pods whose addresses may be endpoints, which loopback addresses may not:
    *pod_cidr* is then a block that nobody uses (as root; see :func:`.podaddresses.local_block`), or one address of
    this machine (``"192.0.2.7/32"``), which all pods share. *host_ip* is the nodes' address; with *port*, the API
    server reaches logs, exec, attach and port-forward there.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        root: Path,
        images: ImageTable | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        pod_cidr: str = "127.97.0.0/16",
        host_ip: str = "127.0.0.1",
        port: KubeletPort | None = None,
        env: Mapping[str, str] | None = None,
        timings: Timings | None = None,
    ) -> None:
        self._cluster = cluster
        self._client = Client(cluster.transport, "kubelet", cluster.cache, metrics=cluster.metrics)
        self._images = images or ImageTable()
        self._clock = clock or cluster.clock
        self._rng = rng or cluster.rng
        self._env = dict(env or {})
        self._timings = timings or Timings()
        self._root = root
        self._made_root = False
        self._pod_cidr = pod_cidr
        self._addresses = PodAddresses(pod_cidr, self._rng)
        self._host_ip = host_ip
        self._port = port
        self._bound: int | None = None
        self.api = KubeletApi(self)
        self._nodes: dict[str, asyncio.Task[None]] = {}
        self._runners: dict[str, PodRunner] = {}
        self._done: set[str] = set()
        self._closing = False
        self._stack = AsyncExitStack()
        self._log = structlog.get_logger("kaito_ctrl")
        cluster.cache.declare(Pod)
        cluster.cache.declare(Node)

    async def __aenter__(self) -> Self:
        self._made_root = not self._root.exists()
        (self._root / "pods").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stack.callback(self._remove_files)
        await self._stack.enter_async_context(local_block(self._pod_cidr))
        self._host = Host(
            self._host_ip,
            await self._stack.enter_async_context(supervisor()),
            self._images,
            self._client,
            # A probe asks anew each time: what a kept connection would answer is not what a client would get.
            await self._stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
            ),
            self._clock,
            self._rng,
            self._env,
            self._timings,
        )
        if self._port is not None:
            serving = serve_kubelet(self.api, self._host_ip, self._port, self._clock)
            self._bound = await self._stack.enter_async_context(serving)
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._stack.callback(self._cluster.cache.store(Pod).listen(self._on_change))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        # Before anything is cancelled, whatever ends the block: a pod may want to say good-bye.
        await self._wind_down()
        return await self._stack.__aexit__(exc_type, exc, tb)

    async def aclose(self) -> None:
        """End every pod (SIGTERM, soon SIGKILL), and wait for that. Pods and nodes stay in the API as they are."""
        await self.__aexit__(None, None, None)

    async def _wind_down(self) -> None:
        self._closing = True
        for beat in self._nodes.values():
            beat.cancel()
        for runner in self._runners.values():
            runner.stop(self._timings.shutdown_grace)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timings.shutdown_grace + 5.0):
                for runner in tuple(self._runners.values()):
                    await runner.ended.wait()

    def _remove_files(self) -> None:
        shutil.rmtree(self._root if self._made_root else self._root / "pods", ignore_errors=True)

    # -- nodes ---------------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        """Where volumes and logs are: ``pods/<uid>/volumes/<name>``, ``pods/<uid>/logs/<container>/<restart>.log``."""
        return self._root

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that this kubelet serves."""
        return tuple(self._nodes)

    async def register(
        self,
        node_name: str,
        *,
        labels: Mapping[str, str] | None = None,
        capacity: Mapping[str, str] | None = None,
        taints: Iterable[Taint] = (),
        provider_id: str = "",
    ) -> None:
        """Join the cluster as a node of that name, and run what is bound to it. Joining again is fine."""
        if node_name in self._nodes:
            return
        given = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi", **(capacity or {})}
        node = Node(
            metadata=ObjectMeta(
                name=node_name,
                labels={
                    "kubernetes.io/hostname": node_name,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": _arch(),
                    **(labels or {}),
                },
            ),
            spec=NodeSpec(
                **({"taints": tuple(taints)} if taints else {}),
                **({"provider_id": provider_id} if provider_id else {}),
            ),
        )
        await self._renew(node_name)
        try:
            known = await self._client.create(node)
        except AlreadyExists:
            wire = node.to_wire()
            wire["metadata"] = {"labels": wire["metadata"]["labels"]}
            known = await self._client.patch(Node, ObjectKey("", node_name), wire)
        await patch_status(self._client, known, self._node_status(given))
        if not self._closing:
            self._nodes[node_name] = self._group.create_task(self._beat(node_name), name=f"kubelet/{node_name}")
            for entry in tuple(self._cluster.cache.store(Pod).entries()):
                self._on_change(Change(entry.key, None, entry))

    async def deregister(self, node_name: str) -> None:
        """The machine behind the node is gone: its processes die at once, nobody reports anything any more, and the
        Node object is for others to delete."""
        beat = self._nodes.pop(node_name, None)
        if beat is None:
            return
        beat.cancel()
        ending = [runner for runner in self._runners.values() if runner.pod.spec.node_name == node_name]
        for runner in ending:
            runner.kill()
        await asyncio.gather(*(runner.ended.wait() for runner in ending))

    def _node_status(self, capacity: Mapping[str, str]) -> NodeStatus:
        return NodeStatus(
            capacity=dict(capacity),
            allocatable=dict(capacity),
            conditions=self._conditions(),
            addresses=(
                NodeAddress(type="InternalIP", address=self._host_ip),
                # API servers look up the first of their preferred types, and this is what they prefer most.
                NodeAddress(type="Hostname", address="localhost" if self._host_ip == "127.0.0.1" else self._host_ip),
            ),
            daemon_endpoints={"kubeletEndpoint": {"Port": self._bound}} if self._bound is not None else {},
            node_info={
                "kubeletVersion": VERSION,
                "kubeProxyVersion": VERSION,
                "containerRuntimeVersion": "process://1.0",
                "operatingSystem": "linux",
                "osImage": "kaito-ctrl development cluster",
                "kernelVersion": platform.release(),
                "architecture": _arch(),
                "machineID": "",
                "systemUUID": "",
                "bootID": "",
            },
        )

    def _conditions(self) -> tuple[NodeCondition, ...]:
        now = self._clock.now().replace(microsecond=0)

        def condition(kind: str, on: bool, reason: str, message: str) -> NodeCondition:
            return NodeCondition(
                type=kind,
                status="True" if on else "False",
                reason=reason,
                message=message,
                last_heartbeat_time=now,
                last_transition_time=now,
            )

        return (
            condition("MemoryPressure", False, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", False, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", False, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", True, "KubeletReady", "kubelet is posting ready status"),
        )

    async def _beat(self, node_name: str) -> None:
        """Say every few seconds that the node lives, and take back what was concluded from silence."""
        while True:
            await asyncio.sleep(self._timings.heartbeat)
            try:
                node = self._cluster.cache.get(Node, node_name)
                if node is None:
                    continue  # its owner has deleted it; whoever does that also calls deregister
                await self._renew(node_name)
                ready = find_condition(node.status.conditions, "Ready")
                if ready is None or ready.status != "True":
                    await patch_status(self._client, node, node.status.evolve(conditions=self._conditions()))
            except KubeError as error:
                self._log.warning("heartbeat failed", node=node_name, error=str(error))

    async def _renew(self, node_name: str) -> None:
        key = ObjectKey(LEASE_NAMESPACE, node_name)
        spec = LeaseSpec(holder_identity=node_name, renew_time=self._clock.now())
        try:
            await self._client.patch(Lease, key, {"spec": spec.to_wire()})
        except NotFound:
            lease = Lease(
                metadata=ObjectMeta(name=node_name, namespace=LEASE_NAMESPACE),
                spec=spec.evolve(lease_duration_seconds=40),
            )
            try:
                await self._client.create(lease)
            except NotFound:
                await self._client.create(Namespace(metadata=ObjectMeta(name=LEASE_NAMESPACE)))
                await self._client.create(lease)

    # -- pods ----------------------------------------------------------------------------------------------------

    def _on_change(self, change: Change[Pod]) -> None:
        old_uid = change.old.header.uid if change.old is not None else None
        new_uid = change.new.header.uid if change.new is not None else None
        if old_uid is not None and old_uid != new_uid and old_uid in self._runners:
            self._runners[old_uid].kill()
        if old_uid is not None and old_uid != new_uid:
            self._done.discard(old_uid)
        if change.new is None or not change.new.decodable or new_uid in self._done:
            return
        pod = change.new.view()
        runner = self._runners.get(pod.uid)
        if runner is not None:
            runner.update(pod)
        elif pod.spec.node_name in self._nodes and not self._closing and (pod.deleting or not is_finished(pod)):
            made = PodRunner(pod, self._host, ip=self._addresses.take(), folder=self._root / "pods" / pod.uid)
            self._runners[pod.uid] = made
            self._group.create_task(self._run(made), name=f"pod/{pod.namespace}/{pod.name}")

    async def _run(self, runner: PodRunner) -> None:
        try:
            await runner.run()
        finally:
            self._addresses.release(runner.ip)
            self._runners.pop(runner.pod.uid, None)
            # A finalizer may keep the object: it must not be started a second time.
            if self._cluster.cache.store(Pod).entry(key_of(runner.pod)) is not None:
                self._done.add(runner.pod.uid)
            runner.ended.set()

    # -- asked by the API server ---------------------------------------------------------------------------------

    def now(self) -> datetime:
        """By the cluster's clock."""
        return self._clock.now()

    @property
    def pods(self) -> Sequence[Pod]:
        """What runs here, as it was last seen."""
        return [runner.pod for runner in self._runners.values()]

    def runner(self, key: ObjectKey) -> PodRunner:
        """What runs the pod of that name. Raises :class:`ApiError` in the kubelet's words."""
        runner = next((each for each in self._runners.values() if key_of(each.pod) == key), None)
        if runner is None:
            pod = self._cluster.cache.store(Pod).get(key)
            if pod is None or not pod.spec.node_name:
                raise ApiError.of(400, "BadRequest", f"pod {key.name} does not have a host assigned")
            raise ApiError.of(400, "BadRequest", f"node {pod.spec.node_name} of pod {key.name} is not there any more")
        return runner

    def read_log(self, key: ObjectKey, container: str, options: LogOptions) -> AsyncGenerator[bytes, None]:
        """The lines for ``kubectl logs``. Raises :class:`ApiError` in the kubelet's words."""
        return self.runner(key).container(container).log(previous=options.previous).read(options)


def _arch() -> str:
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
