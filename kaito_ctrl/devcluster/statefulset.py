"""StatefulSet: pods with a place in a row. ``<name>-0`` comes first and goes last.

The revision of a template is a hash of it (label ``controller-revision-hash``); there are no ControllerRevision
objects, so a pod that is re-created during a partitioned update gets the new template.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from kaito_api.meta import owned_by
from kaito_ctrl.devcluster.kinds import Pod, StatefulSet, StatefulSetState, safe_hash
from kaito_ctrl.devcluster.pods import available_at, is_available, is_finished, is_ready
from kaito_ctrl.devcluster.replicaset import delete_pods
from kaito_ctrl.devcluster.writes import patch_status
from kaito_ctrl.runtime import Context, Controller, Result, owns
from kaito_ctrl.runtime.errors import AlreadyExists

__all__ = ["StatefulSetController", "StatefulSetPlan", "plan_stateful_set"]

REVISION = "controller-revision-hash"


@dataclass(frozen=True, slots=True)
class StatefulSetPlan:
    create: tuple[Pod, ...]
    delete: tuple[Pod, ...]
    status: StatefulSetState
    after: float | None = None


def plan_stateful_set(stateful_set: StatefulSet, owned: Collection[Pod], now: datetime) -> StatefulSetPlan:
    """*owned* are its pods, those on their way out included. Pure."""
    spec = stateful_set.spec
    revision = f"{stateful_set.name}-{safe_hash(spec.template)}"
    by_ordinal = {number: pod for pod in owned if (number := _ordinal(stateful_set, pod)) is not None}
    ordered = spec.pod_management_policy != "Parallel"

    def healthy(pod: Pod | None) -> bool:
        return (
            pod is not None
            and not pod.deleting
            and not is_finished(pod)
            and is_available(pod, spec.min_ready_seconds, now)
        )

    create: list[Pod] = []
    delete: list[Pod] = []
    blocked = False
    for number in range(spec.replicas):
        pod = by_ordinal.get(number)
        if pod is None:
            create.append(_make(stateful_set, number, revision))
        elif is_finished(pod) and not pod.deleting:
            delete.append(pod)  # its name has to be free before its successor can have it
        if ordered and not healthy(pod):
            blocked = True
            break
    condemned = [by_ordinal[number] for number in sorted(by_ordinal, reverse=True) if number >= spec.replicas]
    if condemned and not (ordered and blocked):
        waiting = any(pod.deleting for pod in condemned)
        if not ordered:
            delete += [pod for pod in condemned if not pod.deleting]
        elif not waiting:
            delete.append(condemned[0])
    if not (create or delete or blocked or condemned):
        stale = _to_update(stateful_set, by_ordinal, revision, healthy)
        delete += [stale] if stale is not None else []
    waits = [
        moment for pod in by_ordinal.values() if (moment := available_at(pod, spec.min_ready_seconds)) and moment > now
    ]
    return StatefulSetPlan(
        tuple(create),
        tuple(delete),
        _status(stateful_set, by_ordinal, revision, now),
        (min(waits) - now).total_seconds() if waits and spec.min_ready_seconds else None,
    )


def _ordinal(stateful_set: StatefulSet, pod: Pod) -> int | None:
    stem, _, tail = pod.name.rpartition("-")
    return int(tail) if stem == stateful_set.name and tail.isdigit() else None


def _make(stateful_set: StatefulSet, number: int, revision: str) -> Pod:
    name = f"{stateful_set.name}-{number}"
    return Pod.stamped(
        stateful_set.spec.template,
        name=name,
        owner=stateful_set,
        labels={
            REVISION: revision,
            "statefulset.kubernetes.io/pod-name": name,
            "apps.kubernetes.io/pod-index": str(number),
        },
        spec={"hostname": name, "subdomain": stateful_set.spec.service_name},
    )


def _to_update(
    stateful_set: StatefulSet, by_ordinal: dict[int, Pod], revision: str, healthy: Callable[[Pod], bool]
) -> Pod | None:
    """The one pod that a rolling update replaces next: the highest one with an old template, once all above it are
    healthy again."""
    strategy = stateful_set.spec.update_strategy
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return None
    partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    for number in sorted(by_ordinal, reverse=True):
        pod = by_ordinal[number]
        if number < partition:
            return None
        if pod.metadata.labels.get(REVISION) != revision:
            return None if pod.deleting else pod
        if not healthy(pod):
            return None
    return None


def _status(stateful_set: StatefulSet, by_ordinal: dict[int, Pod], revision: str, now: datetime) -> StatefulSetState:
    pods = [pod for number, pod in by_ordinal.items() if not is_finished(pod)]
    live = [pod for pod in pods if not pod.deleting]
    updated = sum(pod.metadata.labels.get(REVISION) == revision for pod in live)
    ready = sum(is_ready(pod) for pod in live)
    known = stateful_set.status.current_revision
    complete = updated == stateful_set.spec.replicas == ready and len(pods) == stateful_set.spec.replicas
    current = revision if complete or not known else known
    return StatefulSetState(
        observed_generation=stateful_set.metadata.generation,
        replicas=len(pods),
        ready_replicas=ready,
        available_replicas=sum(is_available(pod, stateful_set.spec.min_ready_seconds, now) for pod in live),
        current_replicas=sum(pod.metadata.labels.get(REVISION) == current for pod in live),
        updated_replicas=updated,
        current_revision=current,
        update_revision=revision,
    )


class StatefulSetController(Controller[StatefulSet]):
    """The shell around :func:`plan_stateful_set`."""

    name = "statefulset"
    kind = StatefulSet
    sources = (owns(Pod),)

    async def reconcile(self, obj: StatefulSet, ctx: Context) -> Result:
        pods = [pod for pod in ctx.cache.list(Pod, obj.namespace, owner=obj) if owned_by(pod, obj)]
        plan = plan_stateful_set(obj, pods, ctx.now())
        for pod in plan.create:
            try:
                await ctx.client.create(pod)
            except AlreadyExists:
                return Result.soon()
        await delete_pods(ctx.client, plan.delete)
        await patch_status(ctx.client, obj, plan.status)
        return Result(after=plan.after)
