"""The loop under the server's own controllers: keys from the store's change feed, handled one after another.

They write through the server's front door, so that admission sees them and a lost race is an ordinary 409.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from kaito_ctrl.devcluster.apiserver.identity import User
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.server import ApiServer
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Key, encode
from kaito_ctrl.runtime.transport import Request

__all__ = ["Refused", "StoreWorker", "object_path"]

RETRY_SECONDS = 1.0

T = TypeVar("T", bound=Hashable)


class Refused(Exception):
    """The server did not do what a worker asked. ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def object_path(resource: Resource, key: Key, subresource: str = "") -> str:
    """The URL path of one object."""
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    namespace, name = key
    place = f"/namespaces/{quote(namespace)}" if namespace else ""
    tail = f"/{subresource}" if subresource else ""
    return f"{base}{place}/{resource.plural}/{quote(name, safe='')}{tail}"


class StoreWorker(Generic[T]):
    """Collects keys while the server changes, and handles each until it is done. One ``run`` at a time."""

    def __init__(self, server: ApiServer, user: str) -> None:
        self._server = server
        self._backend = server.backend
        self._user = User.administrator(user)
        self._queue: dict[T, None] = {}
        self._later: dict[T, None] = {}
        self._waker = asyncio.Event()

    def changed(self, bucket: Bucket, change: Change) -> None:
        """Called at every commit: note what it means, and enqueue what must be looked at."""
        raise NotImplementedError

    def start(self) -> None:
        """Called before the first key: look at what is there already."""
        raise NotImplementedError

    async def handle(self, key: T) -> None:
        """Bring one key to where it should be. A :class:`Refused` is retried a second later."""
        raise NotImplementedError

    def enqueue(self, key: T) -> None:
        self._queue[key] = None
        self._waker.set()

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be handled."""
        return not self._queue and not self._later

    async def run(self) -> None:
        """Work until cancelled, or until the server closes."""
        stop = self._backend.store.listen(self.changed)
        self._backend.on_close.append(self._waker.set)
        try:
            self.start()
            while not self._backend.closing:
                while self._queue and not self._backend.closing:
                    key = next(iter(self._queue))
                    del self._queue[key]
                    try:
                        await self.handle(key)
                    except Refused:
                        self._later[key] = None
                self._waker.clear()
                if self._queue or self._backend.closing:
                    continue
                try:
                    async with asyncio.timeout(RETRY_SECONDS if self._later else None):
                        await self._waker.wait()
                except TimeoutError:
                    self._queue.update(self._later)
                    self._later.clear()
        finally:
            stop()
            self._backend.on_close.remove(self._waker.set)

    async def call(self, method: str, path: str, body: Any = None, media: str = "application/json") -> Any:
        """One request. Raises :class:`Refused` for anything but success and 404, which gives ``None``."""
        headers = {"content-type": media, "user-agent": self._user.name.rpartition(":")[2]}
        request = Request(method, path, (), headers, None if body is None else encode(body))
        async with await self._server.handle(request, user=self._user) as response:
            answer = msgspec.json.decode(await response.read())
        if response.status == 404:
            return None
        if response.status >= 300:
            raise Refused(response.status, answer.get("message", ""))
        return answer
