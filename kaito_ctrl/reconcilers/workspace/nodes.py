"""Which nodes a workspace runs on, and how many are still missing. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from kaito_api.core import Node
from kaito_api.karpenter import INITIALIZED_LABEL, INSTANCE_TYPE_LABEL, PROVISIONER_NAME_LABEL, Machine
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
"""Seconds for which a node in use may be not ready before another one is asked for: most blips are shorter."""

INITIALIZATION_DEADLINE = 1800.0
"""Seconds that a node may be there without becoming usable before its machine is given up. The time until a node is
there at all is the provisioner's to limit."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What there is, and what is to be done about it.

    ``selected`` nodes carry the workload. ``awaited`` ones did, and are expected back. ``pending`` machines are on
    their way, ``missing`` are names to make, ``surplus`` machines are not needed, and ``hopeless`` ones have a node
    that will not be usable. In ``patience`` seconds one that is awaited or pending is given up.
    """

    selected: tuple[Node, ...]
    awaited: tuple[Node, ...]
    pending: tuple[Machine, ...]
    missing: tuple[str, ...]
    surplus: tuple[Machine, ...] = ()
    hopeless: tuple[Machine, ...] = ()
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
    provisioned = MACHINE_TYPE_LABEL in labels or PROVISIONER_NAME_LABEL in labels
    owner = (labels.get(WORKSPACE_LABEL, ws.name), labels.get(WORKSPACE_NAMESPACE_LABEL, ws.namespace))
    return (
        not node.deleting
        and (not node.spec.unschedulable or node.name in ws.status.worker_nodes)
        and resource.label_selector.matches(labels)
        and (kind in (None, resource.instance_type) or node.name in (resource.preferred_nodes or ()))
        and owner == (ws.name, ws.namespace)
        and (not provisioned or labels.get(INITIALIZED_LABEL) == "true")
    )


def plan_nodes(ws: Workspace, nodes: Iterable[Node], machines: Sequence[Machine], now: datetime) -> NodePlan:
    """Existing nodes first: preferred ones, then those already in use, then provisioned ones, then by name.

    A machine counts as a node to come until its node is usable, so nothing is asked for twice. Names of missing
    machines follow from the workspace's uid and the first free index.
    """
    resource = ws.resource
    in_use = set(ws.status.worker_nodes)
    preferred = set(resource.preferred_nodes or ())

    def rank(node: Node) -> tuple[bool, bool, bool, str]:
        return (
            node.name not in preferred,
            node.name not in in_use,
            MACHINE_TYPE_LABEL not in node.metadata.labels,
            node.name,
        )

    candidates = sorted((node for node in nodes if eligible(node, ws)), key=rank)
    selected = tuple(node for node in candidates if _ready(node))[: resource.count]
    waits = {node.name: wait for node in candidates if (wait := _expected(node, now)) is not None}
    back = [node for node in candidates if node.name in in_use and waits.get(node.name, 0.0) > 0]
    awaited = tuple(back)[: resource.count - len(selected)]
    known = {node.name for node in (*selected, *awaited)}
    # A node that was usable, and has been away for longer than is tolerated, is not on its way.
    lost = {name for name, wait in waits.items() if wait <= 0} - known
    hopeless = tuple(
        each
        for each in machines
        if not each.deleting
        and each.status.node_name not in known
        and (each.status.node_name in lost or (_left(each, now) or 0.0) < 0)
    )
    coming = [
        each for each in machines if not each.deleting and each.status.node_name not in known and each not in hopeless
    ]
    lacking = resource.count - len(known)
    pending = tuple(coming[:lacking])
    # Only what has no node yet is given back: on a node there may be somebody's pod. A node that no machine claims yet
    # was made by one of those that seem to have none: the two are seen one after the other.
    claimed = {each.status.node_name for each in machines}
    unclaimed = sum(WORKSPACE_LABEL in node.metadata.labels and node.name not in claimed for node in selected)
    surplus = tuple(each for each in coming[lacking + unclaimed :] if not each.status.node_name)
    names = _free_names(ws.uid, lacking - len(pending), {machine.name for machine in machines})
    moments = [waits.get(name) for name in (*known, *(each.status.node_name for each in pending))]
    moments += [_left(each, now) for each in pending]
    patience = min((each for each in moments if each is not None and each > 0), default=None)
    return NodePlan(selected, awaited, pending, names, surplus, hopeless, patience)


def replacement_wait(ws: Workspace, now: datetime) -> float:
    """Seconds until another machine may be asked for, 0 when one may be now.

    As many as the workspace needs, and one to replace one that was lost, may be asked for at once. From then on, until
    the workspace is served, each has to wait twice as long as the one before: a minute at first, an hour at most. So a
    claim that can never become ready costs a bounded number of machines. What was asked for is counted in the status.
    """
    asked = next((each for each in ws.status.stages if each.name == "CapacityReserved"), None)
    if asked is None or asked.last_attempt_at is None:
        return 0.0
    replaced = asked.attempts - ws.resource.count
    if replaced < 1:
        return 0.0
    wait = min(60.0 * 2.0 ** min(replaced - 1, 10), 3600.0)
    return max(wait - (now - asked.last_attempt_at).total_seconds(), 0.0)


def _left(machine: Machine, now: datetime) -> float | None:
    """For how many more seconds its node, which is there, may be unusable; ``None`` when that is not the question."""
    registered = find_condition(machine.status.conditions, "MachineRegistered")
    if registered is None or registered.status != "True" or registered.last_transition_time is None:
        return None
    if is_true(machine.status.conditions, "MachineInitialized"):
        return None
    # A second more: times in conditions are whole seconds.
    return INITIALIZATION_DEADLINE + 1.0 - (now - registered.last_transition_time).total_seconds()


def _ready(node: Node) -> bool:
    return is_true(node.status.conditions, "Ready")


def _expected(node: Node, now: datetime) -> float | None:
    """For how many more seconds a node that is not ready is expected back; ``None`` when that is not the question."""
    condition = find_condition(node.status.conditions, "Ready")
    if condition is None or condition.status == "True" or condition.last_transition_time is None:
        return None
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
