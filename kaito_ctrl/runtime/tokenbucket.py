"""A token bucket: so many at once, and then one every so often."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """*burst* tokens at first, a new one every *refill* seconds until it is full again. Times are the caller's."""

    __slots__ = ("_at", "_burst", "_refill", "_tokens")

    def __init__(self, burst: int, refill: float, now: float) -> None:
        self._burst = burst
        self._refill = refill
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        self._fill(now)
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True

    def wait(self, now: float) -> float:
        """Seconds until there is a token."""
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) * self._refill)

    def full(self, now: float) -> bool:
        """Whether it might as well be forgotten."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(float(self._burst), self._tokens + (now - self._at) / self._refill)
        self._at = now
