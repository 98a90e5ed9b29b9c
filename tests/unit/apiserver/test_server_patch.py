"""The four kinds of patch."""

from __future__ import annotations

from typing import Any

import pytest
from apihelpers import CM, CRDS, DEPLOY, WS, Api, config_map, deployment, fails, workspace, workspace_crd

from kaito_ctrl.devcluster.apiserver.patch import json_patch, merge_patch
from kaito_ctrl.devcluster.apiserver.schema import builtin
from kaito_ctrl.devcluster.apiserver.strategic import strategic_patch


def test_merge_patch_merges_maps_replaces_lists_and_removes_nulls() -> None:
    target = {"a": {"b": 1, "c": 2}, "l": [1, 2], "gone": 1}
    assert merge_patch(target, {"a": {"c": None, "d": 3}, "l": [9], "gone": None}) == {"a": {"b": 1, "d": 3}, "l": [9]}
    assert target == {"a": {"b": 1, "c": 2}, "l": [1, 2], "gone": 1}


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/a/-", "value": 3}, {"a": [1, 2, 3]}),
        ({"op": "add", "path": "/a/0", "value": 0}, {"a": [0, 1, 2]}),
        ({"op": "remove", "path": "/a/1"}, {"a": [1]}),
        ({"op": "replace", "path": "/a", "value": {}}, {"a": {}}),
        ({"op": "add", "path": "/x~1y~0z", "value": 1}, {"a": [1, 2], "x/y~z": 1}),
        ({"op": "copy", "from": "/a/0", "path": "/b"}, {"a": [1, 2], "b": 1}),
        ({"op": "move", "from": "/a", "path": "/b"}, {"b": [1, 2]}),
        ({"op": "test", "path": "/a/1", "value": 2}, {"a": [1, 2]}),
    ],
)
def test_json_patch_operations(operation: Any, expected: Any) -> None:
    target = {"a": [1, 2]}
    assert json_patch(target, [operation]) == expected
    assert target == {"a": [1, 2]}


async def test_a_failed_test_of_a_json_patch_is_invalid_and_changes_nothing(api: Api) -> None:
    await api.post(CM, config_map())
    with fails(422, "Invalid") as caught:
        await api.json_patch(
            f"{CM}/a",
            [{"op": "replace", "path": "/data/k", "value": "2"}, {"op": "test", "path": "/data/k", "value": "x"}],
        )
    assert caught.value.details == {}
    assert (await api.get(f"{CM}/a"))["data"] == {"k": "v"}


async def test_removing_what_is_not_there_is_invalid(api: Api) -> None:
    await api.post(CM, config_map())
    with fails(422):
        await api.json_patch(f"{CM}/a", [{"op": "remove", "path": "/data/nothing"}])


async def test_a_merge_patch_with_a_stale_version_conflicts(api: Api) -> None:
    first = await api.post(CM, config_map())
    await api.merge(f"{CM}/a", {"data": {"k": "2"}})
    with fails(409, "Conflict"):
        stale = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"k": "3"}}
        await api.merge(f"{CM}/a", stale)


POD = builtin("core.Pod")


def _containers(*items: Any) -> Any:
    return {"spec": {"containers": list(items)}}


def test_strategic_patch_merges_containers_by_name() -> None:
    live = _containers({"name": "a", "image": "1"}, {"name": "b", "image": "1"})
    patch = _containers({"name": "b", "image": "2", "env": [{"name": "X", "value": "y"}]})
    assert strategic_patch(live, patch, POD) == _containers(
        {"name": "a", "image": "1"}, {"name": "b", "image": "2", "env": [{"name": "X", "value": "y"}]}
    )


def test_strategic_patch_deletes_and_replaces_by_directive() -> None:
    live = _containers({"name": "a"}, {"name": "b"})
    assert strategic_patch(live, _containers({"name": "a", "$patch": "delete"}), POD) == _containers({"name": "b"})
    replaced = _containers({"$patch": "replace"}, {"name": "c"})
    assert strategic_patch(live, replaced, POD) == _containers({"name": "c"})
    whole = {"metadata": {"labels": {"$patch": "replace", "new": "1"}}}
    assert strategic_patch({"metadata": {"labels": {"old": "1"}}}, whole, POD) == {"metadata": {"labels": {"new": "1"}}}


def test_strategic_patch_orders_lists_as_told() -> None:
    live = _containers({"name": "a"}, {"name": "b"})
    order = [{"name": "c"}, {"name": "b"}, {"name": "a"}]
    patch = {"spec": {"$setElementOrder/containers": order, "containers": [{"name": "c"}]}}
    assert [c["name"] for c in strategic_patch(live, patch, POD)["spec"]["containers"]] == ["c", "b", "a"]


def test_strategic_patch_of_a_list_of_primitives() -> None:
    live = {"metadata": {"finalizers": ["a", "b"]}}
    assert strategic_patch(live, {"metadata": {"finalizers": ["c"]}}, POD)["metadata"]["finalizers"] == ["a", "b", "c"]
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}
    assert strategic_patch(live, patch, POD)["metadata"]["finalizers"] == ["b"]


def test_strategic_patch_retains_only_named_keys() -> None:
    volume = {"name": "v", "emptyDir": {}}
    patch = {"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]}}
    merged = strategic_patch({"spec": {"volumes": [volume]}}, patch, POD)
    assert merged["spec"]["volumes"] == [{"name": "v", "hostPath": {"path": "/"}}]


async def test_a_strategic_patch_of_a_deployment_keeps_its_other_containers(api: Api) -> None:
    await api.post(DEPLOY, deployment())
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s:1"}]}}}}
    patched = await api.strategic(f"{DEPLOY}/d", patch)
    assert [c["name"] for c in patched["spec"]["template"]["spec"]["containers"]] == ["c", "side"]


async def test_custom_resources_take_no_strategic_patch(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    await api.post(WS, workspace())
    with fails(415, "UnsupportedMediaType"):
        await api.strategic(f"{WS}/w", {"resource": {"count": 2}})


async def test_a_patch_of_nothing_is_not_found_and_rubbish_is_a_bad_request(api: Api) -> None:
    with fails(404):
        await api.merge(f"{CM}/a", {})
    await api.post(CM, config_map())
    with fails(400):
        await api.merge(f"{CM}/a", b"{")
    with fails(400):
        await api.json_patch(f"{CM}/a", {"not": "a list"})
