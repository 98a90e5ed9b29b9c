"""What holds for every Workspace: it is refused with a path and a fix, or it is planned, always in the same way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_api.core import Node
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.plan import Observed, Plan, plan_workspace
from kaito_ctrl.reconcilers.workspace.revisions import plan_revisions
from kaito_ctrl.reconcilers.workspace.settings import Settings
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.runtime.codec import encode_json
from kaito_presets import Catalogue, SkuTable

CATALOGUE, SKUS = Catalogue.builtin(), SkuTable.builtin("azure")
RULES = Rules(CATALOGUE, SKUS)
NOW = datetime(2026, 1, 1, tzinfo=UTC)

names = st.sampled_from(["a", "my-model", "phi", "A_B", "", "x" * 70, "9"])
images = st.sampled_from(
    ["registry.example/a:1", "registry.example/a@sha256:" + "0" * 64, "a", "REG.example/UPPER:1", "r.io/a", ""]
)
presets = st.fixed_dictionaries(
    {"name": st.sampled_from([*CATALOGUE.names(), "gpt-9"])},
    optional={
        "accessMode": st.sampled_from(["public", "private"]),
        "presetOptions": st.fixed_dictionaries(
            {}, optional={"image": images, "imagePullSecrets": st.lists(names, max_size=2)}
        ),
    },
)
sources = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "image": images,
        "urls": st.lists(st.sampled_from(["https://example.com/a", "ftp://x"]), max_size=2),
        "imagePullSecrets": st.lists(names, max_size=2),
    },
)
adapters = st.fixed_dictionaries(
    {}, optional={"source": sources, "strength": st.sampled_from(["1.0", "0.5", "2", "x"])}
)
templates = st.sampled_from([{}, {"spec": {"containers": [{"name": "a", "image": "b"}]}}, {"spec": {"containers": []}}])
inferences = st.fixed_dictionaries(
    {}, optional={"preset": presets, "template": templates, "adapters": st.lists(adapters, max_size=3)}
)
tunings = st.fixed_dictionaries(
    {"input": sources, "output": st.fixed_dictionaries({}, optional={"image": images, "imagePushSecret": names})},
    optional={"preset": presets, "method": st.sampled_from(["lora", "QLoRA", "full"]), "config": names},
)
selectors = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(st.sampled_from(["apps", "team", "kaito.sh/x"]), names, max_size=2),
        "matchExpressions": st.lists(
            st.fixed_dictionaries(
                {"key": names, "operator": st.sampled_from(["In", "Exists"]), "values": st.lists(names, max_size=2)}
            ),
            max_size=1,
        ),
    },
)
resources = st.fixed_dictionaries(
    {"labelSelector": selectors},
    optional={
        "count": st.integers(0, 9),
        "instanceType": st.sampled_from([*SKUS.names(), "Standard_N_future", "nope"]),
        "preferredNodes": st.lists(st.sampled_from(["n1", "n2"]), max_size=2, unique=True),
    },
)


@st.composite
def workspaces(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly sensible ones: fields are valid or nearly so, and often go together."""
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": draw(st.sampled_from(["ws", "my-model", "9x"])), "namespace": "default", "uid": "u1"},
        "resource": draw(resources),
        **draw(st.fixed_dictionaries({}, optional={"inference": inferences, "tuning": tunings})),
    }


@st.composite
def sensible(draw: st.DrawFn) -> dict[str, Any]:
    """Valid ones."""
    preset = draw(st.sampled_from([each for each in CATALOGUE if each.access_mode == "public"]))
    raw = _served(preset.name, draw(st.sampled_from(_fitting(preset.name))))
    raw["resource"]["count"] = draw(st.integers(1, 4))
    chosen = draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3))
    if chosen:
        raw["inference"]["adapters"] = [
            {"source": {"name": each, "image": f"registry.example/{each}:1"}, "strength": "0.5"} for each in chosen
        ]
    return raw


@cache
def _fitting(preset: str) -> tuple[str, ...]:
    return tuple(sku.name for sku in SKUS if RULES.check(_served(preset, sku.name)) == ())


def _served(preset: str, sku: str) -> dict[str, Any]:
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "ws", "namespace": "default", "uid": "u1"},
        "resource": {"instanceType": sku, "labelSelector": {"matchLabels": {"apps": "x"}}},
        "inference": {"preset": {"name": preset}},
    }


def nodes(count: int, sku: str) -> tuple[Node, ...]:
    return tuple(
        Node.model_validate(
            {
                "metadata": {"name": f"n{n}", "labels": {"apps": "x", "node.kubernetes.io/instance-type": sku}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }
        )
        for n in range(count)
    )


def plan(raw: dict[str, Any], seen: Observed, now: datetime = NOW, **status: Any) -> Plan:
    ws = Workspace.model_validate({**raw, "status": status})
    return plan_workspace(ws, seen, CATALOGUE, SKUS, Settings(), now)


def text(made: Plan) -> bytes:
    return encode_json(
        [made.status.to_wire(), [each.to_wire() for each in (*made.claims, *made.apply)], made.look_again]
    )


@settings(max_examples=400, deadline=None)
@given(workspaces())
def test_one_is_refused_with_a_path_and_a_fix_or_it_is_planned(raw: dict[str, Any]) -> None:
    problems = RULES.check(raw)
    for problem in problems:
        assert problem.message
        assert problem.fix, problem
        assert problem.field.split(".")[0] in ("metadata", "resource", "inference", "tuning"), problem
    if problems:
        return
    made = plan(raw, Observed())
    assert made.claims or "tuning" in raw
    assert text(made) == text(plan(raw, Observed()))


@settings(max_examples=100, deadline=None)
@given(sensible(), st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_what_was_seen_nor_on_the_hour(raw: dict[str, Any], rng: Any) -> None:
    known = list(nodes(raw["resource"]["count"] + 1, raw["resource"]["instanceType"]))
    first = plan(raw, Observed(nodes=tuple(known)))
    rng.shuffle(known)
    # Once written, the conditions keep their times: nothing moves while nothing happens.
    again = plan(raw, Observed(nodes=tuple(known)), NOW + timedelta(hours=5), **first.status.to_wire())
    assert [each.to_wire() for each in again.apply] == [each.to_wire() for each in first.apply]
    assert text(again) == text(plan(raw, Observed(nodes=tuple(known)), NOW, **first.status.to_wire()))
    assert len(first.apply) >= 2


@settings(max_examples=100, deadline=None)
@given(sensible(), sensible())
def test_going_back_gives_back_what_was_there(one: dict[str, Any], other: dict[str, Any]) -> None:
    def applied(raw: dict[str, Any]) -> list[Any]:
        seen = Observed(nodes=nodes(4, raw["resource"]["instanceType"]))
        return [each.to_wire() for each in plan(raw, seen).apply]

    there = applied(one)
    applied(other)
    assert applied(one) == there
    first = plan_revisions(Workspace.model_validate(one), ())
    second = plan_revisions(Workspace.model_validate(other), (first.current,))
    known = tuple({each.name: each for each in (first.current, second.current)}.values())
    assert plan_revisions(Workspace.model_validate(one), known).current == first.current


@settings(max_examples=200, deadline=None)
@given(workspaces())
def test_what_is_unchanged_never_blocks_an_edit_nor_anything_a_deletion(raw: dict[str, Any]) -> None:
    edited = {**raw, "metadata": {**raw["metadata"], "labels": {"team": "a"}}}
    assert RULES.check(edited, raw) == ()
    assert RULES.check({**raw, "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}) == ()
