"""Work that ends when its client goes away, and answers that begin before they are complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from kaito_presets.inference.errors import ServeError, error_body, error_response

__all__ = ["CLIENT_CLOSED", "ClientGone", "EventStream", "unless_gone"]

CLIENT_CLOSED = 499
"""The status of a request whose client left: nobody sees it but the log and the metrics."""

_T = TypeVar("_T")


class ClientGone(Exception):  # an event, not a fault
    """The client closed the connection before its answer was ready."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of *work*, which is cancelled when the client disconnects: then raises :class:`ClientGone`.

    The request's body must have been read: from here on *receive* can only say that the client has gone.
    """
    async with asyncio.TaskGroup() as group:
        job = group.create_task(_caught(work))
        watch = group.create_task(_disconnected(receive))
        await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
        job.cancel()
        watch.cancel()
    if job.cancelled():
        raise ClientGone
    value, error = job.result()
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # without an error there is a value


async def _caught(work: Coroutine[Any, Any, _T]) -> tuple[_T | None, Exception | None]:
    # A task group would wrap the error and cancel its siblings; here it is one of two ordinary outcomes.
    try:
        return await work, None
    except Exception as error:  # noqa: BLE001  # handed to the caller, who raises it
        return None, error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events from an async generator of JSON texts, ended by ``[DONE]``.

    The status goes out with the first event: an error before it is an ordinary error answer, with its status; after
    it, an error is one more event. The generator is closed whatever happens, and at once when the client goes.
    """

    media_type = "text/event-stream"

    def __init__(self, events: Callable[[], AsyncGenerator[str, None]], path: str) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._path = path
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._pump(scope, receive, send))
        except ClientGone:
            if not self._started:
                await Response(status_code=CLIENT_CLOSED)(scope, receive, send)

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events()) as events:
                async for event in events:
                    await self._emit(send, event)
        except ServeError as error:
            if not self._started:
                await error_response(error, self._path)(scope, receive, send)
                return
            rendered = JSONResponse(error_body(error, self._path)).body
            await self._emit(send, bytes(rendered).decode())
        await self._emit(send, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _emit(self, send: Send, event: str) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
