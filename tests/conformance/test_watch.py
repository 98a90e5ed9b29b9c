"""Watches: where they begin, what they show, how they end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.objects import config_map, pod, widget, widget_crd
from tests.conformance.wire import Api, Obj, Status, assert_no_number, fails


async def kind_of(api: Api) -> str:
    """A kind of which the case's namespace holds nothing but what the case puts there."""
    return await api.define(widget_crd())


async def version(api: Api, path: str) -> str:
    found: str = (await api.get(path))["metadata"]["resourceVersion"]
    return found


async def test_a_watch_shows_what_happens_after_its_version(api: Api) -> None:
    kind = await kind_of(api)
    await api.post(api.at(kind), widget("before"))
    since = await version(api, api.at(kind))
    async with api.watch(api.at(kind), resourceVersion=since) as watch:
        made = await api.post(api.at(kind), widget())
        changed = await api.merge(api.at(kind, "w"), {"spec": {"size": 4}})
        await api.delete(api.at(kind, "w"))
        added, modified, deleted = [await watch.event() for _ in range(3)]
    assert (added["type"], added["object"]) == ("ADDED", made)
    assert (modified["type"], modified["object"]) == ("MODIFIED", changed)
    assert deleted["type"] == "DELETED"
    assert deleted["object"]["spec"]["size"] == 4


async def test_the_last_event_of_an_object_has_the_version_of_its_deletion(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    async with api.watch(api.at("configmaps"), resourceVersion=made["metadata"]["resourceVersion"]) as watch:
        await api.delete(api.at("configmaps", "a"))
        last = await watch.until("DELETED")
    assert int(last["object"]["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert last["object"]["data"] == {"k": "v"}


async def test_the_past_is_replayed_in_order(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    for name in "ab":
        await api.post(api.at(kind), widget(name))
    await api.merge(api.at(kind, "a"), {"spec": {"size": 4}})
    await api.delete(api.at(kind, "b"))
    async with api.watch(api.at(kind), resourceVersion=since) as watch:
        events = [await watch.event() for _ in range(4)]
    assert [(e["type"], e["object"]["metadata"]["name"]) for e in events] == [
        ("ADDED", "a"),
        ("ADDED", "b"),
        ("MODIFIED", "a"),
        ("DELETED", "b"),
    ]
    versions = [int(e["object"]["metadata"]["resourceVersion"]) for e in events]
    assert versions == sorted(versions)


@pytest.mark.parametrize("options", [{}, {"resourceVersion": "0"}], ids=["unset", "zero"])
async def test_without_a_version_a_watch_begins_with_what_is_there(api: Api, options: Any) -> None:
    kind = await kind_of(api)
    for name in "ab":
        await api.post(api.at(kind), widget(name))
    await api.get(api.at(kind))
    async with api.watch(api.at(kind), **options) as watch:
        # A server that answers from memory may be a moment behind, but shows everything in the end.
        assert sorted(await watch.seen(2)) == [("ADDED", "a"), ("ADDED", "b")]
        await api.post(api.at(kind), widget("c"))
        assert await watch.seen(1) == [("ADDED", "c")]


async def test_a_watch_ends_after_its_time(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    async with api.watch(api.at(kind), resourceVersion=since, timeoutSeconds=1) as watch:
        assert await watch.rest() == []


@pytest.mark.minimum("1.25")
async def test_a_bookmark_is_sent_before_the_end(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    made = await api.post(api.at("configmaps"), config_map())
    await api.post(api.at(kind), widget())
    async with api.watch(api.at(kind), resourceVersion=since, timeoutSeconds=5, allowWatchBookmarks=True) as watch:
        assert await watch.seen(1) == [("ADDED", "w")]
        events = await watch.rest()
    assert events
    assert {event["type"] for event in events} == {"BOOKMARK"}
    bookmark = events[-1]["object"]
    assert bookmark["kind"] == "Widget"
    assert int(bookmark["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert "name" not in bookmark["metadata"]


async def test_without_asking_there_are_no_bookmarks(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    async with api.watch(api.at(kind), resourceVersion=since, timeoutSeconds=2) as watch:
        assert await watch.rest() == []


async def test_a_version_from_before_all_memory_is_gone(api: Api) -> None:
    kind = await kind_of(api)
    await api.post(api.at(kind), widget())
    api.target.compact()
    try:
        async with api.watch(api.at(kind), resourceVersion="1") as watch:
            event = await watch.event()
    except Status as error:
        found: Obj = error.body
    else:
        assert event["type"] == "ERROR"
        found = event["object"]
    assert (found["kind"], found["code"], found["reason"]) == ("Status", 410, "Expired")
    assert found["message"].startswith("too old resource version: 1 (")


async def test_a_watch_ends_after_its_error(api: Api) -> None:
    kind = await kind_of(api)
    await api.post(api.at(kind), widget())
    api.target.compact()
    async with api.watch(api.at(kind), resourceVersion="1") as watch:
        assert [event["type"] for event in await watch.rest()] == ["ERROR"]


async def test_a_version_that_is_no_number_is_refused(api: Api) -> None:
    with pytest.raises(Status) as caught:
        async with api.watch(api.at("configmaps"), resourceVersion="abc"):
            pass
    assert_no_number(caught.value)


# Selectors.


async def test_entering_a_selector_is_an_addition_and_leaving_it_a_deletion(api: Api) -> None:
    kind = await kind_of(api)
    await api.post(api.at(kind), widget())
    since = await version(api, api.at(kind))
    async with api.watch(api.at(kind), resourceVersion=since, labelSelector="in=yes") as watch:
        await api.merge(api.at(kind, "w"), {"metadata": {"labels": {"in": "no"}}})
        entered = await api.merge(api.at(kind, "w"), {"metadata": {"labels": {"in": "yes"}}})
        await api.merge(api.at(kind, "w"), {"spec": {"size": 7}})
        left = await api.merge(api.at(kind, "w"), {"metadata": {"labels": {"in": "no"}}, "spec": {"size": 9}})
        await api.delete(api.at(kind, "w"))
        await api.post(api.at(kind), {**widget("x"), "metadata": {"name": "x", "labels": {"in": "yes"}}})
        events = [await watch.event() for _ in range(4)]
    assert [e["type"] for e in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED"]
    assert events[0]["object"] == entered
    # What has left is shown as it last was inside, at the version that took it out.
    assert events[2]["object"]["spec"]["size"] == 7
    assert events[2]["object"]["metadata"]["labels"] == {"in": "yes"}
    assert events[2]["object"]["metadata"]["resourceVersion"] == left["metadata"]["resourceVersion"]
    assert events[3]["object"]["metadata"]["name"] == "x"


async def test_a_field_selector_filters_events(api: Api) -> None:
    since = await version(api, api.at("pods"))
    async with api.watch(api.at("pods"), resourceVersion=since, fieldSelector="spec.nodeName=n") as watch:
        await api.post(api.at("pods"), pod("a"))
        await api.post(api.at("pods"), pod("b", nodeName="n"))
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"}, "target": {"name": "n"}}
        await api.post(api.at("pods", "a", "binding"), binding)
        assert await watch.seen(2) == [("ADDED", "b"), ("ADDED", "a")]


async def test_one_object_is_watched_by_its_name(api: Api) -> None:
    since = await version(api, api.at("configmaps"))
    only = {"fieldSelector": "metadata.name=a", "resourceVersion": since}
    async with api.watch(api.at("configmaps"), **only) as watch:
        await api.post(api.at("configmaps"), config_map("b"))
        await api.post(api.at("configmaps"), config_map("a"))
        assert await watch.seen(1) == [("ADDED", "a")]


async def test_the_old_watch_path_still_works(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    path = f"/api/v1/watch/namespaces/{api.namespace}/configmaps/a"
    async with await api.send("GET", path, timeoutSeconds=1) as response:
        assert b'"type":"ADDED"' in await response.read()


async def test_a_watch_of_the_whole_cluster_sees_every_namespace(api: Api) -> None:
    since = await version(api, api.cluster("configmaps"))
    async with api.watch(
        api.cluster("configmaps"), resourceVersion=since, labelSelector=f"case={api.namespace}"
    ) as watch:
        await api.post(api.at("configmaps"), config_map(labels={"case": api.namespace}))
        assert (await watch.event())["object"]["metadata"]["namespace"] == api.namespace


async def test_a_watch_of_a_namespace_sees_nothing_of_another(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    async with api.watch(api.at(kind), resourceVersion=since) as watch:
        other = {**widget("other"), "metadata": {"name": api.namespace}}
        await api.post(f"/apis/{kind.rpartition('/')[0]}/namespaces/default/widgets", other)
        await api.post(api.at(kind), widget("mine"))
        assert await watch.seen(1) == [("ADDED", "mine")]


async def test_a_dry_run_is_no_event(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    async with api.watch(api.at(kind), resourceVersion=since) as watch:
        await api.post(api.at(kind), widget("dry"), dryRun="All")
        await api.post(api.at(kind), widget("wet"))
        assert await watch.seen(1) == [("ADDED", "wet")]


async def test_a_write_that_changes_nothing_is_no_event(api: Api) -> None:
    kind = await kind_of(api)
    made = await api.post(api.at(kind), widget())
    async with api.watch(api.at(kind), resourceVersion=made["metadata"]["resourceVersion"]) as watch:
        await api.put(api.at(kind, "w"), made)
        await api.merge(api.at(kind, "w"), {"spec": {"size": 4}})
        event = await watch.event()
    assert event["object"]["spec"]["size"] == 4


async def test_the_end_of_a_finalizer_is_one_event(api: Api) -> None:
    kind = await kind_of(api)
    body = widget()
    body["metadata"]["finalizers"] = ["example.com/hold"]
    made = await api.post(api.at(kind), body)
    async with api.watch(api.at(kind), resourceVersion=made["metadata"]["resourceVersion"]) as watch:
        await api.delete(api.at(kind, "w"))
        await api.merge(api.at(kind, "w"), {"metadata": {"finalizers": None}})
        events = [await watch.event() for _ in range(2)]
    assert [e["type"] for e in events] == ["MODIFIED", "DELETED"]
    assert events[0]["object"]["metadata"]["deletionTimestamp"]
    assert "deletionTimestamp" in events[1]["object"]["metadata"]


# Forms.


async def test_a_watch_of_partial_objects(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    async with api.watch(api.at(kind), resourceVersion=since, accept=accept) as watch:
        await api.post(api.at(kind), widget())
        event = await watch.event()
    assert event["object"]["kind"] == "PartialObjectMetadata"
    assert event["object"]["metadata"]["name"] == "w"
    assert "spec" not in event["object"]


async def test_a_watch_of_tables_has_its_columns_once(api: Api) -> None:
    kind = await kind_of(api)
    since = await version(api, api.at(kind))
    accept = "application/json;as=Table;g=meta.k8s.io;v=v1,application/json"
    async with api.watch(api.at(kind), resourceVersion=since, accept=accept) as watch:
        await api.post(api.at(kind), widget("a"))
        await api.post(api.at(kind), widget("b"))
        first, second = await watch.event(), await watch.event()
    assert [c["name"] for c in first["object"]["columnDefinitions"]][:2] == ["Name", "Size"]
    assert not second["object"]["columnDefinitions"]
    assert second["object"]["rows"][0]["cells"][:2] == ["b", 3]


# Streaming lists.


@pytest.mark.minimum("1.32")
async def test_a_streaming_list_ends_with_a_marked_bookmark(api: Api) -> None:
    if api.version == (1, 33):
        pytest.skip("streaming lists are switched off by default in Kubernetes 1.33")
    kind = await kind_of(api)
    await api.post(api.at(kind), widget())
    options = {"sendInitialEvents": True, "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": True}
    async with api.watch(api.at(kind), **options) as watch:
        assert await watch.seen(1) == [("ADDED", "w")]
        mark = await watch.event()
        assert mark["type"] == "BOOKMARK"
        assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        await api.post(api.at(kind), widget("x"))
        assert await watch.seen(1) == [("ADDED", "x")]


@pytest.mark.minimum("1.27")
async def test_a_streaming_list_needs_a_version_match(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        async with api.watch(api.at("configmaps"), sendInitialEvents=True):
            pass
    assert "resourceVersionMatch" in caught.value.fields


@pytest.mark.minimum("1.27")
async def test_a_version_match_is_for_streaming_lists(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        async with api.watch(api.at("configmaps"), resourceVersionMatch="NotOlderThan", resourceVersion="1"):
            pass
    assert caught.value.fields == ["resourceVersionMatch"]
