"""Creating and reading objects: names, namespaces, what the server sets, and the words of its refusals."""

from __future__ import annotations

import pytest

from tests.conformance.objects import config_map, deployment, pod, widget, widget_crd
from tests.conformance.wire import Api, Obj, fails


async def test_a_created_object_gets_what_the_server_decides(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map(labels={"a": "b"}))
    assert api.code == 201
    assert (made["apiVersion"], made["kind"]) == ("v1", "ConfigMap")
    metadata = made["metadata"]
    assert metadata["namespace"] == api.namespace
    assert len(metadata["uid"]) == 36
    assert metadata["resourceVersion"].isdigit()
    assert metadata["creationTimestamp"].endswith("Z")
    assert "generation" not in metadata
    assert metadata["labels"] == {"a": "b"}
    assert await api.get(api.at("configmaps", "a")) == made


async def test_a_client_cannot_choose_what_the_server_decides(api: Api) -> None:
    chosen: Obj = {"uid": "mine", "creationTimestamp": "2001-01-01T00:00:00Z", "generation": 7}
    made = await api.post(api.at("configmaps"), config_map(**chosen))
    assert made["metadata"]["uid"] != "mine"
    assert not made["metadata"]["creationTimestamp"].startswith("2001")
    chosen = {**deployment(), "metadata": {"name": "d", "generation": 7}}
    assert (await api.post(api.at("apps/v1/deployments"), chosen))["metadata"]["generation"] == 1
    gone: Obj = {"deletionTimestamp": "2001-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}
    made = await api.post(api.at("configmaps"), config_map("b", **gone))
    assert "deletionTimestamp" not in made["metadata"]
    assert "deletionGracePeriodSeconds" not in made["metadata"]


async def test_a_resource_version_has_no_place_in_a_create(api: Api) -> None:
    with fails(500, message="resourceVersion should not be set on objects to be created"):
        await api.post(api.at("configmaps"), config_map(resourceVersion="5"))


async def test_generate_name_adds_five_characters(api: Api) -> None:
    body = {"metadata": {"generateName": "job-"}}
    names = {(await api.post(api.at("configmaps"), body))["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("job-") and len(name) == 9 for name in names)
    assert not {c for name in names for c in name[4:]} & set("aeiou013")


async def test_generate_name_is_cut_so_that_the_name_fits(api: Api) -> None:
    made = await api.post(api.at("configmaps"), {"metadata": {"generateName": "x" * 100}})
    assert len(made["metadata"]["name"]) == 63
    assert made["metadata"]["generateName"] == "x" * 100


async def test_a_name_wins_over_generate_name(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map("a", generateName="b-"))
    assert made["metadata"]["name"] == "a"


async def test_a_name_is_taken_once(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(409, "AlreadyExists", 'configmaps "a" already exists') as caught:
        await api.post(api.at("configmaps"), config_map())
    assert caught.value.details == {"name": "a", "kind": "configmaps"}
    await api.post(api.at("apps/v1/deployments"), deployment())
    with fails(409, "AlreadyExists", 'deployments.apps "d" already exists') as caught:
        await api.post(api.at("apps/v1/deployments"), deployment())
    assert caught.value.details == {"name": "d", "group": "apps", "kind": "deployments"}


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "dot.", "sla~sh", "a..b", "x" * 254])
async def test_a_name_that_is_no_dns_subdomain_is_refused(api: Api, name: str) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map(name))
    assert caught.value.message.startswith(f'ConfigMap "{name}" is invalid: metadata.name: Invalid value: "{name}": ')
    assert caught.value.fields == ["metadata.name"]
    assert caught.value.details["kind"] == "ConfigMap"


@pytest.mark.parametrize("name", ["1digit", "dot.ted", "x" * 64])
async def test_a_service_needs_a_dns_label(api: Api, name: str) -> None:
    if name == "1digit" and api.version >= (1, 36):
        pytest.skip("names of services may begin with a digit since Kubernetes 1.36")
    with fails(422, "Invalid") as caught:
        await api.post(api.at("services"), {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
    assert caught.value.fields == ["metadata.name"]


async def test_a_role_may_have_any_name_that_fits_a_path(api: Api) -> None:
    roles = api.at("rbac.authorization.k8s.io/v1/roles")
    assert (await api.post(roles, {"metadata": {"name": "system:Some_Role"}}))["metadata"]["name"] == "system:Some_Role"
    with fails(422, "Invalid") as caught:
        await api.post(roles, {"metadata": {"name": "a/b"}})
    assert "may not contain '/'" in caught.value.message


async def test_an_object_needs_a_name(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), {"data": {}})
    assert "metadata.name: Required value: name or generateName is required" in caught.value.message
    assert "FieldValueRequired" in caught.value.causes


async def test_the_namespace_must_exist(api: Api) -> None:
    with fails(404, "NotFound", 'namespaces "nowhere" not found') as caught:
        await api.post("/api/v1/namespaces/nowhere/configmaps", config_map())
    assert caught.value.details == {"name": "nowhere", "kind": "namespaces"}


async def test_reading_from_a_namespace_that_is_not_there_finds_nothing(api: Api) -> None:
    assert (await api.get("/api/v1/namespaces/nowhere/configmaps"))["items"] == []
    with fails(404, "NotFound", 'configmaps "a" not found'):
        await api.get("/api/v1/namespaces/nowhere/configmaps/a")


async def test_the_body_may_not_name_another_namespace(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.post(api.at("configmaps"), config_map(namespace="other"))
    assert caught.value.message.startswith("the namespace of the provided object does not match the namespace sent on")


async def test_the_body_may_not_name_another_version(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.post(api.at("configmaps"), {"apiVersion": "v2", **config_map()})
    assert caught.value.message.startswith(
        'ConfigMap in version "v2" cannot be handled as a ConfigMap: no kind "ConfigMap" is registered for version "v2"'
    )
    with fails(400, "BadRequest") as caught:
        await api.post(api.at("configmaps"), deployment())
    assert caught.value.message == (
        'Deployment in version "v1" cannot be handled as a ConfigMap: '
        "converting (v1.Deployment) to (core.ConfigMap): unknown conversion"
    )
    kind = await api.define(widget_crd())
    with fails(400, "BadRequest") as caught:
        await api.post(api.at(kind), {**widget(), "apiVersion": "conformance.kaito.sh/v2"})
    assert caught.value.message.startswith(
        "the API version in the data (conformance.kaito.sh/v2) does not match the expected API version "
    )


async def test_the_body_may_not_name_another_kind(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.post(api.at("configmaps"), {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}})
    assert caught.value.message == (
        'Secret in version "v1" cannot be handled as a ConfigMap: '
        "converting (v1.Secret) to (core.ConfigMap): unknown conversion"
    )
    kind = await api.define(widget_crd())
    words = 'Gadget.conformance.kaito.sh "w" is invalid: kind: Invalid value: "Gadget": must be Widget'
    with fails(422, "Invalid", words):
        await api.post(api.at(kind), {**widget(), "kind": "Gadget"})


async def test_what_is_not_there_is_not_found(api: Api) -> None:
    with fails(404, "NotFound", 'configmaps "a" not found') as caught:
        await api.get(api.at("configmaps", "a"))
    assert caught.value.details == {"name": "a", "kind": "configmaps"}
    with fails(404, "NotFound", 'deployments.apps "d" not found') as caught:
        await api.get(api.at("apps/v1/deployments", "d"))
    assert caught.value.details == {"name": "d", "group": "apps", "kind": "deployments"}
    kind = await api.define(widget_crd())
    with fails(404, "NotFound", 'widgets.conformance.kaito.sh "w" not found'):
        await api.get(api.at(kind, "w"))


@pytest.mark.parametrize("path", ["/api/v1/nothings", "/apis/apps/v1/nothings", "/apis/no.such.group/v1/things"])
async def test_what_is_not_served_is_another_404(api: Api, path: str) -> None:
    async with await api.send("GET", path) as response:
        assert response.status == 404
        assert b"the server could not find the requested resource" in await response.read() or response.headers[
            "content-type"
        ].startswith("text/plain")


async def test_some_paths_do_not_allow_some_methods(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(405, "MethodNotAllowed", "the server does not allow this method on the requested resource"):
        await api.post(api.at("configmaps", "a"), config_map())
    with fails(405, "MethodNotAllowed"):
        await api.put(api.at("configmaps"), config_map())


async def test_a_body_that_is_no_json_is_a_bad_request(api: Api) -> None:
    with fails(400, "BadRequest"):
        await api.post(api.at("configmaps"), b'{"metadata": ')


async def test_a_value_of_the_wrong_type_is_a_bad_request(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.post(api.at("configmaps"), {"metadata": {"name": "a"}, "data": {"k": 5}})
    assert caught.value.message.startswith('ConfigMap in version "v1" cannot be handled as a ConfigMap: ')
    with fails(400, "BadRequest"):
        await api.post(api.at("apps/v1/deployments"), deployment(replicas="three"))


async def test_a_body_of_an_unknown_media_type_is_refused(api: Api) -> None:
    with fails(415, "UnsupportedMediaType") as caught:
        await api.post(api.at("configmaps"), config_map(), media="text/csv")
    assert caught.value.message.startswith("the body of the request was in an unknown format - accepted media types")


async def test_yaml_is_understood(api: Api) -> None:
    made = await api.post(api.at("configmaps"), b"metadata: {name: a}\ndata: {k: v}\n", media="application/yaml")
    assert made["data"] == {"k": "v"}
    text = await api.get(api.at("configmaps", "a"), accept="application/yaml")
    assert b"kind: ConfigMap" in text


async def test_an_answer_in_no_known_form_is_not_acceptable(api: Api) -> None:
    with fails(406, "NotAcceptable") as caught:
        await api.get(api.at("configmaps"), accept="text/csv")
    assert caught.value.message.startswith("406: Not Acceptable")  # newer servers go on, with what there is
    kind = await api.define(widget_crd())
    with fails(406, "NotAcceptable") as caught:
        await api.get(api.at(kind), accept="text/csv")
    assert caught.value.message.startswith("only the following media types are accepted: ")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"a b": "c"}, "name part must consist of alphanumeric characters"),
        ({"a": "b c"}, "a valid label must be an empty string or consist of alphanumeric characters"),
        ({"a": "x" * 64}, "must be no more than 63 characters"),
        ({"x" * 64: "a"}, "name part must be no more than 63 characters"),
        ({"/a": "b"}, "prefix part must be non-empty"),
    ],
)
async def test_labels_have_rules(api: Api, labels: dict[str, str], words: str) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map(labels=labels))
    assert set(caught.value.fields) == {"metadata.labels"}
    assert words in caught.value.message


async def test_annotations_are_free_but_not_endless(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(annotations={"a": "any thing: at all\n"}))
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map("b", annotations={"a": "x" * (256 * 1024)}))
    assert "metadata.annotations: Too long: " in caught.value.message


async def test_a_finalizer_needs_a_qualified_name(api: Api) -> None:
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map(finalizers=["not a name"]))
    assert caught.value.fields[0].startswith("metadata.finalizers")


@pytest.mark.parametrize("missing", ["apiVersion", "kind", "name", "uid"])
async def test_an_owner_reference_must_be_complete(api: Api, missing: str) -> None:
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "u"}
    del owner[missing]
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map(ownerReferences=[owner]))
    assert any(field.startswith("metadata.ownerReferences") for field in caught.value.fields)


async def test_only_one_owner_controls(api: Api) -> None:
    owners = [{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": name, "controller": True} for name in "ab"]
    with fails(422, "Invalid") as caught:
        await api.post(api.at("configmaps"), config_map(ownerReferences=owners))
    assert "Only one reference can have Controller set to true" in caught.value.message


async def test_a_status_in_a_create_is_dropped_where_status_is_a_subresource(api: Api) -> None:
    made = await api.post(api.at("apps/v1/deployments"), {**deployment(), "status": {"replicas": 9}})
    assert made["status"] == {}
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), {**widget(), "status": {"replicas": 9}})
    assert "status" not in made
    made = await api.post(api.at("pods"), {**pod(), "status": {"phase": "Running"}})
    assert made["status"]["phase"] == "Pending"


async def test_unknown_fields_of_a_built_in_kind_are_dropped(api: Api) -> None:
    made = await api.post(api.at("configmaps"), {**config_map(), "nonsense": 1}, fieldValidation="Ignore")
    assert "nonsense" not in made


async def test_the_same_time_and_quantity_come_back_in_their_canonical_form(api: Api) -> None:
    container = {"name": "c", "image": "i", "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}}
    made = await api.post(api.at("pods"), pod(containers=[container]))
    assert made["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
