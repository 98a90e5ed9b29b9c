"""The life of one watch, as a pure state machine.

``step(state, input)`` says what happens next and what the store has to be told; ``state`` itself says which request
is due. Everything that can come from a server is an input, so that no answer, however odd, ends a watch: only
cancellation does. The table (states by inputs) is the one of a client-go reflector with three additions: a relist
compares instead of clearing, silence is an input, and a kind that is missing or forbidden is waited for.

==========  =======================================  ========================================================
state       input                                    next
==========  =======================================  ========================================================
Listing     items of a page                          Listing
Listing     end of a page with a continue token      Listing(next page)
Listing     end of the last page                     Watching(list's version); synced
Listing     410 (token expired)                      restart
Streaming   ADDED ...                                Streaming
Streaming   BOOKMARK that ends the initial events    Watching; synced
Streaming   refused (400, 405, 406, 415, 422)        Listing; streaming is not tried again
Streaming   BOOKMARK that ends nothing, or silence   Listing; streaming is not tried again
Streaming   end of stream                            back off, then Streaming; the second time, Listing
Watching    ADDED, MODIFIED, DELETED, BOOKMARK       Watching(its version)
Watching    end of stream                            Watching at once; after an empty one under 1 s: back off
Watching    silence                                  Watching at once (the connection is presumed dead)
Watching    410, as answer or as ERROR event         restart; the store keeps serving
Watching    any other refusal, for the third time    back off, then restart: it may be about the version
any         401, 5xx, transport error, other ERROR   back off, then the same again
any         429                                      wait as the server says (5 min at most), then the same again
any         403, 404                                 suspended: wait 10 s, doubling to 5 min; then restart
==========  =======================================  ========================================================

That a server does not stream lists shows in many ways. From 1.27 on, and with its gate off, it refuses
``sendInitialEvents``; from 1.19 on it refuses the ``resourceVersionMatch`` that goes with it (422). Before that, and
behind some aggregated API servers, it knows neither, and begins an ordinary watch that shows the present content but
never says where that ends: the first ordinary bookmark tells it, or that nothing comes any more.

To restart is to list by quorum read: by streaming from a server that is known to do so, else by Listing. A second 410
before any event has come backs off first. ``attempt`` counts what has failed since the last event, and ``gone`` the
410s among that: the first one after an outage is answered with a list at once, however long the outage was.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

from kaito_ctrl.runtime.codec import ListHead, Record
from kaito_ctrl.runtime.errors import ApiError, Forbidden, Gone, NotFound, TooManyRequests, TransportError, Unauthorized

__all__ = [
    "Advance",
    "Backoff",
    "Closed",
    "Effect",
    "EndReplace",
    "Failed",
    "Frame",
    "Input",
    "Items",
    "Listing",
    "Page",
    "Remove",
    "Silence",
    "State",
    "Streaming",
    "Upsert",
    "Waiting",
    "Watching",
    "Woke",
    "initial",
    "step",
]

_STREAMING_REFUSED = frozenset({400, 405, 406, 415, 422})
_REFUSALS = 3


@dataclass(frozen=True, slots=True)
class Listing:
    """A list is due. ``version`` "" asks for a quorum read, "0" for whatever the server has in memory."""

    version: str = "0"
    token: str = ""
    attempt: int = 0
    gone: int = 0


@dataclass(frozen=True, slots=True)
class Streaming:
    """A watch that begins with the present content (WatchList) is due, or running."""

    attempt: int = 0
    gone: int = 0


@dataclass(frozen=True, slots=True)
class Watching:
    """A watch from ``version`` is due, or running."""

    version: str
    attempt: int = 0
    streaming: bool = False
    """Whether the server is known to stream lists."""
    refusals: int = 0
    """How often in a row the server has refused, for reasons that may lie in ``version``."""
    gone: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Sleep first. ``seconds`` is a fixed wait; ``None`` means back off by ``attempt``. ``then`` follows."""

    then: Listing | Streaming | Watching
    attempt: int
    seconds: float | None = None
    suspended: bool = False
    reason: str = ""


State = Listing | Streaming | Watching | Waiting


@dataclass(frozen=True, slots=True)
class Items:
    """Items of a page arrived, as many as came at once."""

    items: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list is complete."""

    head: ListHead


class Frame(NamedTuple):
    """A watch event arrived: its type, its object, and whether it ends the initial events."""

    type: str
    record: Record
    ends_initial: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """The server ended the stream, after that many frames and seconds."""

    frames: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing came for longer than the server would ever be silent on a live connection."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A request was refused, broke, or an ERROR event came."""

    error: ApiError | TransportError


@dataclass(frozen=True, slots=True)
class Woke:
    """The wait is over."""


Input = Items | Page | Frame | Closed | Silence | Failed | Woke


class Upsert(NamedTuple):
    record: Record
    initial: bool = False


class Remove(NamedTuple):
    record: Record


@dataclass(frozen=True, slots=True)
class EndReplace:
    """The full content ends, as of ``version``: what was not seen is gone; the store is synced."""

    version: str


class Advance(NamedTuple):
    """Everything up to ``version`` has been seen."""

    version: str


Effect = Upsert | Remove | EndReplace | Advance


def initial(*, streaming: bool = True) -> State:
    """Where a watch begins. The first list may be served from the server's memory: it is only a starting point."""
    return Streaming() if streaming else Listing("0")


def _restart(state: Listing | Streaming | Watching) -> Listing | Streaming:
    match state:
        case Streaming() | Watching(streaming=True):
            return Streaming(state.attempt + 1, state.gone)
        case _:
            return Listing("", attempt=state.attempt + 1, gone=state.gone)


def _expired(state: Listing | Streaming | Watching) -> Listing | Streaming:
    # The server is there and answers: whatever failed before has nothing to do with how soon it may be asked to list.
    return _restart(replace(state, attempt=state.gone, gone=state.gone + 1))


def _again(state: Listing | Streaming | Watching) -> Listing | Streaming | Watching:
    # A list that broke half-way begins anew: its pages belong to one snapshot.
    if isinstance(state, Listing):
        return replace(state, token="", attempt=state.attempt + 1)
    return replace(state, attempt=state.attempt + 1)


def _moved(state: Watching, version: str) -> Watching:
    return Watching(version or state.version, 0, state.streaming)


def _listed_instead(state: Streaming) -> Listing:
    # Memory may serve the very first list alone: a later one must not lead back in time.
    return Listing("" if state.attempt else "0", attempt=state.attempt, gone=state.gone)


def _on_failure(state: Listing | Streaming | Watching, error: ApiError | TransportError) -> State:
    attempt = state.attempt + 1
    match error:
        case Gone() if state.gone or (isinstance(state, Listing) and not state.token):
            then = _expired(state)
            return Waiting(then, then.attempt, reason="Gone")
        case Gone():
            return _expired(state)
        case ApiError(code=code) if isinstance(state, Streaming) and code in _STREAMING_REFUSED:
            return _listed_instead(state)
        case TooManyRequests(retry_after=wait):
            seconds = wait if wait is not None and wait > 0 else None
            return Waiting(_again(state), attempt, seconds, reason="TooManyRequests")
        case Forbidden() | NotFound():
            return Waiting(_restart(state), attempt, suspended=True, reason=error.reason or type(error).__name__)
        case ApiError(reason=reason):
            again = _again(state)
            if isinstance(again, Watching) and not isinstance(error, Unauthorized):
                again = replace(again, refusals=again.refusals + 1)
                if again.refusals >= _REFUSALS:
                    return Waiting(_restart(state), attempt, reason=reason or f"HTTP {error.code}")
            return Waiting(again, attempt, reason=reason or f"HTTP {error.code}")
        case _:
            return Waiting(_again(state), attempt, reason=str(error))


def step(state: State, seen: Input) -> tuple[State, tuple[Effect, ...]]:
    """The next state, and what the store has to be told, in order. Pure.

    Raises ``ValueError`` for an input that the state cannot have asked for: that is a bug in the shell.
    """
    match state, seen:
        case Watching() as watching, Frame(event, record):
            version = record.header.resource_version
            match event:
                case "ADDED" | "MODIFIED":
                    return _moved(watching, version), (Upsert(record),)
                case "DELETED":
                    return _moved(watching, version), (Remove(record),)
                case "BOOKMARK":
                    return _moved(watching, version), (Advance(version),)
            return watching, ()  # a type that nobody has defined yet
        case Watching() as watching, Closed(frames, seconds):
            if frames == 0 and seconds < 1.0:
                return Waiting(_again(watching), watching.attempt + 1, reason="the watch closed at once"), ()
            return _moved(watching, watching.version), ()
        case Watching() as watching, Silence():
            return watching, ()
        case Listing(), Items(items):
            return state, tuple([Upsert(item, True) for item in items])
        case Listing() as listing, Page(head):
            if head.continue_:
                return replace(listing, token=head.continue_), ()
            version = head.resource_version
            return Watching(version, listing.attempt, gone=listing.gone), (EndReplace(version),)
        case Streaming() as streaming, Frame(event, record, ends_initial):
            match event:
                case "ADDED" | "MODIFIED":
                    return streaming, (Upsert(record, True),)
                case "DELETED":
                    return streaming, (Remove(record),)
                case "BOOKMARK" if ends_initial:
                    version = record.header.resource_version
                    then = Watching(version, streaming.attempt, streaming=True, gone=streaming.gone)
                    return then, (EndReplace(version),)
                case "BOOKMARK":
                    return _listed_instead(streaming), ()
            return streaming, ()
        case Streaming() as streaming, Silence():
            return _listed_instead(streaming), ()
        case Streaming(attempt, gone), Closed():
            begin = Streaming(1, gone) if attempt == 0 else Listing("", attempt=attempt, gone=gone)
            return Waiting(begin, attempt + 1, reason="the initial events broke off"), ()
        case (Listing() | Streaming() | Watching()) as asking, Failed(error):
            return _on_failure(asking, error), ()
        case Waiting(then=then), Woke():
            return then, ()
        case _:
            raise ValueError(f"{type(seen).__name__} cannot follow {type(state).__name__}")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, with full jitter: between 0 and ``base * factor ** attempt``, capped. Seconds.

    The figures are client-go's for a reflector, and 10 s to 5 min for a kind that is not there.
    """

    base: float = 0.8
    factor: float = 2.0
    cap: float = 30.0
    suspended_base: float = 10.0
    suspended_cap: float = 300.0

    def seconds(self, wait: Waiting, rng: random.Random) -> float:
        """How long to sleep for *wait*."""
        if wait.seconds is not None:
            # A server may ask for any number, and for what is none.
            return min(self.suspended_cap, wait.seconds) * (1.0 + 0.1 * rng.random())
        exponent = min(wait.attempt - 1, 32)
        if wait.suspended:
            return min(self.suspended_base * self.factor**exponent, self.suspended_cap)
        return rng.uniform(0.5, 1.0) * min(self.base * self.factor**exponent, self.cap)
