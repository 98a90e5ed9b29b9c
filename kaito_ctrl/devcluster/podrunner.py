"""One pod on its node: from the first init container to the last log line, and how it ends."""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import aiohttp
import structlog

from kaito_api.core import ConfigMap, Probe
from kaito_ctrl.devcluster.environment import ConfigError, container_env, expand
from kaito_ctrl.devcluster.images import ImageError, ImageTable
from kaito_ctrl.devcluster.kinds import Container, Pod, Secret
from kaito_ctrl.devcluster.logs import ContainerLog
from kaito_ctrl.devcluster.podstatus import ContainerRecord, CrashBackoff, pod_status, should_restart
from kaito_ctrl.devcluster.probes import Target, Threshold, watch
from kaito_ctrl.devcluster.process import Process, StartError, Supervisor
from kaito_ctrl.devcluster.volumes import Mounts, mounts_of, prepare_volumes
from kaito_ctrl.devcluster.writes import merge_patch
from kaito_ctrl.runtime import Client, key_of
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import ApiError, Conflict, KubeError, NotFound, ServerError, TransportError

__all__ = ["HOST_IP", "Host", "PodRunner", "Timings"]

HOST_IP = "127.0.0.1"
_START_ERROR = 128


@dataclass(frozen=True, slots=True)
class Timings:
    """The kubelet's figures, in seconds."""

    crash_base: float = 10.0
    crash_cap: float = 300.0
    crash_reset: float = 600.0
    image_base: float = 10.0
    config_base: float = 2.0
    heartbeat: float = 10.0
    shutdown_grace: float = 2.0
    """How long pods get to stop when the whole cluster does."""


@dataclass(frozen=True, slots=True)
class Host:
    """What a node offers its pods."""

    supervisor: Supervisor
    images: ImageTable
    client: Client
    session: aiohttp.ClientSession
    clock: Clock
    rng: random.Random
    env: Mapping[str, str]
    timings: Timings


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


@dataclass(frozen=True, slots=True)
class _Command:
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    mounts: Mounts


class PodRunner:
    """Runs one pod; made by the kubelet, which tells it of every change of the object.

    It owns the folder and everything in it, and leaves nothing behind, neither process nor file.
    """

    def __init__(self, pod: Pod, host: Host, *, ip: str, folder: Path) -> None:
        self.pod = pod
        self.ip = ip
        self._host = host
        self._folder = folder
        first = "PodInitializing" if pod.spec.init_containers else "ContainerCreating"
        self._inits = [ContainerRecord(each, {"waiting": {"reason": first}}) for each in pod.spec.init_containers]
        self._mains = [ContainerRecord(each, {"waiting": {"reason": first}}) for each in pod.spec.containers]
        self._volumes: Mapping[str, Path] = {}
        self._processes: dict[str, Process] = {}
        self._logs: dict[str, list[ContainerLog]] = {}
        self._began = host.clock.now()
        self._written: Mapping[str, object] = {}
        self._writing = asyncio.Lock()
        self._dirty = asyncio.Event()
        self._stopping = asyncio.Event()
        self._killed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._deadline = math.inf
        self.ended = asyncio.Event()
        self._sources = _Namespace(host.client, pod.namespace or "")
        self._log = structlog.get_logger("kaito_ctrl").bind(pod=f"{pod.namespace}/{pod.name}", node=pod.spec.node_name)
        if pod.deleting:
            self.stop()

    # -- told by the kubelet -------------------------------------------------------------------------------------

    def update(self, pod: Pod) -> None:
        """A new version of the object: only its deletion matters, as the rest of a pod does not change."""
        self.pod = pod
        if pod.deleting:
            self.stop()

    def stop(self, grace: float | None = None) -> None:
        """End it: SIGTERM, and SIGKILL after *grace* seconds, by default those that its deletion asks for. A second
        call can only bring the end nearer."""
        if grace is None:
            asked = self.pod.metadata.deletion_grace_period_seconds
            grace = float(asked if asked is not None else self.pod.spec.termination_grace_period_seconds)
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + grace)
        self._stopping.set()
        self._hurry.set()

    def kill(self) -> None:
        """End it at once, and write nothing more: the object is gone, or the node is."""
        self._killed.set()
        self._stopping.set()
        self._hurry.set()

    def log(self, container: str, *, previous: bool = False) -> ContainerLog:
        """The log of a container's present or previous start. Raises :class:`KubeError` as the kubelet words it."""
        known = {record.name: record for record in (*self._inits, *self._mains)}
        where = f'container "{container}" in pod "{self.pod.name}"'
        if container not in known:
            raise ApiError.of(400, "BadRequest", f"container {container} is not valid for pod {self.pod.name}")
        logs = self._logs.get(container, [])
        if previous:
            if len(logs) < 2:
                raise ApiError.of(400, "BadRequest", f"previous terminated {where} not found")
            return logs[-2]
        if not logs:
            reason = known[container].state.get("waiting", {}).get("reason", "unknown")
            raise ApiError.of(400, "BadRequest", f"{where} is waiting to start: {reason}")
        return logs[-1]

    # -- the pod's life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From start to end: returns once no process of the pod is left, and the object has been deleted if that was
        asked for."""
        led = not self._stopping.is_set()
        try:
            async with asyncio.TaskGroup() as group:
                if led:
                    reporting = group.create_task(self._report())
                    leading = group.create_task(self._lead())
                    await self._stopping.wait()
                    await self._end(leading)
                    reporting.cancel()
            if not self._killed.is_set() and self.pod.deleting:
                if led:
                    await self._sync()
                await self._delete()
        finally:
            for log in (log for logs in self._logs.values() for log in logs):
                log.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _lead(self) -> None:
        self._dirty.set()
        if not await self._mount():
            return
        policy = self.pod.spec.restart_policy
        for record in self._inits:
            await self._keep(record, "OnFailure" if policy == "Always" else policy)
            if record.exit_status != 0:
                return
        async with asyncio.TaskGroup() as group:
            for record in self._mains:
                group.create_task(self._keep(record, policy), name=f"{self.pod.name}/{record.name}")

    async def _end(self, leading: asyncio.Task[None]) -> None:
        """Every container loop ends by itself once its process has, so waiting for *leading* is waiting for all."""
        if not self._killed.is_set():
            self._signal_all(signal.SIGTERM)
        clock = asyncio.get_running_loop().time
        while not leading.done() and not self._killed.is_set() and (left := self._deadline - clock()) > 0:
            self._hurry.clear()
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait((leading, hurry), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
        self._signal_all(signal.SIGKILL)
        _, stuck = await asyncio.wait((leading,), timeout=10.0)
        if stuck:
            leading.cancel()

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            process.signal(number)

    async def _mount(self) -> bool:
        """Make the volumes, again and again while something that they need is missing; False: the pod has to end."""
        delay = self._host.timings.config_base
        while not self._stopping.is_set():
            try:
                self._volumes = await prepare_volumes(
                    self.pod, self._folder / "volumes", self._sources, pod_ip=self.ip, host_ip=HOST_IP
                )
            except (ConfigError, KubeError) as error:
                for record in self._mains:
                    record.wait("ContainerCreating", f"MountVolume.SetUp failed: {error}")
                self._dirty.set()
                await self._pause(delay)
                delay = min(delay * 2, 122.0)
            else:
                return True
        return False

    # -- one container -------------------------------------------------------------------------------------------

    async def _keep(self, record: ContainerRecord, policy: str) -> None:
        """Start it, and start it again as the restart policy says, until it has ended for good or the pod has."""
        timings = self._host.timings
        crash = CrashBackoff(timings.crash_base, timings.crash_cap, timings.crash_reset)
        while (command := await self._command(record)) is not None:
            loop = asyncio.get_running_loop()
            began = loop.time()
            status = await self._attempt(record, command)
            self._dirty.set()
            if self._stopping.is_set() or not should_restart(policy, status):
                return
            delay = crash.after(loop.time() - began)
            if delay:
                await self._sync()  # the end itself is to be seen, before the wait that follows from it
                record.wait(
                    "CrashLoopBackOff",
                    f"back-off {delay:g}s restarting failed container={record.name} "
                    f"pod={self.pod.name}_{self.pod.namespace}({self.pod.uid})",
                )
                self._dirty.set()
                await self._pause(delay)
            if self._stopping.is_set():
                return
            record.restarts += 1

    async def _command(self, record: ContainerRecord) -> _Command | None:
        """What to execute; waits as long as there is nothing that could be. ``None``: the pod has to end."""
        timings = self._host.timings
        delay = 0.0
        while not self._stopping.is_set():
            try:
                return await self._resolve(record.container)
            except ImageError as error:
                record.wait(error.reason, error.message)
                if error.reason == "ErrImagePull":
                    await self._sync()
                    record.wait("ImagePullBackOff", f'Back-off pulling image "{record.container.image}": {error}')
                delay = min(max(delay * 2, timings.image_base), 300.0)
            except (ConfigError, KubeError) as error:
                record.wait("CreateContainerConfigError", str(error))
                delay = min(max(delay * 2, timings.config_base), 60.0)
            self._dirty.set()
            await self._pause(delay)
        return None

    async def _resolve(self, container: Container) -> _Command:
        base = dict(self._host.env)
        # `python3` is the interpreter that we run on, with everything that is installed beside us.
        base["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), base.get("PATH", os.defpath)))
        launch = self._host.images.resolve(container, base["PATH"])
        mounts = mounts_of(container, self._volumes)
        declared = await container_env(self.pod, container, self._sources, pod_ip=self.ip, host_ip=HOST_IP)
        env = {
            **base,
            "HOSTNAME": self.pod.spec.hostname or self.pod.name,
            "KAITO_HOST": self.ip,
            **launch.env,
            **{name: mounts.rewrite(value) for name, value in declared.items()},
            # No device plug-in has handed out a device: a GPU of this machine is not the pod's.
            "NVIDIA_VISIBLE_DEVICES": "",
        }
        argv = tuple(mounts.rewrite(expand(each, {**env, **declared})) for each in launch.argv)
        cwd = Path(mounts.rewrite(container.working_dir)) if container.working_dir else None
        if cwd is None or not cwd.is_dir():
            # A folder of the image, which is not here: a fresh one of the pod's own stands in.
            cwd = self._folder / "work" / container.name
            cwd.mkdir(parents=True, exist_ok=True)
        return _Command(argv, env, cwd, mounts)

    async def _attempt(self, record: ContainerRecord, command: _Command) -> int:
        """One start of the container; returns its exit status."""
        clock = self._host.clock
        began = clock.now()
        log = self._new_log(record)
        try:
            async with asyncio.TaskGroup() as group:
                ends = []
                for stream in ("stdout", "stderr"):
                    ours, theirs = os.pipe()
                    ends.append(theirs)
                    group.create_task(log.pump(ours, stream))
                try:
                    process = await self._host.supervisor.start(
                        command.argv, env=command.env, cwd=command.cwd, stdout=ends[0], stderr=ends[1]
                    )
                finally:
                    for end in ends:
                        os.close(end)
                await self._attend(record, process, command)
                status = (await process.wait()).status
        except* StartError as group_error:
            message = (
                f'failed to create task: exec: "{command.argv[0]}": {group_error.exceptions[0]}: executable file not '
                f"found, or not executable"
            )
            record.end(_START_ERROR, began, clock.now(), reason="StartError", message=message)
            status = _START_ERROR
        else:
            record.end(status, began, clock.now())
        finally:
            log.close()
        return status

    def _new_log(self, record: ContainerRecord) -> ContainerLog:
        logs = self._logs.setdefault(record.name, [])
        path = self._folder / "logs" / record.name / f"{record.restarts}.log"
        logs.append(ContainerLog(path, self._host.clock.now))
        while len(logs) > 2:  # the present one, and the one for `kubectl logs --previous`
            logs.pop(0).remove()
        return logs[-1]

    async def _attend(self, record: ContainerRecord, process: Process, command: _Command) -> None:
        """See a process through: until it has ended."""
        self._processes[record.name] = process
        record.run(process.pid, self._host.clock.now())
        if self._stopping.is_set():
            process.signal(signal.SIGKILL if self._killed.is_set() else signal.SIGTERM)
        try:
            async with asyncio.TaskGroup() as group:
                probing = group.create_task(self._probe(record, process, command))
                await process.wait()
                probing.cancel()
        finally:
            del self._processes[record.name]

    async def _probe(self, record: ContainerRecord, process: Process, command: _Command) -> None:
        container = record.container
        ports = {port.name: port.container_port for port in container.ports if port.name}

        async def execute(argv: Sequence[str]) -> int:
            return await self._execute(argv, command)

        target = Target(self.ip, ports, self._host.session, execute)
        if container.startup_probe is not None:
            startup = _threshold(container.startup_probe, False)
            await watch(container.startup_probe, target, startup, lambda it: not (it.state or it.failed))
            if not startup.state:
                await self._kill_container(process)
                return
        record.started = True
        record.ready = container.readiness_probe is None
        self._dirty.set()

        def ready(threshold: Threshold) -> bool:
            if record.ready != threshold.state:
                record.ready = threshold.state
                self._dirty.set()
            return True

        async with asyncio.TaskGroup() as group:
            if container.readiness_probe is not None:
                readiness = container.readiness_probe
                group.create_task(watch(readiness, target, _threshold(readiness, False), ready))
            if container.liveness_probe is not None:
                liveness = container.liveness_probe
                await watch(liveness, target, _threshold(liveness, True), lambda it: not it.failed)
                await self._kill_container(process)

    async def _kill_container(self, process: Process) -> None:
        process.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.pod.spec.termination_grace_period_seconds):
                await process.wait()
        process.signal(signal.SIGKILL)

    async def _execute(self, argv: Sequence[str], command: _Command) -> int:
        """Run a probe's command beside the container, in its folder and environment."""
        words = [command.mounts.rewrite(word) for word in argv]
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            process = await self._host.supervisor.start(
                words, env=command.env, cwd=command.cwd, stdout=null, stderr=null
            )
        except StartError:
            return 126
        finally:
            os.close(null)
        try:
            return (await process.wait()).status
        finally:
            process.signal(signal.SIGKILL)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than the pod lives."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # -- what is written -----------------------------------------------------------------------------------------

    async def _report(self) -> None:
        delay = 0.5
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._sync()
            except (TransportError, ServerError) as error:
                self._log.warning("status not written", error=str(error), retry_in=delay)
                self._dirty.set()
                await asyncio.sleep(delay)
                delay = min(delay * 2, 30.0)
            else:
                delay = 0.5

    async def _sync(self) -> None:
        """Bring the object's status up to date with at most one write."""
        async with self._writing:
            if self._killed.is_set():
                return
            status = self._status(self._host.clock.now())
            patch = merge_patch(self._written, status)
            if not patch:
                return
            try:
                await self._host.client.patch(
                    Pod, key_of(self.pod), {"metadata": {"uid": self.pod.uid}, "status": patch}, subresource="status"
                )
            except (NotFound, Conflict):
                self.kill()  # gone, or another pod of that name
            else:
                self._written = status

    def _status(self, now: datetime) -> dict[str, object]:
        return pod_status(
            self.pod, self._inits, self._mains, pod_ip=self.ip, host_ip=HOST_IP, began=self._began, now=now
        )

    async def _delete(self) -> None:
        try:
            await self._host.client.delete(Pod, key_of(self.pod), uid=self.pod.uid, grace_period=0)
        except (NotFound, Conflict):
            return
        except (TransportError, ServerError) as error:
            self._log.warning("pod not deleted", error=str(error))


def _threshold(probe: Probe, state: bool) -> Threshold:
    return Threshold(probe.success_threshold, probe.failure_threshold, state)
