"""Time and randomness as values: the only seams through which the runtime sees either.

Production passes :class:`SystemClock` and a seeded-by-the-OS ``random.Random``; a simulation passes its own.
Sleeping is ``asyncio.sleep``, so a virtual-time event loop needs no second hook for it.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "UidSource", "system_random", "uid_source"]


class Clock(Protocol):
    """Wall time for timestamps that others read, monotonic time for durations that we measure."""

    def now(self) -> datetime:
        """The wall clock, timezone-aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The real thing. ``monotonic`` is the running loop's clock, so that timers and measurements agree."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


UidSource = Callable[[], str]
"""Returns a fresh RFC 4122 identifier at each call."""


def system_random() -> random.Random:
    """Randomness for jitter and placement, seeded by the operating system. Never for secrets."""
    return random.Random()  # noqa: S311


def uid_source(rng: random.Random) -> UidSource:
    """Version 4 identifiers drawn from *rng*: the same seed gives the same identifiers."""
    return lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4))
