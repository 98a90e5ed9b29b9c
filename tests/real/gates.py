"""Gates that requests pass through, on their way to an API server and to Azure: where one can be held, and lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import parse_qsl

from aiohttp import web

from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_provisioner.testing import LocalArm
from kaito_provisioner.testing.faults import Dropped
from kaito_provisioner.testing.messages import Answer
from kaito_provisioner.testing.messages import Request as ArmRequest

__all__ = ["Gate", "GatedArm", "Lost", "Trap", "gated_api"]

T = TypeVar("T")
_BESIDE = ("/events", "/leases/")
_FORWARDED = ("accept", "content-type")


class Lost(Exception):
    """The request, or its answer, will never arrive."""


class Trap:
    """Holds the *nth* request from now on, counted from 0: before it has its effect, or *after*."""

    def __init__(self, nth: int, *, after: bool) -> None:
        self.after = after
        self.what = ""
        """Which one it was: its method and its path."""
        self.sprung = asyncio.Event()
        self._left = nth
        self.arrived = asyncio.Event()
        """Set when what was held, and has arrived late, has had its effect."""
        self._let_go = asyncio.Event()
        self._lost = False

    def takes(self, what: str) -> bool:
        """Whether *what*, that passes now, is the one."""
        self._left -= 1
        if self._left == -1:
            self.what = what
        return self._left == -1

    async def hold(self) -> None:
        """Until it is let go. Raises :class:`Lost`, if it is lost."""
        self.sprung.set()
        await self._let_go.wait()
        if self._lost:
            raise Lost

    def lose(self) -> None:
        """What is held is lost."""
        self._lost = True
        self._let_go.set()

    def arrive(self) -> None:
        """What is held arrives after all, late."""
        self._let_go.set()


class Gate:
    """What passes is one sequence, whichever way it goes: the daemon's writes to the API server that are no events, and
    all that it asks of Azure but tokens."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self._trap: Trap | None = None

    def set(self, trap: Trap | None) -> None:
        """Lay a trap, or take it away."""
        self._trap = trap

    async def through(self, what: str, carry_out: Callable[[], Awaitable[T]]) -> T:
        """Carry it out, unless it is the one that the trap is for. Raises :class:`Lost`."""
        self.passed.append(what)
        trap = self._trap
        held = trap is not None and trap.takes(what)
        if trap is not None and held and not trap.after:
            await trap.hold()
        answer = await carry_out()
        if trap is not None and held:
            trap.arrived.set()
            if trap.after:
                await trap.hold()
        return answer


class GatedArm(LocalArm):
    """A local Azure behind a gate; set ``gate`` before it is entered."""

    gate: Gate

    async def handle(self, request: ArmRequest) -> Answer:
        if "/subscriptions/" not in request.path:
            return await super().handle(request)
        answer = super().handle
        try:
            return await self.gate.through(f"{request.method} {request.path}", lambda: answer(request))
        except Lost:
            raise Dropped from None


@asynccontextmanager
async def gated_api(transport: Transport, gate: Gate) -> AsyncIterator[str]:
    """The API server behind *transport*, with its rights, at the URL that this yields; writes pass *gate*."""

    async def answer(incoming: web.Request) -> web.StreamResponse:
        url = incoming.rel_url
        request = Request(
            incoming.method,
            url.raw_path,
            tuple(parse_qsl(url.raw_query_string, keep_blank_values=True)),
            {name: incoming.headers[name] for name in _FORWARDED if name in incoming.headers},
            await incoming.read() or None,
            None,
            None,
        )
        writes = request.method != "GET" and not any(each in request.path for each in _BESIDE)
        try:
            if writes:
                response = await gate.through(f"{request.method} {request.path}", lambda: transport.send(request))
            else:
                response = await transport.send(request)
            return await _relay(incoming, response)
        except (Lost, TransportError, ConnectionError):
            if incoming.transport is not None:
                incoming.transport.abort()
            return web.Response()

    app = web.Application(client_max_size=16 * 2**20)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def _relay(incoming: web.Request, response: Response) -> web.StreamResponse:
    async with response:
        out = web.StreamResponse(status=response.status)
        for name in ("content-type", "date", "retry-after"):
            if name in response.headers:
                out.headers[name] = response.headers[name]
        await out.prepare(incoming)
        async for chunk in response.chunks():
            await out.write(chunk)
        await out.write_eof()
        return out
