"""Keeps to the service's limits: a bucket of tokens, and a queue of those that wait for one.

What exceeds a limit of AKS is answered 429, with the same ``Retry-After`` for everybody, and so all come back at once
to be refused again. So whoever wants something waits here instead: first come, first served, and everybody is told the
place and the time. Nothing sleeps: who is told to wait comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kaito_provisioner.cloud import Throttled

__all__ = ["Pacer"]

_LEEWAY = 1e-6
"""Seconds. Who comes back exactly when told is not too early by a rounding error."""


@dataclass(slots=True)
class _Waiting:
    due: float
    seen: float


class Pacer:
    """A token bucket of *burst*, refilled by one each *interval* seconds, in front of a queue of keys."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        *,
        burst: int,
        interval: float,
        of: str = "requests",
        grace: float = 60.0,
    ) -> None:
        """*of* is what is limited, in messages. *grace* seconds after its time, a key that has not come back has lost
        its place."""
        self._monotonic = monotonic
        self._burst = burst
        self._interval = interval
        self._of = of
        self._grace = grace
        self._tokens = float(burst)
        self._filled: float | None = None
        self._shut = 0.0
        self._waiting: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def take(self, key: str) -> None:
        """Let *key* pass, for one token. Raises ``Throttled`` with its place in the queue, which it then keeps."""
        now = self._refill()
        self._forget(now)
        waiting = self._waiting.setdefault(key, _Waiting(now, now))
        waiting.seen = now
        place = list(self._waiting).index(key)
        if now + _LEEWAY >= self._shut and self._tokens + _LEEWAY >= place + 1:
            del self._waiting[key]
            self._tokens -= 1
            return
        delay = max(self._shut - now, 0.0, (place + 1 - self._tokens) * self._interval)
        waiting.due = now + delay
        raise Throttled(
            f"{place + 1} of {len(self._waiting)} in the queue for AKS's limit on {self._of}, {_spoken(delay)} to go",
            fix=f"wait: after a burst of {self._burst}, there is one every {self._interval:g} s in each cluster",
            retry_after=delay,
        )

    @contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Around a request of *key*'s, which may pass now: raises ``Throttled`` as :meth:`take` does if it may not."""
        self.take(key)
        try:
            yield
        except Throttled as error:
            self.refused(key, error.retry_after)
            raise

    def refused(self, key: str, retry_after: float | None) -> None:
        """The service throttled *key* all the same: others spend from the same bucket. It is first in the queue."""
        now = self._refill()
        delay = self._interval if retry_after is None else retry_after
        # There is one token at the end of the pause, and no more: whoever else spends them is still there.
        self._tokens = 1.0 - delay / self._interval
        self._shut = max(self._shut, now + delay)
        self._waiting = {key: _Waiting(self._shut, now), **{k: w for k, w in self._waiting.items() if k != key}}

    def give_back(self) -> None:
        """Who passed did not reach the service: nothing was spent."""
        self._tokens = min(float(self._burst), self._tokens + 1)

    def leave(self, key: str) -> None:
        """*key* wants nothing any more."""
        self._waiting.pop(key, None)

    def _refill(self) -> float:
        now = self._monotonic()
        if self._filled is not None:
            self._tokens = min(float(self._burst), self._tokens + (now - self._filled) / self._interval)
        self._filled = now
        return now

    def _forget(self, now: float) -> None:
        gone = [key for key, waiting in self._waiting.items() if now > max(waiting.due, waiting.seen) + self._grace]
        for key in gone:
            del self._waiting[key]


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
