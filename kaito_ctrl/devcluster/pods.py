"""What every workload controller asks about a pod."""

from __future__ import annotations

from datetime import datetime, timedelta

from kaito_api.meta import find_condition
from kaito_ctrl.devcluster.kinds import Pod

__all__ = ["available_at", "is_active", "is_available", "is_finished", "is_ready", "on_node", "restarts"]


def is_finished(pod: Pod) -> bool:
    """Whether all its containers have ended for good."""
    return pod.status.phase in ("Succeeded", "Failed")


def is_active(pod: Pod) -> bool:
    """Whether it counts as a replica: neither finished nor on its way out."""
    return not is_finished(pod) and not pod.deleting


def is_ready(pod: Pod) -> bool:
    """Whether its Ready condition is True."""
    ready = find_condition(pod.status.conditions, "Ready")
    return ready is not None and ready.status == "True"


def available_at(pod: Pod, min_ready_seconds: int) -> datetime | None:
    """When it will have been ready for long enough; ``None`` while it is not ready."""
    ready = find_condition(pod.status.conditions, "Ready")
    if ready is None or ready.status != "True":
        return None
    since = ready.last_transition_time or pod.metadata.creation_timestamp
    return since + timedelta(seconds=min_ready_seconds) if since is not None else None


def is_available(pod: Pod, min_ready_seconds: int, now: datetime) -> bool:
    """Whether it has been ready for at least *min_ready_seconds*."""
    if min_ready_seconds == 0:
        return is_ready(pod)
    moment = available_at(pod, min_ready_seconds)
    return moment is not None and moment <= now


def restarts(pod: Pod) -> int:
    """Container restarts so far, init containers included."""
    statuses = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    return sum(status.restart_count for status in statuses)


def on_node(pod: Pod) -> tuple[str, ...]:
    """For an index of pods by node; those without one are under the empty name."""
    return (pod.spec.node_name,)
