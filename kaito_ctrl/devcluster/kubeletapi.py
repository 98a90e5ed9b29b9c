"""The kubelet's HTTP API, at the paths of a real kubelet.

The API server is its only client: the embedded one hands over the very requests that it gets, in process; a real one
connects to the port that :func:`serve_kubelet` opens, which is asked for by name, as whoever may use it can run
commands as us: it takes a client certificate.

=================================================  ===================================================================
``/healthz``                                       ``ok``
``/pods``                                          a ``v1.PodList`` of what runs here
``/containerLogs/{namespace}/{pod}/{container}``   ``follow``, ``tailLines``, ``sinceSeconds``, ``sinceTime``, ...
``/exec/{namespace}/{pod}[/{uid}]/{container}``    ``command`` (repeated), ``input``, ``output``, ``error``, ``tty``: 1
``/attach/{namespace}/{pod}[/{uid}]/{container}``  the same without ``command``
``/portForward/{namespace}/{pod}[/{uid}]``         ``port`` (repeated), for a WebSocket without SPDY in it
=================================================  ===================================================================
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from urllib.parse import unquote

from aiohttp import web

from kaito_ctrl.devcluster.kinds import Pod
from kaito_ctrl.devcluster.logs import LogOptions
from kaito_ctrl.devcluster.podrunner import PodRunner
from kaito_ctrl.devcluster.streaming.portforward import forward_ports, read_ports
from kaito_ctrl.devcluster.streaming.remotecommand import Options, open_command, succeeded
from kaito_ctrl.devcluster.streaming.sessions import Sessions
from kaito_ctrl.devcluster.streaming.upgrade import UpgradeRefused, is_upgrade
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.certs import CertificateAuthority
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import ApiError

__all__ = ["Kubelet", "KubeletApi", "KubeletPort", "serve_kubelet"]


class Kubelet(Protocol):
    """What there is to ask."""

    @property
    def pods(self) -> Sequence[Pod]:
        """What runs here."""
        ...

    def runner(self, key: ObjectKey) -> PodRunner:
        """The pod's. Raises :class:`ApiError`."""
        ...

    def now(self) -> datetime:
        """The time."""
        ...


@dataclass(frozen=True, slots=True)
class KubeletPort:
    """A TLS port of the kubelet for a real API server.

    *client_ca* (PEM) is whose certificates it takes; have nobody but the API server hold one of its. *port* 0 is any
    free one. The serving certificate is the kubelet's own, made anew at each start.
    """

    client_ca: str
    port: int = 0


class KubeletApi:
    """An HTTP handler; a request's path and query count, and its connection is what streams go over."""

    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        name, *rest = (unquote(part) for part in request.rel_url.raw_path.strip("/").split("/"))
        handlers: dict[tuple[str, int], Callable[..., Awaitable[web.StreamResponse]]] = {
            ("healthz", 0): self._healthz,
            ("pods", 0): self._pods,
            ("containerLogs", 3): self._logs,
            ("exec", 3): self._exec,
            ("attach", 3): self._attach,
            ("portForward", 2): self._forward,
        }
        uid = ""
        if (name, len(rest)) in (("exec", 4), ("attach", 4), ("portForward", 3)):
            uid = rest.pop(2)
        handler = handlers.get((name, len(rest)))
        if handler is None:
            return web.Response(status=404, text="404 page not found\n")
        try:
            if rest:
                runner = self._kubelet.runner(ObjectKey(rest[0], rest[1]))
                if uid and runner.pod.uid != uid:
                    raise ApiError.of(404, "NotFound", f"pod {rest[1]} with uid {uid} not found")
                return await handler(request, runner, *rest[2:])
            return await handler(request)
        except UpgradeRefused as refusal:
            return refusal.response
        except ApiError as error:
            return web.Response(status=error.code, text=error.message)

    async def _healthz(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _pods(self, request: web.BaseRequest) -> web.StreamResponse:
        items = [pod.to_wire() for pod in self._kubelet.pods]
        listing = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        return web.Response(text=json.dumps(listing), content_type="application/json")

    async def _logs(self, request: web.BaseRequest, runner: PodRunner, container: str) -> web.StreamResponse:
        try:
            options = LogOptions.of(request.query, self._kubelet.now())
        except ValueError as error:
            return web.Response(status=400, text=f"invalid log options: {error}")
        log = runner.container(container).log(previous=options.previous)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async with aclosing(log.read(options)) as chunks:
            async for chunk in chunks:
                await response.write(chunk)
        return response

    async def _exec(self, request: web.BaseRequest, runner: PodRunner, container: str) -> web.StreamResponse:
        options, argv = Options.of(request.query), request.query.getall("command", [])
        if not argv:
            raise UpgradeRefused(400, "you must specify a command")
        beside = runner.container(container).beside()
        async with open_command(request, options) as client:
            await beside.execute(argv, client)
        return client.response

    async def _attach(self, request: web.BaseRequest, runner: PodRunner, container: str) -> web.StreamResponse:
        options, console = Options.of(request.query), runner.container(container).console()
        async with open_command(request, options) as client:
            await console.attach(client)
            await client.finish(succeeded())
        return client.response

    async def _forward(self, request: web.BaseRequest, runner: PodRunner) -> web.StreamResponse:
        return await forward_ports(request, runner.ip, read_ports(request.query.getall("port", [])))


@asynccontextmanager
async def serve_kubelet(api: KubeletApi, host: str, port: KubeletPort, clock: Clock) -> AsyncIterator[int]:
    """Listen on *host* until the block is left; yields the port's number."""
    now = clock.now()
    certificate = CertificateAuthority("kaito-ctrl kubelet CA", now=now).issue([host, "localhost"], now=now)
    context = certificate.server_context()
    context.load_verify_locations(cadata=port.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    async with Sessions() as sessions:

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await (sessions.run(api(request)) if is_upgrade(request) else api(request))

        serving = web.Server(handle, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(serving, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port.port, ssl_context=context)
            await site.start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()
