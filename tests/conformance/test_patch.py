"""Patches: merge, JSON, strategic merge; and the media types that are none."""

from __future__ import annotations

import pytest

from tests.conformance.objects import config_map, deployment, pod, service, widget, widget_crd
from tests.conformance.wire import Api, Obj, fails


async def test_a_merge_patch_sets_and_removes(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(data={"a": "1", "b": "2"}, labels={"x": "y"}))
    patched = await api.merge(api.at("configmaps", "a"), {"data": {"a": None, "c": "3"}, "metadata": {"labels": None}})
    assert patched["data"] == {"b": "2", "c": "3"}
    assert "labels" not in patched["metadata"]


async def test_a_merge_patch_replaces_lists(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget(tags=["a", "b"]))
    assert (await api.merge(api.at(kind, "w"), {"spec": {"tags": ["c"]}}))["spec"]["tags"] == ["c"]


async def test_a_patch_of_what_is_not_there_is_not_found(api: Api) -> None:
    with fails(404, "NotFound", 'configmaps "a" not found'):
        await api.merge(api.at("configmaps", "a"), {"data": {}})


async def test_a_patch_may_insist_on_a_version(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    version = made["metadata"]["resourceVersion"]
    await api.merge(api.at("configmaps", "a"), {"metadata": {"resourceVersion": version}, "data": {"k": "2"}})
    with fails(409, "Conflict"):
        await api.merge(api.at("configmaps", "a"), {"metadata": {"resourceVersion": version}, "data": {"k": "3"}})


async def test_a_patch_cannot_change_the_uid(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    path = api.at("configmaps", "a")
    why = 'ConfigMap "a" is invalid: metadata.uid: Invalid value: "other": field is immutable'
    other = {"metadata": {"uid": "other"}, "data": {"k": "3"}}
    with fails(422, "Invalid", why):
        await api.merge(path, other)
    with fails(422, "Invalid", why):
        await api.strategic(path, other)
    with fails(422, "Invalid", why):
        await api.json_patch(path, [{"op": "replace", "path": "/metadata/uid", "value": "other"}])
    assert (await api.get(path))["data"] == {"k": "v"}


async def test_a_patch_of_a_status_cannot_change_the_uid(api: Api) -> None:
    await api.post(api.at("apps/v1/deployments"), deployment())
    with fails(422, "Invalid") as caught:
        await api.merge(api.at("apps/v1/deployments", "d", "status"), {"metadata": {"uid": "other"}})
    assert set(caught.value.fields) == {"metadata.uid"}


async def test_a_scale_of_another_uid_is_a_conflict(api: Api) -> None:
    made = await api.post(api.at("apps/v1/deployments"), deployment())
    why = f"Precondition failed: UID in precondition: other, UID in object meta: {made['metadata']['uid']}"
    with fails(409, "Conflict", f'Operation cannot be fulfilled on deployments/scale.apps "d": {why}'):
        await api.merge(api.at("apps/v1/deployments", "d", "scale"), {"metadata": {"uid": "other"}})


async def test_a_patch_cannot_rename(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(400, "BadRequest") as caught:
        await api.merge(api.at("configmaps", "a"), {"metadata": {"name": "b"}})
    assert caught.value.message == "the name of the object (b) does not match the name on the URL (a)"


@pytest.mark.minimum("1.27")
async def test_a_merge_patch_is_an_object(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(400, "BadRequest"):
        await api.merge(api.at("configmaps", "a"), b"{")


async def test_the_result_of_a_patch_must_be_valid(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    with fails(422, "Invalid") as caught:
        await api.merge(api.at(kind, "w"), {"spec": {"size": 99}})
    assert caught.value.fields == ["spec.size"]


# JSON patch.

OPERATIONS: list[tuple[list[Obj], dict[str, str]]] = [
    ([{"op": "add", "path": "/data/c", "value": "3"}], {"a": "1", "b": "2", "c": "3"}),
    ([{"op": "add", "path": "/data/a", "value": "9"}], {"a": "9", "b": "2"}),
    ([{"op": "replace", "path": "/data/a", "value": "9"}], {"a": "9", "b": "2"}),
    ([{"op": "remove", "path": "/data/a"}], {"b": "2"}),
    ([{"op": "copy", "from": "/data/a", "path": "/data/c"}], {"a": "1", "b": "2", "c": "1"}),
    ([{"op": "move", "from": "/data/a", "path": "/data/c"}], {"b": "2", "c": "1"}),
    ([{"op": "test", "path": "/data/a", "value": "1"}, {"op": "remove", "path": "/data/a"}], {"b": "2"}),
]


@pytest.mark.parametrize(("operations", "wanted"), OPERATIONS)
async def test_json_patch_operations(api: Api, operations: list[Obj], wanted: dict[str, str]) -> None:
    await api.post(api.at("configmaps"), config_map(data={"a": "1", "b": "2"}))
    assert (await api.json_patch(api.at("configmaps", "a"), operations))["data"] == wanted


async def test_a_json_patch_path_escapes_slashes(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(annotations={"example.com/a": "1"}))
    operation = {"op": "replace", "path": "/metadata/annotations/example.com~1a", "value": "2"}
    patched = await api.json_patch(api.at("configmaps", "a"), [operation])
    assert patched["metadata"]["annotations"] == {"example.com/a": "2"}


async def test_json_patch_of_lists(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget(tags=["a", "b"]))
    path = api.at(kind, "w")
    assert (await api.json_patch(path, [{"op": "add", "path": "/spec/tags/-", "value": "c"}]))["spec"]["tags"] == [
        "a",
        "b",
        "c",
    ]
    assert (await api.json_patch(path, [{"op": "add", "path": "/spec/tags/1", "value": "x"}]))["spec"]["tags"] == [
        "a",
        "x",
        "b",
        "c",
    ]
    assert (await api.json_patch(path, [{"op": "remove", "path": "/spec/tags/0"}]))["spec"]["tags"] == ["x", "b", "c"]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/a", "value": "2"},
        {"op": "test", "path": "/data/zz", "value": "2"},
        {"op": "remove", "path": "/data/zz"},
        pytest.param({"op": "replace", "path": "/data/zz", "value": "1"}, marks=pytest.mark.minimum("1.23")),
        {"op": "add", "path": "/nowhere/zz", "value": "1"},
        {"op": "replace", "path": "/metadata/finalizers/0", "value": "1"},
    ],
    ids=["test", "test absent", "remove absent", "replace absent", "add below absent", "index of absent"],
)
async def test_a_json_patch_that_does_not_fit_changes_nothing(api: Api, operation: Obj) -> None:
    made = await api.post(api.at("configmaps"), config_map(data={"a": "1"}))
    with fails(422, "Invalid", "the server rejected our request due to an error in our request"):
        await api.json_patch(api.at("configmaps", "a"), [{"op": "add", "path": "/data/b", "value": "2"}, operation])
    assert await api.get(api.at("configmaps", "a")) == made


async def test_an_unknown_operation_does_not_fit(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(422, "Invalid", "the server rejected our request due to an error in our request") as caught:
        await api.json_patch(api.at("configmaps", "a"), [{"op": "bend", "path": "/data"}])
    assert caught.value.details == {}


@pytest.mark.parametrize("form", ["merge", "json"])
async def test_a_patch_that_leaves_no_object_of_its_kind_is_invalid(api: Api, form: str) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(422, "Invalid") as caught:
        if form == "merge":
            await api.merge(api.at("configmaps", "a"), {"data": 5})
        else:
            await api.json_patch(api.at("configmaps", "a"), [{"op": "replace", "path": "/data", "value": 5}])
    assert caught.value.fields == ["patch"]
    assert caught.value.message.startswith(' "" is invalid: patch: Invalid value: ')


async def test_a_json_patch_is_a_list_of_operations(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(400, "BadRequest"):
        await api.json_patch(api.at("configmaps", "a"), {"op": "add"})


# Strategic merge.


def _names(items: list[Obj]) -> list[str]:
    return [item["name"] for item in items]


async def _two_containers(api: Api) -> str:
    body = deployment()
    body["spec"]["template"]["spec"]["containers"] = [
        {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]},
        {"name": "b", "image": "b:1"},
    ]
    await api.post(api.at("apps/v1/deployments"), body)
    return api.at("apps/v1/deployments", "d")


def _containers(patch: list[Obj]) -> Obj:
    return {"spec": {"template": {"spec": {"containers": patch}}}}


async def _patched(api: Api, path: str, patch: Obj) -> list[Obj]:
    found: list[Obj] = (await api.strategic(path, patch))["spec"]["template"]["spec"]["containers"]
    return found


async def test_a_strategic_patch_merges_lists_by_their_key(api: Api) -> None:
    path = await _two_containers(api)
    patched = await _patched(api, path, _containers([{"name": "a", "image": "a:2"}]))
    assert sorted((c["name"], c["image"]) for c in patched) == [("a", "a:2"), ("b", "b:1")]
    patched = await _patched(api, path, _containers([{"name": "a", "env": [{"name": "Y", "value": "2"}]}]))
    env = next(c for c in patched if c["name"] == "a")["env"]
    assert sorted((e["name"], e["value"]) for e in env) == [("X", "1"), ("Y", "2")]


async def test_a_strategic_patch_adds_and_deletes_list_items(api: Api) -> None:
    path = await _two_containers(api)
    patched = await _patched(api, path, _containers([{"name": "c", "image": "c:1"}]))
    assert sorted(_names(patched)) == ["a", "b", "c"]
    patched = await _patched(api, path, _containers([{"name": "b", "$patch": "delete"}]))
    assert sorted(_names(patched)) == ["a", "c"]


async def test_a_strategic_patch_can_replace_a_list(api: Api) -> None:
    path = await _two_containers(api)
    patched = await _patched(api, path, _containers([{"$patch": "replace"}, {"name": "z", "image": "z:1"}]))
    assert _names(patched) == ["z"]


async def test_a_strategic_patch_can_replace_a_map(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(data={"a": "1", "b": "2"}))
    patched = await api.strategic(api.at("configmaps", "a"), {"data": {"$patch": "replace", "c": "3"}})
    assert patched["data"] == {"c": "3"}


async def test_a_strategic_patch_removes_with_null(api: Api) -> None:
    path = await _two_containers(api)
    patched = await _patched(api, path, _containers([{"name": "a", "env": None}]))
    assert "env" not in next(c for c in patched if c["name"] == "a")


async def test_finalizers_merge_as_a_set(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(finalizers=["example.com/a"]))
    patched = await api.strategic(api.at("configmaps", "a"), {"metadata": {"finalizers": ["example.com/b"]}})
    assert sorted(patched["metadata"]["finalizers"]) == ["example.com/a", "example.com/b"]
    delete = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/a"]}}
    patched = await api.strategic(api.at("configmaps", "a"), delete)
    assert patched["metadata"]["finalizers"] == ["example.com/b"]


async def test_ports_of_a_service_merge_by_port(api: Api) -> None:
    await api.post(api.at("services"), service(ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81}]))
    patched = await api.strategic(api.at("services", "s"), {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}})
    assert sorted((p["port"], p["targetPort"]) for p in patched["spec"]["ports"]) == [(80, 8080), (81, 81)]


async def test_conditions_of_a_pod_merge_by_type(api: Api) -> None:
    await api.post(api.at("pods"), pod())
    for condition in (
        {"type": "A", "status": "True"},
        {"type": "B", "status": "True"},
        {"type": "A", "status": "False"},
    ):
        written = await api.strategic(api.at("pods", "p", "status"), {"status": {"conditions": [condition]}})
    found = {c["type"]: c["status"] for c in written["status"]["conditions"]}
    assert found == {"A": "False", "B": "True"}


async def test_a_custom_resource_has_no_strategic_merge(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    with fails(415, "UnsupportedMediaType") as caught:
        await api.strategic(api.at(kind, "w"), {"spec": {"size": 4}})
    assert caught.value.message.startswith(
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json"
    )


@pytest.mark.parametrize("media", ["application/json", "text/plain", ""])
async def test_a_patch_of_an_unknown_kind_is_refused(api: Api, media: str) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(415, "UnsupportedMediaType"):
        await api("PATCH", api.at("configmaps", "a"), {"data": {"k": "2"}}, media=media)
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    with fails(415, "UnsupportedMediaType") as caught:
        await api("PATCH", api.at(kind, "w"), {"spec": {"size": 2}}, media=media)
    assert "application/json-patch+json, application/merge-patch+json" in caught.value.message
