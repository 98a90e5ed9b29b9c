"""The local ARM over the network: HTTPS for ARM and the token endpoint, and HTTP for the identity's own machine."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from kaito_provisioner.testing.faults import Dropped
from kaito_provisioner.testing.messages import Answer, Request

__all__ = ["serve"]

Handler = Callable[[Request], Awaitable[Answer]]


@asynccontextmanager
async def serve(handle: Handler, host: str, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[str]:
    """Serve inside the block; the URL, without a slash at its end. A *port* of 0 is any that is free."""

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        base = f"{request.scheme}://{request.host}"
        try:
            given = await handle(Request(request.method, base, request.path, dict(request.query), headers, body))
        except Dropped:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        given.headers.setdefault("Content-Type", "application/json; charset=utf-8")
        return web.Response(status=given.status, body=given.content, headers=given.headers)

    app = web.Application(client_max_size=4 * 2**20)
    app.router.add_route("*", "/{path:.*}", answer)
    # What is held on purpose is not waited for.
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        yield f"{'http' if tls is None else 'https'}://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
