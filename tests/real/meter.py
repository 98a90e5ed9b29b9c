"""Transports that count, and that refuse."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from kaito_ctrl.runtime.codec import encode_json
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport

__all__ = ["Exchange", "Meter", "Overloaded"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: when it went out (the loop's seconds), what it was, and the status of its answer (0: none)."""

    at: float
    method: str
    path: str
    watch: bool
    status: int


@dataclass
class Meter:
    """Keeps a record of what goes through."""

    inner: Transport
    seen: list[Exchange] = field(default_factory=list)

    async def send(self, request: Request) -> Response:
        at = asyncio.get_running_loop().time()
        status = 0
        try:
            response = await self.inner.send(request)
            status = response.status
            return response
        except TransportError:
            raise
        finally:
            watch = ("watch", "true") in request.query
            self.seen.append(Exchange(at, request.method, request.path, watch, status))

    async def aclose(self) -> None:
        await self.inner.aclose()

    def between(self, start: float, end: float) -> list[Exchange]:
        return [each for each in self.seen if start <= each.at < end]

    def busiest_second(self, start: float, end: float) -> int:
        """The most requests that went out in one second of that time."""
        return max(Counter(int(each.at - start) for each in self.between(start, end)).values(), default=0)


class Overloaded:
    """Answers a *share* of the requests with 429 or 500; half of the latter after they were carried out."""

    def __init__(self, inner: Transport, rng: random.Random, share: float) -> None:
        self._inner = inner
        self._rng = rng
        self.share = share

    async def send(self, request: Request) -> Response:
        if self._rng.random() >= self.share:
            return await self._inner.send(request)
        match self._rng.choice(("throttled", "failed", "lost")):
            case "throttled":
                return _refusal(429, "TooManyRequests", {"retry-after": "1"})
            case "lost":
                await (await self._inner.send(request)).aclose()
        return _refusal(500, "InternalError", {})

    async def aclose(self) -> None:
        await self._inner.aclose()


def _refusal(code: int, reason: str, headers: dict[str, str]) -> Response:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return Response.of(code, encode_json({**status, "message": "the server is overloaded"}), headers)
