"""What makes a Workspace wrong, and what is said about it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_ctrl.reconcilers.workspace.validation import Problem, Rules, describe
from kaito_presets import Catalogue, SkuTable

RULES = Rules(Catalogue.builtin(), SkuTable.builtin("azure"))


def inference(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "ws", "namespace": "default"},
        "resource": {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"apps": "phi-3"}}},
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }
    return _set(base, changes)


def tuning(**changes: Any) -> dict[str, Any]:
    base = inference()
    del base["inference"]
    base["tuning"] = {
        "preset": {"name": "phi-3-mini-128k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/data.parquet"]},
        "output": {"image": "registry.example/team/adapter:0.0.1", "imagePushSecret": "push"},
    }
    return _set(base, changes)


REMOVE = object()


def _set(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        holder: Any = base
        *parents, last = path.split("__")
        for part in parents:
            holder = holder.setdefault(part, {})
        if value is REMOVE:
            holder.pop(last, None)
        else:
            holder[last] = value
    return base


def problems(raw: dict[str, Any], old: dict[str, Any] | None = None) -> list[Problem]:
    return list(RULES.check(raw, old))


def test_the_quick_starts_are_valid() -> None:
    assert problems(inference()) == []
    assert problems(inference(inference__preset__name="phi-3-mini-128k-instruct")) == []
    assert problems(tuning()) == []


ADAPTER = {"source": {"name": "a", "image": "registry.example/adapter:1"}, "strength": "1.0"}

TABLE: list[tuple[dict[str, Any], str, str]] = [
    (inference(inference=REMOVE), "inference", "not neither"),
    ({**inference(), "tuning": tuning()["tuning"]}, "inference", "not both"),
    (inference(inference__preset__name="phi-3-mini-4k-instrukt"), "inference.preset.name", "phi-3-mini-4k-instruct"),
    (inference(inference__preset=REMOVE), "inference", "preset or template must be specified"),
    (inference(inference__template={"spec": {}}), "inference", "cannot be set at the same time"),
    (inference(resource__instanceType="Standard_Invalid"), "resource.instanceType", "unsupported instance type"),
    (inference(resource__instanceType="standard_nc6s_v3"), "resource.instanceType", "did you mean Standard_NC6s_v3"),
    (inference(resource__instanceType="Standard_nc6S_v3"), "resource.instanceType", "did you mean"),
    (inference(resource__instanceType="Standard_NV12ads_A10_v5"), "resource.instanceType", "Insufficient total"),
    (inference(resource__labelSelector=REMOVE), "resource.labelSelector", "is required"),
    (inference(resource__labelSelector={}), "resource.labelSelector", "at least one label"),
    (inference(resource__labelSelector__matchLabels={"kubernetes.io/os": "linux"}), "resource.labelSelector", "system"),
    (
        inference(resource__labelSelector={"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]}]}),
        "resource.labelSelector.matchExpressions[0]",
        "exactly one value",
    ),
    (inference(resource__count=0), "resource.count", "greater than or equal to 1"),
    (inference(inference__preset__name="llama-2-7b"), "inference.preset.accessMode", "private"),
    (
        inference(inference__preset={"name": "llama-2-7b", "accessMode": "private"}),
        "inference.preset.presetOptions.image",
        "must be provided",
    ),
    (inference(inference__adapters=[ADAPTER] * 2), "inference.adapters[1].source.name", "duplicate"),
    (inference(inference__adapters=[{**ADAPTER, "strength": "nan"}]), "inference.adapters[0].strength", "from 0 to 1"),
    (inference(inference__adapters=[{**ADAPTER, "strength": "1.5"}]), "inference.adapters[0].strength", "from 0 to 1"),
    (inference(inference__adapters=[{"strength": "1"}]), "inference.adapters[0].source", "must be specified"),
    (inference(inference__adapters=[{"source": {"name": "a"}}]), "inference.adapters[0].source.image", "must be"),
    (
        inference(
            inference__adapters=[
                {"source": {"name": f"a{n}", "image": "registry.example/adapter:1"}} for n in range(11)
            ]
        ),
        "inference.adapters",
        "maximum of 10",
    ),
    (inference(metadata__name="phi-3.5"), "metadata.name", "name of a Service"),
    (inference(metadata__name="3b"), "metadata.name", "beginning with a letter"),
    (inference(metadata__name="a" * 60), "metadata.name", "at most 54"),
    (inference(resource__labelSelector__matchLabels={"accelerator": "amd"}), "resource.labelSelector", "nvidia"),
    (tuning(resource__count=2), "resource.count", "more than one node"),
    (tuning(tuning__method="full"), "tuning.method", "unsupported method full"),
    (tuning(tuning__preset__name="llama-2-7b"), "tuning.preset.name", "does not support tuning"),
    (tuning(tuning__input=REMOVE), "tuning.input", "is required"),
    (tuning(tuning__input={}), "tuning.input", "exactly one of"),
    (tuning(tuning__output__image="ACR_REPO_HERE.azurecr.io/IMAGE_NAME_HERE:0.0.1"), "tuning.output.image", "lower"),
    (tuning(tuning__output__imagePushSecret="ACR_REGISTRY_SECRET_HERE"), "tuning.output.imagePushSecret", "subdomain"),
    (tuning(tuning__output__imagePushSecret=REMOVE), "tuning.output.imagePushSecret", "must be specified"),
    (tuning(tuning__output__image="adapter"), "tuning.output.image", "full image reference"),
]


@pytest.mark.parametrize(("raw", "field", "text"), TABLE, ids=[f"{row[1]}: {row[2]}" for row in TABLE])
def test_each_rule_names_its_field_and_says_what_is_wrong(raw: dict[str, Any], field: str, text: str) -> None:
    found = problems(raw)
    assert any(each.field.startswith(field) and text in str(each) for each in found), describe(found)


def test_every_problem_is_named_at_once() -> None:
    raw = inference(
        inference__preset__name="no-such-model",
        resource__instanceType="Standard_Invalid",
        resource__labelSelector=REMOVE,
        tuning=tuning()["tuning"],
    )
    assert {each.field for each in problems(raw)} == {
        "inference",
        "inference.preset.name",
        "resource.instanceType",
        "resource.labelSelector",
    }


def test_a_digest_is_an_image_reference_too() -> None:
    digest = "registry.example/team/adapter@sha256:" + "0" * 64
    assert problems(tuning(tuning__output__image=digest)) == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"resource__count": 2}, "resource.count"),
        ({"resource__instanceType": "Standard_NC12s_v3"}, "resource.instanceType"),
        ({"resource__labelSelector__matchLabels": {"apps": "other"}}, "resource.labelSelector"),
        ({"inference__preset__name": "phi-3-mini-128k-instruct"}, "inference.preset"),
        ({"inference": REMOVE, "tuning": tuning()["tuning"]}, "inference"),
    ],
)
def test_what_is_immutable_cannot_be_changed(change: dict[str, Any], field: str) -> None:
    assert field in {each.field for each in problems(inference(**change), inference())}


def test_an_old_object_with_a_problem_can_still_be_edited() -> None:
    old = inference(resource__instanceType="Standard_Retired")
    assert problems(old)
    new = copy.deepcopy(old)
    new["metadata"]["labels"] = {"team": "a"}
    new["resource"]["preferredNodes"] = ["node-1"]
    assert problems(new, old) == []


def test_nothing_holds_up_a_deletion() -> None:
    raw = inference(inference=REMOVE)
    raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert problems(raw) == []


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "count",
                    "instanceType",
                    "labelSelector",
                    "matchLabels",
                    "preset",
                    "adapters",
                    "source",
                    "image",
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["metadata", "resource", "inference", "tuning", "status"]), json_values))
def test_no_input_raises(raw: dict[str, Any]) -> None:
    for problem in RULES.check(raw, inference()):
        assert problem.message
    RULES.check(inference(), raw)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([row[0] for row in TABLE]), st.sampled_from(["resource", "inference", "tuning"]), json_values)
def test_no_mutation_of_a_real_one_raises(raw: dict[str, Any], section: str, value: Any) -> None:
    RULES.check({**raw, section: value})
