"""Which claims are ours. Karpenter may run in the same cluster: its claims are of the same kind and carry the same
finalizer, and nothing here may touch them, not even while they are deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kaito_api.karpenter import NodeClaim, NodeRequest
from kaito_ctrl.reconcilers.names import WORKSPACE_LABEL
from kaito_ctrl.runtime.entry import Entry
from kaito_provisioner import NodeClassKind

__all__ = ["concerns", "is_managed"]

_RAGENGINE_LABEL = "kaito.sh/ragengine"
_KAITO_NODE_CLASS = NodeClassKind("kaito.sh", "KaitoNodeClass")


def is_managed(claim: NodeRequest, node_classes: Sequence[NodeClassKind] = ()) -> bool:
    """Whether *claim* was made for KAITO, or is a NodeClaim of KAITO's node class or one of *node_classes*."""
    if _for_kaito(claim.metadata.labels):
        return True
    ref = claim.spec.node_class_ref if isinstance(claim, NodeClaim) else None
    return ref is not None and NodeClassKind(ref.group, ref.kind) in (_KAITO_NODE_CLASS, *node_classes)


def concerns(entry: Entry[NodeRequest], node_classes: Sequence[NodeClassKind] = ()) -> bool:
    """:func:`is_managed` of what a cache keeps. Of a claim that does not fit its model only its labels are known."""
    if _for_kaito(entry.header.labels or {}):
        return True
    claim = entry.view_or_none()
    return claim is not None and is_managed(claim, node_classes)


def _for_kaito(labels: Mapping[str, str]) -> bool:
    return WORKSPACE_LABEL in labels or _RAGENGINE_LABEL in labels
