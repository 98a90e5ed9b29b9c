"""One container of a pod: started, probed, restarted, and its output kept."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from kaito_api.core import Probe
from kaito_ctrl.devcluster.beside import Beside, Command
from kaito_ctrl.devcluster.console import Console
from kaito_ctrl.devcluster.environment import ConfigError, Sources, container_env, expand
from kaito_ctrl.devcluster.images import ImageError, ImageTable
from kaito_ctrl.devcluster.kinds import Container, Pod
from kaito_ctrl.devcluster.logs import ContainerLog
from kaito_ctrl.devcluster.podstatus import ContainerRecord, CrashBackoff, should_restart
from kaito_ctrl.devcluster.probes import Target, Threshold, watch
from kaito_ctrl.devcluster.process import Process, StartError, Supervisor
from kaito_ctrl.devcluster.stdio import Stdio
from kaito_ctrl.devcluster.volumes import Mounts, mounts_of
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import ApiError, KubeError

__all__ = ["ContainerRunner", "Host", "Setting", "Timings"]

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

    ip: str
    supervisor: Supervisor
    images: ImageTable
    client: Client
    session: aiohttp.ClientSession
    clock: Clock
    rng: random.Random
    env: Mapping[str, str]
    timings: Timings


class Setting(Protocol):
    """What a container needs of its pod."""

    pod: Pod
    host: Host
    ip: str
    folder: Path
    sources: Sources
    volumes: Mapping[str, Path]
    stopping: asyncio.Event
    killed: asyncio.Event

    def changed(self) -> None:
        """The container's record says something new."""
        ...

    async def sync(self) -> None:
        """Write down what the records say now, before it changes again."""
        ...

    def tell(self, reason: str, message: str, *, warning: bool = False) -> None:
        """An event."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than the pod lives."""
        ...


class ContainerRunner:
    """Runs one container; ``record`` is what there is to say about it."""

    def __init__(self, container: Container, setting: Setting, *, reason: str) -> None:
        self.record = ContainerRecord(container, {"waiting": {"reason": reason}})
        self._setting = setting
        self._process: Process | None = None
        self._beside: Beside | None = None
        self._console: Console | None = None
        self._logs: list[ContainerLog] = []
        self._attempts = 0

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def running(self) -> bool:
        return self._process is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its processes, if there are any."""
        if self._process is not None:
            self._process.signal(number)

    def log(self, *, previous: bool) -> ContainerLog:
        """The log of the present, or of the previous, start. Raises :class:`ApiError` as the kubelet words it."""
        where = f'container "{self.name}" in pod "{self._setting.pod.name}"'
        if previous:
            if len(self._logs) < 2:
                raise ApiError.of(400, "BadRequest", f"previous terminated {where} not found")
            return self._logs[-2]
        if not self._logs:
            reason = self.record.state.get("waiting", {}).get("reason", "unknown")
            raise ApiError.of(400, "BadRequest", f"{where} is waiting to start: {reason}")
        return self._logs[-1]

    def beside(self) -> Beside:
        """Where to execute commands beside it. Raises :class:`ApiError` as the kubelet words it."""
        if self._beside is None:
            raise ApiError.of(500, "InternalError", f'container not found ("{self.name}")')
        return self._beside

    def console(self) -> Console:
        """What to attach to. Raises :class:`ApiError` as the kubelet words it."""
        if self._console is None or not self._console.attachable:
            pod = self._setting.pod
            message = f"container {self.name} not found in pod {pod.name}_{pod.namespace}"
            raise ApiError.of(500, "InternalError", message)
        return self._console

    def close(self) -> None:
        """Nothing more will be printed: readers of the logs end."""
        for log in self._logs:
            log.close()

    async def keep(self, policy: str) -> None:
        """Start it, and start it again as the restart policy says, until it has ended for good or the pod has to."""
        setting, timings = self._setting, self._setting.host.timings
        crash = CrashBackoff(timings.crash_base, timings.crash_cap, timings.crash_reset)
        clock = asyncio.get_running_loop().time
        while (command := await self._command()) is not None:
            began = clock()
            status = await self._attempt(command)
            setting.changed()
            if setting.stopping.is_set() or not should_restart(policy, status):
                return
            delay = crash.after(clock() - began)
            if delay:
                setting.tell("BackOff", f"Back-off restarting failed container {self.name}", warning=True)
                await setting.sync()  # the end itself is to be seen, before the wait that follows from it
                pod = setting.pod
                self.record.wait(
                    "CrashLoopBackOff",
                    f"back-off {delay:g}s restarting failed container={self.name} "
                    f"pod={pod.name}_{pod.namespace}({pod.uid})",
                )
                setting.changed()
                await setting.pause(delay)
            if setting.stopping.is_set():
                return

    # -- before the start ----------------------------------------------------------------------------------------

    async def _command(self) -> Command | None:
        """What to execute; waits as long as there is nothing that could be. ``None``: the pod has to end."""
        setting, timings, record = self._setting, self._setting.host.timings, self.record
        delay = 0.0
        while not setting.stopping.is_set():
            try:
                return await self._resolve(record.container)
            except ImageError as error:
                record.wait(error.reason, error.message)
                setting.tell("Failed", error.message, warning=True)
                if error.reason == "ErrImagePull":
                    await setting.sync()
                    record.wait("ImagePullBackOff", f'Back-off pulling image "{record.container.image}": {error}')
                delay = min(max(delay * 2, timings.image_base), 300.0)
            except (ConfigError, KubeError) as error:
                record.wait("CreateContainerConfigError", str(error))
                setting.tell("Failed", f"Error: {error}", warning=True)
                delay = min(max(delay * 2, timings.config_base), 60.0)
            setting.changed()
            await setting.pause(delay)
        return None

    async def _resolve(self, container: Container) -> Command:
        setting = self._setting
        base = dict(setting.host.env)
        # `python3` is the interpreter that we run on, with everything that is installed beside us.
        base["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), base.get("PATH", os.defpath)))
        launch = setting.host.images.resolve(container, base["PATH"])
        mounts = Mounts({**launch.paths, **mounts_of(container, setting.volumes).folders})
        declared = await container_env(
            setting.pod, container, setting.sources, pod_ip=setting.ip, host_ip=setting.host.ip
        )
        scratch = setting.folder / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        env = {
            **base,
            # What a program leaves in its /tmp goes with its pod, as it would with a container.
            "TMPDIR": str(scratch),
            "HOSTNAME": setting.pod.spec.hostname or setting.pod.name,
            "KAITO_HOST": setting.ip,
            **{name: mounts.rewrite(value) for name, value in launch.env.items()},
            **{name: mounts.rewrite(value) for name, value in declared.items()},
            # No device plug-in has handed out a device: a GPU of this machine is not the pod's.
            "NVIDIA_VISIBLE_DEVICES": "",
        }
        argv = tuple(mounts.rewrite(expand(each, {**env, **declared})) for each in launch.argv)
        cwd = Path(mounts.rewrite(container.working_dir)) if container.working_dir else None
        if cwd is None or not cwd.is_dir():
            # A folder of the image, which is not here: a fresh one of the pod's own stands in.
            cwd = setting.folder / "work" / container.name
            cwd.mkdir(parents=True, exist_ok=True)
        return Command(argv, env, cwd, mounts)

    # -- from start to end ---------------------------------------------------------------------------------------

    async def _attempt(self, command: Command) -> int:
        """One start of the container; returns its exit status."""
        clock, record = self._setting.host.clock, self.record
        began, log, attempt = clock.now(), self._new_log(), self._attempts
        self._attempts += 1
        container = record.container
        try:
            async with Stdio.open(stdin=container.stdin, terminal=container.tty) as stdio, asyncio.TaskGroup() as group:
                self._console = Console(container, log, stdio)
                group.create_task(self._console.run())
                process = await self._start(command, stdio, tty=container.tty)
                record.run(process.pid, clock.now(), restarts=attempt)
                await self._attend(process, command)
                status = (await process.wait()).status
        except* StartError as errors:
            self._console = None
            record.restarts = attempt
            message = f'failed to create task: exec: "{command.argv[0]}": {errors.exceptions[0]}'
            record.end(_START_ERROR, began, clock.now(), reason="StartError", message=message)
            self._setting.tell("Failed", message, warning=True)
            status = _START_ERROR
        else:
            log.close()
            record.end(status, began, clock.now(), message=_last_words(container, status, log))
        finally:
            log.close()
        return status

    async def _start(self, command: Command, stdio: Stdio, *, tty: bool) -> Process:
        stdin, stdout, stderr = stdio.theirs
        env = {"TERM": "xterm", **command.env} if tty else command.env
        try:
            return await self._setting.host.supervisor.start(
                command.argv, env=env, cwd=command.cwd, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty
            )
        finally:
            stdio.started()

    def _new_log(self) -> ContainerLog:
        path = self._setting.folder / "logs" / self.name / f"{self._attempts}.log"
        self._logs.append(ContainerLog(path, self._setting.host.clock.now))
        while len(self._logs) > 2:  # the present one, and the one for `kubectl logs --previous`
            self._logs.pop(0).remove()
        return self._logs[-1]

    async def _attend(self, process: Process, command: Command) -> None:
        """See a process through: until it has ended."""
        self._process = process
        beside = self._beside = Beside(self._setting.host.supervisor, command)
        self._setting.changed()
        self._setting.tell("Started", f"Started container {self.name}")
        if self._setting.stopping.is_set():
            process.signal(signal.SIGKILL if self._setting.killed.is_set() else signal.SIGTERM)
        try:
            async with asyncio.TaskGroup() as group:
                probing = group.create_task(self._probe(process, beside))
                await process.wait()
                probing.cancel()
        finally:
            process.signal(signal.SIGKILL)  # only when this was cut short: to one that has ended it is nothing
            self._process = self._beside = None
            await beside.end()

    async def _probe(self, process: Process, beside: Beside) -> None:
        setting, record, container = self._setting, self.record, self.record.container
        ports = {port.name: port.container_port for port in container.ports if port.name}
        target = Target(setting.ip, ports, setting.host.session, beside.probe)
        if container.startup_probe is not None:
            startup = _threshold(container.startup_probe, False)
            await watch(container.startup_probe, target, startup, lambda it: not (it.state or it.failed))
            if not startup.state:
                await self._kill(process, "startup")
                return
        record.started = True
        record.ready = container.readiness_probe is None
        setting.changed()

        def ready(threshold: Threshold) -> bool:
            if record.ready != threshold.state:
                record.ready = threshold.state
                setting.changed()
                if not record.ready:
                    setting.tell("Unhealthy", "Readiness probe failed", warning=True)
            return True

        async with asyncio.TaskGroup() as group:
            if container.readiness_probe is not None:
                readiness = container.readiness_probe
                group.create_task(watch(readiness, target, _threshold(readiness, False), ready))
            if container.liveness_probe is not None:
                liveness = container.liveness_probe
                await watch(liveness, target, _threshold(liveness, True), lambda it: not it.failed)
                await self._kill(process, "liveness")

    async def _kill(self, process: Process, probe: str) -> None:
        """What a failed probe leads to; the restart policy decides on what follows."""
        setting = self._setting
        setting.tell("Unhealthy", f"{probe.capitalize()} probe failed", warning=True)
        setting.tell("Killing", f"Container {self.name} failed {probe} probe, will be restarted")
        process.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(setting.pod.spec.termination_grace_period_seconds):
                await process.wait()
        process.signal(signal.SIGKILL)


def _last_words(container: Container, status: int, log: ContainerLog) -> str:
    """What its status says of why it ended: a kubelet takes at most 80 lines or 2048 bytes of the log.

    The other source, a file that the container writes at its ``terminationMessagePath``, cannot be had here: that path
    is the machine's own.
    """
    if status == 0 or container.termination_message_policy != "FallbackToLogsOnError":
        return ""
    return log.tail(lines=80, max_bytes=2048)


def _threshold(probe: Probe, state: bool) -> Threshold:
    return Threshold(probe.success_threshold, probe.failure_threshold, state)
