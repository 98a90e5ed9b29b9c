"""Nodes whose pods take their time, and do nothing else: a kubelet for virtual time.

It says what a kubelet says (the status comes from the embedded cluster's own :mod:`podstatus`), in the order in which
a kubelet says it: the node joins not ready, becomes ready, and shows its GPUs when the device plug-in has started; a
pod is pulled, prepared, started, loaded, ready.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kaito_api.coordination import Lease, LeaseSpec
from kaito_api.core import Namespace, NodeSpec
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.kinds import Node, Pod
from kaito_ctrl.devcluster.nodelifecycle import LEASE_NAMESPACE
from kaito_ctrl.devcluster.pods import is_ready
from kaito_ctrl.devcluster.podstatus import ContainerRecord, CrashBackoff, pod_status
from kaito_ctrl.runtime import Client, Cluster, ObjectKey, key_of
from kaito_ctrl.runtime.errors import Conflict, NotFound
from kaito_ctrl.runtime.store import Change
from kaito_ctrl.testing import VirtualClock
from kaito_provisioner import Instance, LaunchRequest

__all__ = ["Conduct", "SimKubelet"]

HEARTBEAT = 10.0
STATUS_EVERY = 30
"""Heartbeats from one status of a node to the next, in which only the time has changed."""
SETTLING = 5.0
"""Seconds from a node's joining to its being ready, and from there to its GPUs."""
GRACE = 2.0
"""Seconds that a server takes to end."""
_GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a pod fares. Times in seconds."""

    pull: float = 30.0
    load: float = 60.0
    pull_error: str = ""
    """What the registry says instead of giving the image."""
    exit_code: int | None = None
    """With what the server ends instead of being loaded."""
    ready: bool = True
    """Whether it answers its readiness probe once it is loaded."""


class SimKubelet:
    """Implements the cloud's ``Joiner``. *cluster*'s cache has to run; :meth:`run` does the work."""

    def __init__(self, cluster: Cluster, client: Client) -> None:
        self.conduct: Callable[[Pod], Conduct] = lambda _: Conduct()
        self._cluster = cluster
        self._client = client
        self._clock = VirtualClock()
        self._jobs: asyncio.Queue[Any] = asyncio.Queue()
        self._silent: set[str] = set()
        self._nodes: dict[str, asyncio.Event] = {}
        self._pods: dict[str, _Runner] = {}
        self._serial = 0
        cluster.cache.declare(Pod)
        cluster.cache.declare(Node)

    async def run(self) -> None:
        """Until cancelled."""
        self._cluster.cache.store(Pod).listen(self._on_change)
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(await self._jobs.get())

    # -- nodes ---------------------------------------------------------------------------------------------------

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        await self.add_node(
            instance.name,
            labels={**instance.labels, **request.labels},
            taints=request.taints,
            provider_id=instance.provider_id,
            resources=instance.allocatable,
        )

    async def leave(self, instance: Instance) -> None:
        self.switch_off(instance.name)

    async def add_node(
        self, name: str, *, labels: Any, taints: Any = (), provider_id: str = "", resources: Any = None
    ) -> None:
        """A machine of that name boots and joins."""
        resources = {"cpu": "24", "memory": "448Gi", "pods": "110", _GPU: "2", **(resources or {})}
        node = Node(
            metadata=ObjectMeta(name=name, labels={"kubernetes.io/hostname": name, **labels}),
            spec=NodeSpec(taints=tuple(taints), **({"provider_id": provider_id} if provider_id else {})),
        )
        self._nodes[name] = asyncio.Event()
        await self._renew(name)
        await self._client.create(node)
        bare = {key: value for key, value in resources.items() if key != _GPU}
        await self.report(name, "False", "container runtime network not ready", capacity=bare, allocatable=bare)
        self._jobs.put_nowait(self._settle(name, resources))
        self._jobs.put_nowait(self._beat(name, self._nodes[name]))

    def switch_off(self, name: str) -> None:
        """The machine is gone: nobody reports for it any more."""
        if name in self._nodes:
            self._nodes.pop(name).set()
        for runner in [each for each in self._pods.values() if each.pod.spec.node_name == name]:
            runner.dead = True
            runner.stir()

    def fall_silent(self, name: str, *, silent: bool = True) -> None:
        """The node is cut off, or heard again."""
        (self._silent.add if silent else self._silent.discard)(name)
        for runner in self._pods.values():
            runner.stir()

    async def report(self, name: str, ready: str, message: str = "", **status: Any) -> None:
        """What the kubelet says of its node."""
        if name in self._silent:
            return
        stamp = self._clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        reason = "KubeletReady" if ready == "True" else "KubeletNotReady"
        condition = {
            "type": "Ready",
            "status": ready,
            "reason": reason,
            "message": message or "kubelet is posting ready status",
            "lastHeartbeatTime": stamp,
            "lastTransitionTime": stamp,
        }
        wire = {"status": {"conditions": [condition], **status}}
        with suppress(NotFound):
            await self._client.patch(Node, ObjectKey("", name), wire, subresource="status")

    async def _settle(self, name: str, resources: Any) -> None:
        await asyncio.sleep(SETTLING)
        if name not in self._nodes:
            return
        await self.report(name, "True")
        await asyncio.sleep(SETTLING)
        if name in self._nodes:
            await self.report(name, "True", capacity=dict(resources), allocatable=dict(resources))

    async def _beat(self, name: str, off: asyncio.Event) -> None:
        for beat in itertools.count(1):
            with suppress(TimeoutError):
                await asyncio.wait_for(off.wait(), HEARTBEAT)
            if off.is_set():
                return
            node = self._cluster.cache.get(Node, name)
            if name in self._silent or node is None:
                continue
            await self._renew(name)
            [ready] = [each for each in node.status.conditions if each.type == "Ready"]
            if ready.status == "Unknown":
                await self.report(name, "True")
            elif beat % STATUS_EVERY == 0:
                alive = ready.evolve(last_heartbeat_time=self._clock.now().replace(microsecond=0))
                wire = {"status": {"conditions": [alive.to_wire()]}}
                with suppress(NotFound):
                    await self._client.patch(Node, ObjectKey("", name), wire, subresource="status")

    async def _renew(self, name: str) -> None:
        spec = LeaseSpec(renew_time=self._clock.now(), holder_identity=name)
        try:
            await self._client.patch(Lease, ObjectKey(LEASE_NAMESPACE, name), {"spec": spec.to_wire()})
        except NotFound:
            lease = Lease(metadata=ObjectMeta(name=name, namespace=LEASE_NAMESPACE), spec=spec)
            try:
                await self._client.create(lease)
            except NotFound:
                await self._client.create(Namespace(metadata=ObjectMeta(name=LEASE_NAMESPACE)))
                await self._client.create(lease)

    # -- pods ----------------------------------------------------------------------------------------------------

    def crash(self, name: str, exit_code: int = 1) -> None:
        """The server of that pod ends."""
        runner = next(each for each in self._pods.values() if each.pod.name == name)
        runner.exit_code = exit_code
        runner.stir()

    async def evict(self, name: str) -> None:
        """The node runs out of something, and that pod has to end; what is left of it says so."""
        runner = next(each for each in self._pods.values() if each.pod.name == name)
        runner.dead = True
        runner.stir()
        status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
        await self._client.patch(Pod, key_of(runner.pod), {"status": status}, subresource="status")

    def _on_change(self, change: Change[Pod]) -> None:
        pod = change.new.view() if change.new is not None else None
        runner = self._pods.get(change.old.header.uid) if change.old is not None else None
        if runner is not None:
            if pod is None or pod.uid != runner.pod.uid:
                runner.dead = True
            else:
                runner.pod = pod
            runner.stir()
        if pod is not None and pod.spec.node_name in self._nodes and pod.uid not in self._pods:
            self._serial += 1
            made = _Runner(pod, self, self._client, f"10.1.{self._serial // 250}.{self._serial % 250 + 1}")
            self._pods[pod.uid] = made
            self._jobs.put_nowait(self._run(made))

    async def _run(self, runner: _Runner) -> None:
        try:
            await runner.run()
        finally:
            self._pods.pop(runner.pod.uid, None)

    def reaches(self, node: str) -> bool:
        """Whether what happens on *node* is heard of."""
        return node in self._nodes and node not in self._silent


class _Ended(Exception):
    """The pod has to go, or its node has gone."""


class _Runner:
    """One pod on its node."""

    def __init__(self, pod: Pod, kubelet: SimKubelet, client: Client, ip: str) -> None:
        self.pod = pod
        self.dead = False
        self.exit_code: int | None = None
        self._kubelet = kubelet
        self._client = client
        self._ip = ip
        self._clock = VirtualClock()
        self._stirred = asyncio.Event()
        self._began = self._clock.now().replace(microsecond=0)
        self._inits = [ContainerRecord(each, {}) for each in pod.spec.init_containers]
        self._mains = [ContainerRecord(each, {}) for each in pod.spec.containers]

    def stir(self) -> None:
        """Something about it has changed."""
        self._stirred.set()

    async def run(self) -> None:
        """From the pull to the end."""
        with suppress(_Ended):
            await self._live()
        if self.dead:
            return
        with suppress(_Ended):
            await self._wait(GRACE, ending=True)
        if not self.dead:
            with suppress(NotFound):
                await self._client.delete(Pod, key_of(self.pod), uid=self.pod.uid, grace_period=0)

    async def _live(self) -> None:
        for record in (*self._inits, *self._mains):
            record.wait("PodInitializing" if self._inits else "ContainerCreating")
        await self._say()
        for index, record in enumerate(self._inits):
            await self._pull(record)
            record.run(index + 10, self._clock.now())
            await self._say()
            await self._wait(1.0)
            record.end(0, self._clock.now(), self._clock.now())
            await self._say()
        main = self._mains[0]
        await self._pull(main)
        backoff, restarts = CrashBackoff(), 0
        while True:
            conduct, began = self._kubelet.conduct(self.pod), self._clock.now()
            self.exit_code = None
            main.run(100 + restarts, began, restarts=restarts)
            await self._say()
            await self._wait(conduct.load)
            code = conduct.exit_code
            if code is None:
                main.started, main.ready = True, conduct.ready
                await self._say()
                code = await self._serve(main)
            now = self._clock.now()
            main.end(code, began, now)
            await self._say()
            delay = backoff.after((now - began).total_seconds())
            if delay:
                main.wait("CrashLoopBackOff", f"back-off {delay:.0f}s restarting failed container={main.name}")
                await self._say()
                self.exit_code = None
                await self._wait(delay)
            restarts += 1

    async def _serve(self, record: ContainerRecord) -> int:
        """Until it crashes, with which exit code."""
        while self.exit_code is None:
            await self._wait(None)
            ready = self._kubelet.conduct(self.pod).ready
            # Others may have concluded from silence that it is not.
            if ready != record.ready or ready != is_ready(self.pod):
                record.ready = ready
                await self._say()
        return self.exit_code

    async def _pull(self, record: ContainerRecord) -> None:
        pause = 10.0
        while error := self._kubelet.conduct(self.pod).pull_error:
            record.wait("ErrImagePull", error)
            await self._say()
            await self._wait(1.0)
            record.wait("ImagePullBackOff", f'Back-off pulling image "{record.container.image}": {error}')
            await self._say()
            await self._wait(pause)
            pause = min(pause * 2, 300.0)
        await self._wait(self._kubelet.conduct(self.pod).pull)

    async def _wait(self, seconds: float | None, *, ending: bool = False) -> None:
        """Until *seconds* have passed, or something happens to the server. Raises when the pod has to go."""
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while True:
            if self.dead or (self.pod.deleting and not ending):
                raise _Ended
            if self.exit_code is not None and not ending:
                return
            self._stirred.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._stirred.wait()
            except TimeoutError:
                return
            if deadline is None:
                return

    async def _say(self) -> None:
        if self.dead or not self._kubelet.reaches(self.pod.spec.node_name):
            return
        status = pod_status(
            self.pod,
            self._inits,
            self._mains,
            pod_ip=self._ip,
            host_ip="127.0.0.1",
            began=self._began,
            now=self._clock.now(),
        )
        wire = {"metadata": {"uid": self.pod.uid}, "status": status}
        with suppress(Conflict, NotFound):
            self.pod = await self._client.patch(Pod, key_of(self.pod), wire, subresource="status")
