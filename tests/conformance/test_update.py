"""Changing objects: versions, generation, the status and scale subresources, dry runs, field validation."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.objects import config_map, deployment, gadget_crd, pod, widget, widget_crd
from tests.conformance.wire import Api, Obj, fails

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


async def test_every_change_has_a_new_version(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    changed = await api.put(api.at("configmaps", "a"), {**made, "data": {"k": "2"}})
    assert api.code == 200
    assert int(changed["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert changed["metadata"]["uid"] == made["metadata"]["uid"]
    assert changed["metadata"]["creationTimestamp"] == made["metadata"]["creationTimestamp"]


async def test_a_write_that_changes_nothing_has_no_new_version(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    assert await api.put(api.at("configmaps", "a"), made) == made
    assert await api.merge(api.at("configmaps", "a"), {"data": {"k": "v"}}) == made


async def test_a_stale_version_is_a_conflict(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    await api.put(api.at("configmaps", "a"), {**made, "data": {"k": "2"}})
    with fails(409, "Conflict", f'Operation cannot be fulfilled on configmaps "a": {MODIFIED}') as caught:
        await api.put(api.at("configmaps", "a"), {**made, "data": {"k": "3"}})
    assert caught.value.details == {"name": "a", "kind": "configmaps"}


async def test_a_stale_version_of_a_custom_resource_names_its_group(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), widget())
    await api.merge(api.at(kind, "w"), {"spec": {"size": 4}})
    words = f'Operation cannot be fulfilled on widgets.conformance.kaito.sh "w": {MODIFIED}'
    with fails(409, "Conflict", words):
        await api.put(api.at(kind, "w"), made)


async def test_a_core_kind_may_be_updated_unconditionally(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    assert (await api.put(api.at("configmaps", "a"), config_map(data={"k": "2"})))["data"] == {"k": "2"}
    await api.post(api.at("apps/v1/deployments"), deployment())
    assert (await api.put(api.at("apps/v1/deployments", "d"), deployment(replicas=4)))["spec"]["replicas"] == 4


async def test_a_custom_resource_may_not(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    with fails(422, "Invalid") as caught:
        await api.put(api.at(kind, "w"), widget(size=4))
    words = 'widgets.conformance.kaito.sh "w" is invalid: metadata.resourceVersion: Invalid value: 0'
    assert caught.value.message.startswith(words)  # an unsigned zero, which Go shows as 0x0 or as 0
    assert caught.value.message.endswith(": must be specified for an update")


async def test_an_update_of_what_is_not_there_is_not_found(api: Api) -> None:
    with fails(404, "NotFound", 'configmaps "a" not found'):
        await api.put(api.at("configmaps", "a"), config_map())
    kind = await api.define(widget_crd())
    with fails(404, "NotFound"):
        await api.put(api.at(kind, "w"), {**widget(), "metadata": {"name": "w", "resourceVersion": "1"}})


async def test_a_lease_is_created_by_an_update(api: Api) -> None:
    body = {"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}}
    made = await api.put(api.at("coordination.k8s.io/v1/leases", "l"), body)
    assert api.code == 201
    assert made["spec"] == {"holderIdentity": "me"}


async def test_the_name_in_the_body_must_be_that_of_the_path(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    words = "the name of the object (b) does not match the name on the URL (a)"
    with fails(400, "BadRequest", words):
        await api.put(api.at("configmaps", "a"), config_map("b"))


async def test_another_uid_is_a_conflict(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    uid = made["metadata"]["uid"]
    with fails(409, "Conflict") as caught:
        await api.put(api.at("configmaps", "a"), config_map(uid="other"))
    assert caught.value.message.startswith('Operation cannot be fulfilled on configmaps "a": ')
    why = f"Precondition failed: UID in precondition: other, UID in object meta: {uid}"
    assert caught.value.message.endswith(why)


async def test_what_the_server_decided_stays(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    changed = await api.put(
        api.at("configmaps", "a"), config_map(creationTimestamp="2001-01-01T00:00:00Z", generation=9)
    )
    assert changed["metadata"]["creationTimestamp"] == made["metadata"]["creationTimestamp"]
    assert "generation" not in changed["metadata"]


async def test_an_update_replaces_the_whole_object(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(labels={"a": "b"}, annotations={"c": "d"}))
    changed = await api.put(api.at("configmaps", "a"), {"metadata": {"name": "a"}})
    assert "data" not in changed
    assert "labels" not in changed["metadata"]
    assert "annotations" not in changed["metadata"]


# Generation: what a controller must look at again.


async def _generation(api: Api, path: str, patch: Obj) -> int:
    found: int = (await api.merge(path, patch))["metadata"]["generation"]
    return found


async def test_the_generation_of_a_built_in_kind_follows_its_spec(api: Api) -> None:
    made = await api.post(api.at("apps/v1/deployments"), deployment())
    path = api.at("apps/v1/deployments", "d")
    assert made["metadata"]["generation"] == 1
    assert await _generation(api, path, {"metadata": {"labels": {"a": "b"}}}) == 1
    assert await _generation(api, path, {"spec": {"replicas": 3}}) == 2
    assert await _generation(api, path, {"spec": {"replicas": 3}}) == 2
    assert await _generation(api, f"{path}/status", {"status": {"replicas": 3}}) == 2
    assert await _generation(api, path, {"spec": {"template": {"metadata": {"labels": {"b": "c"}}}}}) == 3


@pytest.mark.parametrize("resource", ["configmaps", "serviceaccounts", "coordination.k8s.io/v1/leases"])
async def test_kinds_without_a_desired_state_have_no_generation(api: Api, resource: str) -> None:
    await api.post(api.at(resource), {"metadata": {"name": "a"}})
    assert (
        "generation" not in (await api.merge(api.at(resource, "a"), {"metadata": {"labels": {"a": "b"}}}))["metadata"]
    )


async def test_the_generation_of_a_custom_resource_follows_all_but_metadata_and_status(api: Api) -> None:
    kind = await api.define(widget_crd())
    assert (await api.post(api.at(kind), widget()))["metadata"]["generation"] == 1
    path = api.at(kind, "w")
    assert await _generation(api, path, {"metadata": {"annotations": {"a": "b"}}}) == 1
    assert await _generation(api, path, {"spec": {"size": 4}}) == 2
    assert await _generation(api, f"{path}/status", {"status": {"phase": "x"}}) == 2


async def test_a_custom_resource_needs_no_spec_for_its_generation(api: Api) -> None:
    kind = await api.define(gadget_crd())
    await api.post(api.at(kind), {"apiVersion": kind.rpartition("/")[0], "kind": "Gadget", "metadata": {"name": "g"}})
    path = api.at(kind, "g")
    assert await _generation(api, path, {"resource": {"count": 1}}) == 2
    assert await _generation(api, path, {"metadata": {"labels": {"a": "b"}}}) == 2
    assert await _generation(api, f"{path}/status", {"status": {"x": 1}}) == 2
    assert await _generation(api, path, {"resource": None}) == 3


@pytest.mark.parametrize("custom", [False, True], ids=["built-in", "custom"])
async def test_the_deletion_timestamp_counts_as_a_change(api: Api, custom: bool) -> None:
    resource = await api.define(widget_crd()) if custom else "apps/v1/deployments"
    body = widget("o") if custom else deployment("o")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    await api.post(api.at(resource), body)
    await api.delete(api.at(resource, "o"))
    held = await api.get(api.at(resource, "o"))
    assert held["metadata"]["generation"] == 2
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0
    assert (await api.merge(api.at(resource, "o"), {"metadata": {"labels": {"a": "b"}}}))["metadata"]["generation"] == 2


# Status.


async def test_status_is_written_through_its_subresource_alone(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    ignored = await api.merge(api.at(kind, "w"), {"status": {"phase": "x"}})
    assert "status" not in ignored
    written = await api.merge(api.at(kind, "w", "status"), {"status": {"phase": "x"}, "spec": {"size": 9}})
    assert written["status"] == {"phase": "x"}
    assert written["spec"]["size"] == 3
    assert (await api.get(api.at(kind, "w", "status"))) == written
    kept = await api.merge(api.at(kind, "w"), {"spec": {"size": 5}, "status": None})
    assert (kept["spec"]["size"], kept["status"]) == (5, {"phase": "x"})


async def test_a_status_write_changes_no_labels_of_a_custom_resource(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), widget())
    made["metadata"] |= {"labels": {"a": "b"}, "finalizers": ["example.com/x"]}
    written = await api.put(api.at(kind, "w", "status"), {**made, "status": {"phase": "x"}})
    assert "labels" not in written["metadata"]
    assert "finalizers" not in written["metadata"]


async def test_a_status_write_that_is_stale_is_a_conflict(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), widget())
    await api.merge(api.at(kind, "w"), {"spec": {"size": 4}})
    with fails(409, "Conflict"):
        await api.put(api.at(kind, "w", "status"), {**made, "status": {"phase": "x"}})


async def test_the_status_of_a_pod_is_written_through_its_subresource(api: Api) -> None:
    await api.post(api.at("pods"), pod())
    ignored = await api.merge(api.at("pods", "p"), {"status": {"phase": "Running"}})
    assert ignored["status"]["phase"] == "Pending"
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}
    written = await api.strategic(api.at("pods", "p", "status"), {"status": ready})
    assert written["status"]["phase"] == "Running"


async def test_a_kind_without_status_has_no_status_path(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(404):
        await api.get(api.at("configmaps", "a", "status"))


# Scale.


async def test_a_scale_shows_and_sets_replicas(api: Api) -> None:
    made = await api.post(api.at("apps/v1/deployments"), deployment(replicas=2))
    path = api.at("apps/v1/deployments", "d", "scale")
    scale = await api.get(path)
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 0, "selector": "app=d"}
    assert scale["metadata"]["uid"] == made["metadata"]["uid"]
    scale["spec"]["replicas"] = 5
    assert (await api.put(path, scale))["spec"] == {"replicas": 5}
    found = await api.get(api.at("apps/v1/deployments", "d"))
    assert (found["spec"]["replicas"], found["metadata"]["generation"]) == (5, 2)
    with fails(409, "Conflict"):
        await api.put(path, scale)
    assert (await api.merge(path, {"spec": {"replicas": 1}}))["spec"] == {"replicas": 1}


async def test_a_scale_is_never_negative(api: Api) -> None:
    await api.post(api.at("apps/v1/deployments"), deployment())
    with fails(422, "Invalid") as caught:
        await api.merge(api.at("apps/v1/deployments", "d", "scale"), {"spec": {"replicas": -1}})
    assert caught.value.fields == ["spec.replicas"]


async def test_a_custom_resource_scales_by_the_paths_of_its_definition(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget(replicas=2))
    await api.merge(api.at(kind, "w", "status"), {"status": {"replicas": 1, "selector": "a=b"}})
    scale = await api.get(api.at(kind, "w", "scale"))
    assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 1, "selector": "a=b"})
    assert (await api.merge(api.at(kind, "w", "scale"), {"spec": {"replicas": 7}}))["spec"] == {"replicas": 7}
    found = await api.get(api.at(kind, "w"))
    assert (found["spec"]["replicas"], found["metadata"]["generation"]) == (7, 2)


async def test_a_custom_resource_without_replicas_has_no_scale(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    words = 'Internal error occurred: the spec replicas field ".spec.replicas" does not exist'
    with fails(500, "InternalError", words):
        await api.get(api.at(kind, "w", "scale"))
    with fails(422, "Invalid") as caught:
        await api.merge(api.at(kind, "w", "scale"), {"spec": {"replicas": -1}})
    assert caught.value.fields == [".spec.replicas"]
    assert caught.value.details["kind"] == "Widget"


# Dry runs.


async def test_a_dry_run_answers_and_changes_nothing(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map(), dryRun="All")
    assert api.code == 201
    assert made["metadata"]["uid"]
    assert "resourceVersion" not in made["metadata"]
    assert await api.missing(api.at("configmaps", "a"))
    kept = await api.post(api.at("configmaps"), config_map())
    assert (await api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}}, dryRun="All"))["data"] == {"k": "2"}
    await api.delete(api.at("configmaps", "a"), dryRun="All")
    await api.delete(api.at("configmaps", "a"), {"dryRun": ["All"]})
    assert await api.get(api.at("configmaps", "a")) == kept


async def test_a_dry_run_refuses_what_would_be_refused(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(409, "AlreadyExists"):
        await api.post(api.at("configmaps"), config_map(), dryRun="All")
    with fails(422, "Invalid"):
        await api.post(api.at("configmaps"), config_map("Bad"), dryRun="All")


async def test_a_dry_run_is_of_all_or_nothing(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map(), dryRun="Some")
    assert caught.value.fields == ["dryRun"]
    words = ' "" is invalid: dryRun: Unsupported value: '
    assert caught.value.message.startswith(f"CreateOptions.meta.k8s.io{words}")
    assert caught.value.message.endswith(': supported values: "All"')
    with fails(422, "Invalid") as caught:
        await api.delete(api.at("configmaps", "a"), dryRun="Some")
    assert caught.value.message.startswith(f"DeleteOptions.meta.k8s.io{words}")


# Field validation.


@pytest.mark.minimum("1.27")
async def test_strict_validation_refuses_unknown_and_duplicate_fields(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.post(api.at("apps/v1/deployments"), deployment(replicaz=1), fieldValidation="Strict")
    assert 'strict decoding error: unknown field "spec.replicaz"' in caught.value.message
    with fails(400, "BadRequest") as caught:
        raw = b'{"metadata": {"name": "a"}, "data": {"k": "1"}, "data": {"k": "2"}}'
        await api.post(api.at("configmaps"), raw, fieldValidation="Strict")
    assert 'duplicate field "data"' in caught.value.message


@pytest.mark.minimum("1.27")
@pytest.mark.parametrize("options", [{}, {"fieldValidation": "Warn"}], ids=["by default", "when asked"])
async def test_lenient_validation_warns(api: Api, options: Any) -> None:
    await api.post(api.at("apps/v1/deployments"), deployment(replicaz=1), **options)
    assert 'unknown field "spec.replicaz"' in api.headers["warning"].replace("\\", "")


@pytest.mark.minimum("1.27")
async def test_ignoring_validation_is_silent(api: Api) -> None:
    await api.post(api.at("apps/v1/deployments"), deployment(replicaz=1), fieldValidation="Ignore")
    assert "warning" not in api.headers


@pytest.mark.minimum("1.27")
async def test_strict_validation_knows_the_schema_of_a_custom_resource(api: Api) -> None:
    kind = await api.define(widget_crd())
    with fails(400, "BadRequest") as caught:
        await api.post(api.at(kind), widget(sise=1), fieldValidation="Strict")
    assert 'unknown field "spec.sise"' in caught.value.message
