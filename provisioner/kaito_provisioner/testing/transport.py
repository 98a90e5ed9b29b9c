"""The Azure SDK's way to the local ARM without any network: everything above it is the SDK's own, and so are its waits.

On an event loop in virtual time, an hour of polling takes no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from http import HTTPStatus
from json import loads
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import ServerDisconnectedError
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseTimeoutError
from azure.core.pipeline.transport import AsyncHttpTransport
from azure.core.rest import AsyncHttpResponse, HttpRequest
from azure.core.utils import case_insensitive_dict

from kaito_provisioner.testing.faults import Dropped
from kaito_provisioner.testing.messages import IDEMPOTENT, Answer, Request
from kaito_provisioner.testing.tokens import Issuer

__all__ = ["LocalArmTransport", "LocalCredential"]

Handler = Callable[[Request], Awaitable[Answer]]
_READ_TIMEOUT = 300.0
"""The SDK's own, in seconds."""


class LocalArmTransport(AsyncHttpTransport[HttpRequest, AsyncHttpResponse]):
    """A transport for ``ContainerServiceClient(..., transport=...)`` that calls *handle* instead of a server.

    With a lost connection it deals as the SDK's aiohttp transport does: it sends an idempotent request again, once;
    then it raises ``ServiceRequestError``, whether or not the request has had its effect.
    """

    def __init__(self, handle: Handler) -> None:
        self._handle = handle

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        return None

    async def send(self, request: HttpRequest, **kwargs: Any) -> AsyncHttpResponse:
        parts = urlsplit(request.url)
        body = request.content
        headers = {name.lower(): value for name, value in request.headers.items()}
        sent = Request(
            request.method,
            f"{parts.scheme}://{parts.netloc}",
            parts.path,
            dict(parse_qsl(parts.query)),
            headers,
            body.encode() if isinstance(body, str) else bytes(body or b""),
        )
        seconds = float(kwargs.get("read_timeout") or _READ_TIMEOUT)
        try:
            async with asyncio.timeout(seconds):
                try:
                    answer = await self._handle(sent)
                except Dropped:
                    if sent.method not in IDEMPOTENT:
                        raise
                    answer = await self._handle(sent)
        except Dropped:
            lost = ServerDisconnectedError()
            raise ServiceRequestError(lost, error=lost) from lost
        except TimeoutError as error:
            raise ServiceResponseTimeoutError(f"no answer within {seconds:g} s", error=error) from error
        return _Response(request, answer)


class LocalCredential:
    """Implements ``AsyncTokenCredential``: tokens without asking anybody, which last."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        token, _ends = self._issuer.issue(scopes[0].removesuffix("/.default"), forever=True)
        # The SDK compares this with the machine's clock, which need not be ours.
        return AccessToken(token, 2**40)

    async def close(self) -> None:
        """There is nothing to close."""

    async def __aenter__(self) -> LocalCredential:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        return None


class _Response(AsyncHttpResponse):
    """An answer that is here as a whole."""

    def __init__(self, request: HttpRequest, answer: Answer) -> None:
        self._request = request
        self._status = answer.status
        self._content = answer.content
        headers = {"Content-Type": "application/json; charset=utf-8", **answer.headers}
        self._headers = case_insensitive_dict(headers)
        self._encoding: str | None = "utf-8"

    @property
    def request(self) -> HttpRequest:
        return self._request

    @property
    def status_code(self) -> int:
        return self._status

    @property
    def headers(self) -> MutableMapping[str, str]:
        return self._headers

    @property
    def reason(self) -> str:
        return HTTPStatus(self._status).phrase

    @property
    def content_type(self) -> str | None:
        return self._headers.get("content-type")

    @property
    def is_closed(self) -> bool:
        return True

    @property
    def is_stream_consumed(self) -> bool:
        return True

    @property
    def encoding(self) -> str | None:
        return self._encoding

    @encoding.setter
    def encoding(self, value: str | None) -> None:
        self._encoding = value

    @property
    def url(self) -> str:
        return self._request.url

    @property
    def content(self) -> bytes:
        return self._content

    def text(self, encoding: str | None = None) -> str:
        return self._content.decode(encoding or self._encoding or "utf-8")

    def json(self) -> Any:
        return loads(self._content)

    def body(self) -> bytes:
        """As older code of the SDK reads it."""
        return self._content

    def raise_for_status(self) -> None:
        if self._status >= 400:
            raise HttpResponseError(response=self)

    async def read(self) -> bytes:
        return self._content

    async def iter_raw(self, **_: Any) -> AsyncIterator[bytes]:
        yield self._content

    async def iter_bytes(self, **_: Any) -> AsyncIterator[bytes]:
        yield self._content

    async def close(self) -> None:
        """There is nothing to close."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        return None
