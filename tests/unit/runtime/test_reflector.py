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
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.core import ConfigMap
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.store import Store
from kaito_ctrl.runtime.transport import Request, Response
from kaito_ctrl.runtime.watch import Reflector
from kaito_ctrl.runtime.watchstate import Backoff
from kaito_ctrl.testing import run_virtual


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
LINES = [
    event("ADDED", config_map("x", 7)),
    event("DELETED", config_map("x", 8)),
    event("ERROR", expired()),
    event("BOOKMARK", {"metadata": {"resourceVersion": "9"}}),
    event("ADDED", config_map("x", 7)).replace(b"{", b"{ "),
    b'{"type":"ADDED","object":{"metadata":{}},"more":1}\n',
    b'{"type":"ADDED"}\n',
]


@asynccontextmanager
async def reflecting(
    *answers: Answer, idle: float = 60.0, streaming: bool = False, max_slice: float = 0.005
) -> AsyncIterator[tuple[Script, Store[ConfigMap], Reflector]]:
    script, store = Script(list(answers)), Store(ConfigMap)
    reflector = Reflector(
        script,
        ConfigMap,
        store.feed(),
        rng=random.Random(1),
        backoff=Backoff(base=0.001, cap=0.001, suspended_base=0.001),
        idle=idle,
        streaming=streaming,
        max_slice=max_slice,
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


def initial_end(version: int) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"}
    return event("BOOKMARK", {"metadata": {"resourceVersion": str(version), "annotations": annotations}})


async def test_a_list_comes_in_pages_and_is_watched_from_its_version() -> None:
    first, second = config_map("a", 1), config_map("b", 2)
    async with reflecting(page(5, first, token="t"), page(5, second), SILENT) as (script, store, _):
        await until(lambda: len(script.requests) == 3)
        assert names(store) == ["a", "b"]
        assert script.query(1)["continue"] == "t"
        assert script.query(2)["resourceVersion"] == "5"
        assert script.query(2)["allowWatchBookmarks"] == "true"


async def test_an_expired_version_is_answered_by_a_quorum_list_while_the_store_keeps_serving() -> None:
    refused = Answer((json.dumps(expired()).encode(),), status=410)
    listed = page(5, config_map("a", 1), config_map("b", 2))
    async with reflecting(listed, refused, page(9, config_map("b", 2)), SILENT) as (script, store, _):
        await until(lambda: len(script.requests) == 4)
        assert "resourceVersion" not in script.query(2)
        assert names(store) == ["b"]
        assert script.query(3)["resourceVersion"] == "9"


async def test_an_expired_version_as_an_event_is_the_same_and_closes_the_stream() -> None:
    stream = Answer((event("ADDED", config_map("a", 6)), event("ERROR", expired())), stalls=True)
    async with reflecting(page(5), stream, page(9), SILENT) as (script, store, _):
        await until(lambda: len(script.requests) == 4)
        assert script.open <= 1
        assert "watch" not in script.query(2)
        assert names(store) == []


async def test_a_streaming_list_that_expires_leaves_its_stream() -> None:
    stream = Answer((event("ADDED", config_map("a", 6)), event("ERROR", expired())), stalls=True)
    again = Answer((event("ADDED", config_map("b", 7)), initial_end(8)), stalls=True)
    async with reflecting(stream, again, streaming=True) as (script, store, _):
        await until(lambda: store.synced)
        assert len(script.requests) == 2
        assert script.query(1)["sendInitialEvents"] == "true"
        assert names(store) == ["b"]


async def test_a_watch_that_is_cut_mid_line_goes_on_from_the_last_whole_event() -> None:
    cut = Answer((event("ADDED", config_map("a", 6)), event("ADDED", config_map("b", 7))[:30]), breaks=True)
    rest = Answer((event("ADDED", config_map("b", 7)),), stalls=True)
    async with reflecting(page(5), cut, rest) as (script, store, _):
        await until(lambda: len(script.requests) == 3 and len(store) == 2)
        assert script.query(2)["resourceVersion"] == "6"


async def test_an_event_may_be_cut_anywhere_and_arrive_in_pieces() -> None:
    line = event("ADDED", config_map("a", 6))
    pieces = Answer(tuple(line[index : index + 7] for index in range(0, len(line), 7)), stalls=True)
    async with reflecting(page(5), pieces) as (_, store, _reflector):
        await until(lambda: names(store) == ["a"])


async def test_a_bookmark_moves_the_version_of_the_next_watch() -> None:
    stream = Answer((event("BOOKMARK", {"metadata": {"resourceVersion": "70"}}),))
    async with reflecting(page(5), stream, SILENT) as (script, store, _):
        await until(lambda: len(script.requests) == 3)
        assert script.query(2)["resourceVersion"] == "70"
        assert store.version == "70"


async def test_silence_beyond_belief_opens_another_watch() -> None:
    async with reflecting(page(5), SILENT, SILENT, idle=0.02) as (script, _, _reflector):
        await until(lambda: len(script.requests) >= 3)
        assert script.query(2)["resourceVersion"] == "5"


async def test_lines_that_are_no_events_are_passed_over() -> None:
    stream = Answer((b"not json\n\n[]\n" + event("ADDED", config_map("a", 6)),), stalls=True)
    async with reflecting(page(5), stream) as (_, store, _reflector):
        await until(lambda: names(store) == ["a"])


async def test_a_long_list_in_one_piece_lets_others_have_their_turns() -> None:
    listed = page(900, *(config_map(f"a{index:03}", index + 1) for index in range(200)))
    async with reflecting(listed, SILENT, max_slice=0.0) as (_, store, _reflector):
        turns = 0
        while not store.synced:
            await asyncio.sleep(0)
            turns += 1
        assert len(store) == 200
        assert turns > 100


async def test_long_initial_events_in_one_piece_let_others_have_their_turns() -> None:
    events = b"".join(event("ADDED", config_map(f"a{index:03}", index + 1)) for index in range(200))
    stream = Answer((events + initial_end(900),), stalls=True)
    async with reflecting(stream, streaming=True, max_slice=0.0) as (_, store, _reflector):
        turns = 0
        while not store.synced:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100


async def test_items_of_a_list_that_breaks_off_are_there_and_nothing_is_swept_for_it() -> None:
    whole = page(9, config_map("a", 1), config_map("b", 2), config_map("c", 3)).chunks[0]
    cut = Answer((whole[: whole.index(b"uid-c")],), breaks=True)
    async with reflecting(page(5, config_map("z", 4)), Answer(status=410), cut) as (script, store, _):
        await until(lambda: len(script.requests) == 4)
        assert names(store) == ["a", "b", "z"]


async def test_a_page_that_is_no_list_is_asked_for_again() -> None:
    nonsense = Answer((b'{"kind":"Status","status":"Success"}',))
    async with reflecting(nonsense, page(5, config_map("a", 4)), SILENT) as (_, store, _reflector):
        await until(lambda: store.synced)
        assert names(store) == ["a"]


async def test_an_ordinary_bookmark_gives_away_a_server_that_does_not_stream() -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "7"}})
    ignorant = Answer((event("ADDED", config_map("a", 6)), bookmark), stalls=True)
    async with reflecting(ignorant, page(8, config_map("a", 6)), SILENT, streaming=True) as (script, store, _):
        await until(lambda: store.synced)
        assert "watch" not in script.query(1)
        assert script.open <= 1


def test_silence_gives_it_away_too_and_is_not_waited_for_long() -> None:
    async def scenario() -> float:
        ignorant = Answer((event("ADDED", config_map("a", 6)),), stalls=True)
        async with reflecting(ignorant, page(8), SILENT, idle=130.0, streaming=True) as (_, store, _reflector):
            synced, began = asyncio.Event(), asyncio.get_running_loop().time()
            store.listen(lambda change: synced.set() if change.new is None else None)  # the list has nothing any more
            await synced.wait()
            return asyncio.get_running_loop().time() - began

    assert 9 < run_virtual(scenario()) < 11


@pytest.mark.parametrize(
    "status",
    [b"{}", b"null", b"[]", b'"x"', b'{"code":"410"}', b'{"details":[]}', b'{"details":{"retryAfterSeconds":"x"}}'],
)
async def test_an_error_of_any_shape_is_an_error_and_the_watch_goes_on(status: bytes) -> None:
    odd = Answer((b'{"type":"ERROR","object":' + status + b"}\n",), stalls=True)
    rest = Answer((event("ADDED", config_map("a", 6)),), stalls=True)
    async with reflecting(page(5), odd, rest) as (_, store, _reflector):
        await until(lambda: names(store) == ["a"])


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"<html>", b'{"kind":"Status","details":[1],"reason":7,"message":{}}'),
        *(b'{"kind":"Status","details":{"causes":[7]}}', b'{"kind":"Status","details":{"causes":7}}'),
    ],
)
@pytest.mark.parametrize("asked", ["list", "watch"])
@pytest.mark.parametrize("status", [503, 422])
async def test_a_refusal_of_any_shape_is_a_refusal_and_the_watch_goes_on(asked: str, status: int, body: bytes) -> None:
    before = [] if asked == "list" else [page(5)]
    rest = [page(5), SILENT] if asked == "list" else [SILENT]
    async with reflecting(*before, Answer((body,), status=status), *rest) as (script, store, _):
        await until(lambda: store.synced and len(script.requests) == 3)


async def test_what_is_no_object_is_counted_wherever_it_comes() -> None:
    odd = {"metadata": {"labels": "none"}}
    stream = Answer((event("ADDED", odd) + b"not json\n" + event("ADDED", config_map("b", 6)),), stalls=True)
    async with reflecting(page(5, odd, config_map("a", 4)), stream) as (_, store, _reflector):
        await until(lambda: names(store) == ["a", "b"])
        assert store.unreadable == 3


@given(st.lists(st.binary(max_size=40) | st.sampled_from([*LINES, b"\n", b"{", b"}"]), max_size=12))
def test_no_bytes_end_a_watch(chunks: list[bytes]) -> None:
    async def scenario() -> None:
        last = Answer((event("ADDED", config_map("last", 60)),), stalls=True)
        answers = (page(5), Answer((*chunks, b"\n")), Answer(status=410), page(50), last)
        async with reflecting(*answers) as (_, store, _reflector):
            async with asyncio.timeout(600):
                while "last" not in names(store):
                    await asyncio.sleep(0.1)

    run_virtual(scenario())


DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000


async def test_an_object_that_is_nested_beyond_reading_is_passed_over_alone() -> None:
    deep = (
        json.dumps(config_map("deep", 4))
        .encode()
        .replace(b'"data": {}', b'"data": {"quoted": "}]\\"", "x": ' + DEEP + b"}")
    )
    assert DEEP in deep
    listed = page(5, config_map("a", 3), config_map("b", 4)).chunks[0]
    first = json.dumps(config_map("b", 4)).encode()
    assert first in listed
    cut = listed.replace(first, deep + b", " + first)
    stream = Answer((b'{"type":"ADDED","object":' + deep + b"}\n" + event("ADDED", config_map("c", 6)),), stalls=True)
    for pieces in ([cut], [cut[at : at + 1000] for at in range(0, len(cut), 1000)]):
        async with reflecting(Answer(tuple(pieces)), stream) as (_, store, _reflector):
            await until(lambda: names(store) == ["a", "b", "c"])
            assert store.unreadable == 2
