"""List bodies in pieces: whatever a body is and wherever it is cut, its items come out as they went in."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_ctrl.runtime.codec import ListHead, decode_header
from kaito_ctrl.runtime.listbody import ListBody


def taken(*chunks: bytes) -> tuple[ListBody, list[bytes]]:
    body = ListBody()
    items = [record.raw for chunk in chunks for record in body.feed(chunk)]
    items += [record.raw for record in body.end()]
    return body, items


def written(items: list[Any], *, version: str = "7", token: str = "", **style: Any) -> bytes:
    head = {"resourceVersion": version, "continue": token}
    return json.dumps({"kind": "ConfigMapList", "metadata": head, "items": items}, **style).encode()


COMPACT: dict[str, Any] = {"separators": (",", ":")}


def config_map(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "3"}, **more}


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.text(max_size=8), st.just('},{"metadata":{"name":"x"')
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["metadata", "a", "}", "items"]), inner, max_size=3),
    ),
    max_leaves=8,
)
templates = st.lists(st.just(config_map("nested")), max_size=3)
objects = st.one_of(
    st.builds(config_map, st.text(max_size=6), spec=values, templates=templates),
    st.builds(lambda name, spec: {"spec": spec, **config_map(name)}, st.text(max_size=6), values),
    st.builds(lambda name: {"apiVersion": "v1", "kind": "X", **config_map(name)}, st.text(max_size=6)),
)
styles = st.sampled_from([COMPACT, {}, {"indent": 2}, {**COMPACT, "ensure_ascii": False}])


@given(st.lists(objects, max_size=8), styles, st.data())
def test_the_items_come_out_as_they_went_in_wherever_the_body_is_cut(
    items: list[Any], style: dict[str, Any], data: st.DataObject
) -> None:
    raw = written(items, token="more", **style)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=12)))
    chunks = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    body, found = taken(*chunks)
    assert [json.loads(item) for item in found] == items
    assert body.head == ListHead("7", "more")
    assert body.unreadable == 0


@given(st.lists(objects, min_size=1, max_size=4), styles)
def test_a_body_may_come_byte_by_byte(items: list[Any], style: dict[str, Any]) -> None:
    raw = written(items, **style)
    _, found = taken(*(raw[at : at + 1] for at in range(len(raw))))
    assert [json.loads(item) for item in found] == items


@given(st.one_of(st.binary(max_size=60), values.map(lambda each: json.dumps(each).encode())), st.integers(1, 20))
def test_what_is_no_list_is_refused_at_its_end_and_never_before(raw: bytes, size: int) -> None:
    body = ListBody()
    for at in range(0, len(raw), size):
        assert all(record.raw for record in body.feed(raw[at : at + size]))
    try:
        list(body.end())
    except ValueError:
        return
    assert "items" in json.loads(raw)


@given(st.lists(objects, min_size=1, max_size=3), st.data())
def test_a_list_that_breaks_off_is_not_taken_for_a_whole_one(items: list[Any], data: st.DataObject) -> None:
    raw = written(items, **COMPACT)
    body = ListBody()
    list(body.feed(raw[: data.draw(st.integers(0, len(raw) - 1))]))
    with pytest.raises(ValueError, match="list"):
        list(body.end())


def test_the_order_of_a_lists_members_does_not_matter() -> None:
    raw = b'{"items":[{"metadata":{"name":"a"}}],"metadata":{"resourceVersion":"9"},"kind":"L"}\n'
    body, found = taken(raw)
    assert found == [b'{"metadata":{"name":"a"}}']
    assert body.head.resource_version == "9"


@pytest.mark.parametrize("items", ["null", "[]"])
def test_a_list_may_be_empty(items: str) -> None:
    body, found = taken(f'{{"metadata":{{"resourceVersion":"9"}},"items":{items}}}'.encode())
    assert (body.head.resource_version, found) == ("9", [])


@pytest.mark.parametrize("raw", [b"{}", b'{"kind":"Status","code":500}', b'{"items":{}}', b"[]", b"", b"null"])
def test_what_has_no_items_is_no_list(raw: bytes) -> None:
    with pytest.raises(ValueError, match="list"):
        taken(raw)


def test_an_item_that_is_no_object_is_counted_and_the_others_come_out() -> None:
    odd = [config_map("a"), 5, {"metadata": {"labels": 3}}, [], None, config_map("b"), config_map("c")]
    body, found = taken(written(odd, **COMPACT))
    assert [decode_header(item).name for item in found] == ["a", "b", "c"]
    assert body.unreadable == 4


@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_an_item_nested_beyond_reason_is_unreadable_and_the_list_is_not(size: int) -> None:
    deep = b'{"metadata":{},"quoted":"]}\\"","spec":' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    raw = b'{"items":[{"metadata":{"name":"a"}},' + deep + b',{"metadata":{"name":"b"}}]}'
    body = ListBody()
    found = [each for at in range(0, len(raw), size) for each in body.feed(raw[at : at + size])] + [*body.end()]
    assert [each.header.name for each in found] == ["a", "b"]
    assert body.unreadable == 1


def test_items_come_out_before_the_list_ends_and_keep_no_more_than_themselves() -> None:
    items = [config_map(f"{index:06}", data={"k": "x" * 5000}) for index in range(400)]
    raw = written(items, **COMPACT)
    chunks = [raw[at : at + 65536] for at in range(0, len(raw), 65536)]
    body, most = ListBody(), 0
    tracemalloc.start()
    for chunk in chunks:
        for record in body.feed(bytes(chunk)):
            assert len(record.raw) < 6000
        most = max(most, tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert most < 4 * 65536
