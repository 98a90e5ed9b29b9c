"""What a Deployment does next, decided without any cluster."""

from __future__ import annotations

from datetime import timedelta

import pytest
from devobjects import NOW, deployment, pod, replica_set, template
from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_api.apps import ReplicaSetStatus
from kaito_api.meta import find_condition
from kaito_ctrl.devcluster.deployment import (
    REVISION,
    DeploymentPlan,
    plan_deployment,
    template_hash,
)
from kaito_ctrl.devcluster.deploymentstatus import resolve_bounds
from kaito_ctrl.devcluster.kinds import Deployment, ReplicaSet


def observed(each: ReplicaSet, available: int | None = None) -> ReplicaSet:
    """As its own controller leaves it, with that many replicas available."""
    count = each.spec.replicas
    ready = count if available is None else available
    status = ReplicaSetStatus(
        replicas=count, ready_replicas=ready, available_replicas=ready, observed_generation=each.metadata.generation
    )
    return each.evolve(status=status)


def carry_out(plan: DeploymentPlan, sets: dict[str, ReplicaSet]) -> dict[str, ReplicaSet]:
    """What the server has after *plan*, before any pod has reacted."""
    after = dict(sets)
    if plan.create is not None:
        after[plan.create.name] = plan.create.evolve(
            metadata=plan.create.metadata.evolve(uid=f"uid-{plan.create.name}", creation_timestamp=NOW)
        )
    for name, patch in plan.patch.items():
        each = after[name]
        annotations = {**each.metadata.annotations, **patch.get("metadata", {}).get("annotations", {})}
        replicas = patch.get("spec", {}).get("replicas", each.spec.replicas)
        after[name] = each.evolve(
            metadata=each.metadata.evolve(annotations=annotations), spec=each.spec.evolve(replicas=replicas)
        )
    for each in plan.delete:
        del after[each.name]
    return after


@pytest.mark.parametrize(
    ("surge", "unavailable", "replicas", "expected"),
    [
        ("25%", "25%", 4, (1, 1)),
        ("25%", "25%", 1, (1, 0)),
        ("25%", "25%", 10, (3, 2)),
        (0, 0, 3, (0, 1)),
        (2, "50%", 5, (2, 2)),
        ("100%", "100%", 3, (3, 3)),
        (1, 5, 3, (1, 3)),
    ],
)
def test_bounds_round_as_kubernetes_rounds(
    surge: int | str, unavailable: int | str, replicas: int, expected: tuple[int, int]
) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    assert resolve_bounds(deployment(replicas, strategy=strategy)) == expected


def test_the_first_replica_set_carries_hash_selector_and_revision() -> None:
    plan = plan_deployment(deployment(3), [], {}, NOW)
    made = plan.create
    assert made is not None
    digest = template_hash(template())
    assert made.name == f"web-{digest}"
    assert made.spec.replicas == 3
    assert made.spec.selector.match_labels == {"app": "web", "pod-template-hash": digest}
    assert made.spec.template["metadata"]["labels"]["pod-template-hash"] == digest
    assert made.metadata.annotations[REVISION] == "1"
    assert plan.revision == "1"


def test_a_template_is_handed_on_with_fields_that_no_model_names() -> None:
    made = plan_deployment(deployment(), [], {}, NOW).create
    assert made is not None
    assert made.spec.template["spec"]["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 1}}}


def test_the_hash_ignores_key_order_and_its_own_label() -> None:
    one, other = template(), dict(reversed(template(**{"pod-template-hash": "x"}).items()))
    assert template_hash(one) == template_hash(other)
    assert template_hash(one) != template_hash(template("app:2"))


def test_a_recreate_waits_for_the_last_old_pod_to_be_gone() -> None:
    subject = deployment(2, "app:2", strategy={"type": "Recreate"})
    old = observed(replica_set("web-old", 2))
    first = plan_deployment(subject, [old], {"web-old": [pod("a"), pod("b")]}, NOW)
    assert first.create is None
    assert first.patch["web-old"]["spec"] == {"replicas": 0}
    drained = observed(old.evolve(spec=old.spec.evolve(replicas=0)))
    terminating = plan_deployment(subject, [drained], {"web-old": [pod("a", deleting=True)]}, NOW)
    assert terminating.create is None
    done = plan_deployment(subject, [drained], {}, NOW)
    assert done.create is not None
    assert done.create.spec.replicas == 2


def test_a_rollback_takes_the_equal_replica_set_again_under_a_new_revision() -> None:
    old = observed(replica_set("web-old", 0, image="app:1", age=200))
    old = old.evolve(metadata=old.metadata.evolve(annotations={REVISION: "1"}))
    current = observed(replica_set("web-new", 3, image="app:2"))
    current = current.evolve(metadata=current.metadata.evolve(annotations={REVISION: "2"}))
    plan = plan_deployment(deployment(3, "app:1"), [old, current], {}, NOW)
    assert plan.create is None
    assert plan.patch["web-old"]["metadata"]["annotations"][REVISION] == "3"
    assert plan.patch["web-old"]["spec"]["replicas"] > 0
    assert plan.revision == "3"


def test_a_paused_deployment_makes_no_new_replica_set_but_follows_its_scale() -> None:
    old = observed(replica_set("web-old", 3))
    plan = plan_deployment(deployment(5, "app:2", paused=True), [old], {}, NOW)
    assert plan.create is None
    assert plan.patch["web-old"]["spec"] == {"replicas": 5}
    progressing = next(each for each in plan.status.conditions if each.type == "Progressing")
    assert (progressing.status, progressing.reason) == ("Unknown", "DeploymentPaused")


def test_history_beyond_the_limit_goes_oldest_revision_first() -> None:
    current = observed(replica_set("web-now", 1, image="app:9"))
    old = []
    for number in (3, 1, 2):
        each = observed(replica_set(f"web-{number}", 0, image=f"app:{number}"))
        old.append(each.evolve(metadata=each.metadata.evolve(annotations={REVISION: str(number)})))
    plan = plan_deployment(deployment(1, "app:9", revisionHistoryLimit=1), [current, *old], {}, NOW)
    assert [each.name for each in plan.delete] == ["web-1", "web-2"]


def test_a_rollout_without_progress_exceeds_its_deadline() -> None:
    subject = deployment(1, progressDeadlineSeconds=60)
    stuck = observed(replica_set("web-a", 1), available=0)
    first = plan_deployment(subject, [stuck], {}, NOW)
    assert first.after == 60
    subject = subject.evolve(status=first.status)
    later = plan_deployment(subject, [stuck], {}, NOW + timedelta(seconds=61))
    progressing = find_condition(later.status.conditions, "Progressing")
    assert progressing is not None
    assert (progressing.status, progressing.reason) == ("False", "ProgressDeadlineExceeded")


def test_a_converged_deployment_changes_nothing() -> None:
    subject, sets = roll_out(deployment(3), {})
    plan = plan_deployment(subject, sets.values(), {}, NOW + timedelta(hours=1))
    assert plan.create is None
    assert not plan.patch
    assert not plan.delete
    assert plan.revision is None
    assert plan.after is None
    assert plan.status == subject.status


def roll_out(subject: Deployment, sets: dict[str, ReplicaSet]) -> tuple[Deployment, dict[str, ReplicaSet]]:
    """Run plans, with pods that become available at once, until nothing changes any more."""
    for _ in range(200):
        plan = plan_deployment(subject, sets.values(), {}, NOW)
        after = {name: observed(each) for name, each in carry_out(plan, sets).items()}
        annotations = subject.metadata.annotations
        if plan.revision is not None:
            annotations = {**annotations, REVISION: plan.revision}
        moved = subject.evolve(metadata=subject.metadata.evolve(annotations=annotations), status=plan.status)
        if after == sets and moved == subject:
            return subject, sets
        subject, sets = moved, after
    raise AssertionError("the rollout does not come to rest")


@settings(max_examples=150, deadline=None)
@given(
    replicas=st.integers(0, 12),
    before=st.integers(0, 12),
    surge=st.one_of(st.integers(0, 4), st.sampled_from(["0%", "25%", "50%", "100%"])),
    unavailable=st.one_of(st.integers(0, 4), st.sampled_from(["0%", "25%", "50%", "100%"])),
    data=st.data(),
)
def test_a_rolling_update_keeps_its_bounds_and_ends(
    replicas: int, before: int, surge: int | str, unavailable: int | str, data: st.DataObject
) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}
    subject = deployment(replicas, "app:2", strategy=strategy)
    most, fewest = replicas + resolve_bounds(subject)[0], replicas - resolve_bounds(subject)[1]
    sets = {"web-old": observed(replica_set("web-old", before))}
    for step in range(400):
        plan = plan_deployment(subject, sets.values(), {}, NOW)
        after = carry_out(plan, sets)
        total = sum(each.spec.replicas for each in after.values())
        assert total <= max(most, sum(each.spec.replicas for each in sets.values())), (
            "more replicas than the surge allows"
        )
        kept = sum(
            min(each.status.available_replicas, after[name].spec.replicas)
            for name, each in sets.items()
            if name in after
        )
        had = sum(each.status.available_replicas for each in sets.values())
        assert kept >= min(fewest, had), "fewer available than maxUnavailable allows"
        # Pods come up in any order and at any pace, but in the end they do.
        sets = {
            name: observed(
                each,
                each.spec.replicas
                if step % 3 == 2
                else data.draw(
                    st.integers(min(each.status.available_replicas, each.spec.replicas), each.spec.replicas), label=name
                ),
            )
            for name, each in after.items()
        }
        subject = subject.evolve(status=plan.status)
        new = [each for each in sets.values() if each.spec.template["spec"]["containers"][0]["image"] == "app:2"]
        if (
            len(new) == 1
            and new[0].spec.replicas == replicas == new[0].status.available_replicas
            and all(not each.spec.replicas for each in sets.values() if each is not new[0])
        ):
            return
    raise AssertionError("the rolling update does not end")
