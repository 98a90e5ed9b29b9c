"""Where a Deployment stands: its counts, and its conditions in kube-controller-manager's words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from kaito_ctrl.devcluster.kinds import Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet
from kaito_ctrl.devcluster.writes import settled

__all__ = ["deployment_status", "is_complete", "resolve_bounds"]


def resolve_bounds(deployment: Deployment) -> tuple[int, int]:
    """``maxSurge`` and ``maxUnavailable`` as pods: percentages round up and down; both zero would never move, so the
    second is then 1."""
    rolling = deployment.spec.strategy.rolling_update
    replicas = deployment.spec.replicas
    surge = _of(rolling.max_surge if rolling is not None else "25%", replicas, math.ceil)
    unavailable = _of(rolling.max_unavailable if rolling is not None else "25%", replicas, math.floor)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, replicas)


def _of(value: int | str, total: int, rounded: Any) -> int:
    if isinstance(value, str) and value.endswith("%"):
        return int(rounded(int(value[:-1]) * total / 100))
    return int(value)


def is_complete(deployment: Deployment, status: DeploymentStatus) -> bool:
    """Whether the rollout is done: every replica is of the newest template, and available."""
    wanted = deployment.spec.replicas
    return status.updated_replicas == wanted and status.replicas == wanted and status.available_replicas == wanted


def deployment_status(
    deployment: Deployment,
    new: ReplicaSet | None,
    sets: Sequence[ReplicaSet],
    create: ReplicaSet | None,
    now: datetime,
) -> tuple[DeploymentStatus, float | None]:
    """The status that follows from what its ReplicaSets report, and the seconds until the progress deadline, if that
    is running. *new* is the ReplicaSet of the present template, *create* the one that is about to be made. Pure."""
    available = sum(each.status.available_replicas for each in sets)
    counted = DeploymentStatus(
        observed_generation=deployment.metadata.generation,
        replicas=sum(each.status.replicas for each in sets),
        updated_replicas=new.status.replicas if new is not None else 0,
        ready_replicas=sum(each.status.ready_replicas for each in sets),
        available_replicas=available,
        unavailable_replicas=max(sum(each.spec.replicas for each in sets) - available, 0),
    )
    _, unavailable = resolve_bounds(deployment) if deployment.spec.strategy.type != "Recreate" else (0, 0)
    enough = available >= deployment.spec.replicas - unavailable
    known = deployment.status.conditions
    condition = DeploymentCondition(
        type="Available",
        status="True" if enough else "False",
        reason="MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        message=f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        last_transition_time=now,
        last_update_time=now,
    )
    conditions = [_unmoved(known, condition)]
    progress, after = _progress(deployment, new, counted, create, now)
    conditions.append(progress)
    return counted.evolve(conditions=tuple(conditions)), after


def _unmoved(known: tuple[DeploymentCondition, ...], wanted: DeploymentCondition) -> DeploymentCondition:
    """*wanted* with the times of the known condition when that says the same."""
    old = next((each for each in known if each.type == wanted.type), None)
    wanted = settled(known, wanted)
    if old is not None and (old.status, old.reason, old.message) == (wanted.status, wanted.reason, wanted.message):
        wanted = wanted.evolve(last_update_time=old.last_update_time)
    return wanted


def _progress(
    deployment: Deployment, new: ReplicaSet | None, counted: DeploymentStatus, create: ReplicaSet | None, now: datetime
) -> tuple[DeploymentCondition, float | None]:
    known = next((each for each in deployment.status.conditions if each.type == "Progressing"), None)
    which = new or create
    subject = f'ReplicaSet "{which.name}"' if which is not None else f'Deployment "{deployment.name}"'

    def condition(status: Any, reason: str, message: str) -> DeploymentCondition:
        made = DeploymentCondition(
            type="Progressing",
            status=status,
            reason=reason,
            message=message,
            last_transition_time=now,
            last_update_time=now,
        )
        return settled(deployment.status.conditions, made)

    if deployment.spec.paused:
        paused = condition("Unknown", "DeploymentPaused", "Deployment is paused")
        return _unmoved(deployment.status.conditions, paused), None
    if new is None and create is not None:
        return condition("True", "NewReplicaSetCreated", f'Created new replica set "{create.name}"'), None
    if new is not None and is_complete(deployment, counted):
        done = condition("True", "NewReplicaSetAvailable", f"{subject} has successfully progressed.")
        return _unmoved(deployment.status.conditions, done), None
    before = deployment.status
    moved = (
        counted.updated_replicas > before.updated_replicas
        or counted.ready_replicas > before.ready_replicas
        or counted.available_replicas > before.available_replicas
        or counted.replicas - counted.updated_replicas < before.replicas - before.updated_replicas
        or before.observed_generation < deployment.metadata.generation
    )
    if moved or known is None or known.last_update_time is None or known.reason == "DeploymentPaused":
        return condition("True", "ReplicaSetUpdated", f"{subject} is progressing."), float(
            deployment.spec.progress_deadline_seconds
        )
    if known.reason == "NewReplicaSetAvailable":
        return known, None  # it was rolled out once: pods that fail later are no rollout that hangs
    deadline = known.last_update_time + timedelta(seconds=deployment.spec.progress_deadline_seconds)
    if known.reason == "ProgressDeadlineExceeded" or now >= deadline:
        late = condition("False", "ProgressDeadlineExceeded", f"{subject} has timed out progressing.")
        return _unmoved(deployment.status.conditions, late), None
    return known, (deadline - now).total_seconds()
