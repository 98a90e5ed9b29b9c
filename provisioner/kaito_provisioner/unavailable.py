"""What the cloud has refused, remembered for every claim of the process.

A refused offering rests: for a minute, then for twice as long after each further refusal, for ten minutes at most.
When its rest is over, one caller may try it for all of them; the others wait for what comes of that. So an offering
that is never to be had is asked for some ten times in the first hour and six times in each later one, however many
claims want it. Calls that are under way when the first refusal arrives are not stopped, and count once.

A launch goes like this::

    for offering in registry.split(choose(...)).ready:
        if not registry.attempt(offering):  # somebody else was quicker
            continue
        try:
            instance = await cloud.create(replace(request, offerings=(offering,)))
        except OfferingError as error:
            registry.refused(offering, error)
            continue
        except BaseException:
            registry.abandon(offering)
            raise
        ...
    # All refused: split(...).waiting says why, and when to come back.

and ``registry.granted(offering)`` follows once the instance runs: that the cloud has begun to make one means nothing
where it finds out only then that it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kaito_provisioner.cloud import CapacityType, CloudError, Offering

__all__ = ["Resting", "Split", "UnavailableOfferings", "describe"]

_Key = tuple[str, CapacityType, tuple[str, ...]]


class Resting(NamedTuple):
    """An offering that is not worth trying now."""

    offering: Offering
    error: CloudError
    """The last refusal."""
    seconds: float
    """Until it is worth another try."""

    def __str__(self) -> str:
        """E.g. ``Standard_NC6s_v3 (spot): the region has none now``."""
        return f"{describe(self.offering)}: {self.error.message}"


class Split(NamedTuple):
    """Offerings, in the order in which they were given."""

    ready: tuple[Offering, ...]
    waiting: tuple[Resting, ...]

    @property
    def retry_after(self) -> float | None:
        """Seconds until the first of those that wait is worth a try."""
        return min((each.seconds for each in self.waiting), default=None)


@dataclass(slots=True)
class _Mark:
    error: CloudError
    refusals: int
    until: float
    since: float = 0.0
    """When it was refused last."""
    tried: bool = False
    """Whether somebody is finding out now."""


class UnavailableOfferings:
    """The registry. Everything in it is kept in memory: a process that starts anew asks once more."""

    def __init__(self, *, monotonic: Callable[[], float], first: float = 60.0, longest: float = 600.0) -> None:
        """*first* and *longest* are in seconds of *monotonic*."""
        self._monotonic = monotonic
        self._first = first
        self._longest = longest
        self._marks: dict[_Key, _Mark] = {}

    def split(self, offerings: Iterable[Offering]) -> Split:
        """Which of *offerings* are worth trying now, and what is known of the others."""
        ready: list[Offering] = []
        waiting: list[Resting] = []
        now = self._monotonic()
        for offering in offerings:
            mark = self._marks.get(_key(offering))
            if mark is None or mark.until <= now:
                ready.append(offering)
            else:
                waiting.append(Resting(offering, mark.error, mark.until - now))
        return Split(tuple(ready), tuple(waiting))

    def attempt(self, offering: Offering) -> bool:
        """Whether the caller may try *offering* now. Of one that was refused before, it is then the only one who may,
        until it says what came of it or as long as a refusal would count."""
        mark = self._marks.get(_key(offering))
        if mark is None:
            return True
        if mark.until > self._monotonic():
            return False
        mark.until = self._monotonic() + self._rest(mark.refusals + 1)
        mark.tried = True
        return True

    def abandon(self, offering: Offering) -> None:
        """The attempt came to nothing that says anything of *offering*: whoever wants it may try at once. What it was
        refused before counts on."""
        mark = self._marks.get(_key(offering))
        if mark is not None and mark.tried:
            mark.until = self._monotonic()
            mark.tried = False

    def refused(self, offering: Offering, error: CloudError) -> float:
        """The cloud has none of it. Returns for how many seconds it rests; longer than usual if the cloud asks so."""
        now = self._monotonic()
        mark = self._marks.setdefault(_key(offering), _Mark(error, 0, now))
        mark.error = error
        # While it rests, what arrives was asked for before the rest began: the same refusal, heard once more.
        if mark.tried or mark.until <= now:
            mark.refusals += 1
            mark.tried = False
            mark.since = now
            mark.until = now + self._rest(mark.refusals)
        mark.until = max(mark.until, now + (error.retry_after or 0.0))
        return mark.until - now

    def keep(self, offering: Offering) -> None:
        """What could not be made of it has not gone yet, so that nothing else could be tried: it rests on, until then
        and a while longer; but no longer than the longest rest since it was refused."""
        mark = self._marks.get(_key(offering))
        if mark is not None and not mark.tried:
            mark.until = max(mark.until, min(self._monotonic() + self._first, mark.since + self._longest))

    def granted(self, offering: Offering) -> None:
        """The cloud had one after all: it is as good as any other again. While it rests nobody can have asked for one,
        so what is heard of then was granted before the last refusal, and says nothing."""
        mark = self._marks.get(_key(offering))
        if mark is not None and (mark.tried or mark.until <= self._monotonic()):
            del self._marks[_key(offering)]

    def _rest(self, refusals: int) -> float:
        # Capped before the power is taken: a shortage of years would overflow a float.
        return min(self._longest, self._first * 2.0 ** min(refusals - 1, 32))


def describe(offering: Offering) -> str:
    """The offering in a message: its type, and whatever else is special about it."""
    special: list[str] = [offering.capacity_type] if offering.capacity_type != "on-demand" else []
    special += [f"in {', '.join(offering.zones)}"] if offering.zones else []
    return f"{offering.instance_type} ({', '.join(special)})" if special else offering.instance_type


def _key(offering: Offering) -> _Key:
    return offering.instance_type, offering.capacity_type, tuple(sorted(offering.zones))
