"""What follows from a silent kubelet."""

from __future__ import annotations

from datetime import timedelta

from devobjects import NOW, ago, node, pod

from kaito_api.coordination import Lease, LeaseSpec
from kaito_api.core import Taint
from kaito_ctrl.devcluster.nodelifecycle import NOT_READY, UNREACHABLE, plan_node


def lease(age: float) -> Lease:
    return Lease(spec=LeaseSpec(renew_time=ago(age)))


def test_a_renewed_lease_keeps_the_node_and_says_when_to_look_again() -> None:
    plan = plan_node(node(), lease(0), [], NOW)
    assert (plan.silent, plan.taints, plan.unready, plan.evict, plan.after) == (None, None, (), (), 40)


def test_silence_for_forty_seconds_makes_the_node_unreachable() -> None:
    later = NOW + timedelta(seconds=41)
    plan = plan_node(node(), lease(0), [pod("p")], later)
    assert plan.silent is not None
    assert (plan.silent.status, plan.silent.reason) == ("Unknown", "NodeStatusUnknown")
    assert plan.taints is not None
    assert [(taint.key, taint.effect) for taint in plan.taints] == [
        (UNREACHABLE, "NoSchedule"),
        (UNREACHABLE, "NoExecute"),
    ]
    assert [each.name for each in plan.unready] == ["p"]
    assert not plan.evict, "pods stay for their toleration's seconds"
    assert plan.after == 300


def test_pods_leave_when_their_toleration_has_run_out() -> None:
    tainted = node(
        taints=[{"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": ago(60).isoformat()}], ready="Unknown"
    )
    later = NOW + timedelta(seconds=100)
    patient = pod("patient")
    hasty = pod("hasty", tolerations=[{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 30}])
    forever = pod("forever", tolerations=[{"operator": "Exists"}])
    plan = plan_node(tainted, None, [patient, hasty, forever], later)
    assert [each.name for each in plan.evict] == ["hasty"]
    assert plan.after == 140


def test_another_no_execute_taint_evicts_at_once() -> None:
    tainted = node(taints=[{"key": "drain", "effect": "NoExecute"}])
    plan = plan_node(tainted, lease(0), [pod("p"), pod("gone", deleting=True)], NOW)
    assert [each.name for each in plan.evict] == ["p"]


def test_a_node_that_is_ready_again_loses_our_taints_and_no_others() -> None:
    ours = [{"key": key, "effect": "NoExecute"} for key in (UNREACHABLE, NOT_READY)]
    other = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}
    plan = plan_node(node(taints=[*ours, other]), lease(0), [], NOW)
    assert plan.taints == (Taint(key="sku", value="gpu", effect="NoSchedule"),)


def test_a_node_that_reports_not_ready_is_tainted_so() -> None:
    plan = plan_node(node(ready="False"), lease(0), [], NOW)
    assert plan.taints is not None
    assert {taint.key for taint in plan.taints} == {NOT_READY}
