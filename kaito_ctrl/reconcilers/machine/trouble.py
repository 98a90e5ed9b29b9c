"""Whether the nodes as a whole are in trouble: what a deadline has to know at all times, and an end before it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from kaito_api.core import Node
from kaito_api.karpenter import NodeRequest
from kaito_api.meta import Resource
from kaito_ctrl.reconcilers.machine.fleet import held
from kaito_ctrl.reconcilers.machine.managed import is_managed
from kaito_ctrl.runtime import Context
from kaito_provisioner import CloudProvider

__all__ = ["Trouble"]

R = TypeVar("R", bound=Resource)

_REMEMBERED = 60.0
"""Seconds for which it is known."""
_AT_ONCE = 50
"""Objects decoded before others have their turn."""


class Trouble:
    """Of the claims of *kind*, and the nodes of *cloud*."""

    def __init__(self, cloud: CloudProvider, kind: type[NodeRequest]) -> None:
        self.known = False
        """Whether there was any when it was looked for last."""
        self._cloud = cloud
        self._kind = kind
        self._next = 0.0

    async def look(self, ctx: Context) -> None:
        """Look for it in the cache, unless that was done a moment ago."""
        now = ctx.clock.monotonic()
        if now >= self._next:
            self._next = now + _REMEMBERED  # whoever comes meanwhile need not look as well
            self.known = await self.why(await _all(Node, ctx), ctx) is not None

    async def why(self, nodes: Sequence[Node], ctx: Context) -> str | None:
        """Why destructive steps have to wait, *nodes* being all of the cluster; ``None`` if they need not."""
        claims = [each for each in await _all(self._kind, ctx) if is_managed(each, self._cloud.node_classes)]
        return held(nodes, claims, self._cloud.repair_policies())


async def _all(kind: type[R], ctx: Context) -> list[R]:
    """All cached objects of *kind*. To decode thousands takes a while, in which others have their turn."""
    found = []
    for number, entry in enumerate(tuple(ctx.cache.store(kind).entries()), 1):
        if (view := entry.view_or_none()) is not None:
            found.append(view)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    return found
