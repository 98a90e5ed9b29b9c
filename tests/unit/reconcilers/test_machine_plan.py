"""How far a machine is, by what the cloud and its node say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import Machine
from kaito_api.meta import find_condition
from kaito_ctrl.reconcilers.machine.plan import Observed, Plan, plan_machine
from kaito_provisioner import Instance, QuotaExceeded, Throttled

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GPU = {"nvidia.com/gpu": "1"}


def machine(**status: Any) -> Machine:
    return Machine.model_validate(
        {
            "metadata": {"name": "ws1", "uid": "m1", "labels": {"apps": "phi-3"}},
            "spec": {
                "requirements": [{"key": "kaito.sh/machine-type", "operator": "In", "values": ["gpu"]}],
                "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
                "resources": {"requests": {"storage": "50Gi"}},
            },
            "status": status,
        }
    )


INSTANCE = Instance("ws1", "m1", "Running", "Standard_NC6s_v3", "sim:///1", capacity=GPU, allocatable=GPU)


def node(*, ready: bool = True, gpus: str = "1", taints: list[dict[str, str]] | None = None, **metadata: Any) -> Node:
    return Node.model_validate(
        {
            "metadata": {"name": "n1", "uid": "n", "resourceVersion": "5", **metadata},
            "spec": {"providerID": "sim:///1", "taints": taints or []},
            "status": {
                "allocatable": {"nvidia.com/gpu": gpus},
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            },
        }
    )


def plan(*nodes: Node, instance: Instance | None = INSTANCE, **more: Any) -> Plan:
    return plan_machine(machine(), Observed(instance, nodes=nodes, **more), NOW)


def condition(made: Plan, kind: str) -> tuple[str, str]:
    found = find_condition(made.status.conditions, kind)
    assert found is not None
    return found.status, found.reason


def test_an_instance_without_identity_is_being_launched() -> None:
    made = plan(instance=Instance("ws1", "m1", "Creating", "Standard_NC6s_v3"))
    assert condition(made, "MachineLaunched") == ("Unknown", "Launching")
    assert condition(made, "Ready")[0] == "Unknown"


def test_a_granted_instance_is_launched_and_waits_for_its_node() -> None:
    made = plan()
    assert condition(made, "MachineLaunched")[0] == "True"
    assert condition(made, "MachineRegistered") == ("Unknown", "NodeNotFound")
    assert made.status.provider_id == "sim:///1"


def test_a_refusal_says_why_and_what_to_do() -> None:
    made = plan(instance=None, error=QuotaExceeded("the quota is used up", fix="ask for more"))
    found = find_condition(made.status.conditions, "MachineLaunched")
    assert found is not None
    assert (found.reason, found.message) == ("QuotaExceeded", "the quota is used up; ask for more")


def test_a_cloud_that_does_not_answer_has_not_taken_the_instance_away() -> None:
    launched = machine(**plan().status.to_wire())
    made = plan_machine(launched, Observed(error=Throttled("slow down", retry_after=30)), NOW)
    assert condition(made, "MachineLaunched")[0] == "True"


def test_a_node_is_registered_and_gets_what_the_claim_gives_it() -> None:
    made = plan(node(ready=False))
    assert condition(made, "MachineRegistered")[0] == "True"
    assert condition(made, "MachineInitialized") == ("Unknown", "NodeNotReady")
    assert made.status.node_name == "n1"
    assert made.node_patch is not None
    metadata = made.node_patch["metadata"]
    assert metadata["labels"] == {"apps": "phi-3", "karpenter.sh/registered": "true"}
    assert metadata["finalizers"] == ["karpenter.sh/termination"]
    assert metadata["ownerReferences"][0]["uid"] == "m1"
    assert metadata["resourceVersion"] == "5"
    assert made.node_patch["spec"]["taints"] == [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]


def test_a_node_without_its_gpus_is_not_initialized() -> None:
    assert condition(plan(node(gpus="0")), "MachineInitialized") == ("Unknown", "ResourceNotRegistered")


def test_a_node_with_a_passing_taint_is_not_initialized() -> None:
    tainted = node(taints=[{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    assert condition(plan(tainted), "MachineInitialized") == ("Unknown", "KnownEphemeralTaintsExist")


def test_two_nodes_with_one_provider_id_are_an_error() -> None:
    assert condition(plan(node(), node()), "MachineRegistered") == ("False", "MultipleNodesFound")
    assert condition(plan(node(), node()), "Ready")[0] == "False"


def test_a_node_that_has_everything_is_ready_and_is_not_written_again() -> None:
    first = plan(node())
    assert condition(first, "Ready")[0] == "True"
    assert first.node_patch is not None
    written = first.node_patch["metadata"]
    settled = node(
        labels=written["labels"],
        finalizers=written["finalizers"],
        ownerReferences=written["ownerReferences"],
        taints=first.node_patch["spec"]["taints"],
    )
    again = plan_machine(machine(**first.status.to_wire()), Observed(INSTANCE, nodes=(settled,)), NOW)
    assert again.node_patch is None
    assert again.status == first.status


def test_a_transition_time_moves_with_the_status_alone() -> None:
    first = plan(node())
    later = plan_machine(
        machine(**first.status.to_wire()), Observed(INSTANCE, nodes=(node(gpus="0"),)), NOW + timedelta(hours=1)
    )
    launched = find_condition(later.status.conditions, "MachineLaunched")
    initialized = find_condition(later.status.conditions, "MachineInitialized")
    assert launched is not None
    assert initialized is not None
    assert launched.last_transition_time == NOW
    assert initialized.last_transition_time == NOW + timedelta(hours=1)
