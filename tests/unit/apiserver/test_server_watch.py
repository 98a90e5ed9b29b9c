"""Watches: order, selectors, expiry, bookmarks, streaming lists, and what a reader that leaves releases."""

from __future__ import annotations

import asyncio
import random

import pytest
from apihelpers import CM, CRDS, PODS, WS, Api, SteppingClock, config_map, fails, pod, workspace, workspace_crd

from kaito_ctrl.devcluster.apiserver import ApiServer, watching
from kaito_ctrl.testing import run_virtual


async def test_changes_arrive_in_order(api: Api) -> None:
    async with api.watch(CM, resourceVersion=(await api.get(CM))["metadata"]["resourceVersion"]) as stream:
        await api.post(CM, config_map())
        await api.merge(f"{CM}/a", {"data": {"k": "2"}})
        last = await api.delete(f"{CM}/a")
        assert last["status"] == "Success"
        events = [await stream.event() for _ in range(3)]
    assert [e["type"] for e in events] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(e["object"]["metadata"]["resourceVersion"]) for e in events]
    assert versions == sorted(set(versions))
    assert events[2]["object"]["data"] == {"k": "2"}


async def test_a_watch_without_a_version_begins_with_what_is_there(api: Api) -> None:
    await api.post(CM, config_map("b"))
    await api.post(CM, config_map("a"))
    async with api.watch(CM) as stream:
        assert await stream.seen(2) == [("ADDED", "a"), ("ADDED", "b")]


async def test_a_watch_from_the_past_replays(api: Api) -> None:
    made = await api.post(CM, config_map())
    await api.merge(f"{CM}/a", {"data": {"k": "2"}})
    await api.delete(f"{CM}/a")
    async with api.watch(CM, resourceVersion=made["metadata"]["resourceVersion"]) as stream:
        assert await stream.seen(2) == [("MODIFIED", "a"), ("DELETED", "a")]


async def test_nothing_is_lost_between_the_answer_and_the_first_read(api: Api) -> None:
    version = (await api.get(CM))["metadata"]["resourceVersion"]
    async with api.watch(CM, resourceVersion=version) as stream:
        await api.post(CM, config_map())
        assert await stream.seen(1) == [("ADDED", "a")]


async def test_entering_a_selector_is_an_addition_and_leaving_it_a_deletion(api: Api) -> None:
    await api.post(CM, config_map())
    async with api.watch(CM, labelSelector="on=yes") as stream:
        await api.merge(f"{CM}/a", {"metadata": {"labels": {"on": "yes"}}})
        await api.merge(f"{CM}/a", {"data": {"k": "2"}})
        left = await api.merge(f"{CM}/a", {"metadata": {"labels": None}})
        await api.delete(f"{CM}/a")
        await api.post(CM, {"metadata": {"name": "b", "labels": {"on": "yes"}}})
        events = [await stream.event() for _ in range(4)]
    assert [(e["type"], e["object"]["metadata"]["name"]) for e in events] == [
        ("ADDED", "a"),
        ("MODIFIED", "a"),
        ("DELETED", "a"),
        ("ADDED", "b"),
    ]
    # The last state that matched, at the version of the change that took it out.
    assert events[2]["object"]["metadata"]["labels"] == {"on": "yes"}
    assert events[2]["object"]["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]


async def test_a_field_selector_follows_a_pod_to_its_node(api: Api) -> None:
    await api.post(PODS, pod())
    async with api.watch(PODS, fieldSelector="spec.nodeName=n1") as stream:
        await api.post(f"{PODS}/p/binding", {"target": {"kind": "Node", "name": "n1"}})
        assert await stream.seen(1) == [("ADDED", "p")]


async def test_one_namespace_does_not_see_another(api: Api) -> None:
    async with api.watch(CM) as stream:
        await api.post("/api/v1/namespaces/kube-public/configmaps", config_map("x"))
        await api.post(CM, config_map("y"))
        assert await stream.seen(1) == [("ADDED", "y")]


async def test_an_expired_version_is_an_error_event(api: Api) -> None:
    made = await api.post(CM, config_map())
    await api.merge(f"{CM}/a", {"data": {"k": "2"}})
    api.server.compact()
    async with api.watch(CM, resourceVersion=made["metadata"]["resourceVersion"]) as stream:
        event = await stream.event()
        assert await stream.ended()
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    assert event["object"]["message"].startswith("too old resource version: ")


async def test_history_is_bounded() -> None:
    server = ApiServer(clock=SteppingClock(), rng=random.Random(1), history=5)
    api = Api(server, SteppingClock())
    made = await api.post(CM, config_map())
    for value in range(60):
        await api.merge(f"{CM}/a", {"data": {"k": str(value)}})
    async with api.watch(CM, resourceVersion=made["metadata"]["resourceVersion"]) as stream:
        assert (await stream.event())["type"] == "ERROR"
    recent = int((await api.get(f"{CM}/a"))["metadata"]["resourceVersion"]) - 5
    async with api.watch(CM, resourceVersion=recent) as stream:
        assert await stream.seen(5) == [("MODIFIED", "a")] * 5
    await server.aclose()


async def test_a_reader_that_falls_behind_the_history_gets_the_error_too() -> None:
    server = ApiServer(clock=SteppingClock(), rng=random.Random(1), history=3)
    api = Api(server, SteppingClock())
    await api.post(CM, config_map())
    async with api.watch(CM) as stream:
        assert await stream.seen(1) == [("ADDED", "a")]
        for value in range(20):
            await api.merge(f"{CM}/a", {"data": {"k": str(value)}})
        assert (await stream.event())["object"]["code"] == 410
    await server.aclose()


async def test_a_watch_ends_after_its_timeout_with_a_bookmark(api: Api) -> None:
    await api.post(PODS, pod())
    version = (await api.get(CM))["metadata"]["resourceVersion"]
    async with api.watch(CM, resourceVersion=version, timeoutSeconds=1, allowWatchBookmarks=True) as stream:
        event = await stream.event()
        assert await stream.ended()
    assert event["type"] == "BOOKMARK"
    assert event["object"]["kind"] == "ConfigMap"
    assert event["object"]["metadata"]["resourceVersion"] == version


def test_the_last_bookmark_of_a_watch_is_not_after_a_change_that_a_slow_reader_was_not_shown() -> None:
    async def main() -> None:
        clock = SteppingClock()
        server = ApiServer(clock=clock, rng=random.Random(1))
        api = Api(server, clock)
        version = (await api.get(CM))["metadata"]["resourceVersion"]
        options = {"resourceVersion": version, "timeoutSeconds": 5, "allowWatchBookmarks": True}
        async with api.watch(CM, **options) as stream:
            await api.post(CM, config_map("a"))
            assert await stream.seen(1) == [("ADDED", "a")]
            await asyncio.sleep(6)
            unseen = await api.post(CM, config_map("b"))
            last = await stream.event()
            assert last["type"] == "BOOKMARK"
            assert int(last["object"]["metadata"]["resourceVersion"]) < int(unseen["metadata"]["resourceVersion"])
            assert await stream.ended()
        await server.aclose()

    run_virtual(main())


async def test_a_streaming_list_marks_its_end(api: Api) -> None:
    await api.post(CM, config_map())
    query = {"sendInitialEvents": True, "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": True}
    async with api.watch(CM, **query) as stream:
        assert await stream.seen(1) == [("ADDED", "a")]
        bookmark = await stream.event()
        assert bookmark["type"] == "BOOKMARK"
        assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        await api.post(CM, config_map("b"))
        assert await stream.seen(1) == [("ADDED", "b")]


async def test_a_streaming_list_must_say_how_fresh(api: Api) -> None:
    with fails(422) as caught:
        await api.get(CM, watch=True, sendInitialEvents=True)
    assert "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan" in caught.value.message


async def test_a_reader_that_leaves_releases_its_watch(api: Api) -> None:
    backend = api.server.backend
    async with api.watch(CM) as stream:
        await api.post(CM, config_map())
        await stream.event()
        assert backend.watches == 1
    assert backend.watches == 0
    assert backend.store.bucket("", "configmaps").watchers == 0


async def test_a_cancelled_reader_releases_its_watch(api: Api) -> None:
    async def read() -> None:
        async with api.watch(CM) as stream:
            await stream.event()

    task = asyncio.create_task(read())
    while not api.server.backend.watches:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert api.server.backend.watches == 0


async def test_closing_the_server_ends_every_watch(api: Api) -> None:
    async with api.watch(CM) as one, api.watch(PODS) as two:
        waiting = [asyncio.create_task(one.ended()), asyncio.create_task(two.ended())]
        await asyncio.sleep(0)
        await api.server.aclose()
        assert await asyncio.gather(*waiting) == [True, True]


async def test_a_watch_ends_when_its_kind_is_no_longer_served(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    await api.post(WS, workspace())
    async with api.watch(WS) as stream:
        await stream.seen(1)
        await api.delete(f"{CRDS}/workspaces.kaito.sh")
        assert await stream.seen(1) == [("DELETED", "w")]
        assert await stream.ended()


async def test_the_old_watch_path_still_works(api: Api) -> None:
    await api.post(CM, config_map())
    async with await api.send("GET", "/api/v1/watch/namespaces/default/configmaps") as response:
        chunk = await anext(response.chunks().__aiter__())
    assert b'"ADDED"' in chunk


async def test_a_watch_may_be_of_tables(api: Api) -> None:
    await api.post(CM, config_map())
    table = "application/json;as=Table;v=v1;g=meta.k8s.io"
    async with api.watch(CM, accept=table) as stream:
        event = await stream.event()
        assert [c["name"] for c in event["object"]["columnDefinitions"]] == ["Name", "Data", "Age"]
        assert event["object"]["rows"][0]["cells"] == ["a", 1, "0s"]
        await api.post(CM, config_map("b"))
        assert (await stream.event())["object"]["columnDefinitions"] == []


async def test_bookmarks_carry_the_version_on_while_nothing_happens(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BOOKMARK_SECONDS", 0.01)
    async with api.watch(CM, resourceVersion=api.server.store.rv, allowWatchBookmarks=True) as stream:
        elsewhere = await api.post(PODS, pod())
        event = await stream.event()
    assert event["type"] == "BOOKMARK"
    assert event["object"]["metadata"]["resourceVersion"] == elsewhere["metadata"]["resourceVersion"]


async def test_a_long_replay_comes_in_parts_and_whole(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BATCH", 7)
    first = await api.post(CM, config_map("a00"))
    for number in range(1, 40):
        await api.post(CM, config_map(f"a{number:02}"))
    expected = [("ADDED", f"a{number:02}") for number in range(40)]
    async with api.watch(CM) as stream:
        assert await stream.seen(40) == expected
    async with api.watch(CM, resourceVersion=first["metadata"]["resourceVersion"]) as stream:
        assert await stream.seen(39) == expected[1:]
