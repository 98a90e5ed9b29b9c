"""Config maps, secrets, leases and events."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.conformance.objects import config_map
from tests.conformance.wire import Api, Obj, fails


@pytest.mark.parametrize("change", [{"data": {"k": "2"}}, {"immutable": False}, {"immutable": None}])
async def test_an_immutable_config_map_stays(api: Api, change: Obj) -> None:
    await api.post(api.at("configmaps"), {**config_map(), "immutable": True})
    with fails(422, "Invalid") as caught:
        await api.merge(api.at("configmaps", "a"), change)
    assert "field is immutable when `immutable` is set" in caught.value.message
    await api.merge(api.at("configmaps", "a"), {"metadata": {"labels": {"a": "b"}}})


@pytest.mark.parametrize("key", ["a b", "a/b", "..", ""])
async def test_keys_of_a_config_map_are_file_names(api: Api, key: str) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map(data={key: "x"}))
    assert caught.value.fields[0] == f"data[{key}]"


async def test_a_key_is_text_or_binary(api: Api) -> None:
    with fails(422, "Invalid"):
        await api.post(api.at("configmaps"), {**config_map(), "binaryData": {"k": "eA=="}})


async def test_the_text_of_a_secret_is_written_into_its_data(api: Api) -> None:
    made = await api.post(
        api.at("secrets"), {"metadata": {"name": "s"}, "stringData": {"k": "v"}, "data": {"x": "eQ=="}}
    )
    assert made["type"] == "Opaque"
    assert made["data"] == {"k": base64.b64encode(b"v").decode(), "x": "eQ=="}
    assert "stringData" not in made


async def test_the_type_of_a_secret_never_changes(api: Api) -> None:
    await api.post(api.at("secrets"), {"metadata": {"name": "s"}})
    with fails(422, "Invalid") as caught:
        await api.merge(api.at("secrets", "s"), {"type": "example.com/other"})
    assert caught.value.fields == ["type"]


async def test_a_secret_of_a_known_type_has_its_keys(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("secrets"), {"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {}})
    assert set(caught.value.fields) == {"data[tls.crt]", "data[tls.key]"}


async def test_data_that_is_not_base64_is_a_bad_request(api: Api) -> None:
    with fails(400, "BadRequest"):
        await api.post(api.at("secrets"), {"metadata": {"name": "s"}, "data": {"k": "not base64!"}})


async def test_secrets_are_selected_by_type(api: Api) -> None:
    await api.post(api.at("secrets"), {"metadata": {"name": "s"}, "type": "example.com/x"})
    listed = await api.get(api.at("secrets"), fieldSelector="type=example.com/x")
    assert [item["metadata"]["name"] for item in listed["items"]] == ["s"]


# Leases and events.


async def test_a_lease_keeps_microseconds(api: Api) -> None:
    spec: Any = {"holderIdentity": "me", "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.000006Z"}
    made = await api.post(api.at("coordination.k8s.io/v1/leases"), {"metadata": {"name": "l"}, "spec": spec})
    assert made["spec"] == spec
    made["spec"]["holderIdentity"] = "you"
    await api.put(api.at("coordination.k8s.io/v1/leases", "l"), made)
    with fails(409, "Conflict"):
        await api.put(api.at("coordination.k8s.io/v1/leases", "l"), made)


@pytest.mark.parametrize("spec", [{"leaseDurationSeconds": 0}, {"leaseTransitions": -1}])
async def test_leases_are_validated(api: Api, spec: Obj) -> None:
    with fails(422, "Invalid"):
        await api.post(api.at("coordination.k8s.io/v1/leases"), {"metadata": {"name": "l"}, "spec": spec})


def event(namespace: str) -> Obj:
    return {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace, "uid": "u"},
        "reason": "Happened",
        "message": "it did",
        "type": "Normal",
    }


async def test_events_are_selected_by_what_they_are_about(api: Api) -> None:
    await api.post(api.at("events"), event(api.namespace))
    for selector, count in (
        ("involvedObject.name=p", 1),
        ("involvedObject.name=q", 0),
        ("reason=Happened,type=Normal", 1),
    ):
        assert len((await api.get(api.at("events"), fieldSelector=selector))["items"]) == count


async def test_an_event_is_shown_in_both_groups(api: Api) -> None:
    await api.post(api.at("events"), event(api.namespace))
    found = await api.get(api.at("events.k8s.io/v1/events", "e"))
    assert found["apiVersion"] == "events.k8s.io/v1"
    assert found["regarding"]["name"] == "p"
    assert found["note"] == "it did"


async def test_an_event_of_the_new_group_is_complete(api: Api) -> None:
    body = {
        "metadata": {"name": "n"},
        "eventTime": "2026-01-02T03:04:05.000006Z",
        "reportingController": "example.com/c",
        "reportingInstance": "c-1",
        "action": "Do",
        "reason": "Done",
        "type": "Normal",
        "regarding": {"kind": "Pod", "name": "p", "namespace": api.namespace},
        "note": "well",
    }
    made = await api.post(api.at("events.k8s.io/v1/events"), body)
    assert made["eventTime"] == body["eventTime"]
    assert (await api.get(api.at("events", "n")))["message"] == "well"
    del body["action"]
    with fails(422, "Invalid") as caught:
        await api.post(api.at("events.k8s.io/v1/events"), {**body, "metadata": {"name": "m"}})
    assert "action" in caught.value.fields


async def test_an_event_belongs_to_the_namespace_of_its_object(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("events"), event("elsewhere"))
    assert "involvedObject.namespace" in caught.value.fields
