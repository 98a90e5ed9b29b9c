"""Job: pods that run until enough of them have succeeded, or too many have failed.

Finished pods stay, and are what the counts are made of; their names are (Job uid, slot), slots counting up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kaito_api.meta import Condition, is_true, owned_by
from kaito_ctrl.devcluster.kinds import Job, JobStatus, Pod, safe_hash
from kaito_ctrl.devcluster.pods import is_active, is_ready, restarts
from kaito_ctrl.devcluster.replicaset import delete_pods
from kaito_ctrl.devcluster.writes import patch_status, settled
from kaito_ctrl.runtime import Context, Controller, Result, owns
from kaito_ctrl.runtime.errors import AlreadyExists

__all__ = ["JobController", "JobPlan", "plan_job"]


@dataclass(frozen=True, slots=True)
class JobPlan:
    create: tuple[Pod, ...]
    delete: tuple[Pod, ...]
    status: JobStatus
    after: float | None = None


def plan_job(job: Job, owned: Collection[Pod], now: datetime, *, backoff: float = 10.0) -> JobPlan:
    """*owned* are its pods; after the n-th failure the next pod waits ``backoff * 2 ** (n - 1)`` seconds, at most ten
    minutes. Pure."""
    now = now.replace(microsecond=0)
    spec, status = job.spec, job.status
    if is_true(status.conditions, "Complete") or is_true(status.conditions, "Failed"):
        return JobPlan((), tuple(pod for pod in owned if is_active(pod)), status)
    active = [pod for pod in owned if is_active(pod)]
    failed = [
        pod for pod in owned if pod.status.phase == "Failed" or (pod.deleting and pod.status.phase != "Succeeded")
    ]
    succeeded = sum(pod.status.phase == "Succeeded" for pod in owned)
    wanted = spec.completions if spec.completions is not None else 1
    started = status.start_time or (None if spec.suspend else now)
    conditions: tuple[Condition, ...] = ()
    create: tuple[Pod, ...] = ()
    delete: list[Pod] = []
    after: float | None = None

    deadline = (
        started + timedelta(seconds=spec.active_deadline_seconds)
        if started is not None and spec.active_deadline_seconds is not None
        else None
    )
    failures = len(failed) + sum(restarts(pod) for pod in active)
    completed = False
    if succeeded >= wanted:
        completed = True
        reached = "Reached expected number of succeeded pods"
        conditions = (
            _condition(job, "SuccessCriteriaMet", "CompletionsReached", reached, now),
            _condition(job, "Complete", "CompletionsReached", reached, now),
        )
        delete = active
    elif failures > spec.backoff_limit:
        message = "Job has reached the specified backoff limit"
        conditions = _failed(job, "BackoffLimitExceeded", message, now)
        delete = active
    elif deadline is not None and now >= deadline:
        conditions = _failed(job, "DeadlineExceeded", "Job was active longer than specified deadline", now)
        delete = active
    elif spec.suspend:
        conditions = (_condition(job, "Suspended", "JobSuspended", "Job suspended", now),)
        delete = active
    else:
        if any(each.type == "Suspended" for each in status.conditions):
            resumed = Condition(
                type="Suspended", status="False", reason="JobResumed", message="Job resumed", last_transition_time=now
            )
            conditions = (settled(status.conditions, resumed),)
        room = min(spec.parallelism, wanted - succeeded) - len(active)
        wait = _wait(failed, now, backoff) if room > 0 else 0.0
        if wait > 0:
            after = wait
        elif room > 0:
            create = _next(job, owned, room)
        elif room < 0:
            delete = sorted(active, key=lambda pod: (is_ready(pod), pod.name))[:-room]
        if deadline is not None:
            left = (deadline - now).total_seconds()
            after = min(after, left) if after is not None else left
    if delete and (succeeded >= wanted or conditions):
        active = []
    return JobPlan(
        create,
        tuple(delete),
        JobStatus(
            active=len(active),
            ready=sum(is_ready(pod) for pod in active),
            succeeded=succeeded,
            failed=len(failed) + (len(delete) if any(c.type == "Failed" for c in conditions) else 0),
            start_time=started,
            completion_time=now if completed else None,
            conditions=conditions,
        ),
        after,
    )


def _condition(job: Job, kind: str, reason: str, message: str, now: datetime) -> Condition:
    made = Condition(type=kind, status="True", reason=reason, message=message, last_transition_time=now)
    return settled(job.status.conditions, made)


def _failed(job: Job, reason: str, message: str, now: datetime) -> tuple[Condition, ...]:
    return (
        _condition(job, "FailureTarget", reason, message, now),
        _condition(job, "Failed", reason, message, now),
    )


def _ended(pod: Pod) -> datetime | None:
    ends = [
        datetime.fromisoformat(text)
        for status in pod.status.container_statuses
        if (text := (status.state.terminated or {}).get("finishedAt"))
    ]
    return max(ends, default=pod.metadata.deletion_timestamp or pod.metadata.creation_timestamp)


def _wait(failed: Sequence[Pod], now: datetime, backoff: float) -> float:
    last = max((moment for pod in failed if (moment := _ended(pod)) is not None), default=None)
    if last is None:
        return 0.0
    delay = min(backoff * 2 ** (len(failed) - 1), 600.0)
    return max((last + timedelta(seconds=delay) - now).total_seconds(), 0.0)


def _next(job: Job, owned: Collection[Pod], count: int) -> tuple[Pod, ...]:
    labels = {
        "batch.kubernetes.io/controller-uid": job.uid,
        "batch.kubernetes.io/job-name": job.name,
        "controller-uid": job.uid,
        "job-name": job.name,
    }
    taken = {pod.name for pod in owned}
    made: list[Pod] = []
    slot = 0
    while len(made) < count:
        name = f"{job.name[:57]}-{safe_hash([job.uid, slot], 5)}"
        if name not in taken:
            made.append(Pod.stamped(job.spec.template, name=name, owner=job, labels=labels))
        slot += 1
    return tuple(made)


class JobController(Controller[Job]):
    """The shell around :func:`plan_job`."""

    name = "job"
    kind = Job
    sources = (owns(Pod),)

    def __init__(self, *, backoff: float = 10.0) -> None:
        self._backoff = backoff

    async def reconcile(self, obj: Job, ctx: Context) -> Result:
        pods = [pod for pod in ctx.cache.list(Pod, obj.namespace, owner=obj) if owned_by(pod, obj)]
        plan = plan_job(obj, pods, ctx.now(), backoff=self._backoff)
        for pod in plan.create:
            try:
                await ctx.client.create(pod)
            except AlreadyExists:
                return Result.soon()
        # A verdict is written before its consequence: pods that are gone could not be counted a second time.
        await patch_status(ctx.client, obj, plan.status)
        await delete_pods(ctx.client, plan.delete)
        return Result(after=plan.after)
