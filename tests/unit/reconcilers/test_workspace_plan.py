"""What is done for a workspace, by what was seen of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kaito_api.apps import Deployment, DeploymentStatus, StatefulSet
from kaito_api.core import Node, Service
from kaito_api.karpenter import NODE_REQUESTS, Machine, NodeClaim, NodeClassRef, NodeRequest
from kaito_api.meta import find_condition
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.diff import covers, is_applied, stamped
from kaito_ctrl.reconcilers.names import machine_name
from kaito_ctrl.reconcilers.workspace.nodes import plan_nodes
from kaito_ctrl.reconcilers.workspace.plan import Observed, Plan, plan_workspace, refused
from kaito_ctrl.reconcilers.workspace.settings import Settings
from kaito_presets import Catalogue, SkuTable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CATALOGUE, SKUS = Catalogue.builtin(), SkuTable.builtin("azure")


def workspace(**changes: Any) -> Workspace:
    raw: dict[str, Any] = {
        "metadata": {"name": "ws", "namespace": "default", "uid": "u1", "generation": 3},
        "resource": {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"apps": "phi-3"}}},
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }
    raw["resource"] |= changes.pop("resource", {})
    return Workspace.model_validate({**raw, **changes})


def node(
    name: str,
    *,
    ready: str = "True",
    since: datetime | None = None,
    deleting: bool = False,
    cordoned: bool = False,
    **labels: str,
) -> Node:
    metadata: dict[str, Any] = {"name": name, "labels": {"apps": "phi-3", **labels}}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    condition = {"type": "Ready", "status": ready, "lastTransitionTime": since.isoformat() if since else None}
    return Node.model_validate(
        {"metadata": metadata, "spec": {"unschedulable": cordoned}, "status": {"conditions": [condition]}}
    )


def machine(name: str, *, node_name: str = "", reason: str = "Launching", message: str = "") -> Machine:
    conditions = [{"type": "MachineLaunched", "status": "Unknown", "reason": reason, "message": message}]
    return Machine.model_validate(
        {"metadata": {"name": name}, "status": {"nodeName": node_name, "conditions": conditions}}
    )


def plan(ws: Workspace, settings: Settings | None = None, /, **seen: Any) -> Plan:
    return plan_workspace(ws, Observed(**seen), CATALOGUE, SKUS, settings or Settings(), NOW)


def status_of(made: Plan) -> dict[str, str]:
    return {each.type: each.status for each in made.status.conditions}


def test_without_nodes_a_machine_is_asked_for_and_the_columns_stay_empty() -> None:
    made = plan(workspace())
    assert [each.name for each in made.claims] == [machine_name("u1", 0)]
    assert made.apply == ()
    assert status_of(made) == {"MachineReady": "Unknown"}
    pending = find_condition(made.status.conditions, "MachineReady")
    assert pending is not None
    assert (pending.reason, pending.message) == ("CreateMachinePending", "creating 1 machines")
    assert pending.observed_generation == 3


def test_the_machine_is_what_kaito_writes() -> None:
    wire = plan(workspace()).claims[0].to_wire()
    assert wire["metadata"]["labels"] == {
        "apps": "phi-3",
        "accelerator": "nvidia",
        "karpenter.sh/provisioner-name": "default",
        "kaito.sh/workspace": "ws",
        "kaito.sh/workspacenamespace": "default",
    }
    assert wire["spec"]["resources"] == {"requests": {"storage": "50Gi"}}
    assert wire["spec"]["taints"] == [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]
    assert {each["key"]: each["values"] for each in wire["spec"]["requirements"]} == {
        "node.kubernetes.io/instance-type": ["Standard_NC6s_v3"],
        "karpenter.sh/provisioner-name": ["default"],
        "kaito.sh/machine-type": ["gpu"],
        "kubernetes.io/arch": ["amd64"],
        "kubernetes.io/os": ["linux"],
    }


NODECLAIMS = Settings(node_api=NodeClaim)


def test_the_node_claim_is_what_kaito_writes_today_and_lives_for_ever() -> None:
    [made] = plan(workspace(), NODECLAIMS).claims
    assert isinstance(made, NodeClaim)
    wire = made.to_wire()
    assert wire["metadata"] == {
        "name": machine_name("u1", 0),
        "labels": {
            "apps": "phi-3",
            "accelerator": "nvidia",
            "karpenter.sh/nodepool": "kaito",
            "kaito.sh/workspace": "ws",
            "kaito.sh/workspacenamespace": "default",
        },
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
    }
    assert wire["spec"] == {
        "nodeClassRef": {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"},
        "requirements": [
            {"key": "karpenter.sh/nodepool", "operator": "In", "values": ["kaito"]},
            {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["Standard_NC6s_v3"]},
            {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
            {"key": "karpenter.azure.com/sku-name", "operator": "In", "values": ["Standard_NC6s_v3"]},
        ],
        "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
        "resources": {"requests": {"storage": "50Gi"}},
        "expireAfter": "Never",
    }


def test_a_node_claim_asks_for_a_disk_even_where_the_model_does_not_say_how_large() -> None:
    template = {"spec": {"containers": [{"name": "c", "image": "i"}]}}
    [made] = plan(workspace(inference={"template": template}), NODECLAIMS).claims
    assert made.spec.resources.requests == {"storage": "1024Gi"}
    [machine] = plan(workspace(inference={"template": template})).claims
    assert machine.spec.resources.requests == {"storage": "0"}


def test_a_node_claim_of_another_clouds_class_requires_nothing_of_azures() -> None:
    aws = NodeClassRef(group="karpenter.k8s.aws", kind="EC2NodeClass", name="default")
    [made] = plan(workspace(), Settings(node_api=NodeClaim, node_class=aws)).claims
    assert isinstance(made, NodeClaim)
    assert made.spec.node_class_ref == aws
    assert not [each.key for each in made.spec.requirements if "azure" in each.key]


@pytest.mark.parametrize("kind", NODE_REQUESTS.values(), ids=NODE_REQUESTS)
def test_the_image_family_that_a_workspace_asks_for_is_handed_on(kind: type[NodeRequest]) -> None:
    annotations = {"kaito.sh/node-image-family": "azurelinux", "mine": "1"}
    ws = workspace(metadata={"name": "ws", "namespace": "default", "uid": "u1", "annotations": annotations})
    [made] = plan(ws, Settings(node_api=kind)).claims
    assert made.metadata.annotations["kaito.sh/node-image-family"] == "azurelinux"
    assert "mine" not in made.metadata.annotations


@pytest.mark.parametrize(
    ("settings", "condition", "pending", "text", "installed"),
    [
        (Settings(), "MachineReady", "CreateMachinePending", "creating 2 machines", "machines plugins"),
        (NODECLAIMS, "NodeClaimReady", "CreateNodeClaimPending", "creating 2 nodeClaims", "nodeClaim plugins"),
    ],
    ids=NODE_REQUESTS,
)
def test_each_kind_is_spoken_of_as_kaito_does(
    settings: Settings, condition: str, pending: str, text: str, installed: str
) -> None:
    ws = workspace(resource={"count": 2})
    found = find_condition(plan(ws, settings).status.conditions, condition)
    assert found is not None
    assert (found.status, found.reason, found.message) == ("Unknown", pending, text)
    found = find_condition(plan(ws, settings, nodes=[node("n1"), node("n2")]).status.conditions, condition)
    assert found is not None
    assert (found.status, found.reason) == ("True", "installNodePluginsSuccess")
    assert found.message == f"{installed} have been installed successfully"


def test_what_was_said_of_machines_goes_when_node_claims_take_their_place() -> None:
    before = plan(workspace(), claims=[machine("wsa")]).status
    after = plan(workspace(status=before.to_wire()), NODECLAIMS)
    assert status_of(after) == {"NodeClaimReady": "Unknown"}


@pytest.mark.parametrize("kind", NODE_REQUESTS.values(), ids=NODE_REQUESTS)
@pytest.mark.parametrize("status", ["Unknown", "False"])
def test_why_the_cloud_refuses_is_in_every_condition_and_stage_whichever_way_it_is_spelled(
    kind: type[NodeRequest], status: str
) -> None:
    text = "the quota of 6 for NCv3 is used up; ask for more"
    condition = {"type": kind.launched, "status": status, "reason": "QuotaExceeded", "message": text}
    refused = kind.model_validate({"metadata": {"name": "wsa"}, "status": {"conditions": [condition]}})
    made = plan(workspace(), Settings(node_api=kind), claims=[refused])
    for name in (f"{kind.kind}Ready", "ResourceReady", "WorkspaceReady"):
        found = find_condition(made.status.conditions, name)
        assert found is not None
        assert (found.status, found.message) == ("False", f"{kind.kind} wsa: QuotaExceeded: {text}")
    stage = next(each for each in made.status.stages if each.state == "Failed")
    assert (stage.name, stage.message) == ("CapacityReserved", f"{kind.kind} wsa: {text}")
    assert "ask the cloud for more quota" in (stage.next_action or "")


@pytest.mark.parametrize("kind", NODE_REQUESTS.values(), ids=NODE_REQUESTS)
@pytest.mark.parametrize("status", ["Unknown", "False"])
def test_a_place_in_the_clouds_queue_is_progress_and_no_failure(kind: type[NodeRequest], status: str) -> None:
    text = "place 12 of 80, in about 12 min"
    condition = {"type": kind.launched, "status": status, "reason": "Throttled", "message": text}
    queued = kind.model_validate({"metadata": {"name": "wsa"}, "status": {"conditions": [condition]}})
    made = plan(workspace(), Settings(node_api=kind), claims=[queued])
    assert status_of(made) == {f"{kind.kind}Ready": "Unknown"}
    [said] = made.status.conditions
    assert said.message.endswith(f"wsa: {text}")
    stage = next(each for each in made.status.stages if each.state == "Active")
    assert (stage.name, stage.message) == ("CapacityReserved", f"the cloud to grant an instance (wsa: {text})")


def test_machine_names_are_those_of_an_aks_pool_and_follow_from_the_uid() -> None:
    name = machine_name("u1", 0)
    assert len(name) == 11
    assert name.startswith("ws")
    assert name == machine_name("u1", 0)
    assert len({machine_name(uid, index) for uid in ("u1", "u2") for index in range(3)}) == 6


def test_a_machine_on_its_way_is_not_asked_for_again() -> None:
    assert plan(workspace(), claims=[machine(machine_name("u1", 0))]).claims == ()


def test_all_missing_machines_are_asked_for_at_once_under_free_names() -> None:
    taken = machine(machine_name("u1", 0))
    made = plan(workspace(resource={"count": 3}), claims=[taken])
    assert [each.name for each in made.claims] == [machine_name("u1", 1), machine_name("u1", 2)]


def test_with_its_node_ready_the_service_and_the_deployment_follow() -> None:
    made = plan(workspace(), nodes=[node("n1")])
    assert made.claims == ()
    assert [each.kind for each in made.apply] == ["Service", "Deployment"]
    assert status_of(made) == {"MachineReady": "True", "ResourceReady": "True"}
    assert made.status.worker_nodes == ("n1",)


def test_the_service_is_what_the_quick_start_shows() -> None:
    wire = plan(workspace(), nodes=[node("n1")]).apply[0].to_wire()
    assert [(each["port"], each["targetPort"]) for each in wire["spec"]["ports"]] == [(80, 5000), (29500, 29500)]
    assert wire["spec"]["selector"] == {"kaito.sh/workspace": "ws"}
    assert wire["spec"]["type"] == "ClusterIP"


def test_the_load_balancer_annotation_counts_by_its_exact_value() -> None:
    for value, kind in (("True", "LoadBalancer"), ("true", "ClusterIP")):
        metadata = {"name": "ws", "namespace": "default", "uid": "u1", "annotations": {"kaito.sh/enablelb": value}}
        assert plan(workspace(metadata=metadata), nodes=[node("n1")]).apply[0].to_wire()["spec"]["type"] == kind


def deployment(ready: int, *, generation: int = 1, observed: int = 1) -> Deployment:
    made = plan(workspace(), nodes=[node("n1")]).apply[1]
    assert isinstance(made, Deployment)
    owner = workspace().owner_reference()
    metadata = made.metadata.evolve(generation=generation, owner_references=(owner,))
    status = DeploymentStatus(observed_generation=observed, ready_replicas=ready, updated_replicas=ready)
    return made.evolve(metadata=metadata, status=status)


def test_ready_means_that_every_replica_of_this_template_serves() -> None:
    nodes = [node("n1")]
    assert "WorkspaceReady" not in status_of(plan(workspace(), nodes=nodes, workload=deployment(0)))
    stale = deployment(1, generation=2, observed=1)
    assert "WorkspaceReady" not in status_of(plan(workspace(), nodes=nodes, workload=stale))
    made = plan(workspace(), nodes=nodes, workload=deployment(1))
    assert status_of(made)["InferenceReady"] == status_of(made)["WorkspaceReady"] == "True"


def test_what_has_served_and_stops_says_so() -> None:
    nodes = [node("n1")]
    served = workspace(status=plan(workspace(), nodes=nodes, workload=deployment(1)).status.to_wire())
    made = plan(served, nodes=nodes, workload=deployment(0))
    assert status_of(made)["InferenceReady"] == status_of(made)["WorkspaceReady"] == "False"
    assert status_of(made)["ResourceReady"] == "True"


def served() -> Workspace:
    return workspace(status=plan(workspace(), nodes=[node("n1")], workload=deployment(1)).status.to_wire())


def test_a_node_that_falls_silent_is_awaited_before_it_is_replaced() -> None:
    silent = node("n1", ready="Unknown", since=NOW - timedelta(seconds=100))
    waiting = plan(served(), nodes=[silent], workload=deployment(0))
    assert waiting.claims == ()
    assert waiting.look_again == 200
    assert {status_of(waiting)[kind] for kind in ("ResourceReady", "InferenceReady", "WorkspaceReady")} == {"False"}
    assert waiting.status.worker_nodes == ("n1",)
    gone = node("n1", ready="Unknown", since=NOW - timedelta(seconds=301))
    replaced = plan(served(), nodes=[gone], workload=deployment(0))
    assert len(replaced.claims) == 1


def test_a_cordoned_node_is_kept_but_not_taken() -> None:
    assert plan(served(), nodes=[node("n1", cordoned=True)], workload=deployment(1)).claims == ()
    assert len(plan(workspace(), nodes=[node("n1", cordoned=True)]).claims) == 1


def test_a_machine_that_is_not_needed_any_more_is_given_back_unless_it_has_a_node() -> None:
    booting, joined = machine("wsa"), machine("wsb", node_name="n2")
    made = plan(served(), nodes=[node("n1")], claims=[booting, joined], workload=deployment(1))
    assert [each.name for each in made.surplus] == ["wsa"]


def test_a_machine_whose_node_is_seen_before_its_status_is_not_given_back() -> None:
    labels = {"kaito.sh/workspace": "ws", "kaito.sh/workspacenamespace": "default", "karpenter.sh/initialized": "true"}
    made = plan(workspace(), nodes=[node("n1", **labels)], claims=[machine("wsa")])
    assert made.surplus == ()
    assert made.status.worker_nodes == ("n1",)


def test_a_launch_under_way_is_no_failure() -> None:
    made = plan(workspace(), claims=[machine("ws1", message="the cloud is making one")])
    assert status_of(made) == {"MachineReady": "Unknown"}


def test_what_the_server_refuses_is_said_in_the_status() -> None:
    made = plan(workspace(), nodes=[node("n1")])
    status = refused(workspace(), made, made.apply[1], "spec.template: Invalid value", Settings(), NOW)
    shown = find_condition(status.conditions, "WorkspaceReady")
    assert shown is not None
    assert shown.message == "Deployment default/ws was refused: spec.template: Invalid value"


def test_a_refusal_of_the_cloud_is_shown_on_the_workspace() -> None:
    made = plan(
        workspace(), claims=[machine("ws1", reason="QuotaExceeded", message="the quota is used up; ask for more")]
    )
    shown = find_condition(made.status.conditions, "WorkspaceReady")
    assert shown is not None
    assert shown.status == "False"
    assert "quota is used up" in shown.message


def test_a_converged_workspace_gives_the_same_plan_again() -> None:
    nodes, ready = [node("n1")], deployment(1)
    first = plan(workspace(), nodes=nodes, workload=ready)
    later = workspace(status=first.status.to_wire())
    second = plan_workspace(
        later,
        Observed(nodes=nodes, workload=ready),
        CATALOGUE,
        SKUS,
        Settings(),
        datetime(2027, 1, 1, tzinfo=UTC),
    )
    assert second.status == first.status
    assert [each.to_wire() for each in second.apply] == [each.to_wire() for each in first.apply]


@pytest.mark.parametrize(
    ("nodes", "count", "preferred", "in_use", "chosen"),
    [
        ([node("node2"), node("node1")], 1, (), (), ["node1"]),
        ([node("node1"), node("node2"), node("node3")], 2, ("node3", "node2"), (), ["node2", "node3"]),
        ([node("node1"), node("node2"), node("node3")], 2, (), ("node3", "node2"), ["node2", "node3"]),
        ([node("node1"), node("node2"), node("node3")], 2, ("node3",), ("node2",), ["node2", "node3"]),
        ([node("node1"), node("node2"), node("node3")], 1, ("node3",), ("node2",), ["node3"]),
        (
            [
                node("node1"),
                node("node3", **{"kaito.sh/machine-type": "gpu", "karpenter.sh/initialized": "true"}),
            ],
            1,
            (),
            (),
            ["node3"],
        ),
        (
            [node("node1"), node("node3", **{"karpenter.sh/nodepool": "kaito", "karpenter.sh/initialized": "true"})],
            1,
            (),
            (),
            ["node3"],
        ),
    ],
)
def test_which_nodes_are_taken(
    nodes: list[Node], count: int, preferred: tuple[str, ...], in_use: tuple[str, ...], chosen: list[str]
) -> None:
    ws = workspace(resource={"count": count, "preferredNodes": preferred}, status={"workerNodes": in_use})
    assert sorted(each.name for each in plan_nodes(ws, nodes, (), NOW).selected) == chosen


@pytest.mark.parametrize(
    "unusable",
    [
        node("n", ready="False"),
        node("n", deleting=True),
        node("n", **{"node.kubernetes.io/instance-type": "Standard_D2"}),
        node("n", **{"kaito.sh/workspace": "other", "kaito.sh/workspacenamespace": "default"}),
        node("n", **{"kaito.sh/machine-type": "gpu"}),
        node("n", **{"karpenter.sh/provisioner-name": "default"}),
        node("n", **{"karpenter.sh/nodepool": "kaito"}),
        node("n", apps="other"),
    ],
)
def test_which_nodes_are_not_taken(unusable: Node) -> None:
    assert plan_nodes(workspace(), [unusable], (), NOW).selected == ()


def test_a_service_that_is_somebody_elses_is_left_alone_and_named() -> None:
    foreign = Service.model_validate({"metadata": {"name": "ws", "namespace": "default", "uid": "x"}})
    made = plan(workspace(), nodes=[node("n1")], services=[foreign])
    assert made.apply == ()
    assert made.claims == ()
    shown = find_condition(made.status.conditions, "WorkspaceReady")
    assert shown is not None
    assert "not this workspace's" in shown.message


def test_a_users_template_reaches_the_server_whole() -> None:
    template = {
        "metadata": {"labels": {"mine": "1"}},
        "spec": {"containers": [{"name": "c", "image": "i", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}]},
    }
    made = plan(workspace(inference={"template": template}), nodes=[node("n1")])
    written = made.apply[1].to_wire()["spec"]["template"]
    assert written["spec"]["containers"] == template["spec"]["containers"]  # type: ignore[index]
    assert written["metadata"]["labels"] == {"mine": "1", "kaito.sh/workspace": "ws"}
    assert "affinity" in written["spec"]


def test_the_pod_needs_the_nodes_gpus_and_tolerates_its_taints() -> None:
    template = plan(workspace(), nodes=[node("n1")]).apply[1].to_wire()["spec"]["template"]
    container = template["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"}}
    assert container["image"] == "mcr.microsoft.com/aks/kaito/kaito-phi-3-mini-4k-instruct:0.0.1"
    assert {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"} in template["spec"][
        "tolerations"
    ]
    assert template["spec"]["automountServiceAccountToken"] is False


def test_covers_looks_at_what_we_set_and_at_nothing_else() -> None:
    assert covers({"a": 1, "b": {"c": [1, {"d": 2, "e": 3}]}}, {"b": {"c": [1, {"d": 2}]}})
    assert not covers({"a": [1]}, {"a": [1, 2]})
    assert not covers({"a": 1}, {"b": 1})


def test_covers_knows_what_the_server_makes_of_values() -> None:
    live = {"limits": {"nvidia.com/gpu": "1", "cpu": "500m"}}
    assert covers(live, {"limits": {"nvidia.com/gpu": 1, "cpu": "0.5"}, "args": [], "stdin": False, "value": ""})
    assert not covers(live, {"limits": {"cpu": "0.6"}})
    assert not covers({}, {"stdin": True})


def test_a_field_that_is_no_longer_wanted_is_noticed() -> None:
    ws = workspace()
    before, after = (
        stamped(plan(workspace(inference={"template": {"spec": spec}}), nodes=[node("n1")]).apply[1])
        for spec in ({"hostNetwork": True, "containers": []}, {"containers": []})
    )
    live = before.to_wire()
    live["metadata"]["ownerReferences"] = [ws.owner_reference().to_wire()]
    assert is_applied(live, before, ws)
    assert not is_applied(live, after, ws)


def test_an_object_without_our_owner_reference_is_not_applied_yet() -> None:
    ws = workspace()
    service = stamped(plan(ws, nodes=[node("n1")]).apply[0])
    live = service.to_wire()
    assert not is_applied(live, service, ws)
    live["metadata"]["ownerReferences"] = [ws.owner_reference().to_wire()]
    assert is_applied(live, service, ws)


def test_the_pod_goes_to_the_workspaces_own_nodes_or_to_nobodys() -> None:
    spec = plan(workspace(), nodes=[node("n1")]).apply[1].to_wire()["spec"]["template"]["spec"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    ours, nobodys = (
        [(each["key"], each["operator"], *each.get("values", ())) for each in term["matchExpressions"]]
        for term in required["nodeSelectorTerms"]
    )
    assert ours == [
        ("apps", "In", "phi-3"),
        ("kaito.sh/workspace", "In", "ws"),
        ("kaito.sh/workspacenamespace", "In", "default"),
    ]
    assert nobodys == [("apps", "In", "phi-3"), ("kaito.sh/workspace", "DoesNotExist")]


def adapter(name: str, **more: Any) -> dict[str, Any]:
    return {"source": {"name": name, "image": f"registry.example/{name}:1"}, **more}


def test_an_adapters_files_are_copied_to_where_the_server_looks_for_them() -> None:
    preset = {"name": "phi-3-mini-4k-instruct"}
    secret = {"source": {"name": "b", "image": "registry.example/b:1", "imagePullSecrets": ["pull"]}, "strength": "0.5"}
    ws = workspace(inference={"preset": preset, "adapters": [adapter("a"), secret]})
    pod = plan(ws, nodes=[node("n1")]).apply[1].to_wire()["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["initContainers"]] == ["a", "b"]
    copying = pod["initContainers"][0]
    assert copying["image"] == "registry.example/a:1"
    assert copying["command"][-1] == "/mnt/adapter/a"
    assert "a" not in copying["command"][2].split(), "a name is an argument of the shell, and never part of its text"
    [server] = pod["containers"]
    assert {"name": "adapter-volume", "mountPath": "/mnt/adapter"} in server["volumeMounts"]
    assert copying["volumeMounts"] == [{"name": "adapter-volume", "mountPath": "/mnt/adapter"}]
    strengths = {each["name"]: each["value"] for each in server["env"]}
    assert (strengths["a"], strengths["b"]) == ("1.0", "0.5")
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert {"name": "adapter-volume", "emptyDir": {}} in pod["volumes"]
    for each in (copying, server):
        assert each["terminationMessagePolicy"] == "FallbackToLogsOnError", "its last words are to be in its status"


LLAMA = {
    "inference": {
        "preset": {
            "name": "llama-2-70b-chat",
            "accessMode": "private",
            "presetOptions": {"image": "registry.example/llama:1"},
        }
    },
    "resource": {"count": 2, "instanceType": "Standard_NC96ads_A100_v4"},
}


def test_a_distributed_model_is_a_stateful_set_whose_processes_meet_at_its_first_pod() -> None:
    service, headless, workload = plan(workspace(**LLAMA), nodes=[node("n1"), node("n2")]).apply
    assert (service.kind, headless.kind, workload.kind) == ("Service", "Service", "StatefulSet")
    assert service.to_wire()["spec"]["selector"] == {
        "kaito.sh/workspace": "ws",
        "statefulset.kubernetes.io/pod-name": "ws-0",
    }
    assert headless.name == "ws-headless"
    found = headless.to_wire()["spec"]
    assert (found["clusterIP"], found["publishNotReadyAddresses"]) == ("None", True)
    spec = workload.to_wire()["spec"]
    assert (spec["replicas"], spec["serviceName"], spec["podManagementPolicy"]) == (2, "ws-headless", "Parallel")
    [server] = spec["template"]["spec"]["containers"]
    assert server["image"] == "registry.example/llama:1"
    assert server["workingDir"] == "/workspace/llama/llama-2"
    assert server["command"] == [
        "torchrun",
        "--max_restarts=3",
        "--nnodes=2",
        "--nproc_per_node=4",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=ws-0.ws-headless.default.svc:29500",
        "--rdzv_id=job",
        "inference_api.py",
        "--max_batch_size=8",
        "--max_seq_len=512",
    ]
    assert server["resources"]["limits"] == {"nvidia.com/gpu": "4"}


def stateful_set(ready: int, **status: Any) -> StatefulSet:
    raw = {
        "metadata": {"name": "ws", "namespace": "default", "generation": 1, "ownerReferences": OWNER},
        "spec": {"replicas": 2},
        "status": {"observedGeneration": 1, "readyReplicas": ready, **status},
    }
    return StatefulSet.model_validate(raw)


OWNER = [{"apiVersion": "kaito.sh/v1alpha1", "kind": "Workspace", "name": "ws", "uid": "u1", "controller": True}]


def test_a_distributed_model_serves_when_all_of_its_pods_do() -> None:
    nodes = [node("n1"), node("n2")]
    same = {"currentRevision": "a", "updateRevision": "a"}
    rolling = {"currentRevision": "a", "updateRevision": "b", "updatedReplicas": 1}

    def shown(workload: StatefulSet) -> str | None:
        return status_of(plan(workspace(**LLAMA), nodes=nodes, workload=workload)).get("WorkspaceReady")

    assert shown(stateful_set(1, **same)) is None
    assert shown(stateful_set(2, **rolling)) is None
    assert shown(stateful_set(2, **same)) == "True"


def asked(attempts: int, minutes_ago: float) -> dict[str, Any]:
    at = (NOW - timedelta(minutes=minutes_ago)).isoformat()
    return {"stages": [{"name": "CapacityReserved", "state": "Failed", "attempts": attempts, "lastAttemptAt": at}]}


@pytest.mark.parametrize(
    ("attempts", "minutes_ago", "wait"),
    [(0, 0, 0), (1, 0, 0), (2, 0.5, 30), (2, 1, 0), (3, 0, 120), (4, 1, 180), (7, 0, 1920), (9, 0, 3600), (99, 59, 60)],
)
def test_machines_that_never_become_ready_are_replaced_ever_more_rarely(
    attempts: int, minutes_ago: float, wait: float
) -> None:
    made = plan(workspace(status=asked(attempts, minutes_ago)))
    assert len(made.claims) == (0 if wait else 1)
    assert (made.look_again or 0) == pytest.approx(wait)


def test_asking_is_counted_and_serving_starts_the_count_anew() -> None:
    first = plan(workspace(resource={"count": 2}))
    stage = next(each for each in first.status.stages if each.name == "CapacityReserved")
    assert (stage.attempts, stage.last_attempt_at) == (2, NOW)
    known = workspace(resource={"count": 2}, status=first.status.to_wire())
    lost = plan(known, claims=[machine(machine_name("u1", 0))])
    stage = next(each for each in lost.status.stages if each.name == "CapacityReserved")
    assert stage.attempts == 3


INITIALIZED = {
    "kaito.sh/workspace": "ws",
    "kaito.sh/workspacenamespace": "default",
    "kaito.sh/machine-type": "gpu",
    "karpenter.sh/initialized": "true",
}


def held(*done: str, kind: type[NodeRequest] = Machine, **metadata: Any) -> NodeRequest:
    """A claim whose node is n1, a week after it has done these steps."""
    since = (NOW - timedelta(days=7)).isoformat()
    conditions = [{"type": getattr(kind, each), "status": "True", "lastTransitionTime": since} for each in done]
    return kind.model_validate(
        {
            "metadata": {"name": machine_name("u1", 0), **metadata},
            "status": {"nodeName": "n1", "conditions": conditions},
        }
    )


@pytest.mark.parametrize("kind", NODE_REQUESTS.values(), ids=NODE_REQUESTS)
def test_a_claimed_node_that_is_silent_is_awaited_for_as_long_as_its_claim_is_there(kind: type[NodeRequest]) -> None:
    silent = node("n1", ready="Unknown", since=NOW - timedelta(days=6), **INITIALIZED)
    claim = held("launched", "registered", "initialized", kind=kind)
    settings = Settings(node_api=kind)
    for ws in (served(), workspace()):  # in use, or not yet
        waiting = plan(ws, settings, nodes=[silent], claims=[claim], workload=deployment(0))
        assert (waiting.claims, waiting.surplus, waiting.look_again) == ((), (), None)
    said = find_condition(plan(served(), settings, nodes=[silent], claims=[claim]).status.conditions, "ResourceReady")
    assert said is not None
    assert said.message == "not ready, and expected back: node n1"


def test_when_its_provisioner_gives_a_silent_node_up_another_one_is_asked_for_at_once() -> None:
    silent = node("n1", ready="Unknown", since=NOW - timedelta(seconds=10), **INITIALIZED)
    going = held("launched", "registered", "initialized", deletionTimestamp="2026-01-01T00:00:00Z")
    # Its claim is on its way out; the node is not yet.
    for claims in ([going], []):
        made = plan(served(), nodes=[silent], claims=claims, workload=deployment(0))
        assert [each.name for each in made.claims] == ([machine_name("u1", 1)] if claims else [])
        assert made.look_again == (None if claims else 290), "who has made it nobody can tell: as a user's own"


def test_a_node_that_never_becomes_usable_is_its_provisioners_to_give_up() -> None:
    made = plan(workspace(status=asked(1, 40)), claims=[held("launched", "registered")])
    assert (made.claims, made.surplus, made.look_again) == ((), (), None)


@pytest.mark.parametrize("kind", NODE_REQUESTS.values(), ids=NODE_REQUESTS)
def test_a_node_of_ours_whose_labels_somebody_has_changed_is_named_with_the_way_back(kind: type[NodeRequest]) -> None:
    relabelled = node("n1", apps="other", **{"karpenter.sh/nodepool": "kaito", "karpenter.sh/initialized": "true"})
    claim = held("launched", "registered", "initialized", kind=kind)
    made = plan(served(), Settings(node_api=kind), nodes=[relabelled], claims=[claim], workload=deployment(1))
    assert made.claims == (), "a label is no reason to buy another node"
    failed = next(each for each in made.status.stages if each.state == "Failed")
    assert failed.last_error is not None
    assert failed.last_error.code == "NodeRelabelled"
    assert failed.message == "Node n1: does not carry apps=phi-3, by which Workspace default/ws selects it"
    assert failed.next_action == "kubectl label node n1 apps=phi-3 --overwrite"


TUNING = {
    "inference": None,
    "tuning": {
        "preset": {"name": "phi-3-mini-128k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/a"]},
        "output": {"image": "registry.example/a:1", "imagePushSecret": "push"},
    },
}


def test_a_tuning_workspace_costs_nothing_while_nothing_runs_its_job() -> None:
    made = plan(workspace(**TUNING), nodes=[node("n1")])
    assert (made.claims, made.apply) == ((), ())
    ready = find_condition(made.status.conditions, "WorkspaceReady")
    assert ready is not None
    assert "does not tune them yet" in ready.message


def test_a_tuning_workspace_gets_its_nodes_as_any_other_with_the_disk_that_tuning_needs() -> None:
    def tune(**seen: Any) -> Plan:
        return plan_workspace(workspace(**TUNING), Observed(**seen), CATALOGUE, SKUS, Settings(tuning=True), NOW)

    made = tune()
    preset = CATALOGUE.get("phi-3-mini-128k-instruct")
    assert preset is not None
    assert preset.tuning is not None
    [asked] = made.claims
    assert asked.spec.resources.requests == {"storage": preset.tuning.disk}
    there = tune(nodes=[node("n1")])
    assert (there.claims, there.apply, there.status.worker_nodes) == ((), (), ("n1",))
    assert status_of(there) == {"MachineReady": "True", "ResourceReady": "True", "WorkspaceReady": "False"}
