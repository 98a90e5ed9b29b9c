"""Which nodes a workspace runs on, and how many are still missing. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from kaito_api.core import Node
from kaito_api.karpenter import INITIALIZED_LABEL, INSTANCE_TYPE_LABEL, PROVISIONER_NAME_LABEL, Machine
from kaito_api.meta import is_true
from kaito_api.workspace import ResourceSpec, Workspace
from kaito_ctrl.reconcilers.names import (
    MACHINE_TYPE_LABEL,
    WORKSPACE_LABEL,
    WORKSPACE_NAMESPACE_LABEL,
    machine_name,
)

__all__ = ["NodePlan", "plan_nodes", "required_labels", "usable"]


@dataclass(frozen=True, slots=True)
class NodePlan:
    """``selected`` nodes carry the workload, ``pending`` machines are on their way, ``missing`` are names to make."""

    selected: tuple[Node, ...]
    pending: tuple[Machine, ...]
    missing: tuple[str, ...]

    def complete(self, count: int) -> bool:
        """Whether there are enough nodes."""
        return len(self.selected) >= count


def required_labels(resource: ResourceSpec) -> dict[str, str]:
    """The labels that a node must carry, and a new one is given: ``matchLabels``, and expressions with one value."""
    selector = resource.label_selector
    single = {each.key: each.values[0] for each in selector.match_expressions if len(each.values) == 1}
    return {**single, **selector.match_labels}


def usable(node: Node, ws: Workspace) -> bool:
    """Whether *node* may run the workload of *ws* now.

    It is selected, ready and not going; of the right type, if it says one; nobody else's; and if it was provisioned,
    initialized: before that its GPUs may be missing.
    """
    labels, resource = node.metadata.labels, ws.resource
    kind = labels.get(INSTANCE_TYPE_LABEL)
    provisioned = MACHINE_TYPE_LABEL in labels or PROVISIONER_NAME_LABEL in labels
    owner = (labels.get(WORKSPACE_LABEL, ws.name), labels.get(WORKSPACE_NAMESPACE_LABEL, ws.namespace))
    return (
        not node.deleting
        and not node.spec.unschedulable
        and is_true(node.status.conditions, "Ready")
        and resource.label_selector.matches(labels)
        and (kind in (None, resource.instance_type) or node.name in (resource.preferred_nodes or ()))
        and owner == (ws.name, ws.namespace)
        and (not provisioned or labels.get(INITIALIZED_LABEL) == "true")
    )


def plan_nodes(ws: Workspace, nodes: Iterable[Node], machines: Sequence[Machine]) -> NodePlan:
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

    selected = tuple(sorted((node for node in nodes if usable(node, ws)), key=rank)[: resource.count])
    chosen = {node.name for node in selected}
    pending = tuple(each for each in machines if not each.deleting and each.status.node_name not in chosen)
    lacking = resource.count - len(selected) - len(pending)
    return NodePlan(selected, pending, _free_names(ws.uid, lacking, {machine.name for machine in machines}))


def _free_names(uid: str, count: int, taken: Collection[str]) -> tuple[str, ...]:
    names: list[str] = []
    index = 0
    while len(names) < count:
        name = machine_name(uid, index)
        if name not in taken:
            names.append(name)
        index += 1
    return tuple(names)
