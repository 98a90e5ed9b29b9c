"""The server over TCP: TLS with certificates of its own, a bearer token, and a kubeconfig for stock ``kubectl``."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import CIMultiDictProxy
from yarl import URL

from kaito_ctrl.devcluster.apiserver.certificates import issue_certificates, server_context
from kaito_ctrl.devcluster.apiserver.identity import User
from kaito_ctrl.devcluster.apiserver.server import ApiServer
from kaito_ctrl.devcluster.streaming.sessions import Sessions
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response

__all__ = ["Endpoint", "serve"]

_BODY_LIMIT = 3 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, and what it takes to talk to it."""

    url: str
    ca_pem: str
    token: str
    name: str = "kaito-ctrl-dev"

    def kubeconfig(self) -> dict[str, Any]:
        """A complete kubeconfig, ready to be written as YAML."""
        authority = base64.b64encode(self.ca_pem.encode()).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "preferences": {},
            "clusters": [{"name": self.name, "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": self.name, "user": {"token": self.token}}],
            "contexts": [
                {"name": self.name, "context": {"cluster": self.name, "user": self.name, "namespace": "default"}}
            ],
            "current-context": self.name,
        }


class _Handler:
    """Carries requests from aiohttp to the server, and answers back."""

    def __init__(self, server: ApiServer, sessions: Sessions) -> None:
        self._server = server
        self._sessions = sessions

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read() if request.body_exists and "Upgrade" not in request.headers else None
        wanted = Request(
            request.method,
            request.rel_url.raw_path,
            tuple(request.query.items()),
            _received(request.headers),
            body,
        )
        answer = await self._server.handle(wanted)
        if answer.status == 101 and self._server.kubelet is not None:
            location = URL(answer.headers["location"], encoded=True)
            return await self._sessions.run(self._server.kubelet(request.clone(rel_url=location)))
        # Everything else is small, whole, and better sent with its length.
        streaming = (
            "stream=watch" in answer.headers.get("content-type", "")
            or request.path.endswith("/log")
            or "/proxy" in request.path
        )
        if streaming:
            return await self._stream(request, answer)
        return web.Response(status=answer.status, body=await answer.read(), headers=_headers(answer))

    async def _stream(self, request: web.BaseRequest, answer: Response) -> web.StreamResponse:
        async with answer:
            response = web.StreamResponse(status=answer.status, headers=_headers(answer))
            response.enable_chunked_encoding()
            await response.prepare(request)
            try:
                async for chunk in answer.chunks():
                    await response.write(chunk)
                await response.write_eof()
            except (ConnectionResetError, TransportError):
                pass  # the reader went away; leaving the block releases the watch
            return response


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
    """aiohttp's own request, but for the size of its body."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_BODY_LIMIT)


def _received(headers: CIMultiDictProxy[str]) -> dict[str, str]:
    """The request's headers; one that repeats is joined with commas, as HTTP has it."""
    return {name: ",".join(headers.getall(name)) for name in headers}


def _headers(answer: Response) -> dict[str, str]:
    return {"Content-Type": "application/json", **{key.title(): value for key, value in answer.headers.items()}}


@asynccontextmanager
async def serve(server: ApiServer, *, host: str = "127.0.0.1", port: int = 0, token: str) -> AsyncIterator[Endpoint]:
    """Listen on *host* and *port* (0: any free one) until the block is left; the server itself stays open.

    *token* is the bearer token of an administrator; other users' come from ``server.tokens``.
    """
    server.tokens.add(token, User.administrator("kubernetes-admin"))
    certificates = issue_certificates(host, server.backend.clock)
    async with Sessions() as sessions:
        handler = _Handler(server, sessions)
        # A client that goes ends its watch at once, even when there is nothing to tell.
        serving = web.Server(handler, request_factory=_request, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(serving, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, ssl_context=server_context(certificates))
            await site.start()
            bound = runner.addresses[0][1]
            shown = f"[{host}]" if ":" in host else host
            yield Endpoint(f"https://{shown}:{bound}", certificates.ca_pem, token)
        finally:
            await runner.cleanup()
            server.tokens.revoke(token)
