"""A claim's nodes at its end: found, closed to whatever is new, and let go.

A claim's node is known by its provider id, or, where the cloud does not tell that, by labels that no other node has.
What is done to one rests on a live read: the cache only says where to look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import DISRUPTED_TAINT, TERMINATION_FINALIZER, NodeRequest
from kaito_ctrl.reconcilers.machine.salvage import salvage
from kaito_ctrl.runtime import Client, Context, ObjectKey, key_of
from kaito_ctrl.runtime.client import selector_text
from kaito_ctrl.runtime.errors import DecodeError, NotFound

__all__ = ["EXCLUDE_LABEL", "NodeIdentity", "close", "release", "with_owner"]

EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
"""Takes a node out of its load balancers, before its pods end."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """By what a claim's nodes are known; empty, it is nobody's."""

    provider_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.provider_id or self.labels)

    def includes(self, node: Node) -> bool:
        """Whether *node* is one of them."""
        if self.provider_id and node.spec.provider_id == self.provider_id:
            return True
        return bool(self.labels) and all(node.metadata.labels.get(key) == value for key, value in self.labels.items())

    async def known(self, ctx: Context) -> tuple[Node, ...]:
        """Those that the cache knows of, each read live. The cache needs the index ``providerID`` of Node."""
        names: dict[str, None] = {}
        if self.provider_id:
            names.update({each.name: None for each in ctx.cache.list(Node, index=("providerID", self.provider_id))})
        if self.labels:
            names.update({each.name: None for each in ctx.cache.list(Node, labels=self.labels)})
        nodes = []
        for name in names:
            with contextlib.suppress(NotFound):
                nodes.append(await _read(name, ctx.client))
        return tuple(each for each in nodes if self.includes(each))

    async def listed(self, ctx: Context) -> tuple[Node, ...]:
        """All of them, listed live: one may have joined a moment ago."""
        if not self:
            return ()
        labels = None if self.provider_id else selector_text(self.labels)
        misfits: list[DecodeError] = []
        nodes = list(await ctx.client.list(Node, labels=labels, misfits=misfits))
        for misfit in misfits:
            with contextlib.suppress(ValueError):
                nodes.append(salvage(Node, misfit.raw))
        return tuple(each for each in nodes if self.includes(each))


async def _read(name: str, client: Client) -> Node:
    """The node, live, or as much of it as can be read. Raises ``NotFound``."""
    return salvage(Node, await client.get_raw(Node, ObjectKey("", name)))


async def close(node: Node, client: Client, *, holder: NodeRequest | None = None) -> None:
    """Keep new pods and traffic off *node*, and delete it; with *holder*, its claim, our finalizer keeps it until it is
    released, and it says whose it is, for whoever has to do that when the claim is gone.

    Raises ``Conflict`` when somebody has written to it meanwhile.
    """
    # First the taint, whoever asked for the deletion: the scheduler does not mind that a node is being deleted.
    metadata: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    if not any((each.key, each.effect) == (DISRUPTED_TAINT.key, DISRUPTED_TAINT.effect) for each in node.spec.taints):
        spec["taints"] = [*(each.to_wire() for each in node.spec.taints), DISRUPTED_TAINT.to_wire()]
    if EXCLUDE_LABEL not in node.metadata.labels:
        metadata["labels"] = {EXCLUDE_LABEL: "karpenter"}
    if holder is not None and not node.deleting:
        # One that has joined and not registered yet: without it the node would be gone before its pods.
        if TERMINATION_FINALIZER not in node.metadata.finalizers:
            metadata["finalizers"] = [*node.metadata.finalizers, TERMINATION_FINALIZER]
        if (owners := with_owner(node, holder)) is not None:
            metadata["ownerReferences"] = owners
    with contextlib.suppress(NotFound):
        if metadata or spec:
            metadata |= {"uid": node.uid, "resourceVersion": node.metadata.resource_version}
            patch = {"metadata": metadata, **({"spec": spec} if spec else {})}
            node = salvage(Node, await client.patch_raw(Node, key_of(node), patch))
        if not node.deleting:
            version = node.metadata.resource_version
            await client.delete(Node, key_of(node), uid=node.uid, resource_version=version)


def with_owner(node: Node, claim: NodeRequest) -> list[dict[str, Any]] | None:
    """The owner references of *node* with *claim* among them; ``None`` if it is there already."""
    if any(ref.uid == claim.uid for ref in node.metadata.owner_references):
        return None
    own = claim.owner_reference(controller=False).evolve(controller=None, block_owner_deletion=True)
    return [*(each.to_wire() for each in node.metadata.owner_references), own.to_wire()]


async def release(node: Node, client: Client) -> bool:
    """Take our finalizer off *node*, and nobody else's. Whether it was there."""
    try:
        live = await _read(node.name, client)
        if live.uid != node.uid or TERMINATION_FINALIZER not in live.metadata.finalizers:
            return False
        metadata = {
            "finalizers": [each for each in live.metadata.finalizers if each != TERMINATION_FINALIZER],
            "uid": live.uid,
            "resourceVersion": live.metadata.resource_version,
        }
        await client.patch_raw(Node, key_of(live), {"metadata": metadata})
    except NotFound:
        return False
    return True
