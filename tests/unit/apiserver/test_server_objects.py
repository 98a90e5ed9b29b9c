"""The life of one object: identity, versions, generations, conflicts."""

from __future__ import annotations

import re

from apihelpers import CM, CRDS, DEPLOY, PODS, WS, Api, config_map, deployment, fails, pod, workspace, workspace_crd


async def test_a_created_object_has_an_identity(api: Api) -> None:
    made = await api.post(CM, config_map())
    metadata = made["metadata"]
    assert api.code == 201
    assert (made["apiVersion"], made["kind"], metadata["namespace"]) == ("v1", "ConfigMap", "default")
    assert re.fullmatch(r"[0-9a-f-]{36}", metadata["uid"])
    assert metadata["creationTimestamp"] == "2026-01-01T00:00:00Z"
    assert int(metadata["resourceVersion"]) > 0


async def test_the_same_seed_gives_the_same_identities(api: Api) -> None:
    import random

    from apihelpers import SteppingClock

    from kaito_ctrl.devcluster.apiserver import ApiServer

    twin = Api(ApiServer(clock=SteppingClock(), rng=random.Random(7)), SteppingClock())
    assert (await api.post(CM, config_map()))["metadata"]["uid"] == (await twin.post(CM, config_map()))["metadata"][
        "uid"
    ]


async def test_every_write_raises_one_global_version(api: Api) -> None:
    first = await api.post(CM, config_map("a"))
    second = await api.post(PODS, pod())
    listed = await api.get(CM)
    assert int(second["metadata"]["resourceVersion"]) == int(first["metadata"]["resourceVersion"]) + 1
    assert listed["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


async def test_creating_twice_is_already_exists(api: Api) -> None:
    await api.post(CM, config_map())
    with fails(409, "AlreadyExists") as caught:
        await api.post(CM, config_map())
    assert caught.value.message == 'configmaps "a" already exists'
    assert caught.value.details == {"name": "a", "kind": "configmaps"}


async def test_a_missing_object_is_not_found(api: Api) -> None:
    with fails(404, "NotFound") as caught:
        await api.get(f"{DEPLOY}/x")
    assert caught.value.message == 'deployments.apps "x" not found'
    assert caught.value.details == {"name": "x", "group": "apps", "kind": "deployments"}


async def test_generate_name_adds_five_random_characters(api: Api) -> None:
    made = await api.post(PODS, {"metadata": {"generateName": "job-"}, "spec": pod()["spec"]})
    assert re.fullmatch(r"job-[a-z0-9]{5}", made["metadata"]["name"])


async def test_a_stale_version_conflicts(api: Api) -> None:
    first = await api.post(CM, config_map())
    await api.put(f"{CM}/a", config_map(k="2"))
    with fails(409, "Conflict") as caught:
        await api.put(f"{CM}/a", first)
    assert caught.value.message == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )


async def test_core_kinds_take_updates_without_a_version_and_custom_resources_do_not(api: Api) -> None:
    await api.post(CM, config_map())
    assert (await api.put(f"{CM}/a", config_map(k="2")))["data"] == {"k": "2"}
    await api.post(CRDS, workspace_crd())
    await api.post(WS, workspace())
    with fails(422, "Invalid") as caught:
        await api.put(f"{WS}/w", workspace())
    assert caught.value.fields == ["metadata.resourceVersion"]
    assert "must be specified for an update" in caught.value.message


async def test_another_uid_is_a_conflict(api: Api) -> None:
    await api.post(CM, config_map())
    body = config_map()
    body["metadata"]["uid"] = "somebody-else"
    with fails(409, "Conflict") as caught:
        await api.put(f"{CM}/a", body)
    assert "Precondition failed: UID in precondition: somebody-else" in caught.value.message


async def test_a_write_that_changes_nothing_is_no_write(api: Api) -> None:
    first = await api.post(CM, config_map())
    again = await api.put(f"{CM}/a", config_map())
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_only_a_change_of_the_spec_raises_the_generation(api: Api) -> None:
    made = await api.post(DEPLOY, deployment())
    assert made["metadata"]["generation"] == 1
    labelled = await api.merge(f"{DEPLOY}/d", {"metadata": {"labels": {"a": "b"}}})
    assert labelled["metadata"]["generation"] == 1
    status = await api.merge(f"{DEPLOY}/d/status", {"status": {"replicas": 1}})
    assert status["metadata"]["generation"] == 1
    scaled = await api.merge(f"{DEPLOY}/d", {"spec": {"replicas": 3}})
    assert scaled["metadata"]["generation"] == 2


async def test_everything_but_metadata_and_status_is_a_custom_resources_spec(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    assert (await api.post(WS, workspace()))["metadata"]["generation"] == 1
    changed = await api.merge(f"{WS}/w", {"resource": {"count": 2}})
    assert changed["metadata"]["generation"] == 2
    changed = await api.merge(f"{WS}/w", {"metadata": {"annotations": {"a": "b"}}})
    assert changed["metadata"]["generation"] == 2


async def test_status_and_the_rest_are_written_apart(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    made = await api.post(WS, workspace(status={"workerNodes": ["n"]}))
    assert "status" not in made
    main = await api.merge(f"{WS}/w", {"resource": {"count": 2}, "status": {"workerNodes": ["n"]}})
    assert main["resource"]["count"] == 2
    assert "status" not in main
    status = await api.merge(
        f"{WS}/w/status",
        {"resource": {"count": 9}, "metadata": {"labels": {"a": "b"}}, "status": {"workerNodes": ["n"]}},
    )
    assert status["status"] == {"workerNodes": ["n"]}
    assert status["resource"]["count"] == 2
    assert "labels" not in status["metadata"]


async def test_names_and_labels_are_checked_all_at_once(api: Api) -> None:
    body = config_map("Not_Valid")
    body["metadata"]["labels"] = {"k": "x" * 64}
    with fails(422, "Invalid") as caught:
        await api.post(CM, body)
    assert caught.value.fields == ["metadata.name", "metadata.labels"]
    assert "a lowercase RFC 1123 subdomain must consist of" in caught.value.message
    assert "must be no more than 63 characters" in caught.value.message


async def test_the_namespace_of_body_and_url_must_agree(api: Api) -> None:
    body = config_map()
    body["metadata"]["namespace"] = "other"
    with fails(400, "BadRequest") as caught:
        await api.post(CM, body)
    assert caught.value.message == (
        "the namespace of the provided object does not match the namespace sent on the request"
    )


async def test_nothing_is_created_in_a_namespace_that_does_not_exist(api: Api) -> None:
    with fails(404, "NotFound") as caught:
        await api.post("/api/v1/namespaces/nowhere/configmaps", config_map())
    assert caught.value.message == 'namespaces "nowhere" not found'


async def test_a_dry_run_changes_nothing(api: Api) -> None:
    made = await api.post(CM, config_map(), dryRun="All")
    assert made["metadata"]["uid"]
    assert await api.gone(f"{CM}/a")
    await api.post(CM, config_map())
    assert (await api.put(f"{CM}/a", config_map(k="2"), dryRun="All"))["data"] == {"k": "2"}
    assert (await api.get(f"{CM}/a"))["data"] == {"k": "v"}
    await api.delete(f"{CM}/a", dryRun="All")
    assert not await api.gone(f"{CM}/a")


async def test_a_body_may_be_yaml(api: Api) -> None:
    made = await api.post(CM, b"metadata: {name: y}\ndata: {day: '2026-01-01'}\n", media="application/yaml")
    assert made["data"] == {"day": "2026-01-01"}


async def test_a_wrong_json_type_is_a_bad_request(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.post(DEPLOY, deployment(replicas="three"))
    assert (
        "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        in caught.value.message
    )


async def test_unknown_fields_are_dropped_warned_about_or_refused(api: Api) -> None:
    made = await api.post(DEPLOY, deployment("a", replicaz=3), fieldValidation="Ignore")
    assert "replicaz" not in made["spec"]
    assert not api.warnings
    await api.post(DEPLOY, deployment("b", replicaz=3))
    assert api.warnings == '299 - "unknown field \\"spec.replicaz\\""'
    with fails(400, "BadRequest") as caught:
        await api.post(DEPLOY, deployment("c", replicaz=3), fieldValidation="Strict")
    assert 'strict decoding error: unknown field "spec.replicaz"' in caught.value.message


async def test_duplicate_fields_are_refused_when_asked(api: Api) -> None:
    body = b'{"metadata":{"name":"a"},"data":{"k":"1","k":"2"}}'
    with fails(400) as caught:
        await api.post(CM, body, fieldValidation="Strict")
    assert 'duplicate field "data.k"' in caught.value.message


async def test_leases_are_created_by_a_put(api: Api) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l"
    await api.put(path, {"metadata": {"name": "l"}, "spec": {"holderIdentity": "me"}})
    assert api.code == 201


async def test_config_maps_are_not_created_by_a_put(api: Api) -> None:
    with fails(404):
        await api.put(f"{CM}/a", config_map())


async def test_an_unknown_path_and_an_unknown_method_are_said_to_be_so(api: Api) -> None:
    with fails(404) as caught:
        await api.get("/api/v1/things")
    assert caught.value.message == "the server could not find the requested resource"
    with fails(404) as caught:
        await api.get("/apis/nobody.example/v1/things")
    assert caught.value.message == "404 page not found\n"
    with fails(405, "MethodNotAllowed"):
        await api.post(f"{CM}/a", {})
