"""The scheduler: which node a pod runs on, decided once, and why it cannot, said in kube-scheduler's words.

A node passes when it is ready and not cordoned, when the pod tolerates its taints, matches its labels, and its
requests (init containers counted as their maximum) fit beside those of the pods that are there. Of the nodes that
pass, the one with the most room left wins; ties go by name. What does not fit waits for an event, not for a timer:
a change of any node, or the end of any pod.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from kaito_api.core import NodeSelectorRequirement, NodeSelectorTerm, Taint
from kaito_api.meta import Condition, find_condition
from kaito_api.quantity import parse_quantity
from kaito_ctrl.devcluster.events import record
from kaito_ctrl.devcluster.kinds import Container, Node, Pod
from kaito_ctrl.devcluster.pods import is_finished, on_node
from kaito_ctrl.devcluster.writes import patch_status, settled
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, key_of, watches
from kaito_ctrl.runtime.errors import Conflict, NotFound
from kaito_ctrl.runtime.meta import object_path
from kaito_ctrl.runtime.store import Change

__all__ = ["Bound", "Scheduler", "Unschedulable", "pod_requests", "schedule"]

NAME = "default-scheduler"
"""The ``schedulerName`` of the pods that it cares for."""

Amounts = Mapping[str, Decimal]


@dataclass(frozen=True, slots=True)
class Bound:
    """The pod goes to that node."""

    node: str


@dataclass(frozen=True, slots=True)
class Unschedulable:
    """No node will do; ``message`` counts the nodes by reason."""

    message: str


def _requests(container: Container) -> dict[str, Decimal]:
    # A limit without a request is a request; the API server defaults it so, but only for what it knows.
    return {
        name: parse_quantity(text)
        for name, text in {**container.resources.limits, **container.resources.requests}.items()
    }


def pod_requests(pod: Pod) -> Amounts:
    """What a pod takes on its node: the sum of its containers, or any init container if that needs more; one pod."""
    total = {"pods": Decimal(1)}
    for container in pod.spec.containers:
        for name, amount in _requests(container).items():
            total[name] = total.get(name, Decimal(0)) + amount
    for container in pod.spec.init_containers:
        for name, amount in _requests(container).items():
            total[name] = max(total.get(name, Decimal(0)), amount)
    return total


def _taken(pods: Iterable[Pod]) -> Amounts:
    total: dict[str, Decimal] = {}
    for pod in pods:
        if not is_finished(pod):
            for name, amount in pod_requests(pod).items():
                total[name] = total.get(name, Decimal(0)) + amount
    return total


def _matches(requirement: NodeSelectorRequirement, labels: Mapping[str, str]) -> bool:
    present = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return present is not None and present in requirement.values
        case "NotIn":
            return present is None or present not in requirement.values
        case "Exists":
            return present is not None
        case "DoesNotExist":
            return present is None
        case "Gt" | "Lt":
            try:
                left, right = int(present or ""), int(requirement.values[0])
            except (ValueError, IndexError):
                return False
            return left > right if requirement.operator == "Gt" else left < right


def _term(term: NodeSelectorTerm, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False  # an empty term selects nothing
    fields = {"metadata.name": node.name}
    return all(_matches(each, node.metadata.labels) for each in term.match_expressions) and all(
        _matches(each, fields) for each in term.match_fields
    )


def _selected(pod: Pod, node: Node) -> bool:
    if not pod.spec.node_selector.items() <= node.metadata.labels.items():
        return False
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity is not None else None
    required = affinity.required_during_scheduling_ignored_during_execution if affinity is not None else None
    return required is None or any(_term(term, node) for term in required.node_selector_terms)


def _untolerated(pod: Pod, node: Node) -> Taint | None:
    return next(
        (
            taint
            for taint in node.spec.taints
            if taint.effect in ("NoSchedule", "NoExecute")
            and not any(toleration.tolerates(taint) for toleration in pod.spec.tolerations)
        ),
        None,
    )


def _reasons(pod: Pod, needs: Amounts, node: Node, taken: Amounts) -> list[str]:
    """Why *node* will not do; of the checks, in kube-scheduler's order, the first that fails speaks."""
    if node.spec.unschedulable:
        return ["node(s) were unschedulable"]
    taint = _untolerated(pod, node)
    if taint is not None:
        return [f"node(s) had untolerated taint {{{taint.key}: {taint.value}}}"]
    ready = find_condition(node.status.conditions, "Ready")
    if ready is None or ready.status != "True":
        return ["node(s) were not ready"]
    if not _selected(pod, node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    room = {name: parse_quantity(text) for name, text in node.status.allocatable.items()}
    short = []
    for name, amount in sorted(needs.items()):
        if name == "pods":
            if name in room and taken.get(name, Decimal(0)) + amount > room[name]:
                short.append("Too many pods")
        elif amount > 0 and taken.get(name, Decimal(0)) + amount > room.get(name, Decimal(0)):
            short.append(f"Insufficient {name}")
    return short


def _fullness(needs: Amounts, node: Node, taken: Amounts) -> Decimal:
    """How much of *node* would be in use, as the mean over cpu, memory and pods: 0 is empty, 1 is full."""
    shares = []
    for name in ("cpu", "memory", "pods"):
        room = parse_quantity(node.status.allocatable.get(name, "0"))
        if room > 0:
            shares.append((taken.get(name, Decimal(0)) + needs.get(name, Decimal(0))) / room)
    return sum(shares, Decimal(0)) / len(shares) if shares else Decimal(0)


def schedule(pod: Pod, nodes: Collection[Node], pods_on: Mapping[str, Collection[Pod]]) -> Bound | Unschedulable:
    """Where *pod* goes; *pods_on* are the pods by node. Pure."""
    if not nodes:
        return Unschedulable("no nodes available to schedule pods")
    needs = pod_requests(pod)
    fits: list[tuple[Decimal, str]] = []
    reasons: Counter[str] = Counter()
    for node in nodes:
        taken = _taken(pods_on.get(node.name, ()))
        why = _reasons(pod, needs, node, taken)
        if why:
            reasons.update(why)
        else:
            fits.append((_fullness(needs, node, taken), node.name))
    if fits:
        return Bound(min(fits)[1])
    counted = ", ".join(sorted(f"{number} {reason}" for reason, number in reasons.items()))
    return Unschedulable(f"0/{len(nodes)} nodes are available: {counted}.")


def _waiting(_: Any, cache: Reader) -> Iterable[ObjectKey]:
    """Every pod without a node."""
    return [key_of(pod) for pod in cache.list(Pod, index=("node", ""))]


def _room_freed(change: Change[Any]) -> bool:
    """A pod that held a place has ended or is gone."""
    if change.old is None or not change.old.decodable or not change.old.view().spec.node_name:
        return False
    return change.new is None or (change.new.decodable and is_finished(change.new.view()))


def _node_changed(change: Change[Any]) -> bool:
    """Anything about a node but its heartbeat."""
    if change.old is None or change.new is None or not (change.old.decodable and change.new.decodable):
        return True
    old, new = change.old.view(), change.new.view()

    def conditions(node: Node) -> list[tuple[str, str]]:
        return [(each.type, each.status) for each in node.status.conditions]

    return bool(
        old.spec != new.spec
        or old.metadata.labels != new.metadata.labels
        or old.status.allocatable != new.status.allocatable
        or conditions(old) != conditions(new)
    )


class Scheduler(Controller[Pod]):
    """The shell around :func:`schedule`. One pod at a time: each decision counts on the one before."""

    name = "scheduler"
    kind = Pod
    workers = 1
    indexes = {"node": on_node}  # noqa: RUF012 - the base class declares it as a ClassVar
    sources = (watches(Node, _waiting, when=_node_changed), watches(Pod, _waiting, when=_room_freed))

    async def reconcile(self, obj: Pod, ctx: Context) -> Result:
        if obj.spec.node_name or is_finished(obj) or obj.spec.scheduler_name != NAME:
            return Result.done()
        nodes = [node for node in ctx.cache.list(Node) if not node.deleting]
        pods_on = {node.name: ctx.cache.list(Pod, index=("node", node.name)) for node in nodes}
        match schedule(obj, nodes, pods_on):
            case Bound(node):
                await self._bind(obj, node, ctx)
            case Unschedulable(message):
                await self._refuse(obj, message, ctx)
        return Result.done()

    async def _bind(self, pod: Pod, node: str, ctx: Context) -> None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await ctx.client.request("POST", object_path(Pod, ctx.key, "binding"), body=binding)
        except (Conflict, NotFound) as error:
            ctx.log.debug("not bound", error=str(error))  # it was bound, deleted or replaced meanwhile
        else:
            message = f"Successfully assigned {pod.namespace}/{pod.name} to {node}"
            await record(ctx.client, ctx.clock, pod, "Scheduled", message, component=NAME)
        # The answer to a binding is a Status, not the pod: have the cache look before the next decision rests on it.
        if ctx.client.observer is not None:
            ctx.client.observer.uncertain(Pod, ctx.key)

    async def _refuse(self, pod: Pod, message: str, ctx: Context) -> None:
        refused = settled(
            pod.status.conditions,
            Condition(
                type="PodScheduled",
                status="False",
                reason="Unschedulable",
                message=message,
                last_transition_time=ctx.now().replace(microsecond=0),
            ),
        )
        others = tuple(each for each in pod.status.conditions if each.type != "PodScheduled")
        status = pod.status.evolve(phase="Pending", conditions=(*others, refused))
        try:
            news = await patch_status(ctx.client, pod, status)
        except NotFound:
            return
        if news:
            await record(ctx.client, ctx.clock, pod, "FailedScheduling", message, type="Warning", component=NAME)
