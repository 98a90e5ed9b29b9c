"""One pod on its node: from the first init container to the last log line, and how it ends."""

from __future__ import annotations

import asyncio
import math
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from kaito_api.core import ConfigMap
from kaito_ctrl.devcluster.containerrunner import ContainerRunner, Host
from kaito_ctrl.devcluster.environment import ConfigError, Sources
from kaito_ctrl.devcluster.events import EventType, record
from kaito_ctrl.devcluster.kinds import Pod, Secret
from kaito_ctrl.devcluster.pods import is_ready
from kaito_ctrl.devcluster.podstatus import pod_status
from kaito_ctrl.devcluster.volumes import prepare_volumes
from kaito_ctrl.devcluster.writes import merge_patch
from kaito_ctrl.runtime import Client, key_of
from kaito_ctrl.runtime.errors import ApiError, Conflict, KubeError, NotFound, ServerError, TransportError

__all__ = ["PodRunner"]


@dataclass(frozen=True, slots=True)
class _Namespace:
    """Where the pod's references lead: always read live, as they are read seldom and must be right."""

    client: Client
    namespace: str

    async def config_map(self, name: str) -> Mapping[str, str] | None:
        try:
            return (await self.client.get(ConfigMap, name, self.namespace)).data
        except NotFound:
            return None

    async def secret(self, name: str) -> Mapping[str, str] | None:
        try:
            return (await self.client.get(Secret, name, self.namespace)).data
        except NotFound:
            return None


class PodRunner:
    """Runs one pod; made by the kubelet, which tells it of every change of the object.

    It owns *folder* and everything in it, and leaves nothing behind, neither process nor file.
    """

    def __init__(self, pod: Pod, host: Host, *, ip: str, folder: Path) -> None:
        self.pod = pod
        self.host = host
        self.ip = ip
        self.folder = folder
        self.sources: Sources = _Namespace(host.client, pod.namespace or "")
        self.volumes: Mapping[str, Path] = {}
        self.stopping = asyncio.Event()
        self.killed = asyncio.Event()
        self.ended = asyncio.Event()
        first = "PodInitializing" if pod.spec.init_containers else "ContainerCreating"
        self._inits = [ContainerRunner(each, self, reason=first) for each in pod.spec.init_containers]
        self._mains = [ContainerRunner(each, self, reason=first) for each in pod.spec.containers]
        self._began = host.clock.now()
        self._written: Mapping[str, object] = {}
        self._said_ready = False
        self._unwritten = False
        self._writing = asyncio.Lock()
        self._dirty = asyncio.Event()
        self._hurry = asyncio.Event()
        self._deadline = math.inf
        self._events: asyncio.Queue[tuple[EventType, str, str]] = asyncio.Queue()
        self._log = structlog.get_logger("kaito_ctrl").bind(pod=f"{pod.namespace}/{pod.name}", node=pod.spec.node_name)
        if pod.deleting:
            self.stop()

    # -- told by the kubelet -------------------------------------------------------------------------------------

    def update(self, pod: Pod) -> None:
        """A new version of the object: its deletion matters, and what others say of its readiness; the rest of a pod
        does not change."""
        self.pod = pod
        if pod.deleting:
            self.stop()
        elif is_ready(pod) != self._said_ready:
            # Somebody concluded something from our silence, or this is our own write: in doubt, say it again.
            self._written = {key: value for key, value in self._written.items() if key != "conditions"}
            self.changed()

    def stop(self, grace: float | None = None) -> None:
        """End it: SIGTERM, and SIGKILL after *grace* seconds, by default those that its deletion asks for. A second
        call can only bring the end nearer."""
        if grace is None:
            asked = self.pod.metadata.deletion_grace_period_seconds
            grace = float(asked if asked is not None else self.pod.spec.termination_grace_period_seconds)
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + grace)
        self.stopping.set()
        self._hurry.set()

    def kill(self) -> None:
        """End it at once, and write nothing more: the object is gone, or the node is."""
        self.killed.set()
        self.stopping.set()
        self._hurry.set()

    def container(self, name: str) -> ContainerRunner:
        """Raises :class:`ApiError` as the kubelet words it."""
        for each in self._containers():
            if each.name == name:
                return each
        raise ApiError.of(400, "BadRequest", f"container {name} is not valid for pod {self.pod.name}")

    # -- told by the containers ----------------------------------------------------------------------------------

    def changed(self) -> None:
        self._dirty.set()

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        self._events.put_nowait(("Warning" if warning else "Normal", reason, message))

    async def pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    # -- the pod's life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From start to end: returns once no process of the pod is left, and the object has been deleted if that was
        asked for."""
        led = not self.stopping.is_set()
        try:
            if led:
                async with asyncio.TaskGroup() as group:
                    reporting = [group.create_task(work()) for work in (self._report, self._announce)]
                    leading = group.create_task(self._lead())
                    await self.stopping.wait()
                    await self._end(leading)
                    for task in reporting:
                        task.cancel()
                await self.sync()
            if not self.killed.is_set() and self.pod.deleting:
                await self._delete()
        finally:
            for each in self._containers():
                each.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _containers(self) -> tuple[ContainerRunner, ...]:
        return (*self._inits, *self._mains)

    async def _lead(self) -> None:
        self.changed()
        if not await self._mount():
            return
        policy = self.pod.spec.restart_policy
        for each in self._inits:
            await each.keep("OnFailure" if policy == "Always" else policy)
            if each.record.exit_status != 0:
                return
        async with asyncio.TaskGroup() as group:
            for each in self._mains:
                group.create_task(each.keep(policy), name=f"{self.pod.name}/{each.name}")

    async def _mount(self) -> bool:
        """Make the volumes, again and again while something that they need is missing; False: the pod has to end."""
        delay = self.host.timings.config_base
        while not self.stopping.is_set():
            try:
                folder = self.folder / "volumes"
                self.volumes = await prepare_volumes(
                    self.pod, folder, self.sources, pod_ip=self.ip, host_ip=self.host.ip
                )
            except (ConfigError, KubeError) as error:
                for each in self._mains:
                    each.record.wait("ContainerCreating", f"MountVolume.SetUp failed: {error}")
                self.tell("FailedMount", f"MountVolume.SetUp failed: {error}", warning=True)
                self.changed()
                await self.pause(delay)
                delay = min(delay * 2, 122.0)
            else:
                return True
        return False

    async def _end(self, leading: asyncio.Task[None]) -> None:
        """Every container's loop ends by itself once its process has, so waiting for *leading* is waiting for all."""
        if not self.killed.is_set():
            for each in self._containers():
                if each.running:
                    self.tell("Killing", f"Stopping container {each.name}")
                each.signal(signal.SIGTERM)
        clock = asyncio.get_running_loop().time
        while not leading.done() and not self.killed.is_set() and (left := self._deadline - clock()) > 0:
            self._hurry.clear()
            hurry = asyncio.ensure_future(self._hurry.wait())
            try:
                await asyncio.wait((leading, hurry), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hurry.cancel()
        for each in self._containers():
            each.signal(signal.SIGKILL)
        _, stuck = await asyncio.wait((leading,), timeout=10.0)
        if stuck:
            leading.cancel()

    # -- what is written -----------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Write down what has changed, and again what could not be written."""
        delay = 0.5
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self.sync()
            if self._unwritten:
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30.0)
                self._dirty.set()
            else:
                delay = 0.5

    async def _announce(self) -> None:
        """Write events, in order, without holding up what they tell of."""
        while True:
            kind, reason, message = await self._events.get()
            await record(self.host.client, self.host.clock, self.pod, reason, message, type=kind)

    async def sync(self) -> None:
        """Bring the object's status up to date with at most one write; a failure is left to :meth:`_report`."""
        async with self._writing:
            self._unwritten = False
            if self.killed.is_set():
                return
            status = pod_status(
                self.pod,
                [each.record for each in self._inits],
                [each.record for each in self._mains],
                pod_ip=self.ip,
                host_ip=self.host.ip,
                began=self._began,
                now=self.host.clock.now(),
            )
            patch = merge_patch(self._written, status)
            if not patch:
                return
            self._said_ready = any(
                each["type"] == "Ready" and each["status"] == "True" for each in status["conditions"]
            )
            try:
                body = {"metadata": {"uid": self.pod.uid}, "status": patch}
                await self.host.client.patch(Pod, key_of(self.pod), body, subresource="status")
            except (NotFound, Conflict):
                self.kill()  # gone, or another pod of that name
            except KubeError as error:
                self._log.warning("status not written", error=str(error))
                self._unwritten = True
            else:
                self._written = status

    async def _delete(self) -> None:
        delay = 0.5
        while True:
            try:
                await self.host.client.delete(Pod, key_of(self.pod), uid=self.pod.uid, grace_period=0)
            except (NotFound, Conflict):
                return
            except (TransportError, ServerError) as error:
                self._log.warning("pod not deleted", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30.0)
            else:
                return
