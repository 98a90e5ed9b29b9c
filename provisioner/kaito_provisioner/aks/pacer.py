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
"""Seconds, and tokens. Who comes back exactly when told is not too early by a rounding error."""
_SHORTEST, _LONGEST = 60.0, 600.0
"""Seconds. Whoever has longer to wait than the first looks in after a quarter of it, after the second at the latest: to
tell the place anew, and to be there in time when it counts, since who is sent away for longer is later."""
_KEPT = 30.0
"""Seconds for which a token is kept for one whose turn it is: who is told to come back comes a little later."""
_LOST = 300.0
"""Seconds after which who has not come back has lost the place."""


@dataclass(slots=True)
class _Waiting:
    turn: float
    """When its token is there, as far as could be told."""
    back: float
    """When it was told to come back."""


class Pacer:
    """A token bucket of *burst*, refilled by one each *interval* seconds, in front of a queue of keys."""

    def __init__(self, monotonic: Callable[[], float], *, burst: int, interval: float, of: str = "requests") -> None:
        """*of* is what is limited, in messages."""
        self._monotonic = monotonic
        self._burst = burst
        self._interval = interval
        self._of = of
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
        for lost in [key for key, each in self._waiting.items() if now > each.back + _LOST]:
            del self._waiting[lost]
        waiting = self._waiting.setdefault(key, _Waiting(now, now))
        place = list(self._waiting).index(key)
        # A token that nobody comes for goes to whoever is there: turns are lost by coming late, and none is wasted.
        before = list(self._waiting.values())[:place]
        kept = sum(each.turn <= now + _LEEWAY and now <= max(each.turn, each.back) + _KEPT for each in before)
        if now + _LEEWAY >= self._shut and self._tokens + _LEEWAY >= kept + 1:
            del self._waiting[key]
            self._tokens -= 1
            return
        # At least until the next token: who is not served now has others before it.
        delay = max(self._shut - now, (place + 1 - self._tokens) * self._interval, _KEPT if kept else 0.0)
        waiting.turn = now + delay
        wait = min(delay, max(_SHORTEST, delay / 4), _LONGEST)
        waiting.back = now + wait
        raise Throttled(
            f"{place + 1} of {len(self._waiting)} in the queue for AKS's limit on {self._of}, {_spoken(delay)} to go",
            fix=f"wait: after a burst of {self._burst}, there is one every {self._interval:g} s in each cluster",
            retry_after=wait,
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
        pause = self._interval if retry_after is None else retry_after
        # There is one token at the end of the pause, and no more: whoever else spends them is still there.
        self._tokens = 1.0 - pause / self._interval
        self._shut = max(self._shut, now + pause)
        self._waiting = {key: _Waiting(self._shut, self._shut)} | {k: w for k, w in self._waiting.items() if k != key}

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


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
