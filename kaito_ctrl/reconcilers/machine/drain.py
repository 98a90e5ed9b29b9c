"""Moving pods off a node that is going: by eviction, so that disruption budgets are heard, group after group, and with
patience for grace periods.

Pods that matter to others go last: first those that are not critical and no daemons, then daemons, then critical ones,
then critical daemons, and nobody of a group before the one ahead of it has gone. A pod that says that it must not be
disrupted is waited for and never evicted. A termination deadline ends all that: a pod that would not be done by then
is deleted, whatever protects it.

A node that is not Ready is drained all the same, for most silences are short. But nobody there reports the end of a
pod, so none is waited for once its grace period is over; and after :data:`GIVEN_UP_AFTER` seconds, when Kubernetes
itself gives up the pods of a silent node, whatever protects them, none is waited for at all. That goes by the node's
own Ready condition, as read live.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_api.core import Node, Pod, Toleration
from kaito_api.karpenter import DISRUPTED_TAINT, DO_NOT_DISRUPT_ANNOTATION, DO_NOT_EVICT_ANNOTATION
from kaito_api.meta import find_condition
from kaito_ctrl.reconcilers.machine import telling
from kaito_ctrl.reconcilers.machine.eviction import Evictions
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.reconcilers.machine.salvage import salvage
from kaito_ctrl.runtime import Context
from kaito_ctrl.runtime.errors import DecodeError

__all__ = ["GIVEN_UP_AFTER", "DrainPlan", "Drained", "Occupant", "drain", "plan_drain", "silence"]

GIVEN_UP_AFTER = 300.0
"""Seconds that a node may be not Ready before its pods are given up: ``tolerationSeconds`` of the tolerations that
Kubernetes gives every pod for ``node.kubernetes.io/not-ready`` and ``/unreachable``."""
_STUCK = 60.0
"""Seconds past its deletion time after which a pod is taken to be stuck, and no longer waited for (Karpenter's)."""
_CRITICAL = ("system-cluster-critical", "system-node-critical")
_MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
_SHARES = 10
"""Evictions under way at once: a webhook that hangs must not use up the time of the other pods."""


class Occupant(Pod):
    """A pod, read no further than a drain needs: whatever else is odd about it, it has to leave like the others."""

    spec: Any = None
    status: Any = None

    @property
    def finished(self) -> bool:
        return _of(self.status, "phase") in ("Succeeded", "Failed")

    @property
    def static(self) -> bool:
        """Whether the kubelet runs it from a file; the API server only has its picture."""
        owners = self.metadata.owner_references
        return _MIRROR_ANNOTATION in self.metadata.annotations or any(each.kind == "Node" for each in owners)

    @property
    def tolerating(self) -> bool:
        """Whether it means to stay to the end."""
        return any(_tolerates(each) for each in _list(_of(self.spec, "tolerations")))

    @property
    def protected(self) -> str:
        """The annotation by which it says that it must not be evicted; empty if it does not."""
        for key in (DO_NOT_DISRUPT_ANNOTATION, DO_NOT_EVICT_ANNOTATION):
            if self.metadata.annotations.get(key) == "true":
                return key
        return ""

    @property
    def turn(self) -> int:
        """When it goes: the lower, the earlier."""
        daemon = any(each.kind == "DaemonSet" for each in self.metadata.owner_references)
        return int(daemon) + 2 * (_of(self.spec, "priorityClassName") in _CRITICAL)

    @property
    def grace(self) -> int:
        """Seconds that it may take to end."""
        seconds = _of(self.spec, "terminationGracePeriodSeconds")
        return max(seconds, 0) if isinstance(seconds, int) else 30

    @property
    def volume_claims(self) -> tuple[str, ...]:
        """The PersistentVolumeClaims that it uses, by name."""
        names = []
        for volume in _list(_of(self.spec, "volumes")):
            claim = _of(_of(volume, "persistentVolumeClaim"), "claimName")
            if claim:
                names.append(str(claim))
            elif _of(volume, "ephemeral"):
                names.append(f"{self.name}-{_of(volume, 'name')}")
        return tuple(names)

    def overdue(self, now: datetime) -> float:
        """Seconds since its grace period was over; negative before, and minus infinity if it is not being deleted."""
        end = self.metadata.deletion_timestamp
        return (now - end).total_seconds() if end is not None else float("-inf")


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """What to do about the pods of one node now."""

    waiting: tuple[Occupant, ...] = ()
    """All that have to be gone before the node may go."""
    evict: tuple[Occupant, ...] = ()
    """Those of the first group that is left."""
    delete: tuple[tuple[Occupant, int], ...] = ()
    """Those that would not be done by the deadline, each with the seconds of grace that are left."""
    protected: tuple[Occupant, ...] = ()
    """Those of the first group that must not be evicted."""
    staying: tuple[Occupant, ...] = ()
    """Those that nobody waits for, and that use their volumes to the end."""


@dataclass(frozen=True, slots=True)
class Drained:
    """How far the drain of a node is."""

    node: Node
    waiting: tuple[Occupant, ...]
    staying: tuple[Occupant, ...]
    given_up: bool = False
    """Whether its pods are not waited for because nobody there would end them."""

    @property
    def moving(self) -> bool:
        """Whether it goes on by itself: a pod that is waited for is ending."""
        return any(each.deleting for each in self.waiting)


def silence(node: Node, now: datetime) -> float | None:
    """Seconds for which *node* has not been Ready; ``None`` if it is."""
    ready = find_condition(node.status.conditions, "Ready")
    if ready is not None and ready.status == "True":
        return None
    since = (ready.last_transition_time if ready is not None else None) or node.metadata.creation_timestamp
    return max((now - since).total_seconds(), 0.0) if since is not None else 0.0


def plan_drain(
    pods: Iterable[Occupant], now: datetime, *, deadline: datetime | None = None, silent: float | None = None
) -> DrainPlan:
    """What to do about *pods*, all of one node. *silent* as :func:`silence` says."""
    patience = _STUCK if silent is None else 0.0
    waiting, staying = [], []
    for pod in pods:
        if pod.static or pod.tolerating or pod.overdue(now) > patience:
            staying.append(pod)
        elif not pod.finished:
            waiting.append(pod)
    if silent is not None and silent >= GIVEN_UP_AFTER:
        return DrainPlan(staying=(*staying, *waiting))
    waiting.sort(key=lambda pod: (pod.turn, pod.namespace or "", pod.name))
    delete = tuple(_late(waiting, now, deadline)) if deadline is not None else ()
    late = {pod.uid for pod, _ in delete}
    first = [pod for pod in waiting if pod.turn == waiting[0].turn and not pod.deleting and pod.uid not in late]
    return DrainPlan(
        tuple(waiting),
        tuple(pod for pod in first if not pod.protected),
        delete,
        tuple(pod for pod in first if pod.protected),
        tuple(staying),
    )


def _late(pods: Iterable[Occupant], now: datetime, deadline: datetime) -> Iterable[tuple[Occupant, int]]:
    left = (deadline - now).total_seconds()
    allowed = max(int(left), 1)
    for pod in pods:
        if pod.deleting:
            # The API server rounds to seconds: only what really gains something is worth another request.
            if -pod.overdue(now) > allowed + 1:
                yield pod, allowed
        elif left < pod.grace:
            yield pod, allowed


async def drain(
    node: Node,
    now: datetime,
    ctx: Context,
    evictions: Evictions,
    deadline: datetime | None,
    metrics: ClaimMetrics | None,
) -> Drained:
    """Ask what has to leave *node* (just read live) to do so, as far as it is its turn; never waits for it. It is *now*
    by the API server's clock.

    What holds a pod is told of the node. Raises the client's errors if the pods cannot be listed.
    """
    # Read live: a pod that the cache has not seen yet must not lose its node.
    pods = await occupants(node, ctx)
    silent = silence(node, now)
    plan = plan_drain(pods, now, deadline=deadline, silent=silent)
    share = asyncio.Semaphore(_SHARES)

    async def evict(pod: Occupant) -> None:
        async with share:
            held = await evictions.evict(pod, ctx)
        if held:
            telling.failed_draining(ctx.events, node, held)
            return
        telling.evicted(ctx.events, pod)
        if metrics is not None:
            metrics.pod_drained()

    async def delete(pod: Occupant, seconds: int) -> None:
        async with share:
            held = await evictions.delete(pod, seconds, ctx)
        if held:
            telling.failed_draining(ctx.events, node, held)
        else:
            note = f"Deleting the pod with {seconds} s of grace: its node ends at its termination deadline"
            ctx.events.normal(pod, "Disrupted", note, action="Delete", related=node)
            if metrics is not None and not pod.deleting:
                metrics.pod_drained()

    async with asyncio.TaskGroup() as group:
        for pod, seconds in plan.delete:
            group.create_task(delete(pod, seconds))
        for pod in plan.evict:
            group.create_task(evict(pod))
    for pod in plan.protected:
        telling.failed_draining(ctx.events, node, f"pod {pod.namespace}/{pod.name} is annotated {pod.protected}")
    given_up = silent is not None and silent >= GIVEN_UP_AFTER
    return Drained(node, plan.waiting, plan.staying, given_up)


async def occupants(node: Node, ctx: Context) -> Sequence[Occupant]:
    """The pods on *node*, live."""
    misfits: list[DecodeError] = []
    pods = list(await ctx.client.list(Occupant, fields=f"spec.nodeName={node.name}", misfits=misfits))
    for misfit in misfits:
        try:
            pods.append(salvage(Occupant, misfit.raw))
        except ValueError as error:
            ctx.log.warning("a pod is not drained", node=node.name, reason=str(error))
    return pods


def _tolerates(raw: Any) -> bool:
    try:
        return Toleration.model_validate(raw).tolerates(DISRUPTED_TAINT)
    except ValueError:
        # An operator of later versions: those compare numbers, and the taint's value is none.
        return False


def _of(where: Any, key: str) -> Any:
    return where.get(key) if isinstance(where, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
