"""Lists: order, selectors, pages, versions."""

from __future__ import annotations

import base64

import msgspec
import pytest
from apihelpers import CM, PODS, Api, config_map, fails, pod

from kaito_ctrl.devcluster.apiserver.errors import StatusError
from kaito_ctrl.devcluster.apiserver.selectors import parse_fields, parse_labels


def names(listed: dict[str, object]) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]  # type: ignore[attr-defined]


LABELS = {"app": "web", "tier": "front", "n": "5", "team.example/x": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier=front", True),
        ("app!=web", False),
        ("missing!=x", True),
        ("app in (web, api)", True),
        ("app notin (web,api)", False),
        ("missing notin (a)", True),
        ("tier", True),
        ("!tier", False),
        ("!missing", True),
        ("n>4", True),
        ("n<5", False),
        ("team.example/x=", True),
        ("app in (web),tier in (back)", False),
    ],
)
def test_label_selectors(text: str, selected: bool) -> None:
    assert parse_labels(text).matches(LABELS) is selected


@pytest.mark.parametrize("text", ["a in b", "a in (b", "=x", "a=b,", "a b", "a in (b) c"])
def test_malformed_label_selectors_are_refused(text: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse_labels(text)
    assert caught.value.code == 400


def test_field_selectors_unescape_their_values() -> None:
    assert parse_fields(r"a=x\,y,b!=z").terms == (("a", True, "x,y"), ("b", False, "z"))


async def test_lists_are_ordered_by_namespace_and_name(api: Api) -> None:
    for name in ("b", "a", "c"):
        await api.post(CM, config_map(name))
    await api.post("/api/v1/namespaces/kube-public/configmaps", config_map("a"))
    listed = await api.get("/api/v1/configmaps")
    assert (listed["kind"], listed["apiVersion"]) == ("ConfigMapList", "v1")
    assert [(i["metadata"]["namespace"], i["metadata"]["name"]) for i in listed["items"]] == [
        ("default", "a"),
        ("default", "b"),
        ("default", "c"),
        ("kube-public", "a"),
    ]


async def test_pods_are_selected_by_fields(api: Api) -> None:
    await api.post(PODS, pod("a", nodeName="n1"))
    await api.post(PODS, pod("b"))
    assert names(await api.get(PODS, fieldSelector="spec.nodeName=n1")) == ["a"]
    assert names(await api.get(PODS, fieldSelector="spec.nodeName!=n1,status.phase=Pending")) == ["b"]
    assert names(await api.get(PODS, fieldSelector="metadata.name=a")) == ["a"]
    with fails(400) as caught:
        await api.get(PODS, fieldSelector="spec.hostname=x")
    assert "field label not supported: spec.hostname" in caught.value.message


async def test_events_are_selected_by_what_they_are_about(api: Api) -> None:
    about = {"kind": "Pod", "namespace": "default", "name": "p"}
    await api.post(
        "/api/v1/namespaces/default/events", {"metadata": {"name": "e"}, "involvedObject": about, "reason": "R"}
    )
    selector = "involvedObject.name=p,involvedObject.kind=Pod"
    assert names(await api.get("/api/v1/namespaces/default/events", fieldSelector=selector)) == ["e"]
    new = await api.get("/apis/events.k8s.io/v1/namespaces/default/events", fieldSelector="regarding.name=p")
    assert new["items"][0]["regarding"] == about
    assert new["items"][0]["apiVersion"] == "events.k8s.io/v1"


async def test_an_event_of_either_group_is_the_same_event(api: Api) -> None:
    body = {
        "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.000001Z",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
        "note": "hello",
        "reportingController": "me",
        "reportingInstance": "me-1",
        "action": "Greet",
        "reason": "Hello",
        "type": "Normal",
    }
    await api.post("/apis/events.k8s.io/v1/namespaces/default/events", body)
    core = await api.get("/api/v1/namespaces/default/events/e")
    assert (core["message"], core["involvedObject"]["name"], core["reportingComponent"]) == ("hello", "p", "me")


async def test_pages_show_one_consistent_state(api: Api) -> None:
    for name in "abcde":
        await api.post(CM, config_map(name))
    first = await api.get(CM, limit=2)
    assert names(first) == ["a", "b"]
    assert first["metadata"]["remainingItemCount"] == 3
    await api.delete(f"{CM}/c")
    await api.post(CM, config_map("aa"))
    await api.merge(f"{CM}/d", {"data": {"k": "changed"}})
    second = await api.get(CM, limit=2, **{"continue": first["metadata"]["continue"]})
    assert names(second) == ["c", "d"]
    assert second["items"][1]["data"] == {"k": "v"}
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    third = await api.get(CM, limit=2, **{"continue": second["metadata"]["continue"]})
    assert names(third) == ["e"]
    assert "continue" not in third["metadata"]


async def test_a_continue_token_expires_with_its_history(api: Api) -> None:
    for name in "abc":
        await api.post(CM, config_map(name))
    first = await api.get(CM, limit=1)
    await api.post(CM, config_map("d"))
    api.server.compact()
    with fails(410, "Expired") as caught:
        await api.get(CM, limit=1, **{"continue": first["metadata"]["continue"]})
    assert "continue parameter is too old" in caught.value.message


async def test_a_forged_continue_token_is_a_bad_request(api: Api) -> None:
    with fails(400):
        await api.get(CM, **{"continue": "rubbish"})
    token = base64.urlsafe_b64encode(msgspec.json.encode({"rv": "x"})).decode()
    with fails(400):
        await api.get(CM, **{"continue": token})


async def test_a_list_from_the_watch_cache_is_not_paged(api: Api) -> None:
    for name in "abc":
        await api.post(CM, config_map(name))
    assert names(await api.get(CM, limit=1, resourceVersion="0")) == ["a", "b", "c"]


async def test_a_list_at_an_exact_version_shows_the_past(api: Api) -> None:
    made = await api.post(CM, config_map("a"))
    await api.post(CM, config_map("b"))
    version = made["metadata"]["resourceVersion"]
    past = await api.get(CM, resourceVersion=version, resourceVersionMatch="Exact")
    assert names(past) == ["a"]
    assert past["metadata"]["resourceVersion"] == version
    now = await api.get(CM, resourceVersion=version, resourceVersionMatch="NotOlderThan")
    assert names(now) == ["a", "b"]


async def test_the_future_is_too_large_a_version(api: Api) -> None:
    with fails(504, "Timeout") as caught:
        await api.get(CM, resourceVersion="100000")
    assert caught.value.message.startswith("Timeout: Too large resource version: 100000, current: ")
    assert caught.value.details["causes"][0]["reason"] == "ResourceVersionTooLarge"
    assert caught.value.details["retryAfterSeconds"] == 1


async def test_a_version_match_without_a_version_makes_no_sense(api: Api) -> None:
    with fails(422):
        await api.get(CM, resourceVersionMatch="Exact")
    with fails(500):
        await api.get(CM, resourceVersion="abc")


async def test_metadata_only_lists(api: Api) -> None:
    await api.post(CM, config_map())
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listed = await api.get(CM, accept=accept)
    assert (listed["kind"], listed["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    assert listed["items"][0]["kind"] == "PartialObjectMetadata"
    assert "data" not in listed["items"][0]
