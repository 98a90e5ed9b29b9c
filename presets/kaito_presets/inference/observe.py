"""Around every request: its metrics, its line in the log, its size limit, and the mark of random weights.

A plain ASGI middleware: it neither buffers answers nor hides disconnects. Prompts and answers never reach the log.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kaito_presets.inference.errors import BadRequest, error_body
from kaito_presets.inference.responses import CLIENT_CLOSED
from kaito_presets.inference.service import GENERATION_ROUTES, ROUTES, Service

__all__ = ["Observe"]

log: Final = structlog.get_logger(__name__)

_QUIET = ("/health", "/healthz", "/metrics")


class Observe:
    """Wraps *app*."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        service, path = self._service, scope["path"]
        route = path if path in ROUTES else "other"
        status = CLIENT_CLOSED
        began = service.clock.monotonic()

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if path in GENERATION_ROUTES and service.info is not None and service.info.weights == "random":
                    MutableHeaders(raw=message["headers"])["X-Kaito-Weights"] = "random"
            await send(message)

        service.metrics.in_flight.inc()
        try:
            limit = service.config.max_body_bytes
            if _declared_length(scope) > limit:
                body = error_body(_too_large(limit), path)
                if "expect" not in Headers(scope=scope):
                    await _discard(receive, limit)
                await JSONResponse(body, status_code=413, headers={"Connection": "close"})(scope, receive, marked)
            else:
                await self._app(scope, _bounded(receive, limit), marked)
        finally:
            took = service.clock.monotonic() - began
            service.metrics.in_flight.dec()
            service.metrics.requests.labels(route, str(status)).inc()
            service.metrics.duration.labels(route).observe(took)
            if status == CLIENT_CLOSED:
                service.metrics.cancelled.inc()
            level = log.debug if route in _QUIET else log.info
            level("request", method=scope["method"], path=path[:200], status=status, seconds=round(took, 4))


def _too_large(limit: int) -> BadRequest:
    return BadRequest(f"the request is larger than {limit} bytes")


def _declared_length(scope: Scope) -> int:
    text = Headers(scope=scope).get("content-length", "0")
    return int(text) if text.isdigit() else 0


async def _discard(receive: Receive, limit: int) -> None:
    """Read on for a while before refusing: closing a connection with unread input resets it, and the refusal is lost.

    Bounded by four times *limit* bytes and two seconds: who sends more than that does not read answers.
    """
    seen = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            while seen <= 4 * limit:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return


def _bounded(receive: Receive, limit: int) -> Receive:
    """*receive*, until more than *limit* bytes of body have come: a chunked body declares no length."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            if message.get("more_body"):
                await _discard(receive, limit)
            raise HTTPException(413, _too_large(limit).message)
        return message

    return bounded
