"""A client that hides nothing: what goes out is written in the case, what comes back is what the wire said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import msgspec
import pytest

from kaito_ctrl.runtime.transport import Request, Response, Transport
from tests.verbs import Verbs

__all__ = ["Api", "Obj", "Status", "Target", "Watch", "assert_no_number", "fails"]

Obj = dict[str, Any]
_PATIENCE = 20.0
"""Seconds that a controller, a watch or a new kind may take before the case fails."""


class Status(Exception):
    """A failure answer."""

    def __init__(self, code: int, body: Any) -> None:
        self.code = code
        self.body: Obj = body if isinstance(body, dict) else {"message": body.decode(errors="replace")}
        self.reason: str = self.body.get("reason", "")
        self.message: str = self.body.get("message", "")
        self.details: Obj = self.body.get("details") or {}
        super().__init__(f"{code} {self.reason}: {self.message}")

    @property
    def fields(self) -> list[str]:
        return sorted(cause.get("field", "") for cause in self.details.get("causes") or ())

    @property
    def causes(self) -> list[str]:
        return sorted(cause.get("reason", "") for cause in self.details.get("causes") or ())


class Target(Protocol):
    """The server under test."""

    @property
    def version(self) -> tuple[int, int]: ...

    @property
    def transport(self) -> Transport: ...

    @property
    def controllers(self) -> bool:
        """Whether garbage is collected, namespaces are emptied and service accounts are made."""
        ...

    def compact(self) -> None:
        """Forget all history: what only it remembers has expired afterwards."""
        ...


class Watch:
    """The events of one watch, one at a time."""

    def __init__(self, response: Response) -> None:
        self._chunks = response.chunks().__aiter__()
        self._rest = b""
        self._lines: list[bytes] = []

    async def event(self) -> Obj:
        while not self._lines:
            chunk = await asyncio.wait_for(anext(self._chunks), _PATIENCE)
            *self._lines, self._rest = (self._rest + chunk).split(b"\n")
        found: Obj = msgspec.json.decode(self._lines.pop(0))
        return found

    async def seen(self, count: int) -> list[tuple[str, str]]:
        """Type and name of the next *count* events."""
        events = [await self.event() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]

    async def until(self, wanted: str) -> Obj:
        """The next event of that type; the others are passed over."""
        while (event := await self.event())["type"] != wanted:
            pass
        return event

    async def rest(self) -> list[Obj]:
        """Every event up to the end of the watch, which must come."""
        found = []
        while True:
            try:
                found.append(await self.event())
            except StopAsyncIteration:
                return found


class Api(Verbs):
    """Requests to the server under test, in a namespace of the case's own."""

    def __init__(self, target: Target, namespace: str) -> None:
        self.target = target
        self.namespace = namespace
        self.code = 0
        self.headers: dict[str, str] = {}

    @property
    def version(self) -> tuple[int, int]:
        return self.target.version

    def at(self, resource: str, name: str = "", sub: str = "") -> str:
        """The path of ``configmaps`` or ``apps/v1/deployments`` in the case's namespace."""
        return _join(resource, f"namespaces/{self.namespace}/", name, sub)

    @staticmethod
    def cluster(resource: str, name: str = "", sub: str = "") -> str:
        """The path of a resource of the cluster, or of all namespaces."""
        return _join(resource, "", name, sub)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        accept: str = "application/json",
        agent: str = "tester/1.0",
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Response:
        pairs = tuple((key, "true" if value is True else str(value)) for key, value in query.items())
        raw = body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
        sent = {"accept": accept, "user-agent": agent, **(headers or {})}
        if raw is not None:
            sent["content-type"] = media
        return await self.target.transport.send(Request(method, path, pairs, sent, raw))

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The decoded answer. Raises :class:`Status` for a failure."""
        async with await self.send(method, path, body, **options) as response:
            raw = await response.read()
            self.code, self.headers = response.status, dict(response.headers)
        answer = msgspec.json.decode(raw) if raw[:1] in (b"{", b"[") else raw
        if response.status >= 400:
            raise Status(response.status, answer)
        return answer

    @asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator[Watch]:
        async with await self.send("GET", path, watch=True, **query) as response:
            if response.status >= 400:
                raise Status(response.status, msgspec.json.decode(await response.read()))
            yield Watch(response)

    async def missing(self, path: str) -> bool:
        try:
            await self.get(path)
        except Status as error:
            if error.code == 404:
                return True
            raise
        return False

    async def eventually(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Until *holds*: for what a real server reads from caches of its own, and nothing tells when."""
        async with asyncio.timeout(_PATIENCE):
            while not await holds():
                await asyncio.sleep(0.02)

    async def settled(self, path: str, holds: Callable[[Obj], bool] | None) -> Obj:
        """The object at *path* once *holds* says so of it; with ``None``, its last state once it is gone."""
        collection, _, name = path.rpartition("/")
        only = {"fieldSelector": f"metadata.name={name}"}
        listed = await self.get(collection, **only)
        found: Obj = listed["items"][0] if listed["items"] else {}
        if bool(found) is (holds is not None) and (holds is None or holds(found)):
            return found
        async with (
            asyncio.timeout(_PATIENCE),
            self.watch(collection, resourceVersion=listed["metadata"]["resourceVersion"], **only) as watch,
        ):
            while True:
                event = await watch.event()
                if event["type"] == "DELETED" if holds is None else holds(event["object"]):
                    last: Obj = event["object"]
                    return last

    async def define(self, crd: Obj) -> str:
        """Serve a definition, if it is not served yet; returns the resource as :meth:`at` takes it.

        A kind is established a little before every part of a real server knows it, and nothing tells when.
        """
        path = self.cluster("apiextensions.k8s.io/v1/customresourcedefinitions")
        spec = crd["spec"]
        resource = f"{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        try:
            await self.post(path, crd)
        except Status as error:
            if error.reason != "AlreadyExists":
                raise

        async def served() -> bool:
            return not await self.missing(self.cluster(resource))

        await self.eventually(served)
        return resource


def _join(resource: str, place: str, name: str, sub: str) -> str:
    *group, plural = resource.split("/")
    base = f"/apis/{'/'.join(group)}" if group else "/api/v1"
    return f"{base}/{place}{plural}" + (f"/{name}" if name else "") + (f"/{sub}" if sub else "")


@contextmanager
def fails(code: int, reason: str | None = None, message: str | None = None) -> Iterator[Any]:
    """The block must end in that failure; ``.value`` is the :class:`Status`. *message* is the whole text."""
    with pytest.raises(Status) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    if reason is not None:
        assert caught.value.reason == reason, caught.value
    if message is not None:
        assert caught.value.message == message


def assert_no_number(found: Status) -> None:
    """That *found* refuses ``resourceVersion=abc``. It is a 500, and will be a 400 when its authors have mended it."""
    why = 'resourceVersion: Invalid value: "abc": strconv.ParseUint: parsing "abc": invalid syntax'
    assert found.code in {400, 500}
    assert why in found.message
