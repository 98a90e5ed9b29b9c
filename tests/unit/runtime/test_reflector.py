"""The watch's shell against a server that answers by script: what it asks for, and what the store makes of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from kaito_api.core import ConfigMap
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.store import Store
from kaito_ctrl.runtime.transport import Request, Response
from kaito_ctrl.runtime.watch import Backoff, Reflector


@dataclass(frozen=True)
class Answer:
    """One answer of the script; one that *stalls* neither goes on nor ends after its chunks, one that *breaks* is cut
    off there."""

    chunks: tuple[bytes, ...] = ()
    status: int = 200
    stalls: bool = False
    breaks: bool = False


@dataclass
class Script:
    """A server that gives its answers in order and, after the last, none. It bounds silence as TCP transports do."""

    answers: list[Answer]
    requests: list[Request] = field(default_factory=list)
    open: int = 0

    async def send(self, request: Request) -> Response:
        self.requests.append(request)
        if len(self.requests) > len(self.answers):
            await asyncio.Event().wait()
        answer = self.answers[len(self.requests) - 1]

        async def body() -> AsyncIterator[bytes]:
            self.open += 1
            try:
                for chunk in answer.chunks:
                    yield chunk
                if answer.stalls:
                    async with asyncio.timeout(request.idle_timeout):
                        await asyncio.Event().wait()
                if answer.breaks:
                    raise TransportError("the answer broke off")
            except TimeoutError as error:
                raise TransportError("nothing came for too long") from error
            finally:
                self.open -= 1

        return Response(answer.status, {}, body())

    async def aclose(self) -> None:
        pass

    def query(self, index: int) -> dict[str, str]:
        """What the request at *index* asked for."""
        return dict(self.requests[index].query)


def config_map(name: str, version: int, **data: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": "ConfigMap", "metadata": metadata, "data": data}


def page(version: int, *items: dict[str, Any], token: str = "") -> Answer:
    head = {"resourceVersion": str(version), "continue": token}
    return Answer((json.dumps({"kind": "ConfigMapList", "metadata": head, "items": items}).encode(),))


def event(kind: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def expired() -> dict[str, Any]:
    return {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


SILENT = Answer(stalls=True)


@asynccontextmanager
async def reflecting(
    *answers: Answer, idle: float = 60.0, streaming: bool = False
) -> AsyncIterator[tuple[Script, Store[ConfigMap], Reflector]]:
    script, store = Script(list(answers)), Store(ConfigMap)
    reflector = Reflector(
        script,
        ConfigMap,
        store,
        rng=random.Random(1),
        backoff=Backoff(base=0.001, cap=0.001, suspended_base=0.001),
        idle=idle,
        streaming=streaming,
    )
    task = asyncio.create_task(reflector.run())
    try:
        yield script, store, reflector
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert script.open == 0, "a stream was left open"
    assert task.cancelled()


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.001)


def names(store: Store[ConfigMap]) -> list[str]:
    return [each.name for each in store.select()]


async def test_a_list_that_stalls_is_given_up_and_asked_for_again() -> None:
    half = Answer((b'{"kind":"ConfigMapList","metadata":',), stalls=True)
    async with reflecting(half, page(5, config_map("a", 4)), SILENT, idle=0.02) as (_, store, _reflector):
        await until(lambda: store.synced)
        assert names(store) == ["a"]


@pytest.mark.parametrize("asked", ["list", "watch"])
async def test_a_refusal_whose_reason_never_comes_is_one_all_the_same(asked: str) -> None:
    refusal = Answer((b'{"kind":',), status=500, stalls=True)
    before = [] if asked == "list" else [page(5)]
    async with reflecting(*before, refusal, page(6), SILENT, idle=0.02) as (script, _, _reflector):
        await until(lambda: len(script.requests) >= len(before) + 2)


async def test_a_list_is_never_silent_for_longer_than_a_minute() -> None:
    async with reflecting(page(5), SILENT) as (script, store, _reflector):
        await until(lambda: store.synced)
        assert script.requests[0].idle_timeout == 60
