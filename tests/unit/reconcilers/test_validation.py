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
    (
        inference(
            inference={
                "preset": {
                    "name": "llama-2-7b",
                    "accessMode": "private",
                    "presetOptions": {"image": "registry.example/llama:1"},
                },
                "adapters": [ADAPTER],
            }
        ),
        "inference.adapters",
        "loads no adapters",
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
    (tuning(tuning__output={"volumeSource": {"emptyDir": {}}}), "tuning.output.volumeSource", "not supported"),
    (tuning(tuning__output={}), "tuning.output", "a destination must be specified"),
    (tuning(tuning__preset=REMOVE), "tuning.preset", "must be specified"),
    (tuning(tuning__preset__name="phi-9"), "tuning.preset.name", "unsupported tuning preset name phi-9"),
    (tuning(tuning__input={"urls": ["data.parquet"]}), "tuning.input.urls[0]", "no URL"),
    (
        tuning(tuning__input={"urls": ["https://example.com/a"], "image": "registry.example/a:1"}),
        "tuning.input",
        "exactly one of",
    ),
    (tuning(tuning__input={"volumeSource": {"emptyDir": {}}}), "tuning.input.volumeSource", "not supported"),
    (tuning(tuning__input={"image": "registry.example/a"}), "tuning.input.image", "neither a tag nor a digest"),
    (tuning(tuning__config="My_Config"), "tuning.config", "not the name of a ConfigMap"),
    (
        inference(inference__adapters=[{"source": {"image": "r.example/a:1"}}]),
        "inference.adapters[0].source.name",
        "be",
    ),
    (
        inference(inference__adapters=[{"source": {"name": "a.b", "image": "r.example/a:1"}}]),
        "inference.adapters[0].source.name",
        "not a DNS label",
    ),
    (
        inference(inference__adapters=[{"source": {"name": "a", "urls": ["https://r.example/a"]}}]),
        "inference.adapters[0].source.urls",
        "comes from an image",
    ),
    (inference(inference__adapters=[ADAPTER, {**ADAPTER, "strength": 1}]), "inference.adapters[1].strength", "string"),
    (
        inference(inference__preset={"name": "phi-3-mini-4k-instruct", "presetOptions": {"imagePullSecrets": ["A_B"]}}),
        "inference.preset.presetOptions.imagePullSecrets[0]",
        "not the name of a Secret",
    ),
    (inference(inference={"template": {}}), "inference.template.spec.containers", "at least one container"),
    (
        inference(inference={"template": {"spec": {"containers": [{"name": "a"}]}}}),
        "inference.template.spec.containers[0].image",
        "must be specified",
    ),
    (
        inference(metadata__annotations={"kaito.sh/runtime": "tgi"}),
        "metadata.annotations[kaito.sh/runtime]",
        "unsupported runtime tgi",
    ),
    (inference(resource__labelSelector__matchLabels={"apps": "a b"}), "resource.labelSelector", "value of a label"),
    (inference(resource__labelSelector__matchLabels={"a b": "c"}), "resource.labelSelector", "name of a label"),
    (
        inference(resource__instanceType="Standard_NC12s_v3", inference__preset__name="falcon-40b"),
        "resource.instanceType",
        "Insufficient number of GPUs|Insufficient total GPU memory",
    ),
]


@pytest.mark.parametrize(("raw", "field", "text"), TABLE, ids=[f"{row[1]}: {row[2]}" for row in TABLE])
def test_each_rule_names_its_field_and_says_what_is_wrong(raw: dict[str, Any], field: str, text: str) -> None:
    found = problems(raw)
    texts = text.split("|")
    assert any(each.field.startswith(field) and any(one in str(each) for one in texts) for each in found), describe(
        found
    )


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
        ({"inference": REMOVE, "tuning": tuning()["tuning"]}, "tuning"),
        ({"inference": {"template": {"spec": {"containers": [{"name": "a", "image": "b"}]}}}}, "inference.template"),
    ],
)
def test_what_is_immutable_cannot_be_changed(change: dict[str, Any], field: str) -> None:
    assert field in {each.field for each in problems(inference(**change), inference())}
    # And back: what has been taken away cannot come again either.
    assert field in {each.field for each in problems(inference(), inference(**change))}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tuning__preset__name": "phi-3-mini-4k-instruct"}, "tuning.preset"),
        ({"tuning__method": "lora"}, "tuning.method"),
        ({"tuning__input": {"urls": ["https://example.com/other.parquet"]}}, "tuning.input"),
        ({"tuning__input__name": "data"}, "tuning.input"),
        ({"tuning__input__imagePullSecrets": ["pull"]}, "tuning.input"),
        ({"tuning__output__image": "registry.example/team/adapter:0.0.2"}, "tuning.output"),
        ({"tuning__output__imagePushSecret": "other"}, "tuning.output"),
    ],
)
def test_what_a_tuning_job_works_on_cannot_be_changed(change: dict[str, Any], field: str) -> None:
    assert field in {each.field for each in problems(tuning(**change), tuning())}


def test_what_means_the_same_is_no_change() -> None:
    urls = ["https://example.com/a", "https://example.com/b"]
    old = tuning(tuning__input={"urls": urls, "imagePullSecrets": ["a", "b"]})
    new = tuning(tuning__input={"urls": urls[::-1], "imagePullSecrets": ["b", "a"]}, tuning__method="QLoRA")
    new["resource"]["labelSelector"] = {"matchExpressions": [{"key": "apps", "operator": "In", "values": ["phi-3"]}]}
    assert problems(new, old) == []


def test_what_may_change_may_change() -> None:
    adapters = [ADAPTER]
    assert problems(inference(inference__adapters=adapters, resource__preferredNodes=["node-1"]), inference()) == []
    assert problems(inference(), inference(inference__adapters=adapters)) == []
    assert problems(tuning(tuning__config="mine"), tuning()) == []


def test_the_rules_for_adapters_hold_on_an_update_too() -> None:
    new = inference(inference__adapters=[{**ADAPTER, "strength": "2"}])
    assert [each.field for each in problems(new, inference())] == ["inference.adapters[0].strength"]


@pytest.mark.parametrize(
    ("text", "method", "says"),
    [
        ("training_config: {QuantizationConfig: {load_in_4bit: true}}", "qlora", ""),
        ("training_config: {QuantizationConfig: {load_in_4bit: null, load_in_8bit: true}}", "QLoRA", ""),
        ("training_config: {LoraConfig: {r: 8}, TrainingArguments: {output_dir: results}}", "lora", ""),
        ("training_config: {TrainingArguments: {output_dir: /mnt/results}}", "lora", ""),
        ("a: [", "lora", "not valid YAML"),
        ("", "lora", "expected a key training_config"),
        ("training_config: []", "lora", "expected a key training_config"),
        ("training_config: {Modelconfig: {}}", "lora", "unrecognized section Modelconfig"),
        ("training_config: {ModelConfig: 3}", "lora", "section ModelConfig is not a map"),
        ("training_config: {QuantizationConfig: {load_in_4bit: 1}}", "lora", "not true or false"),
        ("training_config: {QuantizationConfig: {load_in_4bit: true, load_in_8bit: true}}", "qlora", "cannot both"),
        ("training_config: {QuantizationConfig: {load_in_4bit: true}}", "lora", "does not quantize"),
        ("training_config: {}", "qlora", "needs exactly one of"),
        ("training_config: {QuantizationConfig: {load_in_8bit: false}}", "qlora", "needs exactly one of"),
        ("training_config: {TrainingArguments: {output_dir: ../mntx}}", "lora", "invalid output_dir"),
        ("training_config: {TrainingArguments: {output_dir: /mnt}}", "lora", "invalid output_dir"),
        ("training_config: {TrainingArguments: {output_dir: 7}}", "lora", "invalid output_dir"),
    ],
)
def test_a_tuning_config_is_read_before_anything_is_paid_for(text: str, method: str, says: str) -> None:
    raw = tuning(tuning__config="mine", tuning__method=method)
    found = RULES.check(raw, config_maps={"mine": {"training_config.yaml": text}})
    if says:
        assert any(each.field == "tuning.config" and says in each.message for each in found), describe(found)
    else:
        assert found == ()


def test_a_tuning_config_has_to_be_there() -> None:
    raw = tuning(tuning__config="mine")
    assert RULES.check(raw) == ()
    assert "not found" in RULES.check(raw, config_maps={})[0].message
    assert "no key training_config.yaml" in RULES.check(raw, config_maps={"mine": {}})[0].message


def test_what_is_allowed_but_hardly_meant_is_a_warning() -> None:
    assert RULES.warnings(inference()) == ()
    assert "will be used" in RULES.warnings(inference(resource__instanceType=REMOVE))[0].message
    assert "not checked" in RULES.warnings(inference(resource__instanceType="Standard_ND_new_v9"))[0].message
    assert RULES.warnings(inference(resource__instanceType="Standard_Invalid")) == (), "it is an error already"
    assert "vLLM" in RULES.warnings(inference(metadata__annotations={"kaito.sh/runtime": "vllm"}))[0].message
    found = RULES.warnings(inference(metadata__annotations={"kaito.sh/enablelb": "true"}))
    assert "no effect" in found[0].message


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
