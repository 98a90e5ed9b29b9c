"""What a backend's author gives to the kit: a cloud that can be looked into, hurried and broken on purpose.

A bench stands for one account of one cloud, fresh and empty but for what the cloud brings along, as the provider sees
it: most often the real provider in front of a local stand-in for the cloud's API. It holds four things that no provider
can tell about itself: what really exists, the time, what goes wrong, and how many requests were made.

Time is the bench's. The kit never sleeps; it says :meth:`Bench.elapse`. A bench whose parts all take their time from
the event loop sleeps there, and is run on a loop whose clock jumps; a bench with sockets turns the clocks of its cloud
and its provider forward, and runs on any loop.

What a bench cannot do it refuses with :class:`NotApplicable`, and says why: the report shows which promises were not
looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol

from kaito_provisioner.cloud import CloudProvider, Offering

__all__ = ["CONSISTENT", "RETRY_AFTER", "SLOW", "Bench", "Existing", "Fault", "MakeBench", "NotApplicable", "Shortage"]

RETRY_AFTER = 120.0
"""Seconds that the cloud asks for when it throttles."""
SLOW = 20.0
"""Seconds that a slow answer takes."""
CONSISTENT = 60.0
"""Seconds after which a cloud has to show to everybody what it did. Whoever cannot know whether an instance was made
waits for so long before believing that there is none."""


class Fault(Enum):
    """What happens to one request to the cloud."""

    UNREACHABLE = "the cloud cannot be reached"
    """No connection; nothing was sent."""
    DROPPED = "the connection breaks before the request has taken effect"
    LOST = "the connection breaks after the request has taken effect"
    ERROR = "the cloud answers with a server error, and has done nothing"
    LATE_ERROR = "the cloud answers with a server error, and has done it all the same"
    THROTTLED = "the cloud throttles the request"
    """It asks to come back after :data:`RETRY_AFTER` seconds, and has done nothing."""
    FORBIDDEN = "the cloud forbids the request"
    """The identity may not, for now; nothing was done."""
    SLOW = "the cloud answers late"
    """It has taken effect, and the right answer comes after :data:`SLOW` seconds."""

    def __str__(self) -> str:
        return self.value


Shortage = Literal["capacity", "quota"]
"""What the cloud lacks: machines, or the subscription's right to more of them."""


@dataclass(frozen=True, slots=True)
class Existing:
    """One instance that really exists, counts against a limit or costs money, in whatever state, going ones too."""

    name: str
    uid: str
    """Of the claim that it was made for; empty if it is somebody else's."""
    provider_id: str = ""
    """What its node says in ``spec.providerID``; empty while there is no node."""


class NotApplicable(Exception):
    """This bench, or its cloud, knows no such thing; the text says which."""


class Bench(Protocol):
    """One cloud of its own, and the provider that is tried on it.

    Every case gets a bench of its own, and cases do not run at the same time.
    """

    name: str
    """The backend's, for the report."""
    offerings: Sequence[Offering]
    """Two at least, of different instance types, all of which the cloud can give, twenty of the first."""
    unavailable: Offering | None
    """One that the cloud's catalogue lists as not to be had; ``None`` if its catalogue tells no such thing."""
    faults: Collection[Fault]
    """Those that :meth:`fail` can do."""

    async def provider(self) -> CloudProvider:
        """The provider of a process that has just started: it shares nothing with those handed out earlier but the
        cloud. Earlier ones can still be used, as by a process that does not know yet that it has been replaced. The
        bench closes all of them at its end."""
        ...

    def truth(self) -> Sequence[Existing]:
        """What really exists now, foreign instances included, whatever the cloud's API shows. Not counted as a call."""
        ...

    @property
    def calls(self) -> int:
        """Requests that were made to the cloud's API so far, failed ones included. Those for tokens do not count."""
        ...

    async def elapse(self, seconds: float) -> None:
        """Let time pass, for the cloud and for the provider; what is due happens before it returns."""
        ...

    def fail(self, fault: Fault, *, nth: int = 1) -> None:
        """*fault* happens to the *nth* request to the cloud from now on, whatever it is about; 1 is the next one. May
        be said several times, for different requests."""
        ...

    def shortage(self, offering: Offering, what: Shortage | None, *, late: bool = False) -> None:
        """From now on the cloud has none of *offering*: it says so at once or, if *late*, accepts the request and finds
        out while it makes the instance, which then exists as a failed one. ``None`` ends the shortage."""
        ...

    def lag(self, seconds: float) -> None:
        """From now on the cloud's API shows an instance, and that it is gone, only *seconds* later. Less than
        :data:`CONSISTENT`."""
        ...

    async def foreign(self, name: str) -> None:
        """Somebody else makes an instance of that name, in the same place, without the protocol."""
        ...


MakeBench = Callable[[], AbstractAsyncContextManager[Bench]]
"""Sets up a bench, and takes it down. Called once per case, and once per life where a case goes through many."""
