"""What there is, in the cloud and in the cluster, and what of it is garbage: pure functions of one look at both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kaito_api.core import Node
from kaito_api.karpenter import TERMINATION_FINALIZER, NodeRequest
from kaito_api.meta import is_true
from kaito_ctrl.reconcilers.machine.fleet import by_provider_id, healthy, held, share
from kaito_ctrl.reconcilers.machine.nodes import NodeIdentity
from kaito_ctrl.reconcilers.names import WORKSPACE_LABEL
from kaito_provisioner import Instance

__all__ = ["CLAIM_UID_LABEL", "Inventory"]

CLAIM_UID_LABEL = "kaito.sh/claim-uid"
"""What our clouds' instances join as nodes with: the claim that they were made for."""
_MARKS = (CLAIM_UID_LABEL, WORKSPACE_LABEL, "kaito.sh/ragengine")
"""What the nodes of managed claims have of their claims, and those of a Karpenter beside us have not."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What there is, in the cloud and in the cluster, as it was read for one pass."""

    kind: type[NodeRequest]
    instances: Sequence[Instance]
    """Those of claims of *kind*."""
    nodes: Sequence[Node]
    """All of the cluster."""
    claims: Sequence[NodeRequest]
    """Those that are managed, and that can be read."""
    uids: frozenset[str]
    """Of all claims of *kind*, whosoever they are."""

    def contradiction(self) -> tuple[NodeRequest | None, str] | None:
        """Why the inventory cannot be believed, and the claim by which it shows; ``None`` if nothing speaks
        against it."""
        known = by_provider_id(self.nodes)
        for claim in self.unlisted():
            if any(map(healthy, known.get(claim.status.provider_id, ()))):
                why = f"its node is Ready, and the cloud's list of {len(self.instances)} instances lacks its instance"
                return claim, why
        alive = [each for each in self.instances if any(map(healthy, self.nodes_of(each)))]
        if not self.uids and len(alive) > 1:
            return None, f"there is no {self.kind.kind} at all, and {len(alive)} instances have nodes that are Ready"
        return None

    def unlisted(self) -> list[NodeRequest]:
        """Claims whose node has registered, and whose instance is not there."""
        listed = {each.claim_uid for each in self.instances}
        return [claim for claim in self._standing() if claim.uid not in listed]

    def leaked(self) -> list[Instance]:
        """Instances whose claim is not there. A claim that is being deleted is there."""
        return [
            each
            for each in self.instances
            if each.claim_uid and each.claim_uid not in self.uids and each.state != "Deleting"
        ]

    def forsaken(self) -> list[NodeRequest]:
        """Claims whose node has registered, is not Ready any more, or not there, and whose instance is not there."""
        known = by_provider_id(self.nodes)
        return [
            claim
            for claim in self.unlisted()
            if not any(is_true(node.status.conditions, "Ready") for node in known.get(claim.status.provider_id, ()))
        ]

    def held(self) -> str | None:
        """Why claims are not to be deleted now. That an instance is not there is no outage, and neither that its node
        is silent; unless it is so with many, and none of all the nodes is Ready."""
        listed = {each.claim_uid for each in self.instances}
        standing = list(self._standing())
        missing = {claim.status.provider_id for claim in standing if claim.uid not in listed}
        if len(missing) > share(len(standing)):
            missing = set()
        nodes = [node for node in self.nodes if node.spec.provider_id not in missing]
        return held(nodes, [claim for claim in self.claims if claim.uid in listed])

    def left(self) -> list[tuple[Node, str, str]]:
        """Nodes that our finalizer still holds though their claim is not there; with its name and uid."""
        found = []
        listed = {each.claim_uid for each in self.instances}
        for node in self.nodes:
            owner = self._owner(node)
            if owner is not None and TERMINATION_FINALIZER in node.metadata.finalizers:
                name, uid = owner
                if uid not in self.uids and uid not in listed:
                    found.append((node, name, uid))
        return found

    def nodes_of(self, instance: Instance) -> tuple[Node, ...]:
        """The nodes that *instance* has joined as."""
        identity = NodeIdentity(instance.provider_id, instance.node_labels)
        return tuple(node for node in self.nodes if identity.includes(node))

    def _standing(self) -> Iterable[NodeRequest]:
        return (
            claim for claim in self.claims if not claim.deleting and is_true(claim.status.conditions, claim.registered)
        )

    def _owner(self, node: Node) -> tuple[str, str] | None:
        """Name and uid of the claim that *node* was made for, if it was one of ours."""
        if not any(label in node.metadata.labels for label in _MARKS):
            return None
        for ref in node.metadata.owner_references:
            if ref.kind == self.kind.kind and ref.api_version == self.kind.api_version():
                return ref.name, ref.uid
        return None
