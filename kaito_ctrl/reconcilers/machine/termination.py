"""A claim's end: its node is tainted, deleted and drained; its instance is deleted until the cloud says that it is
gone; then the node is let go, and with that the claim."""

from __future__ import annotations

import contextlib

from kaito_api.core import Node
from kaito_api.karpenter import DISRUPTED_TAINT, TERMINATION_FINALIZER, Machine
from kaito_ctrl.reconcilers.machine.drain import draining
from kaito_ctrl.runtime import Context, Result, key_of
from kaito_ctrl.runtime.errors import NotFound
from kaito_provisioner import ClaimRef, CloudError, CloudProvider, Instance
from kaito_provisioner import NotFound as InstanceNotFound

__all__ = ["Termination", "live_nodes"]

_POLL = 5.0
"""Seconds until a cloud that refused to delete is asked again."""
_ENDING = 1.0
"""Seconds between two looks at an instance that is being deleted."""


class Termination:
    """Ends claims, in order, against a cloud."""

    def __init__(self, cloud: CloudProvider) -> None:
        self._cloud = cloud

    async def run(self, machine: Machine, ctx: Context) -> Result:
        """One step. Done when nothing of the claim is left, neither in the cloud nor in the cluster."""
        try:
            # By the claim's uid, not by what the status says: the answer to the creation may have been lost.
            ref = ClaimRef(machine.name, machine.uid, machine.status.provider_id)
            instance: Instance | None = await self._cloud.find(ref)
        except InstanceNotFound:
            instance = None
        except CloudError as error:
            return _refused(error, ctx)
        if instance is None:
            await _let_go(machine.status.provider_id, ctx)
            return Result.done()
        if instance.provider_id and instance.provider_id != machine.status.provider_id:
            # By it the node is found once the instance is gone, when nobody else knows it any more.
            patch = {"metadata": {"uid": machine.uid}, "status": {"providerID": instance.provider_id}}
            await ctx.client.patch(Machine, ctx.key, patch, subresource="status")
        nodes = await live_nodes(instance.provider_id, ctx) if instance.provider_id else ()
        for node in nodes:
            await _leave(node, ctx)
        if wait := await draining(nodes, ctx):
            return Result.retry_in(wait)
        if instance.state != "Deleting":
            ctx.check_leading()
            try:
                await self._cloud.delete(instance)
            except InstanceNotFound:
                pass
            except CloudError as error:
                return _refused(error, ctx)
        return Result.retry_in(_ENDING)


async def live_nodes(provider_id: str, ctx: Context) -> tuple[Node, ...]:
    """The claim's nodes, each read live: what follows is not to be undone."""
    nodes = []
    for cached in ctx.cache.list(Node, index=("providerID", provider_id)):
        try:
            node = await ctx.client.get(Node, cached.name)
        except NotFound:
            continue
        if node.spec.provider_id == provider_id:
            nodes.append(node)
    return tuple(nodes)


def _refused(error: CloudError, ctx: Context) -> Result:
    ctx.log.warning("the cloud refused to delete", reason=error.reason, error=error.message)
    return Result.retry_in(error.retry_after or _POLL)


async def _let_go(provider_id: str, ctx: Context) -> None:
    """The instance is gone: so are its nodes. All nodes are listed live, as one may have joined a moment ago."""
    if not provider_id:
        return
    # One that does not fit its model is not one that has joined for us, and must not hold up those that have.
    for node in await ctx.client.list(Node, misfits=[]):
        if node.spec.provider_id == provider_id:
            await _leave(node, ctx)
            await _release_node(node, ctx)


async def _leave(node: Node, ctx: Context) -> None:
    """Keep new pods off *node*, then delete it; our finalizer holds it until its instance is gone."""
    with contextlib.suppress(NotFound):
        # First the taint, whoever asked for the deletion: the scheduler does not mind that a node is being deleted.
        if not any(each.key == DISRUPTED_TAINT.key for each in node.spec.taints):
            taints = [*(each.to_wire() for each in node.spec.taints), DISRUPTED_TAINT.to_wire()]
            metadata = {"uid": node.uid, "resourceVersion": node.metadata.resource_version}
            await ctx.client.patch(Node, key_of(node), {"metadata": metadata, "spec": {"taints": taints}})
        if not node.deleting:
            await ctx.client.delete(Node, key_of(node), uid=node.uid)


async def _release_node(node: Node, ctx: Context) -> None:
    try:
        live = await ctx.client.get(Node, node.name)
        if live.uid == node.uid and TERMINATION_FINALIZER in live.metadata.finalizers:
            finalizers = [each for each in live.metadata.finalizers if each != TERMINATION_FINALIZER]
            metadata = {
                "finalizers": finalizers,
                "uid": live.uid,
                "resourceVersion": live.metadata.resource_version,
            }
            await ctx.client.patch(Node, key_of(live), {"metadata": metadata})
    except NotFound:
        pass
