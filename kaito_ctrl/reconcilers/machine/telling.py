"""The Events of a node's life, under Karpenter's names and for the objects that Karpenter tells them of.

A claim's own news are told in Karpenter's form, ``NodeClaim <name> event: <news>``, which says whose it is where only
the text is shown.
"""

from __future__ import annotations

from kaito_api.core import Node, Pod
from kaito_api.karpenter import NodeRequest
from kaito_ctrl.runtime.events import EventSink

__all__ = [
    "awaiting_volumes",
    "collected",
    "collection_refused",
    "deadline_passed",
    "evicted",
    "expiring",
    "failed_draining",
    "insufficient_capacity",
    "offering_chosen",
    "offering_refused",
    "repair_blocked",
    "repaired",
    "termination_failed",
]


def insufficient_capacity(events: EventSink, claim: NodeRequest, message: str) -> None:
    """The cloud has none of what *claim* allows."""
    events.warning(claim, "InsufficientCapacityError", _of(claim, message), action="Launch")


def offering_chosen(events: EventSink, claim: NodeRequest, offering: str) -> None:
    """An instance is being made from *offering*."""
    events.normal(claim, "OfferingChosen", _of(claim, f"launching {offering}"), action="Launch")


def offering_refused(events: EventSink, claim: NodeRequest, offering: str, why: str) -> None:
    """The cloud has refused *offering*; the next one is tried, if there is one."""
    events.warning(claim, "OfferingUnavailable", _of(claim, f"{offering}: {why}"), action="Launch")


def deadline_passed(events: EventSink, claim: NodeRequest, why: str) -> None:
    """*claim* is deleted, because a stage of it has taken too long."""
    events.warning(claim, "DeadlineExceeded", _of(claim, why), action="Delete")


def repaired(events: EventSink, claim: NodeRequest, node: Node, why: str) -> None:
    """*node* is replaced for its health."""
    events.warning(claim, "Disrupted", f"Disrupting {claim.kind}: Unhealthy, {why}", action="Repair", related=node)
    events.warning(node, "Disrupted", f"Disrupting Node: Unhealthy, {why}", action="Repair", related=claim)


def repair_blocked(events: EventSink, claim: NodeRequest, node: Node, why: str) -> None:
    """*node* is overdue for replacement, and something holds that up."""
    events.warning(claim, "NodeRepairBlocked", why, action="Repair", related=node)
    events.warning(node, "NodeRepairBlocked", why, action="Repair", related=claim)


def collected(events: EventSink, claim: NodeRequest, why: str) -> None:
    """*claim* is deleted, as there is nothing behind it any more."""
    events.warning(claim, "GarbageCollected", _of(claim, why), action="Collect")


def collection_refused(events: EventSink, claim: NodeRequest, why: str) -> None:
    """Nothing is collected, because of what is seen of *claim*."""
    events.warning(claim, "GarbageCollectionRefused", _of(claim, why), action="Collect")


def evicted(events: EventSink, pod: Pod, reason: str = "Forceful Termination") -> None:
    """*pod* was asked to leave its node."""
    events.normal(pod, "Evicted", f"Evicted pod: {reason}", action="Evict")


def failed_draining(events: EventSink, node: Node, why: str) -> None:
    """*node* still has pods that have to be waited for."""
    events.warning(node, "FailedDraining", f"Failed to drain node, {why}", action="Drain")


def awaiting_volumes(events: EventSink, node: Node, volumes: str) -> None:
    """*node* still has volumes attached."""
    note = f"Awaiting deletion of bound volumeattachments ({volumes})"
    events.normal(node, "AwaitingVolumeDetachment", note, action="Drain")


def expiring(events: EventSink, about: Node | NodeRequest, moment: str) -> None:
    """*about* will be ended by force at *moment* (RFC 3339)."""
    word = "Node" if isinstance(about, Node) else about.kind
    events.warning(
        about, "TerminationGracePeriodExpiring", f"All pods will be deleted by {moment} ({word})", action="Drain"
    )


def termination_failed(events: EventSink, about: Node | NodeRequest, why: str) -> None:
    """The cloud does not delete the instance, or something else keeps *about* from ending."""
    events.warning(about, "FailedTermination", f"Failed terminating, {why}", action="Terminate")


def _of(claim: NodeRequest, news: str) -> str:
    return f"{claim.kind} {claim.name} event: {news}"
