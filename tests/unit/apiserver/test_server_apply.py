"""Server-side apply: who owns what, what conflicts, what goes away."""

from __future__ import annotations

from typing import Any

from apihelpers import CM, CRDS, DEPLOY, WS, Api, config_map, deployment, fails, workspace, workspace_crd


def cm(**data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}


def deploy(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", **deployment("d", **spec)}


def owners(obj: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {(e["manager"], e["operation"]): e["fieldsV1"] for e in obj["metadata"]["managedFields"]}


async def test_apply_creates_and_owns_exactly_what_it_sets(api: Api) -> None:
    made = await api.apply(f"{DEPLOY}/d", deploy(replicas=2))
    assert api.code == 201
    fields = owners(made)["me", "Apply"]
    assert fields["f:spec"]["f:replicas"] == {}
    assert 'k:{"name":"c"}' in fields["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert "f:strategy" not in fields["f:spec"]
    assert made["spec"]["strategy"]["type"] == "RollingUpdate"


async def test_applying_the_same_again_is_no_write(api: Api) -> None:
    first = await api.apply(f"{DEPLOY}/d", deploy(replicas=2))
    again = await api.apply(f"{DEPLOY}/d", deploy(replicas=2))
    assert api.code == 200
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_a_field_of_somebody_else_conflicts_unless_forced(api: Api) -> None:
    await api.apply(f"{CM}/a", cm(k="1"), "one")
    with fails(409, "Conflict") as caught:
        await api.apply(f"{CM}/a", cm(k="2"), "two")
    assert caught.value.message == 'Apply failed with 1 conflict: conflict with "one": .data.k'
    assert caught.value.details["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.k"}
    ]
    forced = await api.apply(f"{CM}/a", cm(k="2"), "two", force=True)
    assert forced["data"] == {"k": "2"}
    assert owners(forced) == {("two", "Apply"): {"f:data": {"f:k": {}}}}


async def test_several_conflicts_are_listed_by_manager(api: Api) -> None:
    await api.post(CM, config_map("a", k="1", l="1"))
    with fails(409) as caught:
        await api.apply(f"{CM}/a", cm(k="2", l="2"))
    assert caught.value.message == (
        'Apply failed with 2 conflicts: conflicts with "tester" using v1:\n- .data.k\n- .data.l'
    )


async def test_the_same_value_is_owned_together(api: Api) -> None:
    await api.apply(f"{CM}/a", cm(k="1"), "one")
    shared = await api.apply(f"{CM}/a", cm(k="1"), "two")
    assert set(owners(shared)) == {("one", "Apply"), ("two", "Apply")}
    # One lets go: the other still holds the field.
    kept = await api.apply(f"{CM}/a", cm(), "one")
    assert kept["data"] == {"k": "1"}
    gone = await api.apply(f"{CM}/a", cm(), "two")
    assert "data" not in gone


async def test_what_is_no_longer_applied_goes(api: Api) -> None:
    await api.apply(f"{CM}/a", cm(k="1", l="2"))
    assert (await api.apply(f"{CM}/a", cm(l="2")))["data"] == {"l": "2"}


async def test_what_others_set_stays(api: Api) -> None:
    await api.apply(f"{CM}/a", cm(k="1"))
    await api.merge(f"{CM}/a", {"data": {"other": "x"}})
    assert (await api.apply(f"{CM}/a", cm(k="1")))["data"] == {"k": "1", "other": "x"}


async def test_an_update_takes_over_what_it_changes(api: Api) -> None:
    await api.apply(f"{CM}/a", cm(k="1"))
    updated = await api.merge(f"{CM}/a", {"data": {"k": "2"}})
    found = owners(updated)
    assert found == {("tester", "Update"): {"f:data": {"f:k": {}}}}
    with fails(409):
        await api.apply(f"{CM}/a", cm(k="1"))


async def test_list_items_are_owned_by_key(api: Api) -> None:
    await api.apply(f"{DEPLOY}/d", deploy())
    sidecar = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s:1"}]}}},
    }
    both = await api.apply(f"{DEPLOY}/d", sidecar, "injector")
    assert [c["name"] for c in both["spec"]["template"]["spec"]["containers"]] == ["c", "side"]
    empty = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    without = await api.apply(f"{DEPLOY}/d", empty, "injector")
    assert [c["name"] for c in without["spec"]["template"]["spec"]["containers"]] == ["c"]


async def test_sets_and_maps_of_a_custom_resource_merge_by_its_schema(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    one = workspace(resource={"instanceType": "gpu", "preferredNodes": ["a"]})
    await api.apply(f"{WS}/w", one, "one")
    two = {**workspace(), "resource": {"preferredNodes": ["b"]}}
    both = await api.apply(f"{WS}/w", two, "two")
    assert both["resource"]["preferredNodes"] == ["a", "b"]
    assert owners(both)["two", "Apply"] == {"f:resource": {"f:preferredNodes": {'v:"b"': {}}}}
    assert (await api.apply(f"{WS}/w", one, "one"))["resource"]["preferredNodes"] == ["a", "b"]


async def test_conditions_are_applied_through_status_only(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    await api.apply(f"{WS}/w", workspace(), "user")
    status = workspace(status={"conditions": [{"type": "Ready", "status": "True"}]})
    del status["resource"]
    applied = await api.apply(f"{WS}/w/status", status, "controller")
    assert applied["status"]["conditions"] == [{"type": "Ready", "status": "True"}]
    entry = next(e for e in applied["metadata"]["managedFields"] if e["manager"] == "controller")
    assert entry["subresource"] == "status"
    assert applied["metadata"]["generation"] == 1
    other = workspace(status={"conditions": [{"type": "Synced", "status": "True"}]})
    del other["resource"]
    both = await api.apply(f"{WS}/w/status", other, "second")
    assert [c["type"] for c in both["status"]["conditions"]] == ["Ready", "Synced"]


async def test_apply_needs_a_field_manager_and_known_fields(api: Api) -> None:
    with fails(422) as caught:
        await api("PATCH", f"{CM}/a", cm(), media="application/apply-patch+yaml")
    assert "fieldManager: Required value: is required for apply patch" in caught.value.message
    with fails(500) as caught:
        await api.apply(f"{DEPLOY}/d", deploy(foo=1))
    assert ".spec.foo: field not declared in schema" in caught.value.message


async def test_apply_takes_yaml(api: Api) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n"
    assert (await api.apply(f"{CM}/a", text))["data"] == {"k": "v"}


async def test_apply_with_a_stale_version_conflicts(api: Api) -> None:
    first = await api.apply(f"{CM}/a", cm(k="1"))
    await api.merge(f"{CM}/a", {"data": {"x": "y"}})
    stale = cm(k="2")
    stale["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"]
    with fails(409, "Conflict"):
        await api.apply(f"{CM}/a", stale)


async def test_one_empty_entry_resets_managed_fields(api: Api) -> None:
    await api.apply(f"{CM}/a", cm(k="1"))
    reset = await api.merge(f"{CM}/a", {"metadata": {"managedFields": [{}]}})
    assert "managedFields" not in reset["metadata"]


async def test_managed_fields_say_when_and_by_whom(api: Api) -> None:
    await api.post(CM, config_map())
    api.clock.advance(60)
    changed = await api.merge(f"{CM}/a", {"data": {"new": "x"}}, fieldManager="other")
    times = {e["manager"]: e["time"] for e in changed["metadata"]["managedFields"]}
    assert times == {"tester": "2026-01-01T00:00:00Z", "other": "2026-01-01T00:01:00Z"}
