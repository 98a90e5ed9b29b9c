"""Which fault strikes where: drawn from a seed, enumerated, or replayed from what an earlier run has recorded.

A place has an address that a later run finds again: the n-th call of one run of a process, the n-th chunk of that
call's answer, or a moment in virtual time. So the faults of a run that went wrong are a list that can be printed,
replayed and shortened. What is drawn for a place depends on the seed and on its address alone, and not on what was
drawn before: to leave out one fault does not move all the others.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = [
    "CALM",
    "KINDS",
    "STORMY",
    "TIMED",
    "Fault",
    "FixedPlan",
    "Plan",
    "RandomPlan",
    "Recording",
    "Spot",
    "SpotKind",
    "draws",
    "parse_faults",
    "shrink",
    "single_faults",
]

SpotKind = Literal["read", "list", "write", "watch", "chunk"]


@dataclass(frozen=True, slots=True)
class Spot:
    """A place where a fault may strike. Its address is ``a#0/12`` for a call, ``a#0/12~3`` for a chunk of its
    answer."""

    address: str
    kind: SpotKind
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, where, and for how many seconds (or by how many versions) if that means anything."""

    kind: str
    where: str
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}={self.where}" + (f"+{self.amount!r}" if self.amount else "")


def draws(seed: object, address: str) -> tuple[float, float]:
    """Two numbers from [0, 1) that depend on *seed* and *address* alone."""
    digest = hashlib.blake2b(f"{seed}|{address}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") / 2**64, int.from_bytes(digest[8:], "big") / 2**64


def parse_faults(text: str) -> list[Fault]:
    """The faults that a run has printed, separated by blanks. Raises ``ValueError``."""
    faults = []
    for word in text.split():
        kind, equals, rest = word.partition("=")
        where, _, amount = rest.partition("+")
        if not equals or kind not in {*_ALL, *TIMED}:
            raise ValueError(f"{word!r} is no fault: say kind=where or kind=where+amount")
        faults.append(Fault(kind, where, float(amount or 0.0)))
    return faults


_CALL: dict[str, tuple[float, float]] = {
    "refused": (0, 0),  # it never reaches the server
    "throttled": (1, 5),  # 429 and the seconds of its Retry-After, instead of being carried out
    "error": (0, 0),  # 500, the same
    "unavailable": (0, 0),  # 503, the same
    "unauthorized": (0, 0),  # 401, the same
    "slow": (0.05, 90),  # it leaves late, perhaps after its sender has given up
    "late": (0.05, 90),  # its answer is late
    "broken": (0, 0),  # its answer breaks off half-way
    "pause": (0.5, 60),  # the process does not run for a while, from just before it leaves
    "crash": (0, 0),  # the process is killed before it leaves
}
_WRITE: dict[str, tuple[float, float]] = {
    "lost": (0, 0),  # carried out, and the answer is lost
    "timeout": (0, 0),  # carried out, and the answer is a gateway's 504
    "crash-after": (0, 0),  # carried out, and the process is killed before the answer comes
    "conflict": (0, 0),  # somebody else writes to the object just before
}
_LIST: dict[str, tuple[float, float]] = {
    "stale": (1, 40),  # answered by a server that is so many versions behind, where the request allows that
    "too-large": (0, 0),  # the server has not seen the version that is asked for
    "expired": (0, 0),  # 410
    "paged": (1, 3),  # in pages of so many objects at most
}
_WATCH: dict[str, tuple[float, float]] = {"too-large": (0, 0), "expired": (0, 0)}
_CHUNK: dict[str, tuple[float, float]] = {
    "cut": (0, 0),  # the stream breaks off
    "expired": (0, 0),  # an ERROR event with 410 ends it
    "lag": (0.05, 20),  # it is late
    "freeze": (10, 300),  # it is very late
    "silent": (0, 0),  # nothing ever comes again
    "duplicate": (0, 0),  # it comes twice
    "coalesce": (0.5, 20),  # of several changes of an object in that time only the last is seen
}
KINDS: Mapping[SpotKind, Mapping[str, tuple[float, float]]] = {
    "read": _CALL,
    "list": {**_CALL, **_LIST},
    "write": {**_CALL, **_WRITE},
    "watch": {**_CALL, **_WATCH},
    "chunk": _CHUNK,
}
"""Which faults can strike at each kind of spot, and the bounds of their amounts."""
TIMED: Mapping[str, tuple[float, float]] = {
    "crash-at": (0, 20),  # killed, and started again so much later
    "stop-at": (0, 20),  # asked to stop, and started again so much later
    "loop-at": (0.1, 5),  # a crash loop: killed three times, each so long after its start
    "pause-at": (1, 90),  # does not run for so long
    "starve-at": (5, 60),  # one call a second is let through
    "expire-at": (5, 60),  # its token is not accepted
    "outage-at": (5, 60),  # nothing gets through, and its streams break
    "failing-at": (5, 120),  # every write is answered by 500
    "jump-at": (-86_400, 86_400),  # its wall clock is set
}
"""Faults at a moment instead of a call: their address is ``a@12.5``."""
_ALL = {kind for kinds in KINDS.values() for kind in kinds}

CALM: Mapping[str, float] = {}
STORMY: Mapping[str, float] = {
    "refused": 0.02,
    "throttled": 0.005,
    "error": 0.005,
    "unavailable": 0.01,
    "unauthorized": 0.003,
    "slow": 0.02,
    "late": 0.02,
    "broken": 0.005,
    "pause": 0.003,
    "crash": 0.002,
    "lost": 0.03,
    "timeout": 0.01,
    "crash-after": 0.005,
    "conflict": 0.03,
    "stale": 0.3,
    "too-large": 0.05,
    "expired": 0.05,
    "paged": 0.3,
    "cut": 0.02,
    "lag": 0.3,
    "freeze": 0.01,
    "silent": 0.005,
    "duplicate": 0.03,
    "coalesce": 0.1,
}
"""How likely each fault is at each spot where it can strike."""


class Plan(Protocol):
    """Answers for each spot, in the order in which a run comes to them."""

    def at(self, spot: Spot) -> Fault | None: ...


class RandomPlan:
    """Draws by *rates* until *until* (virtual seconds), and records what it has drawn in :attr:`faults`."""

    def __init__(self, seed: object, rates: Mapping[str, float] = STORMY, *, until: float = math.inf) -> None:
        self._seed = seed
        self._until = until
        self._rates = {
            kind: [(name, rates[name], bounds) for name, bounds in kinds.items() if rates.get(name)]
            for kind, kinds in KINDS.items()
        }
        self.faults: list[Fault] = []

    def at(self, spot: Spot) -> Fault | None:
        if spot.now >= self._until:
            return None
        draw, share = draws(self._seed, spot.address)
        for name, rate, bounds in self._rates[spot.kind]:
            draw -= rate
            if draw < 0:
                fault = Fault(name, spot.address, _amount(bounds, share))
                self.faults.append(fault)
                return fault
        return None

    def timed(self, processes: Sequence[str], mean: Mapping[str, float]) -> list[Fault]:
        """Moments for faults of each kind of *mean* (seconds between two, over all *processes*), in order of time."""
        drawn: list[tuple[float, Fault]] = []
        for kind, seconds in mean.items():
            rng = random.Random(f"{self._seed}|{kind}")  # noqa: S311
            moment = rng.expovariate(1 / seconds)
            while moment < self._until:
                where = f"{rng.choice(processes)}@{moment:.3f}"
                drawn.append((moment, Fault(kind, where, _amount(TIMED[kind], rng.random()))))
                moment += rng.expovariate(1 / seconds)
        found = [fault for _, fault in sorted(drawn, key=lambda pair: pair[0])]
        self.faults += found
        return found


def _amount(bounds: tuple[float, float], share: float) -> float:
    low, high = bounds
    if high <= 0:
        return 0.0
    if low < 0:
        return round(low + (high - low) * share, 3)
    # Small ones are as likely as large ones: most faults are short, and the long ones are the interesting ones.
    return round(low + math.exp(share * math.log(high - low + 1)) - 1, 3)


class FixedPlan:
    """Exactly these faults, by address."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.faults = list(faults)
        self._by_address = {fault.where: fault for fault in self.faults}

    def at(self, spot: Spot) -> Fault | None:
        fault = self._by_address.get(spot.address)
        return fault if fault is not None and fault.kind in KINDS[spot.kind] else None

    def timed(self) -> list[Fault]:
        """The faults at a moment, in order of time."""
        found = [fault for fault in self.faults if fault.kind in TIMED]
        return sorted(found, key=lambda fault: float(fault.where.partition("@")[2]))


class Recording:
    """No faults at all, and a note of every spot that a run comes to until *until* (virtual seconds)."""

    def __init__(self, *, until: float = math.inf) -> None:
        self.until = until
        self.faults: list[Fault] = []
        self.spots: list[Spot] = []

    def at(self, spot: Spot) -> Fault | None:
        if spot.now < self.until:
            self.spots.append(spot)
        return None


def single_faults(spots: Iterable[Spot], kinds: Iterable[str] | None = None) -> list[Fault]:
    """Every fault that can strike at one of *spots*, alone: of each kind (or of *kinds*), with a middling amount."""
    chosen = None if kinds is None else set(kinds)
    return [
        Fault(name, spot.address, _amount((low, high), 0.5))
        for spot in spots
        for name, (low, high) in KINDS[spot.kind].items()
        if chosen is None or name in chosen
    ]


def shrink(faults: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool], *, tries: int = 200) -> list[Fault]:
    """A shorter list that *fails* as well, found by leaving out ever smaller parts; the same list if there is none."""
    left = list(faults)
    size = max(len(left) // 2, 1)
    while left and tries > 0:
        start, shorter = 0, False
        while start < len(left) and tries > 0:
            rest = left[:start] + left[start + size :]
            tries -= 1
            if fails(rest):
                left, shorter = rest, True
            else:
                start += size
        if size == 1 and not shorter:
            break
        size = max(size // 2, 1)
    return left
