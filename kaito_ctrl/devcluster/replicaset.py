"""ReplicaSet: as many pods as it says, matching its selector.

Pods are named after (ReplicaSet uid, slot): a create that is repeated, by whatever accident, hits the same name and
changes nothing. A slot is free when no pod of its name is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from kaito_api.apps import ReplicaSetStatus
from kaito_api.meta import OwnerReference, owned_by
from kaito_ctrl.devcluster.kinds import Pod, ReplicaSet, safe_hash
from kaito_ctrl.devcluster.pods import available_at, is_active, is_available, is_ready, restarts
from kaito_ctrl.devcluster.writes import patch_status
from kaito_ctrl.runtime import Client, Context, Controller, ObjectKey, Reader, Result, key_of, owns, watches
from kaito_ctrl.runtime.errors import AlreadyExists, NotFound

__all__ = ["ReplicaSetController", "ReplicaSetPlan", "delete_pods", "plan_replica_set", "pod_name"]


@dataclass(frozen=True, slots=True)
class ReplicaSetPlan:
    """What to do for one ReplicaSet, in this order."""

    adopt: tuple[Pod, ...]
    release: tuple[Pod, ...]
    create: tuple[Pod, ...]
    delete: tuple[Pod, ...]
    status: ReplicaSetStatus
    after: float | None
    """Seconds until a ready pod has been ready for long enough."""


def pod_name(replica_set: ReplicaSet, slot: int) -> str:
    """``<name>-<5 letters>``; names that would be too long lose the end of the ReplicaSet's own."""
    return f"{replica_set.name[:57]}-{safe_hash([replica_set.uid, slot], 5)}"


def plan_replica_set(replica_set: ReplicaSet, pods: Collection[Pod], now: datetime) -> ReplicaSetPlan:
    """*pods* are all of the namespace that it owns or could adopt, and any others: their names are taken. Pure."""
    spec = replica_set.spec
    adopt, release, mine = [], [], []
    for pod in pods:
        selected = spec.selector.matches(pod.metadata.labels)
        if owned_by(pod, replica_set):
            if selected or pod.deleting:
                mine.append(pod)
            else:
                release.append(pod)
        elif selected and is_active(pod) and not any(ref.controller for ref in pod.metadata.owner_references):
            adopt.append(pod)
            mine.append(pod)
    active = [pod for pod in mine if is_active(pod)]
    taken = {pod.name for pod in pods}
    missing = max(spec.replicas - len(active), 0)
    free = (slot for slot in itertools.count() if pod_name(replica_set, slot) not in taken)
    create = tuple(
        Pod.stamped(spec.template, name=pod_name(replica_set, slot), owner=replica_set)
        for slot in itertools.islice(free, missing)
    )
    surplus = len(active) - spec.replicas
    delete = tuple(sorted(active, key=_least_worth)[:surplus]) if surplus > 0 else ()
    left = [moment for pod in active if (moment := available_at(pod, spec.min_ready_seconds)) and moment > now]
    return ReplicaSetPlan(
        adopt=tuple(adopt),
        release=tuple(release),
        create=create,
        delete=delete,
        status=_status(replica_set, active, now),
        after=(min(left) - now).total_seconds() if left and spec.min_ready_seconds else None,
    )


def _least_worth(pod: Pod) -> tuple[bool, bool, bool, int, float, str]:
    """Who goes first on a scale-down: unscheduled, not running, not ready, often restarted, newest."""
    created = pod.metadata.creation_timestamp
    return (
        bool(pod.spec.node_name),
        pod.status.phase == "Running",
        is_ready(pod),
        -restarts(pod),
        -created.timestamp() if created is not None else 0.0,
        pod.name,
    )


def _status(replica_set: ReplicaSet, active: Sequence[Pod], now: datetime) -> ReplicaSetStatus:
    wanted = ((replica_set.spec.template.get("metadata") or {}).get("labels") or {}).items()
    return ReplicaSetStatus(
        observed_generation=replica_set.metadata.generation,
        replicas=len(active),
        fully_labeled_replicas=sum(wanted <= pod.metadata.labels.items() for pod in active),
        ready_replicas=sum(is_ready(pod) for pod in active),
        available_replicas=sum(is_available(pod, replica_set.spec.min_ready_seconds, now) for pod in active),
    )


def _adopters(pod: Pod, cache: Reader) -> Iterable[ObjectKey]:
    """The ReplicaSets that an unowned pod could belong to."""
    if any(ref.controller for ref in pod.metadata.owner_references):
        return ()
    candidates = cache.list(ReplicaSet, pod.namespace)
    return [key_of(each) for each in candidates if each.spec.selector.matches(pod.metadata.labels)]


async def delete_pods(client: Client, pods: Iterable[Pod]) -> None:
    """Ask for the deletion of exactly these pods; those that are gone already are fine."""

    async def delete(pod: Pod) -> None:
        with contextlib.suppress(NotFound):
            await client.delete(Pod, key_of(pod), uid=pod.uid)

    async with asyncio.TaskGroup() as group:
        for pod in pods:
            group.create_task(delete(pod))


class ReplicaSetController(Controller[ReplicaSet]):
    """The shell around :func:`plan_replica_set`."""

    name = "replicaset"
    kind = ReplicaSet
    sources = (owns(Pod), watches(Pod, _adopters))

    async def reconcile(self, obj: ReplicaSet, ctx: Context) -> Result:
        plan = plan_replica_set(obj, ctx.cache.list(Pod, obj.namespace), ctx.now())
        for pod in plan.adopt:
            await _own(ctx.client, pod, [*pod.metadata.owner_references, obj.owner_reference()])
        for pod in plan.release:
            kept = [ref for ref in pod.metadata.owner_references if ref.uid != obj.uid]
            await _own(ctx.client, pod, kept)
        for pod in plan.create:
            try:
                await ctx.client.create(pod)
            except AlreadyExists:
                return Result.soon()  # its name is taken by what the cache has yet to see
        await delete_pods(ctx.client, plan.delete)
        # A status that counts what was just created or deleted follows from the watch: those writes wake us again.
        await patch_status(ctx.client, obj, plan.status)
        return Result(after=plan.after)


async def _own(client: Client, pod: Pod, references: Iterable[OwnerReference]) -> None:
    metadata = {
        "uid": pod.uid,
        "resourceVersion": pod.metadata.resource_version,
        "ownerReferences": [ref.to_wire() for ref in references],
    }
    await client.patch(Pod, key_of(pod), {"metadata": metadata})
