"""Lists: selectors, pages, versions, and the forms of the answer."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.conformance.objects import config_map, pod, widget, widget_crd
from tests.conformance.wire import Api, Obj, Status, assert_no_number, fails

LABELS: dict[str, dict[str, str]] = {
    "a": {"app": "x", "tier": "web"},
    "b": {"app": "x", "tier": "db"},
    "c": {"app": "y"},
    "d": {},
    "e": {"app": "x", "n": "5"},
}


def names(answer: Obj) -> str:
    return "".join(item["metadata"]["name"] for item in answer["items"] if item["metadata"]["name"] in "abcde")


async def five(api: Api) -> None:
    for name, labels in LABELS.items():
        await api.post(api.at("configmaps"), config_map(name, labels=labels))


async def test_a_list_says_what_it_is_and_at_which_version(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    answer = await api.get(api.at("configmaps"))
    assert (answer["kind"], answer["apiVersion"]) == ("ConfigMapList", "v1")
    assert int(answer["metadata"]["resourceVersion"]) >= int(made["metadata"]["resourceVersion"])
    assert names(answer) == "a"
    kind = await api.define(widget_crd())
    answer = await api.get(api.at(kind))
    assert (answer["kind"], answer["apiVersion"], answer["items"]) == ("WidgetList", "conformance.kaito.sh/v1", [])


async def test_items_of_a_custom_kind_name_their_type(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    (item,) = (await api.get(api.at(kind)))["items"]
    assert (item["apiVersion"], item["kind"]) == ("conformance.kaito.sh/v1", "Widget")


async def test_a_list_is_in_order_of_names(api: Api) -> None:
    for name in "cabed":
        await api.post(api.at("configmaps"), config_map(name))
    assert names(await api.get(api.at("configmaps"))) == "abcde"


async def test_a_list_of_all_namespaces(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(labels={"case": api.namespace}))
    answer = await api.get(api.cluster("configmaps"), labelSelector=f"case={api.namespace}")
    assert [item["metadata"]["namespace"] for item in answer["items"]] == [api.namespace]


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("app=x", "abe"),
        ("app==x", "abe"),
        ("app!=x", "cd"),
        ("app", "abce"),
        ("!app", "d"),
        ("app in (x,y)", "abce"),
        ("app in (y)", "c"),
        ("app notin (x)", "cd"),
        ("app=x,tier=db", "b"),
        ("app=x,!tier", "e"),
        ("app=x,tier!=db", "ae"),
        ("n>4", "e"),
        ("n<4", ""),
        ("app=", ""),
        ("", "abcde"),
    ],
)
async def test_label_selectors(api: Api, selector: str, wanted: str) -> None:
    await five(api)
    assert names(await api.get(api.at("configmaps"), labelSelector=selector)) == wanted


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ("a in", "unable to parse requirement: found '' expected: '('"),
        ("a in (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
        ("=b", "found '=', expected: !, identifier, or 'end of string'"),
        ("a=b,", "found '', expected: identifier after ','"),
        ("a b", "unable to parse requirement: found 'b', expected: "),
        ("!", "unable to parse requirement: found '', expected: identifier"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("a>x", "for 'Gt', 'Lt' operators, the value must be an integer"),
        ("a$=b", "and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc'"),
    ],
)
async def test_a_malformed_label_selector_is_a_bad_request(api: Api, selector: str, words: str) -> None:
    with fails(400, "BadRequest") as caught:
        await api.get(api.at("configmaps"), labelSelector=selector)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("metadata.name=b", "b"),
        ("metadata.name==b", "b"),
        ("metadata.name!=b", "acde"),
        ("metadata.name=b,metadata.name!=c", "b"),
        ("metadata.name=b,metadata.name=c", ""),
        ("metadata.name=zz", ""),
    ],
)
async def test_field_selectors(api: Api, selector: str, wanted: str) -> None:
    await five(api)
    assert names(await api.get(api.at("configmaps"), fieldSelector=selector)) == wanted


async def test_pods_are_selected_by_node_and_phase(api: Api) -> None:
    await api.post(api.at("pods"), pod("a", nodeName="n"))
    await api.post(api.at("pods"), pod("b"))
    await api.merge(api.at("pods", "a", "status"), {"status": {"phase": "Running"}})
    for selector, wanted in (
        ("spec.nodeName=n", "a"),
        ("spec.nodeName=", "b"),
        ("status.phase=Running", "a"),
        ("status.phase!=Running", "b"),
        ("spec.restartPolicy=Always", "ab"),
    ):
        assert names(await api.get(api.at("pods"), fieldSelector=selector)) == wanted, selector


@pytest.mark.parametrize("option", ["limit", "timeoutSeconds"])
async def test_an_option_that_is_no_number_is_a_bad_request(api: Api, option: str) -> None:
    with fails(400, "BadRequest", 'strconv.ParseInt: parsing "x": invalid syntax'):
        await api.get(api.at("configmaps"), **{option: "x"})


async def test_an_unknown_field_is_a_bad_request(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.get(api.at("configmaps"), fieldSelector="data.k=v")
    assert caught.value.message == (
        '"data.k" is not a known field selector: only "metadata.name", "metadata.namespace"'
    )
    with fails(400, "BadRequest", "field label not supported: spec.image"):
        await api.get(api.at("pods"), fieldSelector="spec.image=x")
    kind = await api.define(widget_crd())
    with fails(400, "BadRequest", "field label not supported: spec.size"):
        await api.get(api.at(kind), fieldSelector="spec.size=3")


async def test_a_malformed_field_selector_is_a_bad_request(api: Api) -> None:
    with fails(400, "BadRequest") as caught:
        await api.get(api.at("configmaps"), fieldSelector="metadata.name")
    assert "invalid selector: 'metadata.name'" in caught.value.message


@pytest.mark.minimum("1.31")
async def test_a_definition_may_make_fields_selectable(api: Api, unique: str) -> None:
    definition = widget_crd()
    definition["metadata"]["name"] = f"widgets.{unique}.kaito.sh"
    definition["spec"]["group"] = f"{unique}.kaito.sh"
    definition["spec"]["versions"][0]["selectableFields"] = [{"jsonPath": ".spec.color"}]
    kind = await api.define(definition)
    for name, color in (("a", "red"), ("b", "green")):
        await api.post(api.at(kind), {**widget(name, color=color), "apiVersion": kind.rpartition("/")[0]})
    assert names(await api.get(api.at(kind), fieldSelector="spec.color=green")) == "b"


# Pages.


async def test_pages(api: Api) -> None:
    kind = await api.define(widget_crd())
    for name in "abcde":
        await api.post(api.at(kind), widget(name))
    first = await api.get(api.at(kind), limit=2)
    assert names(first) == "ab"
    assert first["metadata"]["remainingItemCount"] == 3
    await api.post(api.at(kind), widget("bb"))
    second = await api.get(api.at(kind), limit=2, **{"continue": first["metadata"]["continue"]})
    assert names(second) == "cd"
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    third = await api.get(api.at(kind), limit=2, **{"continue": second["metadata"]["continue"]})
    assert names(third) == "e"
    assert not third["metadata"].get("continue")
    assert "remainingItemCount" not in third["metadata"]


async def test_a_page_with_a_selector_does_not_count_the_rest(api: Api) -> None:
    await five(api)
    first = await api.get(api.at("configmaps"), limit=2, labelSelector="app=x")
    assert names(first) == "ab"
    assert "remainingItemCount" not in first["metadata"]
    rest = await api.get(api.at("configmaps"), limit=2, labelSelector="app=x", **{"continue": _token(first)})
    assert names(rest) == "e"
    assert not rest["metadata"].get("continue")


def _token(answer: Obj) -> str:
    found: str = answer["metadata"]["continue"]
    return found


async def test_a_page_that_holds_all_has_no_continuation(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    answer = await api.get(api.at(kind), limit=1)
    assert not answer["metadata"].get("continue")


async def test_a_token_that_is_none_is_a_bad_request(api: Api) -> None:
    for token in ("nonsense", base64.urlsafe_b64encode(b'{"v":"v9"}').decode()):
        with fails(400, "BadRequest") as caught:
            await api.get(api.at("configmaps"), **{"continue": token})
        assert "continue key is not valid" in caught.value.message


async def test_a_token_and_a_version_exclude_each_other(api: Api) -> None:
    kind = await api.define(widget_crd())
    for name in "ab":
        await api.post(api.at(kind), widget(name))
    first = await api.get(api.at(kind), limit=1)
    with fails(400, "BadRequest") as caught:
        await api.get(api.at(kind), resourceVersion=first["metadata"]["resourceVersion"], **{"continue": _token(first)})
    assert "specifying resource version is not allowed when using continue" in caught.value.message


def skip_where_memory_is_long(api: Api) -> None:
    if api.version >= (1, 34):
        pytest.skip("from Kubernetes 1.34 on lists of the past come from memory, which nothing here makes forget")


async def test_a_token_expires_with_the_history_and_offers_another(api: Api) -> None:
    skip_where_memory_is_long(api)
    kind = await api.define(widget_crd())
    for name in "abc":
        await api.post(api.at(kind), widget(name))
    first = await api.get(api.at(kind), limit=1)
    await api.post(api.at(kind), widget("bb"))
    api.target.compact()
    with fails(410, "Expired") as caught:
        await api.get(api.at(kind), limit=1, **{"continue": _token(first)})
    assert caught.value.message.startswith("The provided continue parameter is too old to display a consistent list")
    # The offered token goes on where the first left off, at the state of now.
    rest = await api.get(api.at(kind), **{"continue": caught.value.body["metadata"]["continue"]})
    assert [item["metadata"]["name"] for item in rest["items"]] == ["b", "bb", "c"]


# Versions.


async def test_a_list_not_older_than_its_own_version(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    version = made["metadata"]["resourceVersion"]
    answer = await api.get(api.at("configmaps"), resourceVersion=version)
    assert names(answer) == "a"
    assert int(answer["metadata"]["resourceVersion"]) >= int(version)
    answer = await api.get(api.at("configmaps"), resourceVersion=version, resourceVersionMatch="NotOlderThan")
    assert names(answer) == "a"


async def test_a_list_at_exactly_one_version_shows_the_past(api: Api) -> None:
    first = await api.post(api.at("configmaps"), config_map("a"))
    await api.post(api.at("configmaps"), config_map("b"))
    version = first["metadata"]["resourceVersion"]
    answer = await api.get(api.at("configmaps"), resourceVersion=version, resourceVersionMatch="Exact", limit=10)
    assert names(answer) == "a"
    assert answer["metadata"]["resourceVersion"] == version


async def test_an_exact_version_that_is_compacted_is_gone(api: Api) -> None:
    skip_where_memory_is_long(api)
    first = await api.post(api.at("configmaps"), config_map("a"))
    await api.post(api.at("configmaps"), config_map("b"))
    api.target.compact()
    version = first["metadata"]["resourceVersion"]
    with fails(410, "Expired") as caught:
        await api.get(api.at("configmaps"), resourceVersion=version, resourceVersionMatch="Exact", limit=10)
    assert "too old" in caught.value.message


@pytest.mark.parametrize(
    "options",
    [
        {"resourceVersionMatch": "Exact"},
        {"resourceVersionMatch": "NotOlderThan"},
        {"resourceVersionMatch": "Sometimes", "resourceVersion": "5"},
        {"resourceVersionMatch": "Exact", "resourceVersion": "0"},
    ],
    ids=["exact of nothing", "not older than nothing", "unknown", "exactly zero"],
)
async def test_some_matches_make_no_sense(api: Api, options: dict[str, str]) -> None:
    with fails(422, "Invalid") as caught:
        await api.get(api.at("configmaps"), **options)
    assert caught.value.fields == ["resourceVersionMatch"]
    assert caught.value.message.startswith('ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: ')


async def test_a_match_and_a_token_exclude_each_other(api: Api) -> None:
    kind = await api.define(widget_crd())
    for name in "ab":
        await api.post(api.at(kind), widget(name))
    first = await api.get(api.at(kind), limit=1)
    with fails(422, "Invalid") as caught:
        await api.get(
            api.at(kind), resourceVersion="1", resourceVersionMatch="NotOlderThan", **{"continue": _token(first)}
        )
    assert "resourceVersionMatch is forbidden when continue is provided" in caught.value.message


async def test_a_version_that_is_no_number_is_refused(api: Api) -> None:
    with pytest.raises(Status) as caught:
        await api.get(api.at("configmaps"), resourceVersion="abc")
    assert_no_number(caught.value)


async def test_a_version_of_the_future_times_out(api: Api) -> None:
    with fails(504, "Timeout") as caught:
        await api.get(api.at("configmaps"), resourceVersion="99999999")
    assert caught.value.message.startswith("Timeout: Too large resource version: 99999999, current: ")
    assert caught.value.causes == ["ResourceVersionTooLarge"]
    assert caught.value.details["retryAfterSeconds"] == 1


async def test_reading_one_object_at_version_zero(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    version = (await api.get(api.at("configmaps", "a")))["metadata"]["resourceVersion"]
    assert (await api.get(api.at("configmaps", "a"), resourceVersion=version))["data"] == {"k": "v"}


# Forms.


async def test_partial_objects_have_metadata_only(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map(labels={"a": "b"}))
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    found = await api.get(api.at("configmaps", "a"), accept=accept)
    assert (found["kind"], found["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")
    assert found["metadata"] == made["metadata"]
    assert "data" not in found
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listed = await api.get(api.at("configmaps"), accept=accept, labelSelector="a")
    assert (listed["kind"], listed["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    assert listed["metadata"]["resourceVersion"]
    assert [item["metadata"]["name"] for item in listed["items"]] == ["a"]
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), widget())
    listed = await api.get(api.at(kind), accept=accept)
    assert listed["items"][0]["metadata"] == made["metadata"]


TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1,application/json"


async def test_a_table_of_a_custom_kind_has_the_columns_of_its_definition(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    table = await api.get(api.at(kind), accept=TABLE)
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    columns = [(c["name"], c["type"], c["format"], c["priority"]) for c in table["columnDefinitions"]]
    assert columns == [
        ("Name", "string", "name", 0),
        ("Size", "integer", "", 0),
        ("Color", "string", "", 0),
        ("Ready", "boolean", "", 1),
        ("Age", "date", "", 0),
    ]
    descriptions = [c["description"] for c in table["columnDefinitions"]]
    assert descriptions[1] == "Custom resource definition column (in JSONPath format): .spec.size"
    assert descriptions[2] == "What it looks like."
    (row,) = table["rows"]
    assert row["cells"][:4] == ["w", 3, "red", None]
    assert row["cells"][4].endswith("s")
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert row["object"]["metadata"]["name"] == "w"
    assert table["metadata"]["resourceVersion"]


async def test_a_table_of_one_object(api: Api) -> None:
    kind = await api.define(widget_crd())
    await api.post(api.at(kind), widget())
    await api.merge(api.at(kind, "w", "status"), {"status": {"ready": True}})
    table = await api.get(api.at(kind, "w"), accept=TABLE)
    assert [row["cells"][:4] for row in table["rows"]] == [["w", 3, "red", True]]


@pytest.mark.parametrize(
    ("include", "kind"), [("None", None), ("Metadata", "PartialObjectMetadata"), ("Object", "Pod")]
)
async def test_a_table_of_pods(api: Api, include: str, kind: str | None) -> None:
    await api.post(api.at("pods"), pod())
    table = await api.get(api.at("pods"), accept=TABLE, includeObject=include)
    assert [c["name"] for c in table["columnDefinitions"]] == [
        "Name",
        "Ready",
        "Status",
        "Restarts",
        "Age",
        "IP",
        "Node",
        "Nominated Node",
        "Readiness Gates",
    ]
    (row,) = table["rows"]
    assert row["cells"][:3] == ["p", "0/1", "Pending"]
    shown: Any = row["object"]
    assert (shown["kind"] if shown else None) == kind


async def test_a_table_of_another_kind(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(data={"a": "1", "b": "2"}))
    table = await api.get(api.at("configmaps"), accept=TABLE, fieldSelector="metadata.name=a")
    assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert table["rows"][0]["cells"][:2] == ["a", 2]
