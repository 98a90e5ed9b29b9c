"""Waiting for the volumes of a node that is going: a disk that is cut off before it was unmounted loses writes, and is
not attached elsewhere for minutes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from kaito_api.core import Node
from kaito_api.meta import Resource
from kaito_ctrl.reconcilers.machine.drain import Occupant
from kaito_ctrl.runtime import Context
from kaito_ctrl.runtime.errors import DecodeError, Forbidden, NotFound

__all__ = ["PersistentVolumeClaim", "VolumeAttachment", "attached"]


class VolumeAttachment(Resource):
    """``storage.k8s.io/v1 VolumeAttachment``: a volume is, or is to be, attached to a node."""

    group, version, kind, plural = "storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments"
    namespaced: ClassVar[bool] = False

    spec: Any = None

    @property
    def node(self) -> str:
        return str(self._spec.get("nodeName") or "")

    @property
    def volume(self) -> str:
        """The PersistentVolume; empty for an inline one."""
        source = self._spec.get("source")
        return str(source.get("persistentVolumeName") or "") if isinstance(source, dict) else ""

    @property
    def _spec(self) -> dict[str, Any]:
        return self.spec if isinstance(self.spec, dict) else {}


class PersistentVolumeClaim(Resource):
    """``v1 PersistentVolumeClaim``, as far as it says which volume it is bound to."""

    group, version, kind, plural = "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"

    spec: Any = None

    @property
    def volume(self) -> str:
        return str(self.spec.get("volumeName") or "") if isinstance(self.spec, dict) else ""


async def attached(node: Node, staying: Iterable[Occupant], ctx: Context) -> tuple[str, ...]:
    """The names of the attachments that have to go before *node* may: those of volumes that no pod of *staying* uses,
    for these stay attached to the end.

    A cluster that has no such kind, or does not show it to us, has nothing to wait for. Raises the client's other
    errors.
    """
    try:
        present = await ctx.client.list(VolumeAttachment, misfits=[])
    except (NotFound, Forbidden) as error:
        ctx.log.info("volume attachments are not waited for", node=node.name, reason=str(error))
        return ()
    mine = [each for each in present if each.node == node.name]
    if not mine:
        return ()
    kept = await _used(staying, ctx)
    return tuple(sorted(each.name for each in mine if not each.volume or each.volume not in kept))


async def _used(pods: Iterable[Occupant], ctx: Context) -> frozenset[str]:
    volumes = set()
    for pod in pods:
        for name in pod.volume_claims:
            try:
                claim = await ctx.client.get(PersistentVolumeClaim, name, pod.namespace)
            except (NotFound, Forbidden, DecodeError):
                continue
            volumes.add(claim.volume)
    return frozenset(volumes)
