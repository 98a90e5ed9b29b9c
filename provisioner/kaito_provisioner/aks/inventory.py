"""What pools there are, asked for once on behalf of everybody.

Hundreds of claims ask about their pools again and again, and AKS allows one request a second: so all share one list
that is a few seconds old at most, and whoever needs a newer one waits for the one that is being fetched, or the next.

Lists lag behind: a pool that we have made may be missing from the next list, and one that we have begun to delete may
look unharmed. What we did ourselves is therefore laid over what the list says, until the list has caught up or has had
the time to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kaito_provisioner.aks.pools import Pool
from kaito_provisioner.cloud import CloudError, Throttled

__all__ = ["Inventory"]


@dataclass(slots=True)
class _Fetch:
    started: float
    done: asyncio.Event = field(default_factory=asyncio.Event)
    pools: Mapping[str, Pool] | None = None
    error: CloudError | None = None

    def pause(self, now: float) -> float:
        """For how many seconds the service wants no further list."""
        if not isinstance(self.error, Throttled) or self.error.retry_after is None:
            return 0.0
        return self.started + self.error.retry_after - now


@dataclass(frozen=True, slots=True)
class _Write:
    """What we did to a pool, and what it was afterwards."""

    pool: Pool
    at: float
    deleting: bool


class Inventory:
    """All pools by name. *lag* is for how many seconds a list may not know what we did."""

    def __init__(
        self, fetch: Callable[[], Awaitable[Sequence[Pool]]], monotonic: Callable[[], float], *, lag: float = 60.0
    ) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._lag = lag
        self._last: _Fetch | None = None
        """The newest that is there or under way."""
        self._writes: dict[str, _Write] = {}

    async def pools(self, max_age: float = 0.0) -> Mapping[str, Pool]:
        """The pools as a list shows them that was asked for at most *max_age* seconds ago, or is now. Raises what the
        request for it raised."""
        since = self._monotonic() - max_age
        while True:
            fetch = self._last
            pause = fetch.pause(self._monotonic()) if fetch is not None else 0.0
            if fetch is not None and fetch.error is not None and pause > 0:
                raise Throttled(fetch.error.message, fix=fetch.error.fix, retry_after=pause)
            if fetch is None or (fetch.done.is_set() and (fetch.pools is None or fetch.started < since)):
                fetch = self._last = _Fetch(self._monotonic())
                await self._run(fetch)
            elif not fetch.done.is_set():
                await fetch.done.wait()
            if fetch.started < since:
                continue
            if fetch.error is not None:
                raise fetch.error
            if fetch.pools is not None:
                return self._laid_over(fetch.pools, fetch.started)
            # Whoever fetched it was cancelled: somebody else has to.

    def created(self, pool: Pool) -> None:
        """We have made it."""
        self._writes[pool.name] = _Write(pool, self._monotonic(), deleting=False)

    def deleting(self, pool: Pool) -> None:
        """We have begun to delete it."""
        going = Pool(pool.name, {**pool.properties, "provisioningState": "Deleting"})
        self._writes[pool.name] = _Write(going, self._monotonic(), deleting=True)

    def gone(self, name: str) -> None:
        """It is no more, as the service says of it alone."""
        self._writes.pop(name, None)

    def just_created(self, name: str, claim_uid: str) -> bool:
        """Whether we have made it so lately that the service may not show it yet."""
        write = self._writes.get(name)
        return (
            write is not None
            and not write.deleting
            and write.pool.claim_uid == claim_uid
            and self._monotonic() < write.at + self._lag
        )

    async def _run(self, fetch: _Fetch) -> None:
        try:
            fetch.pools = {pool.name: pool for pool in await self._fetch()}
        except CloudError as error:
            fetch.error = error
        finally:
            fetch.done.set()

    def _laid_over(self, listed: Mapping[str, Pool], started: float) -> Mapping[str, Pool]:
        pools = dict(listed)
        for name, write in tuple(self._writes.items()):
            shown = listed.get(name)
            caught_up = started > write.at and (
                shown is None or shown.provisioning_state == "Deleting" or shown.claim_uid != write.pool.claim_uid
                if write.deleting
                else shown is not None
            )
            if caught_up or started >= write.at + self._lag:
                del self._writes[name]
            else:
                pools[name] = write.pool
        return pools
