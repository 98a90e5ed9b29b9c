"""The shell of a watch: it sends the requests that the state machine asks for, and tells the store what follows.

What follows from what is in :mod:`kaito_ctrl.runtime.watchstate`. Both lists and watches are taken in while they
arrive, in slices of a few milliseconds: no answer, however long, holds up the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

import msgspec

from kaito_api.meta import Resource
from kaito_ctrl.runtime.client import raise_for_status
from kaito_ctrl.runtime.codec import (
    LineSplitter,
    Record,
    decode_header,
    decode_record,
    decode_watch_line,
)
from kaito_ctrl.runtime.errors import ApiError, TransportError
from kaito_ctrl.runtime.listbody import ListBody
from kaito_ctrl.runtime.meta import collection_path
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.transport import Request, Transport
from kaito_ctrl.runtime.watchstate import (
    Advance,
    Backoff,
    Closed,
    EndReplace,
    Failed,
    Frame,
    Input,
    Items,
    Listing,
    Page,
    Remove,
    Silence,
    State,
    Streaming,
    Upsert,
    Waiting,
    Watching,
    Woke,
    initial,
    step,
)

__all__ = ["Reflector", "Sink", "WatchMetrics"]

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
PAGE_SIZE = 500
_INITIAL_SILENCE = 10.0
"""Seconds of silence after which initial events are believed to have ended without a word: servers that do end them
say so once their own cache is fresh, which takes them a few seconds at most."""
_EVENTS = {b'{"type":"%b","object":' % name.encode(): name for name in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")}
_PREFIXES = tuple(_EVENTS)


class Sink(Protocol):
    """What a watch feeds; see :mod:`kaito_ctrl.runtime.feed`."""

    def begin_replace(self) -> None: ...
    def upsert(self, record: Record, *, initial: bool) -> None: ...
    def remove(self, record: Record) -> None: ...
    def end_replace(self, version: str) -> None: ...
    def advance(self, version: str) -> None: ...
    def misread(self) -> None: ...


class WatchMetrics(Protocol):
    """Hears what a watch does; see :mod:`kaito_ctrl.runtime.metrics`."""

    def event(self, type: str) -> None:  # noqa: A002
        """One event of a watch."""
        ...

    def restarted(self, reason: str) -> None:
        """A watch ended, and another follows; *reason* is one of a few words."""
        ...

    def relisted(self) -> None:
        """The full content is asked for again."""
        ...


class Reflector:
    """Keeps a sink equal to the server's content of one kind, for as long as :meth:`run` runs.

    *namespace* is the one place of the scope that this reflector watches; ``None`` for all of it. ``timeout`` is how
    long a watch lasts (drawn between one and two times that, so that they do not end together); ``idle`` how long its
    silence is believed: servers send a bookmark about once a minute. A list is silent for a minute at most. All in
    seconds.
    """

    def __init__(
        self,
        transport: Transport,
        kind: type[Resource],
        sink: Sink,
        *,
        scope: Scope | None = None,
        namespace: str | None = None,
        rng: random.Random,
        streaming: bool = True,
        backoff: Backoff | None = None,
        timeout: float = 300.0,
        idle: float = 130.0,
        on_state: Callable[[State], None] | None = None,
        metrics: WatchMetrics | None = None,
        max_slice: float = 0.002,
    ) -> None:
        self.kind = kind
        self.scope = scope or Scope()
        self.namespace = namespace or self.scope.namespace
        self.state = initial(streaming=streaming)
        self.last_frame: float | None = None
        """When the server was last heard of, in the loop's time."""
        self._transport = transport
        self._sink = sink
        self._rng = rng
        self._backoff = backoff or Backoff()
        self._timeout = timeout
        self._idle = idle
        self._on_state = on_state
        self._metrics = metrics
        self._max_slice = max_slice
        self._slice_began = 0.0
        self._asked_for_all = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            match self.state:
                case Waiting() as wait:
                    await asyncio.sleep(self._backoff.seconds(wait, self._rng))
                    self._take(Woke())
                case Listing() as listing:
                    if not listing.token:
                        self._begin_replace()
                    self._take(await self._list(listing))
                case Streaming() | Watching() as watch:
                    if isinstance(watch, Streaming):
                        self._begin_replace()
                    ended = await self._watch(watch)
                    if ended is not None:
                        self._take(ended)

    def _begin_replace(self) -> None:
        if self._asked_for_all and self._metrics is not None:
            self._metrics.relisted()
        self._asked_for_all = True
        self._sink.begin_replace()

    def _take(self, seen: Input) -> None:
        before = self.state
        self.state, effects = step(before, seen)
        sink = self._sink
        for effect in effects:
            match effect:
                case Upsert(record, initial):
                    sink.upsert(record, initial=initial)
                case Remove(record):
                    sink.remove(record)
                case EndReplace(version):
                    sink.end_replace(version)
                case Advance(version):
                    sink.advance(version)
        if type(self.state) is not type(before) and self._on_state is not None:
            self._on_state(self.state)

    async def _breathe(self) -> None:
        """Let everybody else on this loop have a turn, if this slice has lasted long enough."""
        now = asyncio.get_running_loop().time()
        if now - self._slice_began > self._max_slice:
            await asyncio.sleep(0)
            self._slice_began = asyncio.get_running_loop().time()

    async def _list(self, state: Listing) -> Input:
        query = list(self.scope.query())
        if state.token:
            query += [("limit", str(PAGE_SIZE)), ("continue", state.token)]
        elif state.version:
            query.append(("resourceVersion", state.version))
        else:
            query.append(("limit", str(PAGE_SIZE)))
        body = ListBody()
        try:
            async with await self._transport.send(self._request(query, idle=min(self._idle, 60.0))) as response:
                await raise_for_status(response)
                chunks = response.chunks()
                while (chunk := await anext(chunks, None)) is not None:
                    self._heard()
                    await self._take_items(body, body.feed(chunk))
                await self._take_items(body, body.end())
        except (ApiError, TransportError) as error:
            return Failed(error)
        except ValueError as error:
            return Failed(TransportError(f"the list of {self.kind.plural} is not readable: {error}"))
        return Page(body.head)

    async def _take_items(self, body: ListBody, items: Iterator[Record]) -> None:
        for item in items:
            self._take(Items((item,)))
            await self._breathe()
        for _ in range(body.unreadable):
            self._sink.misread()
        body.unreadable = 0

    async def _watch(self, state: Streaming | Watching) -> Input | None:
        """Take in the events of one watch; what ended it, ``None`` if it was one of them."""
        seconds = self._timeout * (1.0 + self._rng.random())
        query = [
            *self.scope.query(),
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(int(seconds))),
        ]
        if isinstance(state, Streaming):
            query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
        else:
            query.append(("resourceVersion", state.version))
        loop = asyncio.get_running_loop()
        began, frames = loop.time(), 0
        try:
            async with await self._transport.send(self._request(query, idle=None, watching=True)) as response:
                try:
                    async with asyncio.timeout(self._idle):
                        await raise_for_status(response)
                except TimeoutError:
                    raise TransportError(f"HTTP {response.status}, and its reason did not come") from None
                splitter, chunks = LineSplitter(), response.chunks()
                while (chunk := await self._next(chunks)) is not None:
                    self._heard()
                    for line in splitter.feed(chunk):
                        seen = self._read_line(line)
                        if seen is None:
                            continue
                        if isinstance(seen, Failed):
                            return self._ended("error", seen)
                        frames += 1
                        self._take(seen)
                        if not isinstance(self.state, Streaming | Watching):
                            return None
                        await self._breathe()
        except TimeoutError:
            return self._ended("silence", Silence())
        except TransportError as error:
            # A connection that breaks after it has delivered is an ordinary end: go on from where we are, at once.
            return self._ended("broken", Closed(frames, loop.time() - began) if frames else Failed(error))
        except ApiError as error:
            return self._ended("refused", Failed(error))
        return self._ended("closed", Closed(frames, loop.time() - began))

    def _ended(self, reason: str, seen: Input) -> Input:
        if self._metrics is not None:
            self._metrics.restarted(reason)
        return seen

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """The next chunk of a watch, ``None`` at its end. Raises ``TimeoutError`` when it is silent for too long."""
        streaming = isinstance(self.state, Streaming)
        async with asyncio.timeout(min(self._idle, _INITIAL_SILENCE) if streaming else self._idle):
            return await anext(chunks, None)

    def _heard(self) -> None:
        self.last_frame = self._slice_began = asyncio.get_running_loop().time()

    def _read_line(self, line: bytes) -> Frame | Failed | None:
        """One line as an input; ``None`` for one that is no event at all."""
        try:
            type_, record, raw = _split_line(line)
        except ValueError:
            self._sink.misread()
            return None
        if record is None:
            return Failed(_error_of(raw))
        if self._metrics is not None:
            self._metrics.event(type_)
        ends = type_ == "BOOKMARK" and (record.header.annotations or {}).get(INITIAL_EVENTS_END) == "true"
        return Frame(type_, record, ends)

    def _request(self, query: list[tuple[str, str]], *, idle: float | None, watching: bool = False) -> Request:
        path = collection_path(self.kind, self.namespace)
        headers = {"accept": self.scope.accept(listing=not watching)}
        return Request("GET", path, tuple(query), headers, timeout=60.0, idle_timeout=idle)


def _split_line(line: bytes) -> tuple[str, Record | None, bytes]:
    """The type of an event, its object and the object's bytes; an ERROR has no object but those bytes.

    Raises ``ValueError`` for a line that is no event.
    """
    if line.startswith(_PREFIXES):
        # As every API server writes it. That the object ends where the line does, its decode proves.
        start = line.index(b",") + 10
        raw = line[start:-1] if line.endswith(b"}") else line[start : line.rindex(b"}")]
        try:
            return _EVENTS[line[:start]], decode_record(raw), raw
        except ValueError:
            pass
    event = decode_watch_line(line)
    raw = bytes(event.object)
    if event.type == "ERROR":
        return event.type, None, raw
    return event.type, Record(decode_header(raw), raw), raw


def _error_of(raw: bytes) -> ApiError:
    """The failure that an ERROR event tells of; whatever it looks like, it is one."""
    try:
        status = _status.decode(raw)
    except ValueError:
        status = _Status()
    details = status.details or _Details()
    return ApiError.of(status.code or 500, status.reason, status.message, retry_after=details.retry_after)


class _Details(msgspec.Struct, frozen=True):
    retry_after: float | None = msgspec.field(default=None, name="retryAfterSeconds")


class _Status(msgspec.Struct, frozen=True):
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


_status = msgspec.json.Decoder(_Status)
