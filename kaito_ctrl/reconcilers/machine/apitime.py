"""What time it is by the API server, which dates everything that is compared with it here.

The local clock may be off by hours, and what is destroyed because its time is up must not go by that. The server is
asked at most twice a minute, for everybody; in between the monotonic clock goes on.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from kaito_ctrl.runtime import Context

__all__ = ["ApiTime"]

_EVERY = 30.0


class ApiTime:
    """One for all passes of a controller."""

    def __init__(self) -> None:
        self._asked = 0.0
        self._said: datetime | None = None

    async def now(self, ctx: Context) -> datetime:
        """To about a second. Raises what the client raises."""
        monotonic = ctx.clock.monotonic()
        if self._said is None or monotonic - self._asked >= _EVERY:
            self._said = await ctx.client.server_time()
            self._asked = monotonic
        return self._said + timedelta(seconds=monotonic - self._asked)
