"""Which nodes a workspace runs on, and how many are still missing. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from kaito_api.core import Node
from kaito_api.karpenter import (
    INITIALIZED_LABEL,
    INSTANCE_TYPE_LABEL,
    NODEPOOL_LABEL,
    PROVISIONER_NAME_LABEL,
    NodeRequest,
)
from kaito_api.meta import find_condition, is_true
from kaito_api.workspace import ResourceSpec, Workspace
from kaito_ctrl.reconcilers.names import (
    MACHINE_TYPE_LABEL,
    WORKSPACE_LABEL,
    WORKSPACE_NAMESPACE_LABEL,
    machine_name,
)

__all__ = ["TOLERATED", "NodePlan", "eligible", "plan_nodes", "replacement_wait", "required_labels"]


TOLERATED = 300.0
"""Seconds for which a node in use that nobody has claimed may be not ready before another one is asked for: most blips
are shorter. A claimed node is its provisioner's to replace, which knows what befalls the others."""

_PROVISIONED = (MACHINE_TYPE_LABEL, PROVISIONER_NAME_LABEL, NODEPOOL_LABEL)
"""Each of them says that a provisioner has made the node."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What there is, and what is to be done about it.

    ``selected`` nodes carry the workload. ``awaited`` ones did, and are expected back. ``pending`` claims are on
    their way, ``missing`` are names to make, ``surplus`` claims are not needed. In ``patience`` seconds a node that is
    awaited is given up; ``None``: not by us.
    """

    selected: tuple[Node, ...]
    awaited: tuple[Node, ...]
    pending: tuple[NodeRequest, ...]
    missing: tuple[str, ...]
    surplus: tuple[NodeRequest, ...] = ()
    patience: float | None = None

    def complete(self, count: int) -> bool:
        """Whether there are enough nodes."""
        return len(self.selected) >= count


def required_labels(resource: ResourceSpec) -> dict[str, str]:
    """The labels that a node must carry, and a new one is given: ``matchLabels``, and expressions with one value."""
    selector = resource.label_selector
    single = {each.key: each.values[0] for each in selector.match_expressions if len(each.values) == 1}
    return {**single, **selector.match_labels}


def eligible(node: Node, ws: Workspace) -> bool:
    """Whether *node* is one for *ws*, ready or not.

    It is selected and not going; of the right type, if it says one; nobody else's; and if it was provisioned,
    initialized: before that its GPUs may be missing. A cordoned node is kept, but not taken.
    """
    labels, resource = node.metadata.labels, ws.resource
    kind = labels.get(INSTANCE_TYPE_LABEL)
    owner = (labels.get(WORKSPACE_LABEL, ws.name), labels.get(WORKSPACE_NAMESPACE_LABEL, ws.namespace))
    return (
        not node.deleting
        and (not node.spec.unschedulable or node.name in ws.status.worker_nodes)
        and resource.label_selector.matches(labels)
        and (kind in (None, resource.instance_type) or node.name in (resource.preferred_nodes or ()))
        and owner == (ws.name, ws.namespace)
        and (not _is_provisioned(node) or labels.get(INITIALIZED_LABEL) == "true")
    )


def _is_provisioned(node: Node) -> bool:
    return not node.metadata.labels.keys().isdisjoint(_PROVISIONED)


def plan_nodes(ws: Workspace, nodes: Iterable[Node], claims: Sequence[NodeRequest], now: datetime) -> NodePlan:
    """Existing nodes first: preferred ones, then those already in use, then provisioned ones, then by name.

    A claim counts as a node to come until its node is usable, so nothing is asked for twice; its node, once in use, is
    awaited for as long as the claim is there. Names of missing claims follow from the workspace's uid and the first
    free index.
    """
    resource = ws.resource
    in_use = set(ws.status.worker_nodes)
    preferred = set(resource.preferred_nodes or ())

    def rank(node: Node) -> tuple[bool, bool, bool, str]:
        return (node.name not in preferred, node.name not in in_use, not _is_provisioned(node), node.name)

    candidates = sorted((node for node in nodes if eligible(node, ws)), key=rank)
    selected = tuple(node for node in candidates if _ready(node))[: resource.count]
    lasting = [each for each in claims if not each.deleting]
    waits = {node.name: _expected(node, now) for node in candidates}
    waits |= {each.status.node_name: 0.0 if each.deleting else math.inf for each in claims}
    back = [node for node in candidates if node.name in in_use and not _ready(node) and waits[node.name] > 0]
    awaited = tuple(back)[: resource.count - len(selected)]
    known = {node.name for node in (*selected, *awaited)}
    coming = [each for each in lasting if each.status.node_name not in known]
    lacking = resource.count - len(known)
    # Only what has no node yet is given back: on a node there may be somebody's pod. A node that no claim names yet
    # was made for one of those that seem to have none: the two are seen one after the other.
    claimed = {each.status.node_name for each in claims}
    unclaimed = sum(WORKSPACE_LABEL in node.metadata.labels and node.name not in claimed for node in selected)
    pending = tuple(coming[:lacking])
    surplus = tuple(each for each in coming[lacking + unclaimed :] if not each.status.node_name)
    names = _free_names(ws.uid, lacking - len(pending), {each.name for each in claims})
    patience = min((waits[node.name] for node in awaited), default=math.inf)
    return NodePlan(selected, awaited, pending, names, surplus, None if math.isinf(patience) else patience)


def replacement_wait(ws: Workspace, now: datetime) -> float:
    """Seconds until another node may be asked for, 0 when one may be now.

    As many as the workspace needs, and one to replace one that was lost, may be asked for at once. From then on, until
    the workspace is served, each has to wait twice as long as the one before: a minute at first, an hour at most. So a
    claim that can never become ready costs a bounded number of instances. What was asked for is counted in the status.
    """
    asked = next((each for each in ws.status.stages if each.name == "CapacityReserved"), None)
    if asked is None or asked.last_attempt_at is None:
        return 0.0
    replaced = asked.attempts - ws.resource.count
    if replaced < 1:
        return 0.0
    wait = min(60.0 * 2.0 ** min(replaced - 1, 10), 3600.0)
    return max(wait - (now - asked.last_attempt_at).total_seconds(), 0.0)


def _ready(node: Node) -> bool:
    return is_true(node.status.conditions, "Ready")


def _expected(node: Node, now: datetime) -> float:
    """For how many more seconds a node that is not ready, and that nobody has claimed, is expected back."""
    condition = find_condition(node.status.conditions, "Ready")
    if condition is None or condition.last_transition_time is None:
        return 0.0
    return TOLERATED - (now - condition.last_transition_time).total_seconds()


def _free_names(uid: str, count: int, taken: Collection[str]) -> tuple[str, ...]:
    names: list[str] = []
    index = 0
    while len(names) < count:
        name = machine_name(uid, index)
        if name not in taken:
            names.append(name)
        index += 1
    return tuple(names)
