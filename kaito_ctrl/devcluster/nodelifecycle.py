"""Node lifecycle: what follows when a kubelet falls silent, and when a node is gone.

A kubelet renews a Lease in ``kube-node-lease``. Is it not renewed for 40 s, the node's Ready condition becomes Unknown
and the node gets the ``unreachable`` taints; a node that reports NotReady gets the ``not-ready`` ones. In both cases
its pods no longer count as ready. Pods that do not tolerate a NoExecute taint are evicted at once, those of the two
taints above after 300 s unless they say otherwise. Pods of a node that does not exist any more are removed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from kaito_api.coordination import Lease
from kaito_api.core import Taint
from kaito_ctrl.devcluster.kinds import Node, NodeCondition, Pod
from kaito_ctrl.devcluster.pods import is_finished, is_ready, on_node
from kaito_ctrl.devcluster.replicaset import delete_pods
from kaito_ctrl.devcluster.writes import patch_status
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, key_of, watches
from kaito_ctrl.runtime.errors import Conflict, NotFound
from kaito_ctrl.runtime.store import Change

__all__ = ["LEASE_NAMESPACE", "NodeLifecycle", "NodePlan", "plan_node"]

LEASE_NAMESPACE = "kube-node-lease"
UNREACHABLE = "node.kubernetes.io/unreachable"
NOT_READY = "node.kubernetes.io/not-ready"
GRACE = timedelta(seconds=40)
TOLERATION_SECONDS = 300


@dataclass(frozen=True, slots=True)
class NodePlan:
    silent: NodeCondition | None
    """The Ready condition to write, because nothing is heard from the kubelet."""
    taints: tuple[Taint, ...] | None
    """The taints to write, if they have to change."""
    unready: tuple[Pod, ...]
    """Pods that count as ready, though nobody can vouch for that any more."""
    evict: tuple[Pod, ...]
    after: float | None


def plan_node(node: Node, lease: Lease | None, pods: Collection[Pod], now: datetime) -> NodePlan:
    """*pods* are those on the node. Pure."""
    ready = next((each for each in node.status.conditions if each.type == "Ready"), None)
    heard = _heard(node, lease, ready)
    overdue = heard is not None and now - heard >= GRACE
    after = (heard + GRACE - now).total_seconds() if heard is not None and not overdue else None
    silent = None
    if overdue and (ready is None or ready.status != "Unknown"):
        silent = NodeCondition(
            type="Ready",
            status="Unknown",
            reason="NodeStatusUnknown" if ready is not None else "NodeStatusNeverUpdated",
            message=f"Kubelet {'stopped posting' if ready is not None else 'never posted'} node status.",
            last_transition_time=now.replace(microsecond=0),
            **({"last_heartbeat_time": ready.last_heartbeat_time} if ready is not None else {}),
        )
    status = "Unknown" if overdue else ready.status if ready is not None else None
    taints = _taints(node, status, now)
    evict = []
    for pod in pods:
        if pod.deleting or is_finished(pod):
            continue
        left = _left(pod, taints, now)
        if left is not None and left <= 0:
            evict.append(pod)
        elif left is not None:
            after = min(after, left) if after is not None else left
    unready = tuple(pod for pod in pods if is_ready(pod) and not is_finished(pod)) if status != "True" else ()
    return NodePlan(silent, taints if taints != node.spec.taints else None, unready, tuple(evict), after)


def _heard(node: Node, lease: Lease | None, ready: NodeCondition | None) -> datetime | None:
    """When the kubelet was last heard of; for one that never was, the node's creation."""
    moments = [node.metadata.creation_timestamp]
    if lease is not None and lease.spec.renew_time:
        moments.append(lease.spec.renew_time)
    if ready is not None:
        moments.append(ready.last_heartbeat_time)
    return max((moment for moment in moments if moment is not None), default=None)


def _taints(node: Node, status: str | None, now: datetime) -> tuple[Taint, ...]:
    key = {"Unknown": UNREACHABLE, "False": NOT_READY}.get(status or "")
    kept = tuple(taint for taint in node.spec.taints if taint.key not in (UNREACHABLE, NOT_READY) or taint.key == key)
    if key is None:
        return kept
    have = {taint.effect for taint in kept if taint.key == key}
    moment = now.replace(microsecond=0)
    added = (
        Taint(key=key, effect="NoSchedule", time_added=moment),
        Taint(key=key, effect="NoExecute", time_added=moment),
    )
    return kept + tuple(taint for taint in added if taint.effect not in have)


def _left(pod: Pod, taints: Collection[Taint], now: datetime) -> float | None:
    """Seconds until *pod* has to leave; ``None``: it may stay."""
    left: float | None = None
    for taint in taints:
        if taint.effect != "NoExecute":
            continue
        seconds = _tolerated_for(pod, taint)
        if seconds is None:
            continue
        since = taint.time_added or now
        rest = (since + timedelta(seconds=seconds) - now).total_seconds()
        left = rest if left is None else min(left, rest)
    return left


def _tolerated_for(pod: Pod, taint: Taint) -> float | None:
    """Seconds for which *pod* tolerates *taint*; ``None``: for ever."""
    matching = [each for each in pod.spec.tolerations if each.tolerates(taint)]
    if not matching:
        # Admission adds this toleration in a full cluster; where it did not, the pod is treated as if it had.
        return TOLERATION_SECONDS if taint.key in (UNREACHABLE, NOT_READY) else 0
    limits = [each.toleration_seconds for each in matching if each.toleration_seconds is not None]
    return max(min(limits), 0) if limits else None


def _node_of(pod: Pod, _: Reader) -> Iterable[ObjectKey]:
    return (ObjectKey("", pod.spec.node_name),) if pod.spec.node_name else ()


def _leased(lease: Lease, _: Reader) -> Iterable[ObjectKey]:
    return (ObjectKey("", lease.name),) if lease.namespace == LEASE_NAMESPACE else ()


def _placed(change: Change[Pod]) -> bool:
    """A pod came to a node, or was seen for the first time or the last."""
    if change.old is None or change.new is None or not (change.old.decodable and change.new.decodable):
        return True
    return change.old.view().spec.node_name != change.new.view().spec.node_name


class NodeLifecycle(Controller[Node]):
    """The shell around :func:`plan_node`."""

    name = "node-lifecycle"
    kind = Node
    sources = (
        watches(Lease, _leased),
        watches(Pod, _node_of, when=_placed, indexes={"node": on_node}),
    )

    async def reconcile(self, obj: Node, ctx: Context) -> Result:
        lease = ctx.cache.get(Lease, obj.name, LEASE_NAMESPACE)
        pods = ctx.cache.list(Pod, index=("node", obj.name))
        plan = plan_node(obj, lease, pods, ctx.now())
        if plan.silent is not None:
            others = tuple(each for each in obj.status.conditions if each.type != "Ready")
            await patch_status(ctx.client, obj, obj.status.evolve(conditions=(*others, plan.silent)))
            return Result.done()  # that write wakes us again, and the rest is decided on what it led to
        if plan.taints is not None:
            # A list is replaced whole: only the list that was read may be.
            lock = {"uid": obj.uid, "resourceVersion": obj.metadata.resource_version}
            taints = [taint.to_wire() for taint in plan.taints]
            await ctx.client.patch(Node, key_of(obj), {"metadata": lock, "spec": {"taints": taints}})
        for pod in plan.unready:
            await self._distrust(pod, ctx)
        await delete_pods(ctx.client, plan.evict)
        return Result(after=plan.after)

    async def _distrust(self, pod: Pod, ctx: Context) -> None:
        """Its Ready condition becomes False, so that its services and its owner no longer count on it."""
        moment = ctx.now().replace(microsecond=0)
        conditions = tuple(
            each.evolve(status="False", reason="NodeNotReady", last_transition_time=moment)
            if each.type == "Ready"
            else each
            for each in pod.status.conditions
        )
        with suppress(Conflict, NotFound):
            await patch_status(ctx.client, pod, pod.status.evolve(conditions=conditions))

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        orphans = ctx.cache.list(Pod, index=("node", key.name))
        if not orphans:
            return
        try:
            await ctx.client.get(Node, key.name)
        except NotFound:
            pass
        else:
            return  # it is there after all; its own event will wake us
        for pod in orphans:
            try:
                await ctx.client.delete(Pod, key_of(pod), uid=pod.uid, grace_period=0)
            except (Conflict, NotFound):
                continue
