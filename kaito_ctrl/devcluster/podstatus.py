"""A pod's status, computed from what its containers do. Pure: the kubelet only writes down what comes out here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kaito_api.meta import Condition, rfc3339
from kaito_ctrl.devcluster.kinds import Container, Pod
from kaito_ctrl.devcluster.writes import settled

__all__ = ["ContainerRecord", "CrashBackoff", "pod_status", "should_restart"]

State = Mapping[str, Mapping[str, Any]]


@dataclass(slots=True)
class CrashBackoff:
    """How long a container stays down before its next start, in seconds: not at all, then ``base``, doubling up to
    ``cap``; a container that ran for ``reset`` starts over. The figures are the kubelet's."""

    base: float = 10.0
    cap: float = 300.0
    reset: float = 600.0
    _next: float = 0.0

    def after(self, ran: float) -> float:
        """The delay after a run of *ran* seconds."""
        if ran >= self.reset:
            self._next = 0.0
        delay, self._next = self._next, min(max(self._next * 2, self.base), self.cap)
        return delay


def should_restart(policy: str, status: int) -> bool:
    """Whether a container that ended with that exit status is started again."""
    return policy == "Always" or (policy == "OnFailure" and status != 0)


@dataclass(slots=True)
class ContainerRecord:
    """What the kubelet knows of one container."""

    container: Container
    state: State
    last_state: State = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    pid: int | None = None

    @property
    def name(self) -> str:
        return self.container.name

    @property
    def exit_status(self) -> int | None:
        """Of a container that has ended and is not about to start again."""
        terminated = self.state.get("terminated")
        return terminated["exitCode"] if terminated is not None else None

    def wait(self, reason: str, message: str = "") -> None:
        """It is not running, and why."""
        terminated = self.state.get("terminated")
        if terminated is not None:
            self.last_state = {"terminated": terminated}
        self.state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        self.ready = self.started = False

    def run(self, pid: int, now: datetime, *, restarts: int = 0) -> None:
        """It runs, having been restarted that often."""
        terminated = self.state.get("terminated")
        if terminated is not None:
            self.last_state = {"terminated": terminated}
        self.pid = pid
        self.restarts = restarts
        self.state = {"running": {"startedAt": rfc3339(now)}}

    def end(self, status: int, began: datetime, now: datetime, *, reason: str = "", message: str = "") -> None:
        """It has ended."""
        ended: dict[str, Any] = {
            "exitCode": status,
            "reason": reason or ("Completed" if status == 0 else "Error"),
            "startedAt": rfc3339(began),
            "finishedAt": rfc3339(now),
        }
        if self.pid is not None:
            ended["containerID"] = f"process://{self.pid}"
        if message:
            ended["message"] = message
        self.state = {"terminated": ended}
        self.ready = self.started = False

    def to_wire(self, *, init: bool) -> dict[str, Any]:
        """``corev1.ContainerStatus``."""
        wire: dict[str, Any] = {
            "name": self.name,
            "image": self.container.image,
            "imageID": "",
            "ready": self.ready or (init and self.exit_status == 0),
            "started": self.started,
            "restartCount": self.restarts,
            "state": dict(self.state),
            "lastState": dict(self.last_state),
        }
        if self.pid is not None:
            wire["containerID"] = f"process://{self.pid}"
        return wire


def _phase(policy: str, inits: Sequence[ContainerRecord], mains: Sequence[ContainerRecord]) -> str:
    for record in inits:
        if record.exit_status is None or record.exit_status != 0:
            return "Failed" if record.exit_status is not None and policy == "Never" else "Pending"
    if any("running" in record.state for record in mains):
        return "Running"
    if any("waiting" in record.state and not record.last_state for record in mains):
        return "Pending"
    statuses = [record.exit_status for record in mains]
    if policy == "Always" or any(status is None for status in statuses):
        return "Running"
    if all(status == 0 for status in statuses):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def pod_status(
    pod: Pod,
    inits: Sequence[ContainerRecord],
    mains: Sequence[ContainerRecord],
    *,
    pod_ip: str,
    host_ip: str,
    began: datetime,
    now: datetime,
) -> dict[str, Any]:
    """``corev1.PodStatus`` on the wire; *pod* is its last known version, whose transition times are carried on."""
    phase = _phase(pod.spec.restart_policy, inits, mains)
    over = phase in ("Succeeded", "Failed")
    uninitialized = [record.name for record in inits if record.exit_status != 0]
    unready = [record.name for record in mains if not record.ready]
    moment = now.replace(microsecond=0)

    def condition(kind: str, problem: tuple[str, str] | None) -> Condition:
        made = Condition(type=kind, status="False" if problem else "True", last_transition_time=moment)
        if problem is not None:
            made = made.evolve(reason=problem[0], **({"message": problem[1]} if problem[1] else {}))
        return settled(pod.status.conditions, made)

    not_ready: tuple[str, str] | None = None
    if over:
        not_ready = ("PodCompleted" if phase == "Succeeded" else "PodFailed", "")
    elif unready:
        not_ready = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    waiting = f"containers with incomplete status: [{' '.join(uninitialized)}]"
    ours = (
        condition("PodScheduled", None),
        condition("Initialized", ("ContainersNotInitialized", waiting) if uninitialized else None),
        condition("ContainersReady", not_ready),
        condition("Ready", not_ready),
    )
    types = {each.type for each in ours}
    foreign = tuple(each for each in pod.status.conditions if each.type not in types)
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": [each.to_wire() for each in (*foreign, *ours)],
        "hostIP": host_ip,
        "hostIPs": [{"ip": host_ip}],
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
        "startTime": rfc3339(began),
        "containerStatuses": [record.to_wire(init=False) for record in mains],
    }
    if inits:
        status["initContainerStatuses"] = [record.to_wire(init=True) for record in inits]
    return status
