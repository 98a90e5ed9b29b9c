"""Calls one webhook: an AdmissionReview out, its response back, over HTTPS with the CA that the webhook names."""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp
import msgspec

from kaito_ctrl.devcluster.apiserver.store import Obj, encode

__all__ = ["HttpsWebhookClient", "WebhookClient", "WebhookError"]


class WebhookError(Exception):
    """The webhook gave no usable answer."""


class WebhookClient(Protocol):
    """How reviews are sent; a program that embeds the server may answer them in process."""

    async def post(
        self, url: str, review: Mapping[str, Any], *, ca_bundle: str, server_name: str, timeout: float
    ) -> Obj:
        """The ``response`` of the answer. Raises :class:`WebhookError`."""
        ...

    async def aclose(self) -> None: ...


class HttpsWebhookClient:
    """Over the network. The connection pool is made with the first call."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[str, ssl.SSLContext] = {}

    def _context(self, ca_bundle: str) -> ssl.SSLContext:
        found = self._contexts.get(ca_bundle)
        if found is None:
            try:
                pem = base64.b64decode(ca_bundle).decode() if ca_bundle else None
                found = self._contexts[ca_bundle] = ssl.create_default_context(cadata=pem)
            except (binascii.Error, ValueError, ssl.SSLError) as error:
                raise WebhookError(f"unable to load root certificates: {error}") from error
        return found

    async def post(
        self, url: str, review: Mapping[str, Any], *, ca_bundle: str, server_name: str, timeout: float
    ) -> Obj:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        context: ssl.SSLContext | bool = self._context(ca_bundle) if url.startswith("https:") else True
        shown = url if not server_name else f"https://{server_name}{url.partition('://')[2].partition('/')[1]}"
        try:
            async with self._session.post(
                url,
                data=encode(review),
                headers={"content-type": "application/json", "accept": "application/json"},
                ssl=context,
                server_hostname=server_name or None,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                body = await response.read()
                if response.status != 200:
                    raise WebhookError(f'Post "{shown}": the server answered {response.status}: {body[:200]!r}')
        except TimeoutError as error:
            raise WebhookError(f'Post "{shown}": context deadline exceeded') from error
        except aiohttp.ClientError as error:
            raise WebhookError(f'Post "{shown}": {error}') from error
        try:
            answer = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise WebhookError(f"couldn't decode the answer: {error}") from error
        found = answer.get("response") if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            raise WebhookError("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got none")
        return found

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
