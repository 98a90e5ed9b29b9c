"""The life of one watch, as a pure state machine.

``step(state, input)`` says what happens next and what the store has to be told; ``state`` itself says which request
is due. Everything that can come from a server is an input, so that no answer, however odd, ends a watch: only
cancellation does. The table (states by inputs) is the one of a client-go reflector with three additions: a relist
compares instead of clearing, silence is an input, and a kind that is missing or forbidden is waited for.

==========  =======================================  ========================================================
state       input                                    next
==========  =======================================  ========================================================
Listing     page with a continue token               Listing(next page)
Listing     last page                                Watching(list's version); synced
Listing     410 (token expired)                      restart
Streaming   ADDED ...                                Streaming
Streaming   BOOKMARK that ends the initial events    Watching; synced
Streaming   refused (400, 404, 405, 415, 422)        Listing; streaming is not tried again
Watching    ADDED, MODIFIED, DELETED, BOOKMARK       Watching(its version)
Watching    end of stream                            Watching at once; after an empty one under 1 s: back off
Watching    silence                                  Watching at once (the connection is presumed dead)
Watching    410, as answer or as ERROR event         restart; the store keeps serving
Watching    any other refusal, for the third time    back off, then restart: it may be about the version
any         401, 5xx, transport error, other ERROR   back off, then the same again
any         429                                      wait as long as the server says, then the same again
any         403, 404                                 suspended: wait 10 s, doubling to 5 min; then restart
==========  =======================================  ========================================================

To restart is to list by quorum read: by streaming from a server that is known to do so, else by Listing. A second 410
before any event has come backs off first. ``attempt`` counts what has failed since the last event.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from kaito_ctrl.runtime.codec import ListHead
from kaito_ctrl.runtime.errors import ApiError, Forbidden, Gone, NotFound, TooManyRequests, TransportError, Unauthorized

__all__ = [
    "Advance",
    "Backoff",
    "BeginReplace",
    "Closed",
    "Effect",
    "EndReplace",
    "Failed",
    "Frame",
    "Input",
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

_STREAMING_REFUSED = frozenset({400, 404, 405, 415, 422})
_REFUSALS = 3


@dataclass(frozen=True, slots=True)
class Listing:
    """A list is due. ``version`` "" asks for a quorum read, "0" for whatever the server has in memory."""

    version: str = "0"
    token: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Streaming:
    """A watch that begins with the present content (WatchList) is due, or running."""

    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Watching:
    """A watch from ``version`` is due, or running."""

    version: str
    attempt: int = 0
    streaming: bool = False
    """Whether the server is known to stream lists."""
    refusals: int = 0
    """How often in a row the server has refused, for reasons that may lie in ``version``."""


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
class Page:
    """A page of a list arrived."""

    head: ListHead
    items: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """A watch event arrived: its type, its object's bytes and version, and whether it ends the initial events."""

    type: str
    raw: bytes
    version: str
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


Input = Page | Frame | Closed | Silence | Failed | Woke


@dataclass(frozen=True, slots=True)
class BeginReplace:
    """A full content begins: note what is seen from here on."""


@dataclass(frozen=True, slots=True)
class Upsert:
    raw: bytes
    initial: bool = False


@dataclass(frozen=True, slots=True)
class Remove:
    raw: bytes


@dataclass(frozen=True, slots=True)
class EndReplace:
    """The full content ends, as of ``version``: what was not seen is gone; the store is synced."""

    version: str


@dataclass(frozen=True, slots=True)
class Advance:
    """Everything up to ``version`` has been seen."""

    version: str


Effect = BeginReplace | Upsert | Remove | EndReplace | Advance


def initial(*, streaming: bool) -> State:
    """Where a watch begins. The first list may be served from the server's memory: it is only a starting point."""
    return Streaming() if streaming else Listing("0")


def _restart(state: Listing | Streaming | Watching) -> Listing | Streaming:
    match state:
        case Streaming(attempt) | Watching(attempt=attempt, streaming=True):
            return Streaming(attempt + 1)
        case _:
            return Listing("", attempt=state.attempt + 1)


def _again(state: Listing | Streaming | Watching) -> Listing | Streaming | Watching:
    # A list that broke half-way begins anew: its pages belong to one snapshot.
    if isinstance(state, Listing):
        return replace(state, token="", attempt=state.attempt + 1)
    return replace(state, attempt=state.attempt + 1)


def _moved(state: Watching, version: str) -> Watching:
    return replace(state, version=version or state.version, attempt=0, refusals=0)


def _on_failure(state: Listing | Streaming | Watching, error: ApiError | TransportError) -> State:
    attempt = state.attempt + 1
    match error:
        case Gone() if state.attempt or (isinstance(state, Listing) and not state.token):
            return Waiting(_restart(state), attempt, reason="Gone")
        case Gone():
            return _restart(state)
        case ApiError(code=code) if isinstance(state, Streaming) and code in _STREAMING_REFUSED:
            # Memory may serve the very first list alone: a later one must not lead back in time.
            return Listing("" if state.attempt else "0", attempt=state.attempt)
        case TooManyRequests(retry_after=wait):
            return Waiting(_again(state), attempt, wait or None, reason="TooManyRequests")
        case Forbidden() | NotFound():
            return Waiting(_restart(state), attempt, suspended=True, reason=error.reason or type(error).__name__)
        case ApiError(reason=reason):
            then = _again(state)
            if isinstance(then, Watching) and not isinstance(error, Unauthorized):
                then = replace(then, refusals=then.refusals + 1)
                if then.refusals >= _REFUSALS:
                    return Waiting(_restart(state), attempt, reason=reason or f"HTTP {error.code}")
            return Waiting(then, attempt, reason=reason or f"HTTP {error.code}")
        case _:
            return Waiting(_again(state), attempt, reason=str(error))


def step(state: State, seen: Input) -> tuple[State, tuple[Effect, ...]]:
    """The next state, and what the store has to be told, in order. Pure.

    Raises ``ValueError`` for an input that the state cannot have asked for: that is a bug in the shell.
    """
    match state, seen:
        case Waiting(then=then), Woke():
            return then, ()
        case (Listing() | Streaming() | Watching()) as asking, Failed(error):
            return _on_failure(asking, error), ()
        case Listing(token=token, attempt=attempt) as listing, Page(head, items):
            effects: list[Effect] = [] if token else [BeginReplace()]
            effects += [Upsert(item, initial=True) for item in items]
            if head.continue_:
                return replace(listing, token=head.continue_), tuple(effects)
            effects.append(EndReplace(head.resource_version))
            return Watching(head.resource_version, attempt), tuple(effects)
        case Streaming(attempt), Frame("BOOKMARK", version=version, ends_initial=True):
            return Watching(version, attempt, streaming=True), (EndReplace(version),)
        case Streaming(), Frame("BOOKMARK"):
            return state, ()
        case Streaming(), Frame("ADDED" | "MODIFIED", raw):
            return state, (Upsert(raw, initial=True),)
        case Streaming(), Frame("DELETED", raw):
            return state, (Remove(raw),)
        case Streaming(attempt), Closed() | Silence():
            return Waiting(Streaming(attempt + 1), attempt + 1, reason="the initial events broke off"), ()
        case Watching() as watching, Frame("ADDED" | "MODIFIED", raw, version):
            return _moved(watching, version), (Upsert(raw),)
        case Watching() as watching, Frame("DELETED", raw, version):
            return _moved(watching, version), (Remove(raw),)
        case Watching() as watching, Frame("BOOKMARK", version=version):
            return _moved(watching, version), (Advance(version),)
        case Watching() as watching, Closed(frames, seconds):
            if frames == 0 and seconds < 1.0:
                return Waiting(_again(watching), watching.attempt + 1, reason="the watch closed at once"), ()
            return _moved(watching, watching.version), ()
        case Watching() as watching, Silence():
            return watching, ()
        case (Streaming() | Watching()) as current, Frame():
            return current, ()  # an event type that nobody has defined yet
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
            return wait.seconds * (1.0 + 0.1 * rng.random())
        exponent = min(wait.attempt - 1, 32)
        if wait.suspended:
            return min(self.suspended_base * self.factor**exponent, self.suspended_cap)
        return rng.uniform(0.5, 1.0) * min(self.base * self.factor**exponent, self.cap)
