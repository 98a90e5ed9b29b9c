"""Credentials that expire: renewed shortly before, and once more when the server refuses them.

kubernetes-asyncio reads kubeconfigs, runs their plugins and talks to their identity providers; it renews by itself
only what a pod is given. What it has loaded is asked for its end here, and loaded again in time. Loading is shared
by all who wait for it, and whatever goes wrong with it is a :class:`~kaito_ctrl.runtime.errors.TransportError`: no
request could be sent, and the next one tries again.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes_asyncio.client.configuration import Configuration

from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.logs import logger

__all__ = ["Credentials"]

_AHEAD = timedelta(seconds=60)
_PAUSE = 10.0
"""Seconds between two loads: a plugin whose answer does not help is not asked for every request."""
_LOAD_TIMEOUT = 60.0


class Credentials:
    """Keeps the credentials inside *configuration* fresh.

    *load* puts fresh ones into it, and returns when they end, if it knows; *expires* is the same for those that are
    in it already.
    """

    def __init__(
        self,
        configuration: Configuration,
        load: Callable[[], Awaitable[datetime | None]],
        *,
        expires: datetime | None,
        clock: Clock,
    ) -> None:
        self._configuration = configuration
        self._load = load
        self._clock = clock
        self._lock = asyncio.Lock()
        self._loaded_at = -_PAUSE
        self._expires = expires or _jwt_expiry(configuration)
        self._log = logger()

    async def headers(self) -> Mapping[str, str]:
        """What a request has to carry. Raises ``TransportError`` when they have ended and cannot be renewed."""
        if self._due():
            async with self._lock:
                if self._due() and self._may_load():
                    await self._renew()
        return await self._headers()

    async def renew(self, refused: Mapping[str, str]) -> bool:
        """The server has answered *refused* with 401; whether there is something else to send now."""
        async with self._lock:
            if await self._headers() == refused and self._may_load():
                await self._renew()
            return await self._headers() != refused

    def _due(self) -> bool:
        return self._expires is not None and self._expires - _AHEAD <= self._clock.now()

    def _may_load(self) -> bool:
        return self._clock.monotonic() - self._loaded_at >= _PAUSE

    async def _renew(self) -> None:
        self._loaded_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT):
                expires = await self._load()
        except Exception as error:  # plugins and identity providers fail in their own ways
            failure = TransportError(f"cannot load credentials: {type(error).__name__} {error}".strip())
            if self._expires is None or self._expires <= self._clock.now():
                raise failure from error
            self._log.warning("credentials will expire", error=str(failure), expires=self._expires.isoformat())
            return
        self._expires = expires or _jwt_expiry(self._configuration)

    async def _headers(self) -> Mapping[str, str]:
        try:
            token = await self._configuration.get_api_key_with_prefix("BearerToken")
        except Exception as error:  # this is where kubernetes-asyncio reads a pod's token again
            raise TransportError(f"cannot load credentials: {type(error).__name__} {error}".strip()) from error
        if token:
            return {"authorization": token}
        if self._configuration.username:
            return {"authorization": self._configuration.get_basic_auth_token() or ""}
        return {}


def _jwt_expiry(configuration: Configuration) -> datetime | None:
    """When the bearer token ends, if it says so itself."""
    token: str = configuration.api_key.get("BearerToken") or ""
    parts = token.removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return None
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None
