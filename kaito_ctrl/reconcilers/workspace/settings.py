"""What the operator of kaito-ctrl decides for all workspaces."""

from __future__ import annotations

from dataclasses import dataclass

from kaito_api.karpenter import Machine, NodeClassRef, NodeRequest

__all__ = ["Settings"]


_KAITO_NODE_CLASS = NodeClassRef(group="kaito.sh", kind="KaitoNodeClass", name="default")


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for every workspace, for as long as the process runs."""

    registry: str = "mcr.microsoft.com/aks/kaito"
    """Where public preset images are pulled from."""
    tuning: bool = False
    """Whether a tuning workspace gets its nodes. Off for as long as nothing runs the job: nodes cost money."""
    node_api: type[NodeRequest] = Machine
    """Which kind nodes are asked for by. Claims of another kind are not looked at."""
    node_class: NodeClassRef = _KAITO_NODE_CLASS
    """What a NodeClaim names as its node class. KAITO's own is a mark alone: there is no such object to be made."""
