"""Calls one webhook: a review out, its answer back, over HTTPS with the CA that its configuration names."""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlencode

import aiohttp
import msgspec

from kaito_ctrl.devcluster.apiserver.store import Obj, encode

__all__ = ["HttpsWebhookClient", "ServiceResolver", "WebhookCaller", "WebhookClient", "WebhookError"]

ServiceResolver = Callable[[str, str, int], str | None]
"""Namespace, name and port of a service to the base URL it answers at, e.g. ``https://127.0.0.1:9443``."""


class WebhookError(Exception):
    """The webhook gave no usable answer."""


class WebhookClient(Protocol):
    """How reviews are sent; a program that embeds the server may answer them in process."""

    async def post(
        self, url: str, review: Mapping[str, Any], *, ca_bundle: str, server_name: str, timeout: float
    ) -> Obj:
        """The answer, whose ``response`` is the interesting part. Raises :class:`WebhookError`."""
        ...

    async def aclose(self) -> None: ...


class WebhookCaller:
    """Calls whatever a ``clientConfig`` points to. ``resolve`` finds services; without it there are none."""

    def __init__(self, client: WebhookClient) -> None:
        self._client = client
        self.resolve: ServiceResolver | None = None

    async def call(self, config: Mapping[str, Any], review: Mapping[str, Any], *, timeout: int) -> Obj:
        """The answer to *review*, within *timeout* seconds. Raises :class:`WebhookError`."""
        url, server_name = self._address(config, timeout)
        authority = config.get("caBundle") or ""
        return await self._client.post(url, review, ca_bundle=authority, server_name=server_name, timeout=timeout)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _address(self, config: Mapping[str, Any], timeout: int) -> tuple[str, str]:
        query = urlencode({"timeout": f"{timeout}s"})
        if config.get("url"):
            return f"{config['url']}{'&' if '?' in config['url'] else '?'}{query}", ""
        service = config.get("service")
        if not service:
            raise WebhookError("webhook has neither a url nor a service")
        namespace, name, port = service["namespace"], service["name"], service.get("port", 443)
        base = self.resolve(namespace, name, port) if self.resolve is not None else None
        path = service.get("path") or "/"
        host = f"{name}.{namespace}.svc"
        if base is None:
            raise WebhookError(f'Post "https://{host}:{port}{path}?{query}": service "{name}" not found')
        return f"{base.rstrip('/')}{path}?{query}", host


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
        if not isinstance(answer, dict):
            raise WebhookError("couldn't decode the answer: it is no object")
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None
