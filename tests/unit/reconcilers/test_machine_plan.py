"""How far a claim is, by what the cloud and its node say: for Machine and NodeClaim alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.core import Node
from kaito_api.karpenter import LAUNCHING_ANNOTATION, Machine, NodeClaim, NodeRequest
from kaito_api.meta import find_condition, rfc3339
from kaito_ctrl.reconcilers.machine.plan import Observed, Plan, plan_claim
from kaito_provisioner import Instance, QuotaExceeded, Throttled

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GPU = {"nvidia.com/gpu": "1"}
TAINT = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}
KINDS: tuple[type[NodeRequest], ...] = (Machine, NodeClaim)
WAITING = {Machine: "False", NodeClaim: "Unknown"}


def claim(
    kind: type[NodeRequest] = Machine, status: Any = None, *, spec: dict[str, Any] | None = None, **metadata: Any
) -> NodeRequest:
    return kind.model_validate(
        {
            "metadata": {"name": "ws1", "uid": "m1", "labels": {"apps": "phi-3"}, "generation": 1, **metadata},
            "spec": {
                "requirements": [{"key": "kaito.sh/machine-type", "operator": "In", "values": ["gpu"]}],
                "taints": [TAINT],
                "resources": {"requests": {"storage": "50Gi"}},
                **(spec or {}),
            },
            "status": status.to_wire() if status is not None else {},
        }
    )


INSTANCE = Instance("ws1", "m1", "Running", "Standard_NC6s_v3", "sim:///1", capacity=GPU, allocatable=GPU)
MAKING = Instance("ws1", "m1", "Creating", "Standard_NC6s_v3")


def node(*, ready: bool = True, gpus: str = "1", taints: list[dict[str, str]] | None = None, **metadata: Any) -> Node:
    return Node.model_validate(
        {
            "metadata": {"name": "n1", "uid": "n", "resourceVersion": "5", **metadata},
            "spec": {"providerID": "sim:///1", "taints": taints or []},
            "status": {
                "allocatable": {"nvidia.com/gpu": gpus, "cpu": "6"},
                "capacity": {"nvidia.com/gpu": gpus, "cpu": "6"},
                "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            },
        }
    )


def plan(*nodes: Node, kind: type[NodeRequest] = Machine, instance: Instance | None = INSTANCE, **more: Any) -> Plan:
    return plan_claim(claim(kind), Observed(instance, nodes=nodes, definite=True, **more), NOW)


def said(made: Plan, kind: str) -> tuple[str, str]:
    found = find_condition(made.status.conditions, kind)
    assert found is not None
    return found.status, found.reason


# -- launched ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_instance_without_identity_is_being_launched(kind: type[NodeRequest]) -> None:
    made = plan(kind=kind, instance=MAKING)
    assert said(made, kind.launched) == (WAITING[kind], "Launching")
    assert said(made, "Ready")[0] == WAITING[kind]
    reason = "MachineNotLaunched" if kind is Machine else "NodeNotFound"
    assert said(made, kind.registered) == (WAITING[kind], reason)


@pytest.mark.parametrize("kind", KINDS)
def test_a_granted_instance_is_launched_and_waits_for_its_node(kind: type[NodeRequest]) -> None:
    made = plan(kind=kind)
    assert said(made, kind.launched)[0] == "True"
    assert said(made, kind.registered) == (WAITING[kind], "NodeNotFound")
    reason = "NodeNotFound" if kind is Machine else "AwaitingReconciliation"
    assert said(made, kind.initialized) == (WAITING[kind], reason)
    assert made.status.provider_id == "sim:///1"


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_says_why_and_what_to_do(kind: type[NodeRequest]) -> None:
    made = plan(kind=kind, instance=None, error=QuotaExceeded("the quota is used up", fix="ask for more"))
    found = find_condition(made.status.conditions, kind.launched)
    assert found is not None
    assert (found.status, found.reason) == (WAITING[kind], "QuotaExceeded")
    assert found.message == "the quota is used up; ask for more"


def test_a_long_refusal_is_cut() -> None:
    made = plan(instance=None, error=QuotaExceeded("x" * 2000))
    found = find_condition(made.status.conditions, "MachineLaunched")
    assert found is not None
    assert len(found.message) == 803
    assert found.message.endswith("...")


@pytest.mark.parametrize("known", [MAKING, INSTANCE])
def test_a_cloud_that_does_not_answer_has_not_taken_the_instance_away(known: Instance) -> None:
    first = plan(instance=known)
    silent = Observed(error=Throttled("slow down", retry_after=30), silent=True)
    made = plan_claim(claim(Machine, first.status), silent, NOW + timedelta(minutes=1))
    assert made.status == first.status


def test_an_instance_that_could_not_be_made_takes_the_claims_launch_back() -> None:
    first = plan()
    going = Instance("ws1", "m1", "Deleting", "Standard_NC6s_v3", "sim:///1", operation="delete-7")
    error = QuotaExceeded("the quota is used up")
    second = plan_claim(claim(Machine, first.status), Observed(going, error, definite=True), NOW)
    assert said(second, "MachineLaunched") == ("False", "QuotaExceeded")
    assert second.annotations == {"provisioner.kaito.sh/operation": "delete-7"}
    # While it goes, the reason stands.
    third = plan_claim(claim(Machine, second.status), Observed(going, definite=True), NOW)
    assert said(third, "MachineLaunched") == ("False", "QuotaExceeded")


def test_what_was_noted_for_the_launch_goes_when_its_answer_is_known() -> None:
    noted = {"provisioner.kaito.sh/launching": "2026-01-01T00:00:00Z"}
    making = Instance("ws1", "m1", "Creating", "Standard_NC6s_v3", operation="create-1")
    taken_off: dict[str, str | None] = {"provisioner.kaito.sh/launching": None}
    granted = plan_claim(claim(annotations=noted), Observed(making, definite=True), NOW)
    assert granted.annotations == {**taken_off, "provisioner.kaito.sh/operation": "create-1"}
    refused = plan_claim(claim(annotations=noted), Observed(error=QuotaExceeded("no"), definite=True), NOW)
    assert refused.annotations == taken_off
    lost = plan_claim(claim(annotations=noted), Observed(error=Throttled("?")), NOW)
    assert lost.annotations == {}


def test_the_note_of_a_launch_counts_from_when_the_instance_was_heard_of() -> None:
    """Its request may have taken most of the time within which the instance was to show: a claim that was deleted then
    was let go before it did."""
    asked, heard = ({LAUNCHING_ANNOTATION: rfc3339(NOW - timedelta(seconds=each))} for each in (36, 0))
    assert plan_claim(claim(annotations=asked), Observed(MAKING), NOW).annotations == heard
    assert plan_claim(claim(annotations=heard), Observed(MAKING), NOW).annotations == {}
    shown = plan_claim(claim(annotations=heard), Observed(MAKING, definite=True), NOW)
    assert shown.annotations == {LAUNCHING_ANNOTATION: None}


def test_a_claim_says_what_its_instance_is_and_what_its_requirements_leave_no_choice_about() -> None:
    instance = Instance(
        *("ws1", "m1", "Running", "B", "sim:///1"),
        labels={"node.kubernetes.io/instance-type": "B", "kubernetes.io/arch": "amd64", "apps": "theirs"},
    )
    before = claim(labels={"apps": "phi-3", "node.kubernetes.io/instance-type": "A"})
    assert plan_claim(before, Observed(instance), NOW).labels == before.metadata.labels, (
        "the cloud does not show it yet"
    )
    assert plan_claim(before, Observed(instance, definite=True), NOW).labels == {
        "apps": "phi-3",
        "kaito.sh/machine-type": "gpu",
        "kubernetes.io/arch": "amd64",
        "node.kubernetes.io/instance-type": "B",  # an earlier instance was of type A
    }


# -- registered ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_is_registered_and_gets_what_the_claim_gives_it_in_one_patch(kind: type[NodeRequest]) -> None:
    notes = {
        "kaito.sh/node-image-family": "ubuntu",
        "provisioner.kaito.sh/launching": "2026-01-01T00:00:00Z",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }
    startup = {"startupTaints": [{"key": "wait", "effect": "NoExecute"}]}
    joined = node(ready=False, taints=[{"key": "karpenter.sh/unregistered", "effect": "NoExecute"}])
    seen = Observed(INSTANCE, nodes=(joined,), definite=True)
    made = plan_claim(claim(kind, spec=startup, annotations=notes), seen, NOW)
    assert said(made, kind.registered)[0] == "True"
    assert said(made, kind.initialized) == (WAITING[kind], "NodeNotReady")
    assert made.status.node_name == "n1"
    assert made.node_patch is not None
    metadata = made.node_patch["metadata"]
    assert metadata["labels"] == {
        "apps": "phi-3",
        "kaito.sh/machine-type": "gpu",
        "karpenter.sh/registered": "true",
    }
    assert metadata["annotations"] == {"kaito.sh/node-image-family": "ubuntu"}
    assert metadata["finalizers"] == ["karpenter.sh/termination"]
    owner = metadata["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["blockOwnerDeletion"]) == (kind.kind, "m1", True)
    assert "controller" not in owner
    assert metadata["resourceVersion"] == "5"
    assert made.node_patch["spec"]["taints"] == [TAINT, {"key": "wait", "effect": "NoExecute"}]


def test_a_node_may_refuse_the_claims_taints() -> None:
    made = plan(node(labels={"karpenter.sh/do-not-sync-taints": "true"}))
    assert made.node_patch is not None
    assert "spec" not in made.node_patch


def test_startup_taints_are_put_on_once() -> None:
    # The node has been patched, and then we ended before the claim said so.
    startup = {"startupTaints": [{"key": "wait", "effect": "NoExecute"}]}
    patched = node(labels={"karpenter.sh/registered": "true"}, taints=[TAINT])
    made = plan_claim(claim(spec=startup), Observed(INSTANCE, nodes=(patched,)), NOW)
    assert made.node_patch is not None
    assert "spec" not in made.node_patch


def test_the_provider_id_may_come_from_the_node() -> None:
    running = Instance("ws1", "m1", "Creating", "Standard_NC6s_v3", node_labels={"kaito.sh/claim-uid": "m1"})
    made = plan(node(), instance=running)
    assert made.status.provider_id == "sim:///1"
    assert said(made, "MachineLaunched")[0] == "True"
    assert said(made, "MachineRegistered")[0] == "True"
    assert made.status.capacity == {"nvidia.com/gpu": "1", "cpu": "6"}


@pytest.mark.parametrize("kind", KINDS)
def test_two_nodes_of_one_instance_are_an_error_that_heals(kind: type[NodeRequest]) -> None:
    made = plan(node(), node(), kind=kind)
    assert said(made, kind.registered) == ("False", "MultipleNodesFound")
    assert said(made, "Ready")[0] == "False"
    assert made.node_patch is None
    healed = plan_claim(claim(kind, made.status), Observed(INSTANCE, nodes=(node(),)), NOW)
    assert said(healed, "Ready")[0] == "True"


# -- initialized ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("joined", "reason"),
    [
        (node(ready=False), "NodeNotReady"),
        (node(taints=[{"key": "wait", "effect": "NoExecute"}]), "StartupTaintsExist"),
        (node(taints=[{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]), "KnownEphemeralTaintsExist"),
        (node(taints=[{"key": "readiness.k8s.io/net", "effect": "NoSchedule"}]), "KnownEphemeralTaintsExist"),
        (node(gpus="0"), "ResourceNotRegistered"),
    ],
)
def test_a_node_that_cannot_be_used_yet_is_not_initialized(kind: type[NodeRequest], joined: Node, reason: str) -> None:
    spec = {"startupTaints": [{"key": "wait", "effect": "NoExecute"}]}
    made = plan_claim(claim(kind, spec=spec), Observed(INSTANCE, nodes=(joined,)), NOW)
    assert said(made, kind.initialized) == (WAITING[kind], reason)


def test_a_claim_that_names_no_gpu_waits_for_those_that_the_cloud_says_are_there() -> None:
    bare = claim(NodeClaim, spec={"requirements": []})
    made = plan_claim(bare, Observed(INSTANCE, nodes=(node(gpus="0"),)), NOW)
    assert said(made, "Initialized") == ("Unknown", "ResourceNotRegistered")
    without = Instance("ws1", "m1", "Running", "Standard_D4", "sim:///1", capacity={"cpu": "4"})
    assert said(plan_claim(bare, Observed(without, nodes=(node(gpus="0"),)), NOW), "Initialized")[0] == "True"


@pytest.mark.parametrize("kind", KINDS)
def test_a_node_that_has_everything_is_ready_and_is_not_written_again(kind: type[NodeRequest]) -> None:
    first = plan(node(), kind=kind)
    assert said(first, "Ready")[0] == "True"
    assert first.node_patch is not None
    written = first.node_patch["metadata"]
    settled = node(
        labels=written["labels"],
        finalizers=written["finalizers"],
        ownerReferences=written["ownerReferences"],
        taints=first.node_patch["spec"]["taints"],
    )
    known = claim(kind, first.status)
    again = plan_claim(known, Observed(nodes=(settled,)), NOW + timedelta(hours=1))
    assert (again.node_patch, again.annotations, again.labels) == (None, {}, known.metadata.labels)
    assert again.status == first.status


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_initialized_stays_so(kind: type[NodeRequest]) -> None:
    first = plan(node(), kind=kind)
    for seen in (Observed(nodes=(node(ready=False, gpus="0"),)), Observed()):
        assert plan_claim(claim(kind, first.status), seen, NOW + timedelta(hours=1)).status == first.status


def test_a_registered_node_gets_its_labels_back_and_keeps_what_others_make_of_the_rest() -> None:
    first = plan(node())
    bared = node(labels={"apps": "other", "karpenter.sh/registered": "true"}, finalizers=["a"])
    again = plan_claim(claim(Machine, first.status, annotations={"a": "b"}), Observed(nodes=(bared,)), NOW)
    assert again.node_patch is not None
    assert again.node_patch["metadata"]["labels"] == {"apps": "phi-3", "karpenter.sh/initialized": "true"}
    assert again.node_patch["metadata"]["finalizers"] == ["a", "karpenter.sh/termination"]
    assert "annotations" not in again.node_patch["metadata"]
    assert "spec" not in again.node_patch


def test_a_transition_time_moves_with_the_status() -> None:
    first = plan(node(ready=False), kind=NodeClaim)
    later = plan_claim(claim(NodeClaim, first.status), Observed(nodes=(node(),)), NOW + timedelta(hours=1))
    moved = {each.type for each in later.status.conditions if each.last_transition_time == NOW + timedelta(hours=1)}
    assert moved == {"Initialized", "Ready"}
