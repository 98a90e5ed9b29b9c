"""Server-side apply: ownership, conflicts, removal, and the shape of ``managedFields``."""

from __future__ import annotations

import pytest

from tests.conformance.objects import config_map, deployment, pod, widget, widget_crd
from tests.conformance.wire import Api, Obj, fails


def applied(name: str = "a", **data: str) -> Obj:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def entry(obj: Obj, manager: str, operation: str = "Apply") -> Obj:
    found: list[Obj] = [
        e for e in obj["metadata"]["managedFields"] if (e["manager"], e["operation"]) == (manager, operation)
    ]
    assert len(found) == 1, obj["metadata"]["managedFields"]
    return found[0]


async def test_an_apply_creates_what_is_not_there(api: Api) -> None:
    made = await api.apply(api.at("configmaps", "a"), applied(k="v"))
    assert api.code == 201
    assert made["data"] == {"k": "v"}
    owned = entry(made, "me")
    assert owned["time"].endswith("Z")
    del owned["time"]
    assert owned == {
        "manager": "me",
        "operation": "Apply",
        "apiVersion": "v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:k": {}}},
    }
    assert len(made["metadata"]["managedFields"]) == 1


async def test_the_same_apply_again_changes_nothing(api: Api) -> None:
    made = await api.apply(api.at("configmaps", "a"), applied(k="v"))
    again = await api.apply(api.at("configmaps", "a"), applied(k="v"))
    assert api.code == 200
    assert again == made


async def test_an_apply_removes_what_it_no_longer_says(api: Api) -> None:
    await api.apply(api.at("configmaps", "a"), applied(k="v", x="y"))
    changed = await api.apply(api.at("configmaps", "a"), applied(k="v"))
    assert changed["data"] == {"k": "v"}
    assert entry(changed, "me")["fieldsV1"] == {"f:data": {"f:k": {}}}


async def test_an_apply_leaves_alone_what_others_set(api: Api) -> None:
    await api.apply(api.at("configmaps", "a"), applied(mine="1"))
    both = await api.apply(api.at("configmaps", "a"), applied(yours="2"), manager="you")
    assert both["data"] == {"mine": "1", "yours": "2"}
    left = await api.apply(api.at("configmaps", "a"), applied(), manager="you")
    assert left["data"] == {"mine": "1"}


async def test_two_managers_may_say_the_same(api: Api) -> None:
    await api.apply(api.at("configmaps", "a"), applied(k="v"))
    both = await api.apply(api.at("configmaps", "a"), applied(k="v"), manager="you")
    assert entry(both, "me")["fieldsV1"] == entry(both, "you")["fieldsV1"] == {"f:data": {"f:k": {}}}
    # While one still says it, it stays.
    left = await api.apply(api.at("configmaps", "a"), applied())
    assert left["data"] == {"k": "v"}


async def test_another_value_is_a_conflict(api: Api) -> None:
    await api.apply(api.at("configmaps", "a"), applied(k="v"))
    with fails(409, "Conflict", 'Apply failed with 1 conflict: conflict with "me": .data.k') as caught:
        await api.apply(api.at("configmaps", "a"), applied(k="2"), manager="you")
    assert caught.value.details["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "me"', "field": ".data.k"}
    ]


async def test_every_conflict_is_named(api: Api) -> None:
    await api.apply(api.at("configmaps", "a"), applied(k="v", x="y"))
    with fails(409, "Conflict") as caught:
        await api.apply(api.at("configmaps", "a"), applied(k="2", x="3"), manager="you")
    assert caught.value.message == 'Apply failed with 2 conflicts: conflicts with "me":\n- .data.k\n- .data.x'
    assert caught.value.fields == [".data.k", ".data.x"]


async def test_an_ordinary_write_owns_what_it_changed(api: Api) -> None:
    await api.apply(api.at("configmaps", "a"), applied(k="v"))
    changed = await api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}}, fieldManager="hand")
    assert entry(changed, "hand", "Update")["fieldsV1"] == {"f:data": {"f:k": {}}}
    assert [e["manager"] for e in changed["metadata"]["managedFields"]] == ["hand"]
    with fails(409, "Conflict") as caught:
        await api.apply(api.at("configmaps", "a"), applied(k="3"))
    assert caught.value.message.startswith('Apply failed with 1 conflict: conflict with "hand" using v1')


async def test_force_takes_over(api: Api) -> None:
    await api.apply(api.at("configmaps", "a"), applied(k="v", x="y"))
    forced = await api.apply(api.at("configmaps", "a"), applied(k="2"), manager="you", force=True)
    assert forced["data"] == {"k": "2", "x": "y"}
    assert entry(forced, "me")["fieldsV1"] == {"f:data": {"f:x": {}}}
    assert entry(forced, "you")["fieldsV1"] == {"f:data": {"f:k": {}}}


async def test_an_apply_needs_a_manager(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api("PATCH", api.at("configmaps", "a"), applied(), media="application/apply-patch+yaml")
    assert caught.value.message == (
        'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
    )


async def test_force_is_for_apply_alone(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(422, "Invalid") as caught:
        await api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}}, force=True)
    assert caught.value.fields == ["force"]


async def test_an_apply_may_not_bring_managed_fields(api: Api) -> None:
    body = applied(k="v")
    body["metadata"]["managedFields"] = [{"manager": "x", "operation": "Apply", "apiVersion": "v1"}]
    with fails(400, "BadRequest", "metadata.managedFields must be nil"):
        await api.apply(api.at("configmaps", "a"), body)


async def test_an_apply_of_an_unknown_field_fails(api: Api) -> None:
    with fails(500) as caught:
        await api.apply(api.at("apps/v1/deployments", "d"), deployment(replicaz=1))
    assert ".spec.replicaz: field not declared in schema" in caught.value.message


async def test_yaml_may_be_applied(api: Api) -> None:
    made = await api.apply(
        api.at("configmaps", "a"), b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: v\n"
    )
    assert made["data"] == {"k": "v"}


async def test_an_apply_names_its_object(api: Api) -> None:
    words = "the name of the object (a based on URL) was undeterminable: name must be provided"
    with fails(400, "BadRequest", words):
        await api.apply(api.at("configmaps", "a"), {"apiVersion": "v1", "kind": "ConfigMap"})


async def test_an_apply_names_its_version(api: Api) -> None:
    words = "Incorrect version specified in apply patch. Specified patch version: , expected: v1"
    with fails(400, "BadRequest", words):
        await api.apply(api.at("configmaps", "a"), {"kind": "ConfigMap", "metadata": {"name": "a"}})


async def test_an_apply_may_insist_on_a_version(api: Api) -> None:
    made = await api.apply(api.at("configmaps", "a"), applied(k="v"))
    await api.merge(api.at("configmaps", "a"), {"data": {"x": "y"}})
    body = applied(k="2")
    body["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    with fails(409, "Conflict"):
        await api.apply(api.at("configmaps", "a"), body)


async def test_lists_are_owned_by_key(api: Api) -> None:
    made = await api.apply(api.at("apps/v1/deployments", "d"), deployment())
    fields = entry(made, "me")["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert fields == {'k:{"name":"c"}': {".": {}, "f:name": {}, "f:image": {}}}
    sidecar = deployment()
    sidecar["spec"] = {
        "selector": sidecar["spec"]["selector"],
        "template": {
            "metadata": sidecar["spec"]["template"]["metadata"],
            "spec": {"containers": [{"name": "side", "image": "s:1"}]},
        },
    }
    both = await api.apply(api.at("apps/v1/deployments", "d"), sidecar, manager="you")
    assert sorted(c["name"] for c in both["spec"]["template"]["spec"]["containers"]) == ["c", "side"]
    del sidecar["spec"]["template"]["spec"]["containers"]
    left = await api.apply(api.at("apps/v1/deployments", "d"), sidecar, manager="you")
    assert [c["name"] for c in left["spec"]["template"]["spec"]["containers"]] == ["c"]


async def test_defaults_belong_to_nobody(api: Api) -> None:
    made = await api.apply(api.at("apps/v1/deployments", "d"), deployment())
    assert made["spec"]["replicas"] == 1
    assert "f:replicas" not in entry(made, "me")["fieldsV1"]["f:spec"]
    changed = await api.apply(api.at("apps/v1/deployments", "d"), deployment(replicas=3), manager="you")
    assert changed["spec"]["replicas"] == 3


async def test_finalizers_are_owned_by_value(api: Api) -> None:
    body = applied()
    body["metadata"]["finalizers"] = ["example.com/a"]
    made = await api.apply(api.at("configmaps", "a"), body)
    fields = entry(made, "me")["fieldsV1"]["f:metadata"]["f:finalizers"]
    assert fields['v:"example.com/a"'] == {}
    body["metadata"]["finalizers"] = ["example.com/b"]
    both = await api.apply(api.at("configmaps", "a"), body, manager="you")
    assert sorted(both["metadata"]["finalizers"]) == ["example.com/a", "example.com/b"]


async def test_a_custom_resource_is_applied_by_its_schema(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.apply(api.at(kind, "w"), widget(parts=[{"name": "a", "count": 2}], tags=["x"]))
    fields = entry(made, "me")["fieldsV1"]["f:spec"]
    assert fields["f:parts"] == {'k:{"name":"a"}': {".": {}, "f:name": {}, "f:count": {}}}
    assert fields["f:tags"] == {'v:"x"': {}}
    both = await api.apply(api.at(kind, "w"), widget(parts=[{"name": "b"}], tags=["y"]), manager="you")
    assert sorted(p["name"] for p in both["spec"]["parts"]) == ["a", "b"]
    assert sorted(both["spec"]["tags"]) == ["x", "y"]
    with fails(409, "Conflict") as caught:
        await api.apply(api.at(kind, "w"), widget(parts=[{"name": "a", "count": 3}]), manager="you")
    assert caught.value.fields == ['.spec.parts[name="a"].count']


async def test_status_is_applied_through_its_subresource(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.apply(api.at(kind, "w"), widget())
    body = {**widget(), "status": {"phase": "x"}}
    del body["spec"]
    written = await api.apply(api.at(kind, "w", "status"), body, manager="controller")
    assert (written["spec"]["size"], written["status"]) == (3, {"phase": "x"})
    assert entry(written, "controller")["fieldsV1"] == {"f:status": {"f:phase": {}}}
    if api.version >= (1, 22):
        assert entry(written, "controller")["subresource"] == "status"


async def test_what_is_not_there_has_no_status_to_apply(api: Api) -> None:
    kind = await api.define(widget_crd())
    with fails(404, "NotFound"):
        await api.apply(api.at(kind, "w", "status"), {**widget(), "status": {"phase": "x"}})


async def test_a_dry_run_shows_the_result_of_an_apply(api: Api) -> None:
    made = await api.apply(api.at("configmaps", "a"), applied(k="v"))
    shown = await api.apply(api.at("configmaps", "a"), applied(k="2"), dryRun="All")
    assert shown["data"] == {"k": "2"}
    assert await api.get(api.at("configmaps", "a")) == made


async def test_every_writer_is_recorded_by_the_name_of_its_program(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map(), agent="robot/2.1 (linux)")
    (owned,) = made["metadata"]["managedFields"]
    assert (owned["manager"], owned["operation"], owned["apiVersion"]) == ("robot", "Update", "v1")
    assert owned["fieldsV1"] == {"f:data": {".": {}, "f:k": {}}}


async def test_a_writer_may_name_itself(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map(), fieldManager="me")
    assert [e["manager"] for e in made["metadata"]["managedFields"]] == ["me"]
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map("b"), fieldManager="x" * 129)
    assert caught.value.fields == ["fieldManager"]


async def test_managed_fields_can_be_reset(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    cleared = await api.merge(api.at("configmaps", "a"), {"metadata": {"managedFields": [{}]}})
    assert "managedFields" not in cleared["metadata"]


async def test_the_status_of_a_pod_is_owned_apart_from_its_spec(api: Api) -> None:
    await api.post(api.at("pods"), pod(), fieldManager="user")
    written = await api.merge(api.at("pods", "p", "status"), {"status": {"phase": "Running"}}, fieldManager="kubelet")
    assert entry(written, "kubelet", "Update")["fieldsV1"] == {"f:status": {"f:phase": {}}}


@pytest.mark.minimum("1.22")
async def test_a_scale_is_recorded_as_a_subresource(api: Api) -> None:
    await api.apply(api.at("apps/v1/deployments", "d"), deployment(replicas=2))
    await api.merge(api.at("apps/v1/deployments", "d", "scale"), {"spec": {"replicas": 3}}, fieldManager="hpa")
    found = await api.get(api.at("apps/v1/deployments", "d"))
    assert entry(found, "hpa", "Update")["subresource"] == "scale"
    assert entry(found, "hpa", "Update")["fieldsV1"] == {"f:spec": {"f:replicas": {}}}
