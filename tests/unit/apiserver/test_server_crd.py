"""CustomResourceDefinitions and the objects they define."""

from __future__ import annotations

from typing import Any

import pytest
from apihelpers import CRDS, WS, Api, fails, workspace, workspace_crd

ONE = f"{CRDS}/workspaces.kaito.sh"


async def with_schema(api: Api, schema: dict[str, Any], **version: Any) -> None:
    """Serve workspaces whose field ``x`` has that schema."""
    body = {"type": "object", "properties": {"x": schema}}
    await api.post(CRDS, workspace_crd(schema={"openAPIV3Schema": body}, **version))


def ws(x: Any, name: str = "w") -> dict[str, Any]:
    return {"kind": "Workspace", "metadata": {"name": name}, "x": x}


async def test_a_definition_is_served_at_once(api: Api) -> None:
    made = await api.post(CRDS, workspace_crd())
    assert {c["type"]: c["status"] for c in made["status"]["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    assert made["status"]["acceptedNames"]["listKind"] == "WorkspaceList"
    assert made["status"]["storedVersions"] == ["v1alpha1"]
    assert (await api.get(WS))["kind"] == "WorkspaceList"


async def test_names_that_another_definition_has_are_not_accepted(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    other = workspace_crd()
    other["metadata"]["name"] = "spaces.kaito.sh"
    other["spec"]["names"] = {"kind": "Workspace", "plural": "spaces"}
    made = await api.post(CRDS, other)
    conditions = {c["type"]: c for c in made["status"]["conditions"]}
    assert conditions["NamesAccepted"]["status"] == "False"
    assert conditions["NamesAccepted"]["message"] == '"WorkspaceList" is already in use'
    with fails(404):
        await api.get("/apis/kaito.sh/v1alpha1/namespaces/default/spaces")


async def test_defaults_are_filled_and_unknown_fields_pruned(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    made = await api.post(WS, workspace(inference={"anything": {"goes": 1}}, unknown=1))
    assert made["resource"] == {"instanceType": "gpu", "count": 1}
    assert made["inference"] == {"anything": {"goes": 1}}
    assert "unknown" not in made


async def test_strict_validation_names_every_unknown_field(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    body = workspace(unknown=1)
    body["resource"]["foo"] = 2
    with fails(400, "BadRequest") as caught:
        await api.post(WS, body, fieldValidation="Strict")
    assert caught.value.message == (
        'Workspace in version "v1alpha1" cannot be handled as a Workspace: strict decoding error: '
        'unknown field "resource.foo", unknown field "unknown"'
    )
    await api.post(WS, body)
    assert '299 - "unknown field \\"resource.foo\\""' in api.warnings


async def test_every_problem_is_reported_at_once(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    with fails(422, "Invalid") as caught:
        await api.post(WS, workspace(resource={"count": 0, "preferredNodes": ["a", "a"]}))
    error = caught.value
    assert error.message.startswith('Workspace.kaito.sh "w" is invalid: [')
    assert "resource.instanceType: Required value" in error.message
    assert (
        "resource.count: Invalid value: 0: resource.count in body should be greater than or equal to 1" in error.message
    )
    assert 'resource.preferredNodes[1]: Duplicate value: "a"' in error.message
    assert set(error.fields) == {"resource.instanceType", "resource.count", "resource.preferredNodes[1]"}


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ({"type": "integer"}, "1", 'x: Invalid value: "string": x in body must be of type integer: "string"'),
        ({"type": "string"}, None, ""),
        ({"type": "string", "enum": ["a", "b"]}, "c", 'x: Unsupported value: "c": supported values: "a", "b"'),
        ({"type": "string", "pattern": "^a+$"}, "b", "x: Invalid value: \"b\": x in body should match '^a+$'"),
        ({"type": "string", "minLength": 2}, "a", 'x: Invalid value: "a": x in body should be at least 2 chars long'),
        ({"type": "string", "maxLength": 2}, "abc", "x: Too long: may not be more than 2 bytes"),
        (
            {"type": "array", "items": {"type": "string"}, "maxItems": 1},
            ["a", "b"],
            "x: Too many: 2: must have at most 1 items",
        ),
        (
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            [],
            "x: Invalid value: 0: x in body should have at least 1 items",
        ),
        (
            {"type": "array", "items": {"type": "integer"}},
            [1, "b"],
            'x[1]: Invalid value: "string": x[1] in body must be of type integer: "string"',
        ),
        (
            {"type": "number", "maximum": 1, "exclusiveMaximum": True},
            1,
            "x: Invalid value: 1: x in body should be less than 1",
        ),
        ({"type": "integer", "multipleOf": 4}, 6, "x: Invalid value: 6: x in body should be a multiple of 4"),
        (
            {"type": "string", "format": "date-time"},
            "now",
            'x: Invalid value: "now": x in body must be of type date-time: "now"',
        ),
        (
            {"x-kubernetes-int-or-string": True},
            True,
            'x: Invalid value: "boolean": x in body must be of type integer,string: "boolean"',
        ),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": [{"required": ["a"]}]},
            {},
            '<nil>: Invalid value: "": "x" must validate one and only one schema (oneOf). Found none valid',
        ),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"k": "v"},
            'x.k: Invalid value: "string": x.k in body must be of type integer: "string"',
        ),
        (
            {"type": "string", "not": {"enum": ["bad"]}},
            "bad",
            '<nil>: Invalid value: "": "x" must not validate the schema (not)',
        ),
    ],
)
async def test_messages_of_schema_validation(api: Api, schema: dict[str, Any], value: Any, message: str) -> None:
    await with_schema(api, schema)
    if not message:
        await api.post(WS, ws(value))
        return
    with fails(422) as caught:
        await api.post(WS, ws(value))
    assert message in caught.value.message


async def test_int_or_string_and_nullable_take_what_they_say(api: Api) -> None:
    schema = {
        "type": "object",
        "properties": {
            "either": {"x-kubernetes-int-or-string": True},
            "nothing": {"type": "string", "nullable": True},
            "defaulted": {"type": "string", "default": "d"},
        },
    }
    await with_schema(api, schema)
    for value in (1, "1"):
        body = {"either": value, "nothing": None, "defaulted": None}
        made = await api.post(WS, ws(body, f"w{value!r}".replace("'", "") + str(type(value).__name__)))
        assert made["x"] == {"either": value, "nothing": None, "defaulted": "d"}


async def test_an_embedded_resource_keeps_its_metadata(api: Api) -> None:
    schema = {
        "type": "object",
        "x-kubernetes-embedded-resource": True,
        "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    await with_schema(api, schema)
    inner = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"a": "b", "c": "d"}}
    made = await api.post(WS, ws(inner))
    assert made["x"] == {**inner, "spec": {"a": "b"}}


RULES = {
    "type": "object",
    "x-kubernetes-validations": [
        {"rule": "has(self.a) != has(self.b)", "message": "exactly one of a and b"},
        {"rule": "!has(oldSelf.a) || has(self.a)", "message": "a cannot be removed"},
    ],
    "properties": {
        "a": {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "a is immutable"}],
        },
        "b": {
            "type": "integer",
            "x-kubernetes-validations": [
                {"rule": "self % 2 == 0", "messageExpression": "'want even, got ' + string(self)"},
            ],
        },
    },
}


async def test_rules_are_checked_with_their_messages(api: Api) -> None:
    await with_schema(api, RULES)
    with fails(422) as caught:
        await api.post(WS, ws({"a": "1", "b": 2}))
    assert 'x: Invalid value: "object": exactly one of a and b' in caught.value.message
    with fails(422) as caught:
        await api.post(WS, ws({"b": 3}))
    assert "x.b: Invalid value: 3: want even, got 3" in caught.value.message


async def test_transition_rules_see_the_old_value(api: Api) -> None:
    await with_schema(api, RULES)
    await api.post(WS, ws({"a": "1"}))
    with fails(422) as caught:
        await api.merge(f"{WS}/w", {"x": {"a": "2"}})
    assert 'x.a: Invalid value: "2": a is immutable' in caught.value.message
    with fails(422) as caught:
        await api.merge(f"{WS}/w", {"x": {"a": None, "b": 2}})
    assert "a cannot be removed" in caught.value.message


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("self.nope == 1", "undefined field 'nope'"),
        ("frobnicate(self.a)", "undeclared reference to 'frobnicate'"),
        ("self.a ==", "Syntax error"),
        ("other == 1", "undeclared reference to 'other'"),
    ],
)
async def test_a_definition_with_a_rule_that_makes_no_sense_is_refused(api: Api, rule: str, why: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "x-kubernetes-validations": [{"rule": rule}]}
    with fails(422) as caught:
        await with_schema(api, schema)
    assert "x-kubernetes-validations[0].rule: Invalid value" in caught.value.message
    assert why in caught.value.message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda crd: crd["metadata"].update(name="wrong.kaito.sh"), "metadata.name"),
        (lambda crd: crd["spec"].update(scope="Global"), "spec.scope"),
        (lambda crd: crd["spec"]["versions"][0].update(storage=False), "spec.versions"),
        (lambda crd: crd["spec"]["versions"][0].pop("schema"), "spec.versions[0].schema.openAPIV3Schema"),
        (
            lambda crd: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].update(bad={}),
            "spec.versions[0].schema.openAPIV3Schema.properties[bad].type",
        ),
    ],
)
async def test_a_definition_that_is_not_structural_is_refused(api: Api, change: Any, field: str) -> None:
    crd = workspace_crd()
    change(crd)
    with fails(422) as caught:
        await api.post(CRDS, crd)
    assert field in caught.value.fields


async def test_printer_columns_show_what_their_paths_find(api: Api) -> None:
    columns = [
        {"name": "Instance", "type": "string", "jsonPath": ".resource.instanceType"},
        {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
        {"name": "Label", "type": "string", "jsonPath": ".metadata.labels.foo\\.bar/baz", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]
    await api.post(CRDS, workspace_crd(additionalPrinterColumns=columns))
    body = workspace()
    body["metadata"]["labels"] = {"foo.bar/baz": "x"}
    await api.post(WS, body)
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    api.clock.advance(125)
    table = await api.get(WS, accept=accept)
    assert [(c["name"], c["priority"]) for c in table["columnDefinitions"]] == [
        ("Name", 0),
        ("Instance", 0),
        ("Ready", 0),
        ("Label", 1),
        ("Age", 0),
    ]
    assert table["rows"][0]["cells"] == ["w", "gpu", None, "x", "2m5s"]
    await api.merge(f"{WS}/w/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert (await api.get(f"{WS}/w", accept=accept))["rows"][0]["cells"][2] == "True"


async def test_several_versions_show_the_same_object(api: Api) -> None:
    crd = workspace_crd()
    crd["spec"]["versions"].append({**crd["spec"]["versions"][0], "name": "v1beta1", "storage": False})
    await api.post(CRDS, crd)
    await api.post(WS, workspace())
    beta = WS.replace("v1alpha1", "v1beta1")
    assert (await api.get(f"{beta}/w"))["apiVersion"] == "kaito.sh/v1beta1"
    await api.merge(f"{beta}/w", {"resource": {"count": 3}})
    back = await api.get(f"{WS}/w")
    assert (back["apiVersion"], back["resource"]["count"]) == ("kaito.sh/v1alpha1", 3)
    assert (await api.get(beta))["items"][0]["apiVersion"] == "kaito.sh/v1beta1"


async def test_changing_the_definition_changes_what_is_served(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    await api.post(WS, workspace())
    patch = [
        {
            "op": "add",
            "path": "/spec/versions/0/schema/openAPIV3Schema/properties/extra",
            "value": {"type": "string", "default": "new"},
        }
    ]
    changed = await api.json_patch(ONE, patch)
    assert changed["metadata"]["generation"] == 2
    assert (await api.merge(f"{WS}/w", {"metadata": {"labels": {"a": "b"}}}))["extra"] == "new"


async def test_deleting_the_definition_deletes_its_objects(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    held = workspace("held")
    held["metadata"]["finalizers"] = ["x/hold"]
    await api.post(WS, held)
    await api.post(WS, workspace("free"))
    going = await api.delete(ONE)
    assert going["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
    assert [w["metadata"]["name"] for w in (await api.get(WS))["items"]] == ["held"]
    await api.merge(f"{WS}/held", {"metadata": {"finalizers": None}})
    assert await api.gone(ONE)
    with fails(404) as caught:
        await api.get(WS)
    assert caught.value.message == "404 page not found\n"


async def test_a_definition_without_objects_goes_at_once(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    await api.delete(ONE)
    assert await api.gone(ONE)
    await api.post(CRDS, workspace_crd())
    assert (await api.get(WS))["items"] == []


async def test_selectable_fields(api: Api) -> None:
    fields = [{"jsonPath": ".resource.instanceType"}]
    await api.post(CRDS, workspace_crd(selectableFields=fields))
    await api.post(WS, workspace("a"))
    await api.post(WS, workspace("b", resource={"instanceType": "cpu"}))
    listed = await api.get(WS, fieldSelector="resource.instanceType=cpu")
    assert [w["metadata"]["name"] for w in listed["items"]] == ["b"]


async def test_scale_of_a_custom_resource(api: Api) -> None:
    scale = {"specReplicasPath": ".resource.count", "statusReplicasPath": ".status.replicas"}
    await api.post(CRDS, workspace_crd(subresources={"status": {}, "scale": scale}))
    await api.post(WS, workspace())
    assert (await api.get(f"{WS}/w/scale"))["spec"] == {"replicas": 1}
    scaled = await api.merge(f"{WS}/w/scale", {"spec": {"replicas": 4}})
    assert scaled["kind"] == "Scale"
    assert (await api.get(f"{WS}/w"))["resource"]["count"] == 4


async def test_a_deprecated_version_warns(api: Api) -> None:
    await api.post(CRDS, workspace_crd(deprecated=True, deprecationWarning="use v1"))
    await api.get(WS)
    assert api.warnings == '299 - "use v1"'
