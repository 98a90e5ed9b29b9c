"""What a StatefulSet does next."""

from __future__ import annotations

from typing import Any

from devobjects import NOW, pod, template

from kaito_ctrl.devcluster.kinds import Pod, StatefulSet
from kaito_ctrl.devcluster.statefulset import REVISION, plan_stateful_set


def stateful_set(replicas: int = 3, image: str = "app:1", **spec: Any) -> StatefulSet:
    return StatefulSet.model_validate(
        {
            "metadata": {"name": "db", "namespace": "default", "uid": "s-1", "generation": 1},
            "spec": {
                "replicas": replicas,
                "serviceName": "db",
                "selector": {"matchLabels": {"app": "web"}},
                "template": template(image),
                **spec,
            },
        }
    )


def member(owner: StatefulSet, number: int, *, revision: str | None = None, **state: Any) -> Pod:
    current = plan_stateful_set(owner, [], NOW).status.update_revision
    return pod(f"db-{number}", owner, labels={"app": "web", REVISION: revision or current}, **state)


def names(pods: tuple[Pod, ...]) -> list[str]:
    return [each.name for each in pods]


def test_ordered_pods_come_one_at_a_time_and_wait_for_each_other() -> None:
    owner = stateful_set()
    first = plan_stateful_set(owner, [], NOW)
    assert names(first.create) == ["db-0"]
    made = first.create[0].to_wire()
    assert (made["spec"]["hostname"], made["spec"]["subdomain"]) == ("db-0", "db")
    assert made["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "0"
    assert not plan_stateful_set(owner, [member(owner, 0, ready=False)], NOW).create
    assert names(plan_stateful_set(owner, [member(owner, 0)], NOW).create) == ["db-1"]


def test_parallel_pods_come_and_go_all_at_once() -> None:
    owner = stateful_set(podManagementPolicy="Parallel")
    assert names(plan_stateful_set(owner, [], NOW).create) == ["db-0", "db-1", "db-2"]
    smaller = stateful_set(1, podManagementPolicy="Parallel")
    plan = plan_stateful_set(smaller, [member(smaller, n) for n in range(3)], NOW)
    assert sorted(names(plan.delete)) == ["db-1", "db-2"]


def test_scaling_down_takes_the_highest_and_waits_until_it_is_gone() -> None:
    owner = stateful_set(1)
    everybody = [member(owner, n) for n in range(3)]
    assert names(plan_stateful_set(owner, everybody, NOW).delete) == ["db-2"]
    leaving = [*everybody[:2], member(owner, 2, deleting=True)]
    assert not plan_stateful_set(owner, leaving, NOW).delete


def test_a_failed_pod_makes_room_for_its_successor() -> None:
    owner = stateful_set(1)
    plan = plan_stateful_set(owner, [member(owner, 0, phase="Failed", ready=False)], NOW)
    assert names(plan.delete) == ["db-0"]
    assert not plan.create


def test_a_rolling_update_goes_from_the_highest_down_one_healthy_pod_at_a_time() -> None:
    owner = stateful_set(3, "app:2")
    old = [member(owner, n, revision="db-old") for n in range(3)]
    assert names(plan_stateful_set(owner, old, NOW).delete) == ["db-2"]
    assert not plan_stateful_set(owner, [*old[:2], member(owner, 2, ready=False)], NOW).delete
    assert names(plan_stateful_set(owner, [*old[:2], member(owner, 2)], NOW).delete) == ["db-1"]


def test_a_partition_and_on_delete_hold_the_update_back() -> None:
    partitioned = stateful_set(2, updateStrategy={"type": "RollingUpdate", "rollingUpdate": {"partition": 1}})
    half = [member(partitioned, 0, revision="db-old"), member(partitioned, 1)]
    assert not plan_stateful_set(partitioned, half, NOW).delete
    manual = stateful_set(1, updateStrategy={"type": "OnDelete"})
    assert not plan_stateful_set(manual, [member(manual, 0, revision="db-old")], NOW).delete


def test_the_current_revision_follows_once_the_update_is_complete() -> None:
    owner = stateful_set(1)
    plan = plan_stateful_set(owner, [member(owner, 0)], NOW)
    assert plan.status.current_revision == plan.status.update_revision
    updating = owner.evolve(status=plan.status.evolve(current_revision="db-old"))
    status = plan_stateful_set(updating, [member(owner, 0, ready=False)], NOW).status
    assert status.current_revision == "db-old"
