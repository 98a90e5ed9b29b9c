"""Faults on the way to an API server, drawn from a seed, and a tape of everything that was drawn.

The same seed gives the same faults in the same places, as long as the code asks for the same things in the same
order: the tape says whether it did.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

from kaito_ctrl.runtime.codec import encode_json
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport

__all__ = ["FaultPlan", "FaultyTransport", "Tape"]


class Tape:
    """A running hash of what happened; two runs of one seed must end with the same."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.lines: list[str] = []

    def note(self, *what: object) -> None:
        """Write one line."""
        line = " ".join(str(each) for each in what)
        self.lines.append(line)
        self._hash.update(line.encode() + b"\n")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """How likely each fault is, for each request or chunk of a stream."""

    refused: float = 0.02
    """It never reaches the server."""
    lost: float = 0.02
    """The server carries it out, and its answer is lost."""
    overloaded: float = 0.02
    """429, 500 or 503 instead of being carried out."""
    cut: float = 0.01
    """A stream breaks off, at a chunk."""
    frozen: float = 0.005
    """A stream falls silent for minutes, at a chunk."""
    latency: float = 0.005
    """Mean seconds before a request reaches the server."""
    lag: float = 0.5
    """Mean seconds by which a third of a stream's chunks are late: a cache is then older than what was written."""


class FaultyTransport:
    """A transport that does what its plan says, until :meth:`heal`."""

    def __init__(self, inner: Transport, rng: random.Random, plan: FaultPlan, tape: Tape, name: str = "") -> None:
        self._inner = inner
        self._rng = rng
        self._plan = plan
        self._tape = tape
        self._name = name
        self.dead = False
        """Set to have nothing more get out or in, as when a process is killed."""

    def heal(self) -> None:
        """No more faults from here on."""
        self._plan = FaultPlan(0, 0, 0, 0, 0, 0, 0)

    async def send(self, request: Request) -> Response:
        self._die()
        plan, draw = self._plan, self._rng.random()
        await asyncio.sleep(self._rng.expovariate(1 / plan.latency) if plan.latency else 0)
        self._die()
        what = f"{self._name} {request.method} {request.path}"
        if draw < plan.refused:
            self._tape.note(f"{self._now():.6f}", what, "refused")
            raise TransportError("connection refused")
        draw -= plan.refused
        if draw < plan.overloaded:
            code = self._rng.choice((429, 500, 503))
            self._tape.note(f"{self._now():.6f}", what, code)
            body = {"kind": "Status", "code": code, "reason": "ServerTimeout", "message": "overloaded"}
            return Response.of(code, encode_json(body))
        draw -= plan.overloaded
        response = await self._inner.send(request)
        self._die()
        if draw < plan.lost:
            self._tape.note(f"{self._now():.6f}", what, "lost")
            await response.aclose()
            raise TransportError("connection reset")
        self._tape.note(f"{self._now():.6f}", what, response.status)
        return Response(response.status, response.headers, self._chunks(response), close=response.aclose)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _chunks(self, response: Response) -> AsyncIterator[bytes]:
        async for chunk in response.chunks():
            self._die()
            draw = self._rng.random()
            if draw < self._plan.cut:
                raise TransportError("connection reset")
            if draw < self._plan.cut + self._plan.frozen:
                await asyncio.sleep(self._rng.uniform(10, 300))
            elif draw > 2 / 3 and self._plan.lag:
                await asyncio.sleep(self._rng.expovariate(1 / self._plan.lag))
            yield chunk

    def _die(self) -> None:
        if self.dead:
            raise TransportError("this process has been killed")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
