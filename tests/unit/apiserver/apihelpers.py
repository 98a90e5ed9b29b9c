"""A client that speaks JSON to a server, and objects to speak about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime.transport import Request, Response
from tests.verbs import Verbs

Obj = dict[str, Any]


class SteppingClock:
    """Wall time moves only when a test says so."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Status(Exception):
    """A failure answer."""

    def __init__(self, code: int, status: Obj) -> None:
        super().__init__(f"{code} {status.get('reason')}: {status.get('message')}")
        self.code = code
        self.reason = status.get("reason", "")
        self.message = status.get("message", "")
        self.details: Obj = status.get("details", {})

    @property
    def fields(self) -> list[str]:
        return [cause.get("field", "") for cause in self.details.get("causes", [])]


class WatchStream:
    """Events of one watch, one at a time."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self._chunks = response.chunks().__aiter__()
        self._lines: list[bytes] = []

    async def event(self) -> Obj:
        while not self._lines:
            chunk = await asyncio.wait_for(anext(self._chunks), 5)
            assert chunk.endswith(b"\n")
            self._lines = chunk.splitlines()
        found: Obj = msgspec.json.decode(self._lines.pop(0))
        return found

    async def seen(self, count: int) -> list[tuple[str, str]]:
        """Type and name of the next *count* events."""
        events = [await self.event() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]

    async def ended(self) -> bool:
        try:
            await asyncio.wait_for(anext(self._chunks), 5)
        except StopAsyncIteration:
            return True
        return False


class Api(Verbs):
    """Requests as a test wants to write them. Failure answers raise :class:`Status`."""

    def __init__(self, server: ApiServer, clock: SteppingClock) -> None:
        self.server = server
        self.clock = clock
        self._transport = server.transport()
        self.warnings = ""
        self.code = 0

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        accept: str = "",
        **query: Any,
    ) -> Response:
        path, _, text = path.partition("?")
        pairs = [tuple(part.split("=", 1)) for part in text.split("&") if part]
        pairs += [(key, str(value).lower() if isinstance(value, bool) else str(value)) for key, value in query.items()]
        raw = body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
        headers = {"content-type": media, "accept": accept or "application/json", "user-agent": "tester/1.0"}
        request = Request(method, path, tuple((k, v) for k, v in pairs), headers, raw)
        return await self._transport.send(request)

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        async with await self.send(method, path, body, **options) as response:
            raw = await response.read()
            self.warnings = response.headers.get("warning", "")
            self.code = response.status
        answer = msgspec.json.decode(raw) if raw[:1] in b"{[" else raw
        if response.status >= 400:
            raise Status(response.status, answer if isinstance(answer, dict) else {"message": raw.decode()})
        return answer

    @asynccontextmanager
    async def watch(self, path: str, **query: Any) -> AsyncIterator[WatchStream]:
        async with await self.send("GET", path, watch=True, **query) as response:
            assert response.status == 200
            yield WatchStream(response)

    async def gone(self, path: str) -> bool:
        try:
            await self.get(path)
        except Status as error:
            if error.code == 404:
                return True
            raise
        return False


@contextmanager
def fails(code: int, reason: str = "") -> Iterator[Any]:
    """The block must end in that failure; ``.value`` is the :class:`Status`."""
    with pytest.raises(Status) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    if reason:
        assert caught.value.reason == reason


CM = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
SVC = "/api/v1/namespaces/default/services"
DEPLOY = "/apis/apps/v1/namespaces/default/deployments"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WS = "/apis/kaito.sh/v1alpha1/namespaces/default/workspaces"


def config_map(name: str = "a", **data: str) -> Obj:
    return {"metadata": {"name": name}, "data": data or {"k": "v"}}


def pod(name: str = "p", **spec: Any) -> Obj:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}], **spec}}


def deployment(name: str = "d", **spec: Any) -> Obj:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}
    return {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels}, "template": template, **spec}}


def workspace_crd(**version: Any) -> Obj:
    schema = {
        "type": "object",
        "required": ["resource"],
        "properties": {
            "resource": {
                "type": "object",
                "required": ["instanceType"],
                "properties": {
                    "count": {"type": "integer", "minimum": 1, "default": 1},
                    "instanceType": {"type": "string"},
                    "preferredNodes": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                },
            },
            "inference": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "status": {
                "type": "object",
                "properties": {
                    "workerNodes": {"type": "array", "items": {"type": "string"}},
                    "conditions": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["type"],
                        "items": {
                            "type": "object",
                            "required": ["type"],
                            "properties": {"type": {"type": "string"}, "status": {"type": "string"}},
                        },
                    },
                },
            },
        },
    }
    return {
        "metadata": {"name": "workspaces.kaito.sh"},
        "spec": {
            "group": "kaito.sh",
            "scope": "Namespaced",
            "names": {"kind": "Workspace", "plural": "workspaces", "shortNames": ["ws"]},
            "versions": [
                {
                    "name": "v1alpha1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": schema},
                    **version,
                }
            ],
        },
    }


def workspace(name: str = "w", **body: Any) -> Obj:
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name},
        "resource": {"instanceType": "gpu"},
        **body,
    }
