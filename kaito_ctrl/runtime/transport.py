"""One HTTP exchange with an API server, as a protocol of one method.

Everything above (client, watch, cache) speaks :class:`Transport`; below it may be aiohttp over TCP, or an embedded
API server in the same process. A transport moves bytes: it does not retry, does not decode, and knows no
Kubernetes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

__all__ = ["Request", "Response", "Transport"]


@dataclass(frozen=True, slots=True)
class Request:
    """What goes out.

    ``path`` is absolute and already percent-encoded (``/api/v1/namespaces/default/pods``); ``query`` keeps order and
    may repeat a key; ``timeout`` bounds the wait for the response's head in seconds (``None``: no bound), and
    ``idle_timeout`` the silence between two chunks of its body.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    timeout: float | None = 30.0
    idle_timeout: float | None = 30.0


class Response:
    """What comes back: status and headers at once, the body as chunks.

    Use it as an async context manager, or read it to its end: leaving the block releases the connection, whatever
    part of the body was read. Header names are lower-case. *close* is called at that, once, even if no chunk was
    ever asked for.
    """

    __slots__ = ("_chunks", "_close", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        chunks: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None] | None] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self._chunks = chunks
        self._close = close

    @classmethod
    def of(cls, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Self:
        """A response whose whole body is already here."""

        async def once() -> AsyncIterator[bytes]:
            if body:
                yield body

        return cls(status, {"content-type": "application/json", **(headers or {})}, once())

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; chunk borders mean nothing. Raises ``errors.TransportError`` when it breaks off."""
        return self._chunks

    async def read(self) -> bytes:
        """The whole body. Raises ``errors.TransportError`` when it breaks off."""
        return b"".join([chunk async for chunk in self._chunks])

    async def aclose(self) -> None:
        """Release the connection; safe to call twice."""
        end = getattr(self._chunks, "aclose", None)
        # A generator that was never started ends without a word to its own code, so it cannot be the one to release.
        close, self._close = self._close, None
        try:
            if end is not None:
                await end()
        finally:
            if close is not None and (closing := close()) is not None:
                await closing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class Transport(Protocol):
    """Sends one request. Implementations are safe for concurrent use."""

    async def send(self, request: Request) -> Response:
        """Return once the response's head is here, whatever its status.

        Raises ``errors.TransportError`` when no head came: refused, reset, or timed out. The request may then have
        been carried out or not; only the caller knows what follows from that.
        """
        ...

    async def aclose(self) -> None:
        """Release all connections."""
        ...
