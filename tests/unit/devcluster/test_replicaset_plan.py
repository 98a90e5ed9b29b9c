"""What a ReplicaSet does next."""

from __future__ import annotations

from devobjects import NOW, ago, pod, replica_set
from hypothesis import given
from hypothesis import strategies as st

from kaito_ctrl.devcluster.pods import is_active
from kaito_ctrl.devcluster.replicaset import plan_replica_set, pod_name

PHASES = ("Pending", "Running", "Succeeded", "Failed")


def test_missing_pods_are_created_under_names_that_a_repetition_would_use_again() -> None:
    owner = replica_set(replicas=2)
    first = plan_replica_set(owner, [], NOW)
    assert [each.name for each in first.create] == [pod_name(owner, 0), pod_name(owner, 1)]
    assert first == plan_replica_set(owner, [], NOW)
    wire = first.create[0].to_wire()
    assert wire["spec"]["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 1}}}
    assert wire["metadata"]["ownerReferences"][0]["uid"] == owner.uid


def test_a_pod_on_its_way_out_is_replaced_under_another_name() -> None:
    owner = replica_set(replicas=1)
    plan = plan_replica_set(owner, [pod(pod_name(owner, 0), owner, deleting=True)], NOW)
    assert [each.name for each in plan.create] == [pod_name(owner, 1)]
    assert plan.status.replicas == 0


def test_a_failed_pod_is_replaced_and_stays_to_be_looked_at() -> None:
    owner = replica_set(replicas=1)
    plan = plan_replica_set(owner, [pod(pod_name(owner, 0), owner, phase="Failed", ready=False)], NOW)
    assert len(plan.create) == 1
    assert not plan.delete


def test_scaling_down_takes_the_least_worth_first() -> None:
    owner = replica_set(replicas=1)
    pods = [
        pod("old-ready", owner, age=500),
        pod("new-ready", owner, age=5),
        pod("unready", owner, ready=False, age=900),
        pod("pending", owner, phase="Pending", ready=False, age=800),
        pod("unscheduled", owner, phase="Pending", ready=False, node=""),
    ]
    plan = plan_replica_set(owner, pods, NOW)
    assert [each.name for each in plan.delete] == ["unscheduled", "pending", "unready", "new-ready"]


def test_matching_orphans_are_adopted_and_pods_that_match_no_more_let_go() -> None:
    owner = replica_set(replicas=2)
    orphan, stranger = pod("orphan"), pod("stranger", labels={"app": "other"})
    relabelled = pod("relabelled", owner, labels={"app": "debug"})
    other = pod("owned-by-another", replica_set("web-b"))
    plan = plan_replica_set(owner, [orphan, stranger, relabelled, other], NOW)
    assert plan.adopt == (orphan,)
    assert plan.release == (relabelled,)
    assert len(plan.create) == 1


def test_a_pod_is_available_only_after_having_been_ready_for_long_enough() -> None:
    owner = replica_set(replicas=1)
    owner = owner.evolve(spec=owner.spec.evolve(min_ready_seconds=30))
    plan = plan_replica_set(owner, [pod("p", owner, age=10)], NOW)
    assert (plan.status.ready_replicas, plan.status.available_replicas) == (1, 0)
    assert plan.after == 20
    assert ago(10) < NOW


def test_a_long_name_is_cut_so_that_pods_still_have_valid_ones() -> None:
    owner = replica_set("w" * 80)
    assert len(pod_name(owner, 0)) == 63


@given(
    wanted=st.integers(0, 8),
    states=st.lists(
        st.tuples(st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]), st.booleans()), max_size=8
    ),
)
def test_one_plan_is_enough_and_never_takes_a_name_twice(wanted: int, states: list[tuple[str, bool]]) -> None:
    owner = replica_set(replicas=wanted)
    pods = [
        pod(pod_name(owner, slot), owner, phase=phase, deleting=deleting)
        for slot, (phase, deleting) in enumerate(states)
    ]
    plan = plan_replica_set(owner, pods, NOW)
    after = [each for each in pods if each not in plan.delete] + list(plan.create)
    assert sum(is_active(each) for each in after) == wanted
    assert len({each.name for each in after}) == len(after)
    assert not (plan.create and plan.delete)
    assert not plan_replica_set(owner, after, NOW).create
