"""The brake: how the managed nodes are as a whole, and why what destroys one of them has to wait.

One dead node is a dead node. Many at once, or all of them, are a cluster that cannot reach its nodes: they come back
by themselves, and who deletes them then has made an outage of a disturbance. Pure functions of what was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kaito_api.core import Node
from kaito_api.karpenter import TERMINATION_TIMESTAMP_ANNOTATION, NodeRequest
from kaito_api.meta import is_true
from kaito_provisioner import RepairPolicy

__all__ = ["BLIP", "by_provider_id", "healthy", "held", "share"]

BLIP = 300.0
"""Seconds for which a node may be silent for reasons that pass, however sure the cloud is that it has no instance."""
_NAMED = 5
"""How many unhealthy nodes a message names."""


def held(nodes: Sequence[Node], claims: Iterable[NodeRequest], policies: Sequence[RepairPolicy] = ()) -> str | None:
    """Why destructive steps have to wait, for a person to read; ``None`` if they need not.

    *nodes* are all of the cluster, whosoever they are; *claims* those that are managed. The fleet are the claims whose
    nodes have registered. Unhealthy are those whose node is not Ready, is not there, or has a condition that
    *policies* name, and those that are being replaced. Claims that are deleted for other reasons do not count: that
    somebody scales down is no disturbance.
    """
    if nodes and not any(is_true(node.status.conditions, "Ready") for node in nodes):
        return f"none of the cluster's {len(nodes)} nodes is Ready"
    known = by_provider_id(nodes)
    size, unhealthy = 0, []
    for claim in claims:
        replaced = TERMINATION_TIMESTAMP_ANNOTATION in claim.metadata.annotations
        if not is_true(claim.status.conditions, claim.registered) or (claim.deleting and not replaced):
            continue
        size += 1
        mine = known.get(claim.status.provider_id, ())
        if claim.deleting or not any(healthy(node, policies) for node in mine):
            unhealthy.append(claim.name)
    if len(unhealthy) <= share(size):
        return None
    names = ", ".join(sorted(unhealthy)[:_NAMED]) + (", ..." if len(unhealthy) > _NAMED else "")
    return f"{len(unhealthy)} of {size} nodes are unhealthy ({names}), more than the {share(size)} that may be at once"


def share(size: int) -> int:
    """How many of a fleet of *size* may be destroyed at once: a fifth, rounded up, and at least one."""
    return max(1, -(-size // 5))


def healthy(node: Node, policies: Sequence[RepairPolicy] = ()) -> bool:
    """Whether *node* is Ready, and none of its conditions is one that *policies* name."""
    told = {(each.type, each.status) for each in node.status.conditions}
    return ("Ready", "True") in told and not any((each.condition, each.status) in told for each in policies)


def by_provider_id(nodes: Iterable[Node]) -> Mapping[str, tuple[Node, ...]]:
    """The *nodes* that have a provider id, by it."""
    found: dict[str, tuple[Node, ...]] = {}
    for node in nodes:
        if node.spec.provider_id:
            found[node.spec.provider_id] = (*found.get(node.spec.provider_id, ()), node)
    return found
