"""Conversion: between any two versions through the hub, nothing lost, and nothing changed that must stay."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_ctrl.runtime.conversion import ConversionError, ConversionWebhook, Spoke
from tests.boxes import BOXES, box

CASES = ("v1", "v2", "v3")


@pytest.mark.parametrize("before", CASES)
@pytest.mark.parametrize("after", CASES)
@given(width=st.integers(0, 99), height=st.integers(0, 99), colour=st.sampled_from(["", "red"]))
def test_there_and_back_nothing_is_lost(before: str, after: str, width: int, height: int, colour: str) -> None:
    first = BOXES.convert(box("v2", width=width, height=height, colour=colour), before)
    second = BOXES.convert(first, after)
    assert first["apiVersion"] == f"example.org/{before}"
    assert second["apiVersion"] == f"example.org/{after}"
    assert BOXES.convert(second, before) == first


def test_each_version_says_it_its_own_way() -> None:
    hub = box("v2", width=2, height=3, colour="red")
    assert BOXES.convert(hub, "v1")["spec"] == {"size": "2x3"}
    assert BOXES.convert(hub, "v3")["spec"] == {"dimensions": [2, 3], "colour": "red"}
    assert BOXES.convert(BOXES.convert(hub, "v1"), "v3")["spec"] == {"dimensions": [2, 3], "colour": "red"}


def test_what_is_converted_is_left_as_it_was() -> None:
    obj = box("v1", size="2x3")
    BOXES.convert(obj, "v2")["metadata"]["labels"] = {"changed": "yes"}
    assert obj == box("v1", size="2x3")


async def review(webhook: ConversionWebhook, wanted: str, *objects: Any) -> dict[str, Any]:
    request = {"uid": "u-1", "desiredAPIVersion": wanted, "objects": list(objects)}
    answer = await webhook.answer({"kind": "ConversionReview", "request": request})
    assert (answer["apiVersion"], answer["kind"]) == ("apiextensions.k8s.io/v1", "ConversionReview")
    response: dict[str, Any] = answer["response"]
    assert response["uid"] == "u-1"
    return response


async def test_a_review_is_answered_with_all_objects_in_order() -> None:
    response = await review(BOXES, "example.org/v2", box("v1", "a", size="1x2"), box("v3", "b", dimensions=[3, 4]))
    assert response["result"] == {"status": "Success"}
    assert [(each["apiVersion"], each["metadata"]["name"]) for each in response["convertedObjects"]] == [
        ("example.org/v2", "a"),
        ("example.org/v2", "b"),
    ]


@pytest.mark.parametrize(
    ("wanted", "obj", "message"),
    [
        ("example.org/v9", box("v1", size="1x2"), "from example.org/v1 to v9: the versions of boxes.example.org are"),
        ("example.com/v2", box("v1", size="1x2"), "no version example.com/v2"),
        ("example.org/v2", {**box("v1", size="1x2"), "apiVersion": "example.com/v1"}, "Box default/a"),
        ("example.org/v2", box("v1", size="wide"), "'wide' is no size"),
    ],
)
async def test_a_failure_is_of_the_whole_review_and_names_its_object(wanted: str, obj: Any, message: str) -> None:
    response = await review(BOXES, wanted, box("v1", size="1x2"), obj)
    assert response["result"]["status"] == "Failure"
    assert message in response["result"]["message"]
    assert "convertedObjects" not in response


@pytest.mark.parametrize("field", ["name", "namespace", "uid", "generation", "finalizers"])
def test_metadata_must_stay(field: str) -> None:
    def rename(obj: dict[str, Any]) -> dict[str, Any]:
        obj["metadata"][field] = "other"
        return obj

    webhook = ConversionWebhook("boxes.example.org", hub="v2", spokes={"v1": Spoke(rename, rename)})
    with pytest.raises(ConversionError, match=f"Box default/a to v2 changes metadata.{field}"):
        webhook.convert(box("v1", size="1x2"), "v2")


def test_labels_and_annotations_may_change() -> None:
    def mark(obj: dict[str, Any]) -> dict[str, Any]:
        obj["metadata"] |= {"labels": {"a": "b"}, "annotations": {"c": "d"}}
        return obj

    webhook = ConversionWebhook("boxes.example.org", hub="v2", spokes={"v1": Spoke(mark, mark)})
    assert webhook.convert(box("v1"), "v2")["metadata"]["labels"] == {"a": "b"}
