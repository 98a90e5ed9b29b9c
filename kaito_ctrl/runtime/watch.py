"""The shell of a watch: it sends the requests that the state machine asks for, and tells the store what follows.

What follows from what is in :mod:`kaito_ctrl.runtime.watchstate`, whose names are here as well.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from kaito_api.meta import Resource
from kaito_ctrl.runtime.client import raise_for_status
from kaito_ctrl.runtime.codec import (
    LineSplitter,
    decode_header,
    decode_json,
    decode_list,
    decode_watch_line,
)
from kaito_ctrl.runtime.errors import ApiError, TransportError
from kaito_ctrl.runtime.meta import collection_path
from kaito_ctrl.runtime.transport import Request, Transport
from kaito_ctrl.runtime.watchstate import (
    Advance,
    Backoff,
    BeginReplace,
    Closed,
    EndReplace,
    Failed,
    Frame,
    Input,
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

__all__ = [
    "Advance",
    "Backoff",
    "BeginReplace",
    "Closed",
    "EndReplace",
    "Failed",
    "Frame",
    "Input",
    "Listing",
    "Page",
    "Reflector",
    "Remove",
    "Scope",
    "Silence",
    "Sink",
    "State",
    "Streaming",
    "Upsert",
    "Waiting",
    "Watching",
    "initial",
    "step",
]

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
PAGE_SIZE = 500


class Sink(Protocol):
    """What a watch feeds; see :mod:`kaito_ctrl.runtime.store`."""

    def begin_replace(self) -> None: ...
    def upsert(self, raw: bytes, *, initial: bool) -> None: ...
    def remove(self, raw: bytes) -> None: ...
    def end_replace(self, version: str) -> None: ...
    def advance(self, version: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Scope:
    """Which objects of a kind are watched: one namespace or all, and by which selectors."""

    namespace: str | None = None
    labels: str = ""
    fields: str = ""

    def query(self) -> tuple[tuple[str, str], ...]:
        """The scope as query parameters."""
        pairs = (("labelSelector", self.labels), ("fieldSelector", self.fields))
        return tuple((key, value) for key, value in pairs if value)


class Reflector:
    """Keeps a sink equal to the server's content of one kind, for as long as :meth:`run` runs.

    ``timeout`` is how long a watch lasts (drawn between one and two times that, so that they do not end together);
    ``idle`` how long its silence is believed: servers send a bookmark about once a minute. A list is silent for a
    minute at most. All in seconds.
    """

    def __init__(
        self,
        transport: Transport,
        kind: type[Resource],
        sink: Sink,
        *,
        scope: Scope | None = None,
        rng: random.Random,
        streaming: bool = False,
        backoff: Backoff | None = None,
        timeout: float = 300.0,
        idle: float = 130.0,
        on_state: Callable[[State], None] | None = None,
        max_slice: float = 0.005,
    ) -> None:
        self.kind = kind
        self.scope = scope or Scope()
        self.state = initial(streaming=streaming)
        self.last_frame: float | None = None
        self._transport = transport
        self._sink = sink
        self._rng = rng
        self._backoff = backoff or Backoff()
        self._timeout = timeout
        self._idle = idle
        self._list_idle = min(idle, 60.0)
        self._on_state = on_state
        self._max_slice = max_slice

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            match self.state:
                case Waiting() as wait:
                    await asyncio.sleep(self._backoff.seconds(wait, self._rng))
                    await self._take(Woke())
                case Listing() as listing:
                    await self._take(await self._list(listing))
                case Streaming() | Watching() as open_:
                    if isinstance(open_, Streaming):
                        self._sink.begin_replace()
                    async with aclosing(self._watch(open_)) as stream:
                        async for seen in stream:
                            await self._take(seen)

    async def _take(self, seen: Input) -> None:
        before = type(self.state)
        self.state, effects = step(self.state, seen)
        loop = asyncio.get_running_loop()
        self.last_frame = began = loop.time()
        for effect in effects:
            match effect:
                case Upsert(raw, initial):
                    self._sink.upsert(raw, initial=initial)
                case Remove(raw):
                    self._sink.remove(raw)
                case BeginReplace():
                    self._sink.begin_replace()
                case EndReplace(version):
                    self._sink.end_replace(version)
                case Advance(version):
                    self._sink.advance(version)
            if len(effects) > 1 and loop.time() - began > self._max_slice:
                await asyncio.sleep(0)  # a long list must not stall everybody else on this loop
                began = loop.time()
        if self._on_state is not None and type(self.state) is not before:
            self._on_state(self.state)

    async def _list(self, state: Listing) -> Input:
        query = list(self.scope.query())
        if state.token:
            query += [("limit", str(PAGE_SIZE)), ("continue", state.token)]
        elif state.version:
            query.append(("resourceVersion", state.version))
        else:
            query.append(("limit", str(PAGE_SIZE)))
        try:
            async with await self._transport.send(self._request(query, idle=self._list_idle)) as response:
                await raise_for_status(response)
                head, items = decode_list(await response.read())
        except (ApiError, TransportError) as error:
            return Failed(error)
        except ValueError as error:
            return Failed(TransportError(f"the list of {self.kind.plural} is not readable: {error}"))
        return Page(head, tuple(items))

    async def _watch(self, state: Streaming | Watching) -> AsyncGenerator[Input, None]:
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
        # Whatever is no frame ends the stream: the state that follows from it asks for another one.
        loop = asyncio.get_running_loop()
        began, frames = loop.time(), 0
        try:
            async with await self._transport.send(self._request(query, idle=None)) as response:
                try:
                    async with asyncio.timeout(self._idle):
                        await raise_for_status(response)
                except TimeoutError:
                    raise TransportError(f"HTTP {response.status}, and its reason did not come") from None
                splitter = LineSplitter()
                chunks = response.chunks()
                while True:
                    try:
                        async with asyncio.timeout(self._idle):
                            chunk = await anext(chunks, None)
                    except TimeoutError:
                        yield Silence()
                        return
                    if chunk is None:
                        break
                    for line in splitter.feed(chunk):
                        seen = _read_line(line)
                        if seen is None:
                            continue
                        yield seen
                        if isinstance(seen, Failed):
                            return
                        frames += 1
        except (ApiError, TransportError) as error:
            # A connection that breaks after it has delivered is an ordinary end: go on from where we are, at once.
            yield Closed(frames, loop.time() - began) if frames and isinstance(error, TransportError) else Failed(error)
            return
        yield Closed(frames, loop.time() - began)

    def _request(self, query: list[tuple[str, str]], *, idle: float | None) -> Request:
        path = collection_path(self.kind, self.scope.namespace)
        return Request("GET", path, tuple(query), {"accept": "application/json"}, timeout=60.0, idle_timeout=idle)


def _read_line(line: bytes) -> Frame | Failed | None:
    """One line as an input; ``None`` for one that is no event at all."""
    try:
        event = decode_watch_line(line)
    except ValueError:
        return None
    raw = bytes(event.object)
    if event.type == "ERROR":
        try:
            status = decode_json(raw)
        except ValueError:
            status = {}
        code = status.get("code") or 500
        retry_after = (status.get("details") or {}).get("retryAfterSeconds")
        return Failed(
            ApiError.of(code, status.get("reason") or "", status.get("message") or "", retry_after=retry_after)
        )
    try:
        header = decode_header(raw)
    except ValueError:
        return None
    ends = event.type == "BOOKMARK" and (header.annotations or {}).get(INITIAL_EVENTS_END) == "true"
    return Frame(event.type, raw, header.resource_version, ends)
