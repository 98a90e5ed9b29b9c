"""The extra clusters of a manager: each is watched and written to like its own, and may be away without harm to what
does not concern it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kaito_api.meta import Resource
from kaito_ctrl.runtime.cache import Cache
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.errors import ClusterUnavailable, KubeError
from kaito_ctrl.runtime.lifetime import Lifetime

__all__ = ["Member", "MemberCache"]

_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Member:
    """An extra cluster, as one controller sees it. As in the manager's own, ``client`` writes under the controller's
    name and behind its fence, and ``cache`` is never older than what it wrote."""

    name: str
    client: Client
    cache: Cache
    kinds: tuple[type[Resource], ...] = ()
    """What the controller has declared there."""

    async def enter(self) -> None:
        """Make sure that what the cache says can be relied on. Raises ``ClusterUnavailable`` when a kind has not been
        listed yet, or when it cannot be found out what became of a write whose answer was lost."""
        if not all(self.cache.store(kind).synced for kind in self.kinds):
            waiting = ", ".join(self.cache.unsynced())
            raise ClusterUnavailable(f"cluster {self.name!r} is not available: not listed yet: {waiting}")
        try:
            async with asyncio.timeout(_PATIENCE):
                await self.cache.settle(self.kinds)
        except (KubeError, TimeoutError) as error:
            problem = error if isinstance(error, KubeError) else f"no answer within {_PATIENCE:g} s"
            raise ClusterUnavailable(f"cluster {self.name!r} is not available: {problem}") from error


@dataclass(frozen=True, slots=True)
class MemberCache:
    """Runs the cache of an extra cluster. It is up when the cluster has been listed, or is known not to answer."""

    name: str
    cache: Cache

    async def run(self, lifetime: Lifetime) -> None:
        await self.cache.run(lifetime, required=False)
