"""The local ARM's agent pools, as the real SDK sees them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from armworld import CPU, GPU, Azure, with_arm
from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

from kaito_presets.skus import SkuTable
from kaito_provisioner.testing import SIZES, Timings


def now() -> float:
    return asyncio.get_running_loop().time()


@with_arm()
async def test_a_pool_is_made_while_its_operation_is_polled(azure: Azure) -> None:
    poller = await azure.put(tags={"kaito-claim": "uid-1"}, nodeLabels={"kaito.sh/workspace": "phi"})
    assert (await azure.get()).provisioning_state == "Creating"
    assert azure.arm.vms() == []
    pool = await poller.result()
    assert pool.properties is not None
    assert pool.properties.provisioning_state == "Succeeded"
    assert pool.properties.tags == {"kaito-claim": "uid-1"}
    assert pool.id == f"{azure.arm.cluster.path}/agentPools/ws1"
    assert now() == azure.arm.timings.create
    assert [vm.node_name[:8] for vm in azure.arm.vms()] == ["aks-ws1-"]


@with_arm()
async def test_what_a_request_leaves_out_is_filled_in(azure: Azure) -> None:
    await azure.make(osDiskSizeGB=0)
    properties = await azure.get()
    assert (properties.mode, properties["type"], properties.os_type) == ("User", "VirtualMachineScaleSets", "Linux")
    assert (properties.os_disk_size_gb, properties.max_pods, properties.os_sku) == (128, 110, "Ubuntu")
    assert properties.node_image_version.startswith("AKSUbuntu")
    assert properties.power_state.code == "Running"


@with_arm()
async def test_a_continuation_token_resumes_an_operation_without_another_put(azure: Azure) -> None:
    token = (await azure.put()).continuation_token()
    async with azure.arm.client() as another:
        poller = await another.agent_pools.begin_create_or_update(*azure.where, "ws1", {}, continuation_token=token)
        pool = await poller.result()
    assert pool.properties is not None
    assert pool.properties.provisioning_state == "Succeeded"
    assert azure.arm.requests.counts["put"] == 1


@with_arm(timings=Timings(retry_after=3))
async def test_an_operation_may_say_when_to_ask_again(azure: Azure) -> None:
    await azure.make()
    assert azure.arm.requests.counts["operation"] == 1 + 150 // 3


@with_arm()
async def test_if_none_match_refuses_to_touch_a_pool_that_there_is(azure: Azure) -> None:
    await azure.make()
    with pytest.raises(ResourceExistsError) as refusal:
        await azure.put(etag="*", match_condition=MatchConditions.IfMissing, nodeLabels={"a": "b"})
    assert refusal.value.status_code == 412
    assert (await azure.get()).node_labels is None


@with_arm()
async def test_if_match_refuses_to_change_what_has_changed_since(azure: Azure) -> None:
    old = (await azure.make()).properties
    assert old is not None
    await azure.make(nodeLabels={"a": "b"})
    changed = {"etag": old.e_tag, "match_condition": MatchConditions.IfNotModified}
    with pytest.raises(ResourceModifiedError):
        await azure.put(nodeLabels={"a": "c"}, **changed)
    with pytest.raises(ResourceModifiedError):
        await azure.delete(**changed)
    fresh = await azure.get()
    await azure.delete(etag=fresh.e_tag, match_condition=MatchConditions.IfNotModified)
    assert azure.arm.pools() == {}


@with_arm()
async def test_another_put_changes_a_pool_and_leaves_its_machine(azure: Azure) -> None:
    await azure.make()
    before = azure.arm.vms()
    poller = await azure.put(nodeLabels={"a": "b"})
    assert (await azure.get()).provisioning_state == "Updating"
    await poller.result()
    assert (await azure.get()).node_labels == {"a": "b"}
    assert azure.arm.vms() == before


@with_arm()
async def test_another_count_scales_a_pool(azure: Azure) -> None:
    await azure.make(count=1)
    poller = await azure.put(count=3)
    assert (await azure.get()).provisioning_state == "Scaling"
    await poller.result()
    assert [vm.node_name[-6:] for vm in azure.arm.vms()] == ["000000", "000001", "000002"]
    await azure.make(count=1)
    assert [vm.node_name[-6:] for vm in azure.arm.vms()] == ["000000"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vmSize", CPU),
        ("osSKU", "AzureLinux"),
        ("osDiskSizeGB", 256),
        ("availabilityZones", ["1"]),
        ("scaleSetPriority", "Spot"),
        ("vnetSubnetID", "/subscriptions/x"),
        ("type", "VirtualMachines"),
    ],
)
@with_arm()
async def test_some_properties_can_never_be_changed(azure: Azure, name: str, value: Any) -> None:
    await azure.make()
    error = await azure.refused(azure.put(**{"vm_size": GPU, "vm_size" if name == "vmSize" else name: value}))
    assert (error.status_code, error.error.code) == (400, "PropertyChangeNotAllowed")
    assert f"properties.{name}" in str(error.message)


@with_arm()
async def test_a_deletion_takes_its_time_and_then_there_is_nothing(azure: Azure) -> None:
    await azure.make()
    began = now()
    poller = await azure.pools.begin_delete(*azure.where, "ws1")
    assert (await azure.get()).provisioning_state == "Deleting"
    assert await azure.names() == ["system", "ws1"]
    await poller.result()
    assert now() - began >= azure.arm.timings.delete
    with pytest.raises(ResourceNotFoundError) as refusal:
        await azure.get()
    assert refusal.value.error.code == "NotFound"
    assert "Agent Pool not found" in str(refusal.value.message)
    assert (azure.arm.pools(), azure.arm.vms()) == ({}, [])


@with_arm()
async def test_deleting_what_is_not_there_is_done_at_once(azure: Azure) -> None:
    await azure.delete("never")
    assert now() == 0


@with_arm()
async def test_a_list_comes_in_pages(azure: Azure) -> None:
    azure.arm.api.page_size = 3
    for number in range(7):
        azure.arm.add_pool(f"user{number}", CPU)
    assert await azure.names() == ["system", *(f"user{number}" for number in range(7))]
    assert azure.arm.requests.counts["list"] == 3


@with_arm()
async def test_reads_lag_behind_writes_when_they_are_told_to(azure: Azure) -> None:
    azure.arm.api.read_lag, azure.arm.api.list_lag = 5.0, 60.0
    await azure.put()
    with pytest.raises(ResourceNotFoundError):
        await azure.get()
    await asyncio.sleep(5)
    assert (await azure.get()).provisioning_state == "Creating"
    assert await azure.names() == ["system"]
    await asyncio.sleep(55)
    assert await azure.names() == ["system", "ws1"]
    with pytest.raises(ResourceExistsError):
        await azure.put(etag="*", match_condition=MatchConditions.IfMissing)


@with_arm()
async def test_a_deleted_pool_is_listed_for_as_long_as_the_list_lags(azure: Azure) -> None:
    await azure.make()
    azure.arm.api.list_lag = 60.0
    await azure.delete()
    assert "ws1" in await azure.names()
    await asyncio.sleep(60)
    assert "ws1" not in await azure.names()


@with_arm()
async def test_names_are_compared_without_case(azure: Azure) -> None:
    await azure.make()
    pool = await azure.pools.get("KAITO", "Kaito-AKS", "WS1")
    assert pool.name == "ws1"


@with_arm()
async def test_a_running_creation_can_be_aborted_and_its_pool_stays(azure: Azure) -> None:
    creation = await azure.put()
    abort = await azure.pools.begin_abort_latest_operation(*azure.where, "ws1")
    assert (await azure.get()).provisioning_state == "Canceling"
    await abort.result()
    assert (await azure.get()).provisioning_state == "Canceled"
    error = await azure.refused(creation.result())
    assert error.error is None or error.error.code == "OperationAborted"
    await azure.delete()
    assert azure.arm.pools() == {}


@with_arm()
async def test_there_has_to_be_something_to_abort(azure: Azure) -> None:
    await azure.make()
    error = await azure.refused(azure.pools.begin_abort_latest_operation(*azure.where, "ws1"))
    assert (error.status_code, error.error.code) == (409, "OperationNotAllowed")


@with_arm()
async def test_single_machines_of_a_pool_can_be_deleted(azure: Azure) -> None:
    await azure.make(count=3)
    gone = azure.arm.vms()[1].node_name
    body: Any = {"machineNames": [gone]}
    await (await azure.pools.begin_delete_machines(*azure.where, "ws1", body)).result()
    assert (await azure.get()).count == 2
    left = [machine.name async for machine in azure.client.machines.list(*azure.where, "ws1")]
    assert left == [vm.node_name for vm in azure.arm.vms()]
    assert gone not in left


@with_arm()
async def test_an_older_api_version_knows_neither_etags_nor_the_reason_of_a_failure(azure: Azure) -> None:
    azure.arm.capacity.limit(GPU, 0)
    await azure.refused((await azure.put()).result())
    async with azure.arm.client(api_version="2024-01-01") as old:
        seen = await old.agent_pools.get(*azure.where, "ws1")
    assert seen.properties is not None
    assert (seen.properties.e_tag, seen.properties.status) == (None, None)
    assert (await azure.get()).status.provisioning_error.code == "ReconcileVMSSAgentPoolFailed"


@with_arm()
async def test_the_rest_of_what_can_be_asked_is_answered(azure: Azure) -> None:
    await azure.make()
    cluster = await azure.client.managed_clusters.get(*azure.where)
    assert (cluster.location, cluster.name) == ("eastus", "kaito-aks")
    versions = await azure.pools.get_available_agent_pool_versions(*azure.where)
    assert versions.properties is not None
    profile = await azure.pools.get_upgrade_profile(*azure.where, "ws1")
    assert profile.properties.os_type == "Linux"
    upgrade = await azure.pools.begin_upgrade_node_image_version(*azure.where, "ws1")
    assert (await azure.get()).provisioning_state == "Updating"
    await upgrade.result()
    assert (await azure.get()).provisioning_state == "Succeeded"


@with_arm(location="westeurope")
async def test_a_machine_is_named_as_aks_names_it(azure: Azure) -> None:
    await azure.make(availabilityZones=["2"])
    await azure.make("vms", type="VirtualMachines")
    first, second = azure.arm.vms()
    number = azure.arm.pools()["ws1"].number
    assert first.node_name == f"aks-ws1-{number}-vmss000000"
    assert first.provider_id == (
        f"azure:///subscriptions/{azure.arm.cluster.subscription}/resourceGroups/mc_kaito_kaito-aks_westeurope/providers/"
        f"Microsoft.Compute/virtualMachineScaleSets/aks-ws1-{number}-vmss/virtualMachines/0"
    )
    assert first.zone == "2"
    assert second.provider_id.endswith(f"/Microsoft.Compute/virtualMachines/{second.node_name}")
    assert second.node_name.endswith("-vms0")


def test_every_size_that_models_are_placed_on_is_offered() -> None:
    offered = {size.name: (size.gpus, size.resource.partition(".")[0]) for size in SIZES.values()}
    for sku in SkuTable.builtin("azure"):
        assert offered[sku.name] == (sku.gpu_count, sku.vendor), sku.name


@with_arm()
async def test_a_spot_pool_says_so_to_the_scheduler(azure: Azure) -> None:
    await azure.make(scaleSetPriority="Spot", nodeTaints=["sku=gpu:NoSchedule"])
    properties = await azure.get()
    assert properties.node_labels == {"kubernetes.azure.com/scalesetpriority": "spot"}
    assert properties.node_taints == ["sku=gpu:NoSchedule", "kubernetes.azure.com/scalesetpriority=spot:NoSchedule"]
    assert (properties.scale_set_eviction_policy, properties.spot_max_price) == ("Delete", -1)
