"""Requests as agent pools, and back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from kaito_api.core import Taint
from kaito_api.karpenter import Requirement
from kaito_provisioner.aks.pools import Pool, pool_body, pool_of_provider_id
from kaito_provisioner.cloud import InvalidRequest, LaunchRequest, Offering, UnknownInstanceType

NOW = datetime(2026, 11, 20, 10, 30, 59, tzinfo=UTC)
REQUEST = LaunchRequest("ws0123456789", "6e0c", ("Standard_NC6s_v3",))
OFFERING = Offering("Standard_NC6s_v3")
SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/n"


def body(
    request: LaunchRequest = REQUEST, offering: Offering = OFFERING, *, gpu: bool | None = None, subnet: str = ""
) -> dict[str, Any]:
    properties: dict[str, Any] = pool_body(
        request, offering, cluster="c", location="eastus", subnet=subnet, gpu=gpu, now=NOW
    )["properties"]
    return properties


def test_the_least_request_is_a_pool_of_one_regular_linux_machine() -> None:
    made = body()
    assert made == {
        "count": 1,
        "mode": "User",
        "type": "VirtualMachineScaleSets",
        "vmSize": "Standard_NC6s_v3",
        "osType": "Linux",
        "osSKU": "Ubuntu",
        "nodeLabels": {
            "karpenter.sh/provisioner-name": "default",
            "karpenter.sh/capacity-type": "on-demand",
            "kaito.sh/machine-type": "gpu",
            "kaito.sh/creation-timestamp": "2026-11-20T10-30-59Z",
            "kaito.sh/claim-uid": "6e0c",
        },
        "nodeTaints": [],
        "tags": {
            "kaito.sh_cluster": "c",
            "kaito.sh_claim-uid": "6e0c",
            "kaito.sh_claim-name": "ws0123456789",
            "kaito.sh_claim-kind": "Machine",
            "kaito.sh_created": "2026-11-20T10-30-59Z",
        },
    }


def test_no_tags_name_has_a_character_that_compute_refuses() -> None:
    assert not any(set("<>%&\\?/") & set(name) for name in body()["tags"])


@pytest.mark.parametrize("name", ["ws0123456789a", "1ws", "WS1", "ws-1", "", "wsä"])
def test_a_name_that_no_pool_can_have_is_refused_before_anything_is_sent(name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be one"):
        body(replace(REQUEST, name=name))


@pytest.mark.parametrize(
    ("size", "gib"), [(0, None), (1, 1), (2**30, 1), (2**30 + 1, 2), (34 * 2**30, 34), (2048 * 2**30, 2048)]
)
def test_a_disk_is_rounded_up_to_whole_gibibytes(size: int, gib: int | None) -> None:
    assert body(replace(REQUEST, disk=size)).get("osDiskSizeGB") == gib


@pytest.mark.parametrize("size", [2048 * 2**30 + 1, 2**60, -(2**30)])
def test_a_disk_that_aks_cannot_make_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest, match="2048"):
        body(replace(REQUEST, disk=size))


def test_labels_that_aks_refuses_are_left_out_and_the_claims_win_over_ours() -> None:
    labels = {
        "kaito.sh/workspace": "w",
        "karpenter.sh/nodepool": "mine",
        "apps": "llm",
        "agentpool": "x",
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": "x",
        "topology.kubernetes.io/zone": "x",
        "x.k8s.io/y": "z",
        "k8s.io/y": "z",
        "kubernetes.azure.com/mode": "user",
        "notkubernetes.io/fine": "yes",
        "kaito.sh/claim-uid": "forged",
        "kaito.sh/creation-timestamp": "2026-01-01T00-00-00Z",
    }
    made = body(replace(REQUEST, kind="NodeClaim", labels=labels))["nodeLabels"]
    assert made == {
        "kaito.sh/workspace": "w",
        "karpenter.sh/nodepool": "mine",
        "apps": "llm",
        "notkubernetes.io/fine": "yes",
        "karpenter.sh/capacity-type": "on-demand",
        "kaito.sh/machine-type": "gpu",
        "kaito.sh/claim-uid": "6e0c",
        "kaito.sh/creation-timestamp": "2026-01-01T00-00-00Z",
    }


@pytest.mark.parametrize(
    ("size", "known", "kind"),
    [
        ("Standard_NC6s_v3", None, "gpu"),
        ("Standard_NP10s", None, "cpu"),
        ("Standard_D4s_v5", None, "cpu"),
        ("Standard_NC6s_v3", False, "cpu"),
        ("Special", True, "gpu"),
    ],
)
def test_the_kind_of_machine_is_what_the_table_says_or_else_its_family(
    size: str, known: bool | None, kind: str
) -> None:
    assert body(offering=Offering(size), gpu=known)["nodeLabels"]["kaito.sh/machine-type"] == kind


def test_startup_taints_are_there_before_the_first_pod_can_be() -> None:
    taints = (Taint(key="sku", value="gpu", effect="NoSchedule"), Taint(key="bare", effect="NoExecute"))
    startup = (Taint(key="init", value="true", effect="NoSchedule"), taints[0])
    made = body(replace(REQUEST, taints=taints, startup_taints=startup))
    assert made["nodeTaints"] == ["sku=gpu:NoSchedule", "bare=:NoExecute", "init=true:NoSchedule"]


@pytest.mark.parametrize(
    ("zones", "asked"),
    [((), None), (("eastus-1",), ["1"]), (("eastus-3", "eastus-1"), ["3", "1"]), (("2",), ["2"]), (("0",), None)],
)
def test_zones_are_asked_for_by_number(zones: tuple[str, ...], asked: list[str] | None) -> None:
    assert body(offering=replace(OFFERING, zones=zones)).get("availabilityZones") == asked


@pytest.mark.parametrize("zone", ["westus-1", "eastus", "eastus-a", ""])
def test_a_zone_of_elsewhere_is_refused(zone: str) -> None:
    with pytest.raises(InvalidRequest, match="no zone of eastus"):
        body(offering=replace(OFFERING, zones=(zone,)))


def test_a_subnet_is_the_one_of_the_settings() -> None:
    assert body(subnet=SUBNET)["vnetSubnetID"] == SUBNET
    assert "vnetSubnetID" not in body()


def test_reserved_capacity_is_refused_so_that_the_next_offering_is_tried() -> None:
    with pytest.raises(UnknownInstanceType) as refused:
        body(offering=replace(OFFERING, capacity_type="reserved"))
    assert refused.value.offering == replace(OFFERING, capacity_type="reserved")


def os_sku(annotation: str = "", *values: str) -> str:
    requirements = [Requirement(key="kubernetes.azure.com/os-sku", operator="In", values=values)] if values else []
    annotations = {"kaito.sh/node-image-family": annotation} if annotation else {}
    sku: str = body(replace(REQUEST, annotations=annotations, requirements=tuple(requirements)))["osSKU"]
    return sku


def test_the_os_is_that_of_the_annotation_or_the_requirement_or_ubuntu() -> None:
    assert os_sku() == "Ubuntu"
    assert os_sku("AZURELINUX") == "AzureLinux"
    assert os_sku("", "AzureLinux", "Ubuntu") == "AzureLinux"
    assert os_sku("ubuntu", "AzureLinux", "Ubuntu") == "Ubuntu"


@pytest.mark.parametrize("case", [("windows",), ("ubuntu", "AzureLinux"), ("", "Windows2022")])
def test_an_os_that_cannot_be_had_is_refused(case: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        os_sku(*case)


def test_only_linux_nodes_are_made() -> None:
    windows = Requirement(key="kubernetes.io/os", operator="In", values=("windows",))
    with pytest.raises(InvalidRequest, match="Linux"):
        body(replace(REQUEST, requirements=(windows,)))


@pytest.mark.parametrize(
    ("path", "pool"),
    [
        ("Microsoft.Compute/virtualMachineScaleSets/aks-ws1-12345678-vmss/virtualMachines/0", "ws1"),
        ("microsoft.compute/virtualmachinescalesets/AKS-WS1-12345678-VMSS/virtualmachines/35", "ws1"),
        ("Microsoft.Compute/virtualMachines/aks-ws1-12345678-vms0", "ws1"),
        ("Microsoft.Compute/virtualMachineScaleSets/mine/virtualMachines/0", None),
        ("Microsoft.Compute/virtualMachines/alone", None),
    ],
)
def test_a_provider_id_names_its_pool(path: str, pool: str | None) -> None:
    provider_id = f"azure:///subscriptions/s/resourceGroups/mc_g_c_eastus/providers/{path}"
    assert pool_of_provider_id(provider_id) == pool
    assert pool_of_provider_id(provider_id.replace("azure:", "aws:")) is None
    assert pool_of_provider_id("") is None


def test_a_pool_tells_whose_it_is_even_if_a_policy_has_rewritten_its_tags() -> None:
    properties = body(replace(REQUEST, kind="NodeClaim"))
    shouted = {**properties, "tags": {key.upper(): value for key, value in properties["tags"].items()}}
    stripped = {**properties, "tags": None}
    inherited = {"kaito.sh_cluster": "of-the-group", "kaito.sh_claim-uid": "other", "kaito.sh_claim-kind": "Other"}
    rewritten = {**properties, "tags": {**properties["tags"], **inherited}}
    unlabelled = {**properties, "nodeLabels": {"karpenter.sh/nodepool": "kaito"}}
    for each in (properties, shouted, stripped, rewritten, unlabelled):
        pool = Pool.of({"name": "ws1", "properties": each})
        assert (pool.claim_uid, pool.claim_kind, pool.created) == ("6e0c", "NodeClaim", NOW)
    stranger = Pool("ws1", {"nodeLabels": None, "tags": None})
    assert (stranger.claim_uid, stranger.created, stranger.provisioning_error) == ("", None, None)
