"""Custom kinds: their definitions, and what their schemas do to objects."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.conformance.objects import crd, widget, widget_crd
from tests.conformance.wire import Api, Obj, Status, fails

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def thing(kind: str, name: str = "t", **body: Any) -> Obj:
    return {"apiVersion": kind.rpartition("/")[0], "kind": "Thing", "metadata": {"name": name}, **body}


async def things(api: Api, unique: str, properties: Obj, **more: Any) -> str:
    """Serve a kind whose spec has those *properties*."""
    schema = {"properties": {"spec": {"type": "object", "properties": properties, **more}}}
    return await api.define(crd("things", "Thing", schema, group=f"{unique}.kaito.sh"))


# Definitions.


async def test_a_definition_is_accepted_and_established(api: Api, unique: str) -> None:
    group = f"{unique}.kaito.sh"
    made = await api.post(CRDS, crd("things", "Thing", {}, group=group))
    assert made["spec"]["names"] == {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}
    assert made["spec"]["conversion"] == {"strategy": "None"}
    assert made["metadata"]["generation"] == 1

    def conditions(obj: Obj) -> dict[str, str]:
        return {c["type"]: c["status"] for c in obj.get("status", {}).get("conditions") or ()}

    found = await api.settled(f"{CRDS}/things.{group}", lambda o: conditions(o).get("Established") == "True")
    assert conditions(found)["NamesAccepted"] == "True"
    assert found["status"]["acceptedNames"] == made["spec"]["names"]
    assert found["status"]["storedVersions"] == ["v1"]


async def test_a_name_in_use_is_not_accepted(api: Api, unique: str) -> None:
    group = f"{unique}.kaito.sh"
    await api.define(crd("things", "Thing", {}, group=group))
    await api.post(CRDS, crd("others", "Thing", {}, group=group))

    def refused(obj: Obj) -> bool:
        return any(
            c["type"] == "NamesAccepted" and c["status"] == "False"
            for c in obj.get("status", {}).get("conditions") or ()
        )

    found = await api.settled(f"{CRDS}/others.{group}", refused)
    reasons = {c["type"]: (c["reason"], c["message"]) for c in found["status"]["conditions"]}
    assert reasons["NamesAccepted"] == ("ListKindConflict", '"ThingList" is already in use')
    assert reasons["Established"][0] == "NotAccepted"
    assert await api.missing(f"/apis/{group}/v1/others")


def _broken(change: Any) -> Obj:
    definition = crd("things", "Thing", {"properties": {"spec": {"type": "object"}}}, group="broken.kaito.sh")
    change(definition["spec"], definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    return definition


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda spec, schema: spec.update(group="nodots"), "spec.group"),
        (lambda spec, schema: spec["names"].update(plural="other"), "metadata.name"),
        (lambda spec, schema: spec.update(scope="Galaxy"), "spec.scope"),
        (lambda spec, schema: spec["names"].update(kind=""), "spec.names.kind"),
        (lambda spec, schema: spec["versions"][0].update(storage=False), "spec.versions"),
        (lambda spec, schema: spec["versions"][0].pop("schema"), "spec.versions[0].schema"),
        (lambda spec, schema: schema.update(type="string"), "openAPIV3Schema.type"),
        (lambda spec, schema: schema["properties"]["spec"].pop("type"), "properties[spec].type"),
        (lambda spec, schema: schema["properties"]["spec"].update(type="blob"), "properties[spec].type"),
        (
            lambda spec, schema: schema["properties"].update(x={"type": "array"}),
            "properties[x].items",
        ),
        (
            lambda spec, schema: schema["properties"].update(
                x={"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}
            ),
            "",
        ),
        (lambda spec, schema: schema["properties"].update(x={"type": "string", "default": 5}), "properties[x].default"),
        (
            lambda spec, schema: schema["properties"].update(x={"type": "string", "pattern": "("}),
            "properties[x].pattern",
        ),
        (
            lambda spec, schema: schema["properties"].update(
                x={"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}
            ),
            "x-kubernetes-list-map-keys",
        ),
        (
            lambda spec, schema: spec["versions"][0].update(
                additionalPrinterColumns=[{"name": "A", "type": "string", "jsonPath": "{bad"}]
            ),
            "additionalPrinterColumns[0]",
        ),
        (
            lambda spec, schema: spec["versions"][0].update(
                additionalPrinterColumns=[{"name": "A", "type": "thing", "jsonPath": ".a"}]
            ),
            "additionalPrinterColumns[0].type",
        ),
    ],
    ids=[
        "group",
        "name",
        "scope",
        "kind",
        "no storage version",
        "no schema",
        "root type",
        "no type",
        "unknown type",
        "array without items",
        "properties and additionalProperties",
        "default of another type",
        "pattern",
        "map without keys",
        "column path",
        "column type",
    ],
)
async def test_definitions_are_validated(api: Api, change: Any, field: str) -> None:
    definition = _broken(change)
    if field == "":
        # Empty properties do not count.
        definition["metadata"]["name"] = "things.broken.kaito.sh"
        await api.post(CRDS, definition, dryRun="All")
        return
    with fails(422, "Invalid") as caught:
        await api.post(CRDS, definition, dryRun="All")
    assert any(field in found for found in caught.value.fields), caught.value.fields


async def test_deleting_a_definition_deletes_its_objects(api: Api, unique: str) -> None:
    kind = await things(api, unique, {})
    await api.post(api.at(kind), thing(kind))
    path = f"{CRDS}/things.{unique}.kaito.sh"
    await api.delete(path)
    await api.settled(path, None)
    # A real server hears of that through a watch of its own.
    await api.eventually(lambda: api.missing(api.at(kind)))
    await things(api, unique, {})
    assert (await api.get(api.at(kind)))["items"] == []


async def test_an_unserved_version_is_not_there(api: Api, unique: str) -> None:
    definition = crd("things", "Thing", {}, group=f"{unique}.kaito.sh")
    old = {**definition["spec"]["versions"][0], "name": "v1alpha1", "served": False, "storage": False}
    definition["spec"]["versions"].append(old)
    await api.define(definition)
    assert await api.missing(f"/apis/{unique}.kaito.sh/v1alpha1/things")


async def test_an_object_is_served_in_every_version(api: Api, unique: str) -> None:
    definition = crd("things", "Thing", {}, group=f"{unique}.kaito.sh")
    new = {**copy.deepcopy(definition["spec"]["versions"][0]), "name": "v2", "storage": False}
    definition["spec"]["versions"].append(new)
    kind = await api.define(definition)
    await api.post(api.at(kind), thing(kind))
    other = kind.replace("/v1/", "/v2/")
    found = await api.get(api.at(other, "t"))
    assert found["apiVersion"] == f"{unique}.kaito.sh/v2"
    changed = await api.merge(api.at(other, "t"), {"metadata": {"labels": {"a": "b"}}})
    assert (await api.get(api.at(kind, "t")))["metadata"]["labels"] == changed["metadata"]["labels"]


@pytest.mark.minimum("1.19")
async def test_a_deprecated_version_warns(api: Api, unique: str) -> None:
    definition = crd("things", "Thing", {}, group=f"{unique}.kaito.sh", deprecated=True, deprecationWarning="use stuff")
    kind = await api.define(definition)
    await api.get(api.at(kind))
    assert api.headers["warning"] == '299 - "use stuff"'


# Defaults and pruning.


async def test_defaults_are_filled_in(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), widget(parts=[{"name": "a"}]))
    assert made["spec"] == {"size": 3, "color": "red", "parts": [{"name": "a", "count": 1}]}
    again = await api.merge(api.at(kind, "w"), {"spec": {"color": None}})
    assert again["spec"]["color"] == "red"


async def test_a_default_does_not_make_its_parent(api: Api, unique: str) -> None:
    kind = await things(api, unique, {"a": {"type": "object", "properties": {"b": {"type": "integer", "default": 1}}}})
    assert "spec" not in await api.post(api.at(kind), thing(kind, "one"))
    assert (await api.post(api.at(kind), thing(kind, "two", spec={})))["spec"] == {}
    assert (await api.post(api.at(kind), thing(kind, "three", spec={"a": {}})))["spec"] == {"a": {"b": 1}}


async def test_a_null_takes_the_default(api: Api, unique: str) -> None:
    properties = {
        "a": {"type": "string", "default": "x"},
        "b": {"type": "string", "nullable": True},
        "c": {"type": "string"},
    }
    kind = await things(api, unique, properties)
    made = await api.post(api.at(kind), thing(kind, spec={"a": None, "b": None}))
    assert made["spec"] == {"a": "x", "b": None}


async def test_what_is_stored_gets_new_defaults_when_read(api: Api, unique: str) -> None:
    kind = await things(api, unique, {"a": {"type": "string"}})
    await api.post(api.at(kind), thing(kind, spec={}))
    operation = {
        "op": "add",
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/a/default",
        "value": "later",
    }
    await api.json_patch(f"{CRDS}/things.{unique}.kaito.sh", [operation])
    found: Obj = {}
    for _ in range(500):  # nothing tells when a changed schema is in use
        found = await api.get(api.at(kind, "t"))
        if found["spec"]:
            break
    assert found["spec"] == {"a": "later"}


async def test_unknown_fields_are_pruned(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), {**widget(nonsense=1), "more": {}}, fieldValidation="Ignore")
    assert "nonsense" not in made["spec"]
    assert "more" not in made


async def test_what_is_declared_free_is_kept(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), widget(free={"any": {"thing": [1, "x", None]}}))
    assert made["spec"]["free"] == {"any": {"thing": [1, "x", None]}}


async def test_metadata_is_that_of_every_object(api: Api) -> None:
    kind = await api.define(widget_crd())
    body = widget()
    body["metadata"] |= {"labels": {"a": "b"}, "nonsense": 1}
    made = await api.post(api.at(kind), body, fieldValidation="Ignore")
    assert "nonsense" not in made["metadata"]
    with fails(422, "Invalid"):
        await api.post(api.at(kind), {**widget("x"), "metadata": {"name": "x", "labels": {"a b": "c"}}})


async def test_an_object_of_a_custom_kind_names_its_kind(api: Api) -> None:
    kind = await api.define(widget_crd())
    body = widget()
    del body["kind"]
    with fails(400, "BadRequest") as caught:
        await api.post(api.at(kind), body)
    assert "Object 'Kind' is missing in '" in caught.value.message


# Validation.

SIZE = "spec.size"


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"size": 0}, SIZE, "Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        ({"size": 11}, SIZE, "Invalid value: 11: spec.size in body should be less than or equal to 10"),
        ({"size": "3"}, SIZE, 'Invalid value: "string": spec.size in body must be of type integer: "string"'),
        ({"size": 1.5}, SIZE, 'Invalid value: "number": spec.size in body must be of type integer: "number"'),
        ({"size": None}, SIZE, "Required value"),
        ({"color": "blue"}, "spec.color", 'Unsupported value: "blue": supported values: "red", "green"'),
        ({"color": 5}, "spec.color", 'Invalid value: "integer": spec.color in body must be of type string: "integer"'),
        ({"code": "ABC"}, "spec.code", "Invalid value: \"ABC\": spec.code in body should match '^[a-z]+$'"),
        ({"tags": ["a", "a"]}, "spec.tags[1]", 'Duplicate value: "a"'),
        ({"tags": "a"}, "spec.tags", 'Invalid value: "string": spec.tags in body must be of type array: "string"'),
        pytest.param(
            {"parts": [{"count": 1}]}, "spec.parts[0].name", "Required value", marks=pytest.mark.minimum("1.25")
        ),
        ({"parts": [{"name": "a"}, {"name": "a"}]}, "spec.parts[1]", "Duplicate value: "),
        ({"limits": {"a": "x"}}, "spec.limits.a", 'spec.limits.a in body must be of type integer: "string"'),
    ],
)  # fmt: skip
async def test_objects_are_validated(api: Api, spec: Obj, field: str, words: str) -> None:
    kind = await api.define(widget_crd())
    with fails(422, "Invalid") as caught:
        await api.post(api.at(kind), widget(**spec))
    assert caught.value.message.startswith('Widget.conformance.kaito.sh "w" is invalid: ')
    assert field in caught.value.fields
    assert f"{field}: " in caught.value.message
    assert words in caught.value.message
    assert caught.value.details["kind"] == "Widget"
    assert caught.value.details["group"] == "conformance.kaito.sh"


async def test_an_empty_string_is_a_string_and_zero_a_number(api: Api, unique: str) -> None:
    kind = await things(api, unique, {"text": {"type": "string"}, "number": {"type": "integer"}})
    made = await api.post(api.at(kind), thing(kind, spec={"text": "", "number": 0}))
    assert made["spec"] == {"text": "", "number": 0}
    await api.merge(api.at(kind, "t"), {"spec": {"text": "more"}})
    assert (await api.merge(api.at(kind, "t"), {"spec": {"text": ""}}))["spec"]["text"] == ""


async def test_an_int_or_string_is_either(api: Api, unique: str) -> None:
    kind = await things(api, unique, {"port": {"x-kubernetes-int-or-string": True}})
    for name, port in (("one", 80), ("two", "http")):
        assert (await api.post(api.at(kind), thing(kind, name, spec={"port": port})))["spec"]["port"] == port
    with fails(422, "Invalid") as caught:
        await api.post(api.at(kind), thing(kind, spec={"port": True}))
    assert 'spec.port in body must be of type integer,string: "boolean"' in caught.value.message


async def test_every_problem_is_reported(api: Api) -> None:
    kind = await api.define(widget_crd())
    with fails(422, "Invalid") as caught:
        await api.post(api.at(kind), widget(size=0, color="blue"))
    assert {"spec.size", "spec.color"} <= set(caught.value.fields)
    assert " is invalid: [" in caught.value.message


async def test_a_text_that_is_too_long(api: Api) -> None:
    kind = await api.define(widget_crd())
    with fails(422, "Invalid") as caught:
        await api.post(api.at(kind), widget(code="abcdefgh"))
    assert caught.value.fields == ["spec.code"]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer", "multipleOf": 5}, 7),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, 1),
        ({"type": "array", "minItems": 1, "items": {"type": "string"}}, []),
        ({"type": "array", "maxItems": 1, "items": {"type": "string"}}, ["a", "b"]),
        ({"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}}, {}),
        ({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}}, {"a": "b", "c": "d"}),
        ({"type": "string", "format": "date-time"}, "yesterday"),
        ({"type": "string", "format": "ipv4"}, "1.2.3"),
        ({"type": "string", "anyOf": [{"pattern": "^a"}, {"pattern": "^b"}]}, "c"),
        ({"type": "string", "oneOf": [{"pattern": "^a"}, {"pattern": "z$"}]}, "az"),
        ({"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "z$"}]}, "ab"),
        ({"type": "string", "not": {"pattern": "^a"}}, "ab"),
    ],
    ids=lambda part: "-".join(part) if isinstance(part, dict) and "type" in part else "",
)
async def test_schemas_are_enforced(api: Api, unique: str, schema: Obj, value: Any) -> None:
    kind = await things(api, unique, {"x": schema})
    with fails(422, "Invalid") as caught:
        await api.post(api.at(kind), thing(kind, spec={"x": value}))
    # What several schemas say together belongs to no field.
    assert all(field.startswith("spec.x") or field == "<nil>" for field in caught.value.fields), caught.value.fields
    assert "spec.x" in caught.value.message


async def test_an_object_that_became_invalid_can_lose_its_finalizer(api: Api, unique: str) -> None:
    kind = await things(api, unique, {"a": {"type": "integer"}})
    body = thing(kind, spec={"a": 1})
    body["metadata"]["finalizers"] = ["example.com/hold"]
    await api.post(api.at(kind), body)
    await api.delete(api.at(kind, "t"))
    await api.merge(api.at(kind, "t"), {"metadata": {"finalizers": None}})
    assert await api.missing(api.at(kind, "t"))


# Rules in the expression language.


async def ruled(api: Api, unique: str, *rules: Obj) -> str:
    properties = {"count": {"type": "integer"}, "name": {"type": "string"}}
    return await things(api, unique, properties, **{"x-kubernetes-validations": list(rules)})


@pytest.mark.minimum("1.25")
async def test_a_rule_refuses_with_its_message(api: Api, unique: str) -> None:
    kind = await ruled(api, unique, {"rule": "self.count > 2", "message": "count more"})
    await api.post(api.at(kind), thing(kind, "ok", spec={"count": 3}))
    with fails(422, "Invalid") as caught:
        await api.post(api.at(kind), thing(kind, "bad", spec={"count": 1}))
    assert caught.value.fields == ["spec"]
    assert caught.value.message.endswith("count more")


@pytest.mark.minimum("1.25")
async def test_a_rule_without_a_message_shows_itself(api: Api, unique: str) -> None:
    kind = await ruled(api, unique, {"rule": "self.count > 2"})
    with fails(422, "Invalid") as caught:
        await api.post(api.at(kind), thing(kind, spec={"count": 1}))
    assert "failed rule: self.count > 2" in caught.value.message


@pytest.mark.minimum("1.25")
async def test_a_transition_rule_compares_with_the_old_object(api: Api, unique: str) -> None:
    kind = await ruled(api, unique, {"rule": "self.count >= oldSelf.count", "message": "never down"})
    await api.post(api.at(kind), thing(kind, spec={"count": 3}))
    await api.merge(api.at(kind, "t"), {"spec": {"count": 4}})
    with fails(422, "Invalid") as caught:
        await api.merge(api.at(kind, "t"), {"spec": {"count": 1}})
    assert caught.value.message.endswith("never down")


@pytest.mark.minimum("1.25")
async def test_a_rule_must_compile(api: Api, unique: str) -> None:
    with pytest.raises(Status) as caught:
        await ruled(api, unique, {"rule": "self.nothing > 2"})
    assert caught.value.code == 422
    assert "x-kubernetes-validations[0].rule" in caught.value.fields[0]
