"""What the local ARM refuses, or fails at, and how it says so: each row of what AKS is known to answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from armworld import CPU, GPU, Azure, with_arm
from azure.core.exceptions import (
    ClientAuthenticationError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseTimeoutError,
)

from kaito_provisioner.testing import Failure

NO_RETRY: dict[str, Any] = {"retry_total": 0}


def now() -> float:
    return asyncio.get_running_loop().time()


# -- not found ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "cluster", "code"),
    [
        ("kaito", "kaito-aks", "NotFound"),
        ("kaito", "other", "ResourceNotFound"),
        ("other", "kaito-aks", "ResourceGroupNotFound"),
    ],
)
@with_arm()
async def test_what_is_missing_has_a_code_of_its_own(azure: Azure, group: str, cluster: str, code: str) -> None:
    error = await azure.refused(azure.pools.get(group, cluster, "ws1"))
    assert isinstance(error, ResourceNotFoundError)
    assert error.error.code == code


@with_arm()
async def test_another_subscription_is_not_found(azure: Azure) -> None:
    azure.arm.cluster.subscription = "99999999-0000-0000-0000-000000000000"
    error = await azure.refused(azure.get())
    assert error.error.code == "SubscriptionNotFound"


# -- conflicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "text"),
    [
        (True, "Operation is not allowed because there's an in progress create node pool operation"),
        (False, "Another operation (ws1 - Creating) is in progress"),
    ],
)
@with_arm()
async def test_one_operation_at_a_time_is_done_to_a_pool(azure: Azure, old: bool, text: str) -> None:
    azure.arm.cloud.old_wording = old
    await azure.put()
    for call in (azure.put(), azure.pools.begin_delete(*azure.where, "ws1")):
        error = await azure.refused(call)
        assert isinstance(error, ResourceExistsError)
        assert error.error.code == "OperationNotAllowed"
        assert text in str(error.message)


@with_arm()
async def test_a_pool_that_is_being_deleted_cannot_be_made_again_or_deleted_again(azure: Azure) -> None:
    await azure.make()
    await azure.pools.begin_delete(*azure.where, "ws1")
    assert "Deleting" in str((await azure.refused(azure.put())).message)
    assert (await azure.refused(azure.pools.begin_delete(*azure.where, "ws1"))).status_code == 409


@with_arm()
async def test_a_cluster_may_take_so_many_operations_at_a_time(azure: Azure) -> None:
    azure.arm.cloud.most_operations = 2
    first = await azure.put("ws1")
    await azure.put("ws2")
    assert (await azure.refused(azure.put("ws3"))).error.code == "OperationNotAllowed"
    await first.result()
    await azure.put("ws3")


@with_arm()
async def test_no_pool_can_be_written_while_something_is_done_to_the_whole_cluster(azure: Azure) -> None:
    azure.arm.cluster.busy = "Starting"
    assert "kaito-aks - Starting" in str((await azure.refused(azure.put())).message)
    azure.arm.cluster.busy = ""
    await azure.make()


@with_arm()
async def test_an_unregistered_subscription_is_registered_by_the_sdk(azure: Azure) -> None:
    azure.arm.unregister()
    await azure.put()
    assert now() >= 10
    assert [entry.code for entry in azure.arm.requests.log if entry.code] == ["MissingSubscriptionRegistration"]


# -- validation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "properties", "code", "marker"),
    [
        ("WS1", {}, "InvalidParameter", "agentPool.name"),
        ("ws-1", {}, "InvalidParameter", "agentPool.name"),
        ("thirteenchars", {}, "InvalidParameter", "agentPool.name"),
        ("1ws", {}, "InvalidParameter", "agentPool.name"),
        ("windows", {"osType": "Windows"}, "InvalidParameter", "agentPool.name"),
        ("ws1", {"vmSize": None}, "InvalidParameter", "vmSize"),
        (
            "ws1",
            {"vmSize": "Standard_Nothing"},
            "BadRequest",
            "is not allowed in your subscription in location 'eastus'",
        ),
        ("ws1", {"count": 1001}, "InvalidParameter", "count"),
        ("ws1", {"osDiskSizeGB": 2049}, "InvalidParameter", "osDiskSizeGB"),
        ("ws1", {"osSKU": "Debian"}, "InvalidParameter", "osSKU"),
        ("ws1", {"spotMaxPrice": 1.0}, "InvalidParameter", "spotMaxPrice"),
        ("ws1", {"availabilityZones": ["eastus-1"]}, "AvailabilityZoneNotSupported", "eastus-1"),
        ("ws1", {"nodeLabels": {"kubernetes.io/os": "linux"}}, "InvalidLabelPrefix", "kubernetes.io/os"),
        ("ws1", {"nodeLabels": {"kubernetes.azure.com/mode": "x"}}, "InvalidLabelPrefix", "kubernetes.azure.com/mode"),
        ("ws1", {"nodeLabels": {"a": "2026-01-01T00:00:00Z"}}, "InvalidLabel", "2026"),
        ("ws1", {"nodeTaints": ["sku"]}, "InvalidTaint", "sku"),
        ("ws1", {"tags": {"kaito.sh/claim": "x"}}, "InvalidTagNameCharacters", "kaito.sh/claim"),
    ],
)
@with_arm()
async def test_what_cannot_be_is_refused_before_anything_is_made(
    azure: Azure, name: str, properties: dict[str, Any], code: str, marker: str
) -> None:
    error = await azure.refused(azure.put(name, **{"vm_size": properties.pop("vmSize", GPU), **properties}))
    assert (error.status_code, error.error.code) == (400, code)
    assert marker in str(error.message)
    assert azure.arm.pools() == {}


@with_arm()
async def test_karpenters_and_kaitos_labels_are_not_reserved(azure: Azure) -> None:
    labels = {"karpenter.sh/nodepool": "kaito", "kaito.sh/workspace": "phi", "plain": ""}
    await azure.make(nodeLabels=labels)
    assert (await azure.get()).node_labels == labels


@with_arm()
async def test_a_cluster_has_a_hundred_pools_at_most(azure: Azure) -> None:
    for number in range(98):
        azure.arm.add_pool(f"user{number}", CPU)
    await azure.put("last")
    error = await azure.refused(azure.put("toomany"))
    assert (error.status_code, error.error.code) == (400, "QuotaExceeded")
    await azure.delete("user0")
    await azure.put("another")


@with_arm()
async def test_the_last_system_pool_stays(azure: Azure) -> None:
    assert (await azure.refused(azure.pools.begin_delete(*azure.where, "system"))).error.code == "OperationNotAllowed"


@with_arm()
async def test_a_version_of_the_api_is_needed(azure: Azure) -> None:
    async with azure.arm.client(api_version="newest") as odd:
        error = await azure.refused(odd.agent_pools.get(*azure.where, "ws1"))
    assert error.error.code == "InvalidApiVersionParameter"


# -- quota and capacity ------------------------------------------------------------------------------------------


@with_arm()
async def test_aks_looks_at_the_quota_before_it_begins(azure: Azure) -> None:
    azure.arm.quota.families["StandardNCADSA100v4Family"] = 30
    await azure.make("ws1")
    error = await azure.refused(azure.put("ws2"))
    assert (error.status_code, error.error.code) == (400, "ErrCode_InsufficientVCPUQuota")
    assert "requested 24, remaining 6 for family StandardNCADSA100v4Family" in str(error.message)
    assert "Submit a request for Quota increase" in str(error.message)
    await azure.delete("ws1")
    await azure.put("ws2")


@pytest.mark.parametrize(
    ("quota", "properties", "marker"),
    [
        ({"regional": 10}, {}, "exceeding approved Total Regional Cores quota"),
        (
            {"families": {"StandardNCADSA100v4Family": 0}},
            {},
            "exceeding approved StandardNCADSA100v4Family Cores quota",
        ),
        ({"spot": 0}, {"scaleSetPriority": "Spot"}, "exceeding approved LowPriorityCores quota"),
    ],
)
@with_arm()
async def test_compute_looks_at_the_quota_when_it_allocates(
    azure: Azure, quota: dict[str, Any], properties: dict[str, Any], marker: str
) -> None:
    azure.arm.quota.checked = "operation"
    for name, value in quota.items():
        setattr(azure.arm.quota, name, value)
    error = await azure.refused((await azure.put(**properties)).result())
    assert error.error.code == "ReconcileVMSSAgentPoolFailed"
    assert error.error.details[0].code == "OperationNotAllowed"
    assert marker in error.error.details[0].message


@with_arm()
async def test_spot_machines_do_not_count_against_the_familys_quota(azure: Azure) -> None:
    azure.arm.quota.families["StandardNCADSA100v4Family"] = 0
    await azure.make(scaleSetPriority="Spot")


@pytest.mark.parametrize(
    ("properties", "code"),
    [
        ({}, "AllocationFailed"),
        ({"availabilityZones": ["1"]}, "ZonalAllocationFailed"),
        ({"scaleSetPriority": "Spot"}, "OverconstrainedAllocationRequest"),
        ({"scaleSetPriority": "Spot", "availabilityZones": ["1", "2"]}, "OverconstrainedZonalAllocationRequest"),
    ],
)
@with_arm()
async def test_missing_capacity_fails_the_operation_and_leaves_the_pool(
    azure: Azure, properties: dict[str, Any], code: str
) -> None:
    azure.arm.capacity.limit(GPU, 0)
    error = await azure.refused((await azure.put(**properties)).result())
    assert error.status_code == 200  # it is the answer to a poll
    assert (error.error.code, error.error.details[0].code) == ("ReconcileVMSSAgentPoolFailed", code)
    assert code in str(error.message)
    pool = await azure.get()
    assert (pool.provisioning_state, pool.status.provisioning_error.details[0].code) == ("Failed", code)
    assert azure.arm.vms() == []
    await azure.delete()
    assert azure.arm.pools() == {}


@with_arm()
async def test_a_failure_may_be_told_in_its_message_alone(azure: Azure) -> None:
    azure.arm.cloud.nested_details = False
    azure.arm.capacity.restrict(GPU)
    error = await azure.refused((await azure.put()).result())
    assert not error.error.details
    assert 'Code="SkuNotAvailable"' in str(error.message)


@with_arm()
async def test_the_same_put_tries_again_what_has_failed(azure: Azure) -> None:
    azure.arm.capacity.limit(GPU, 0)
    await azure.refused((await azure.put()).result())
    azure.arm.capacity.lift(GPU)
    await azure.make()
    assert (await azure.get()).provisioning_state == "Succeeded"
    assert len(azure.arm.vms()) == 1


@with_arm()
async def test_capacity_is_by_zone_and_a_pool_of_several_takes_what_there_is(azure: Azure) -> None:
    azure.arm.capacity.limit(GPU, 0, zone="1")
    azure.arm.capacity.limit(GPU, 1, zone="2")
    await azure.make("ws1", availabilityZones=["1", "2"])
    assert [vm.zone for vm in azure.arm.vms()] == ["2"]
    await azure.refused((await azure.put("ws2", availabilityZones=["1", "2"])).result())
    await azure.make("ws3", availabilityZones=["3"])


@with_arm()
async def test_a_pool_may_get_some_of_its_machines(azure: Azure) -> None:
    azure.arm.capacity.limit(GPU, 2)
    error = await azure.refused((await azure.put(count=3)).result())
    assert error.error.details[0].code == "AllocationFailed"
    assert ((await azure.get()).provisioning_state, len(azure.arm.vms())) == ("Failed", 2)
    await azure.delete()
    assert azure.arm.vms() == []


@with_arm()
async def test_capacity_comes_back_with_the_machines_that_go(azure: Azure) -> None:
    azure.arm.capacity.limit(GPU, 1)
    await azure.make("ws1")
    await azure.refused((await azure.put("ws2")).result())
    await azure.delete("ws1")
    await azure.make("ws2")


@with_arm()
async def test_any_failure_can_befall_an_operation(azure: Azure) -> None:
    failure = Failure("OriginalEtagNotExpect", "The operation was preempted by Deleting")
    azure.arm.faults.mishap("fails", pool="ws*", failure=failure)
    error = await azure.refused((await azure.put()).result())
    assert error.error.details[0].code == "OriginalEtagNotExpect"


# -- identity ----------------------------------------------------------------------------------------------------


@with_arm()
async def test_a_token_that_is_no_longer_good_is_refused(azure: Azure) -> None:
    await azure.names()
    azure.arm.issuer.revoke()
    error = await azure.refused(azure.get())
    assert isinstance(error, ClientAuthenticationError)
    assert error.error.code == "InvalidAuthenticationToken"


@with_arm()
async def test_a_right_that_the_identity_has_not_is_named(azure: Azure) -> None:
    azure.arm.issuer.denied.add("write")
    await azure.names()
    error = await azure.refused(azure.put())
    assert (error.status_code, error.error.code) == (403, "AuthorizationFailed")
    assert "Microsoft.ContainerService/managedClusters/agentPools/write" in str(error.message)


# -- throttling --------------------------------------------------------------------------------------------------


@with_arm()
async def test_twenty_puts_are_taken_at_once_and_then_one_a_minute(azure: Azure) -> None:
    for number in range(20):
        await azure.put(f"ws{number}")
    error = await azure.refused(azure.put("ws20", retry_total=0))
    assert (error.status_code, error.error.code) == (429, "Throttled")
    assert error.response is not None
    wait = int(error.response.headers["Retry-After"])
    assert 0 < wait <= 60
    await asyncio.sleep(wait)
    await azure.put("ws20")
    assert (await azure.refused(azure.put("ws21", retry_total=0))).status_code == 429


@with_arm()
async def test_the_sdk_waits_as_long_as_it_is_told(azure: Azure) -> None:
    for number in range(21):
        await azure.put(f"ws{number}")
    assert 59 <= now() <= 60
    assert azure.arm.requests.counts["put"] == 22


@with_arm()
async def test_other_requests_have_buckets_of_their_own(azure: Azure) -> None:
    for _ in range(60):
        await azure.names()
    error = await azure.refused(azure.pools.get(*azure.where, "system", **NO_RETRY))
    assert (error.status_code, error.error.code) == (429, "Throttled")
    await azure.put()


@with_arm()
async def test_the_subscription_has_a_limit_too(azure: Azure) -> None:
    for number in range(20):
        await azure.put(f"ws{number}")
    codes = [(await azure.refused(azure.put("another", **NO_RETRY))).error.code for _ in range(181)]
    assert codes[-2:] == ["Throttled", "SubscriptionRequestsThrottled"]


# -- the way there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "tries"), [(429, 2), (500, 2), (503, 2), (400, 1), (403, 1), (409, 1)])
@with_arm()
async def test_a_refusal_on_purpose_has_no_effect_and_is_what_the_sdk_makes_of_it(
    azure: Azure, status: int, tries: int
) -> None:
    fault = azure.arm.faults.refuse(status, "OnPurpose", on="put")
    if tries == 1:
        error = await azure.refused(azure.put())
        assert (error.status_code, error.error.code) == (status, "OnPurpose")
        assert azure.arm.pools() == {}
    else:
        await azure.put()
    assert fault.count == 1
    assert azure.arm.requests.counts["put"] == tries


@pytest.mark.parametrize("wrapped", [True, False])
@with_arm()
async def test_an_error_is_read_in_either_shape(azure: Azure, wrapped: bool) -> None:
    azure.arm.faults.refuse(400, "InsufficientSubnetSize", "no room", on="put", wrapped=wrapped)
    error = await azure.refused(azure.put())
    assert error.error.code == "InsufficientSubnetSize"


@pytest.mark.parametrize("after", [True, False])
@with_arm()
async def test_a_dropped_connection_looks_the_same_before_and_after(azure: Azure, after: bool) -> None:
    azure.arm.faults.drop(on="put", after=after)
    with pytest.raises(ServiceRequestError):
        await azure.put(**NO_RETRY)
    assert set(azure.arm.pools()) == ({"ws1"} if after else set())


@with_arm()
async def test_a_lost_put_may_come_twice(azure: Azure) -> None:
    azure.arm.faults.drop(on="put", after=True, resent=True)
    error = await azure.refused(azure.put(**NO_RETRY))
    assert "Creating) is in progress" in str(error.message)
    assert azure.arm.requests.counts["put"] == 2


@with_arm()
async def test_a_retry_of_the_sdks_gets_through(azure: Azure) -> None:
    azure.arm.faults.drop(on="list")
    assert await azure.names() == ["system"]
    assert azure.arm.requests.counts["list"] == 3


@with_arm()
async def test_what_hangs_ends_with_the_clients_patience(azure: Azure) -> None:
    azure.arm.faults.hold(on="get")
    with pytest.raises(ServiceResponseTimeoutError):
        await azure.pools.get(*azure.where, "system", read_timeout=10, retry_total=0)
    assert now() == 10


@with_arm()
async def test_a_held_request_goes_on_when_it_is_released(azure: Azure) -> None:
    fault = azure.arm.faults.hold(on="put", after=True)
    async with asyncio.TaskGroup() as group:
        putting = group.create_task(azure.put())
        await fault.struck.wait()
        assert set(azure.arm.pools()) == {"ws1"}
        await asyncio.sleep(30)
        assert not putting.done()
        fault.release()
    assert now() == 30


@with_arm()
async def test_a_fault_strikes_the_request_it_was_meant_for(azure: Azure) -> None:
    azure.arm.faults.refuse(400, "Second", on="put", pool="b*", skip=1)
    await azure.put("b1")
    await azure.put("a1")
    assert (await azure.refused(azure.put("b2"))).error.code == "Second"
    await azure.put("b3")


@with_arm()
async def test_slow_answers_are_slow(azure: Azure) -> None:
    azure.arm.faults.slow(7.0, on="list")
    await azure.names()
    assert now() == 7


@with_arm()
async def test_nothing_is_answered_while_the_cloud_is_down(azure: Azure) -> None:
    azure.arm.faults.down = True
    with pytest.raises(ServiceRequestError):
        await azure.pools.get(*azure.where, "system", **NO_RETRY)
    azure.arm.faults.clear()
    await azure.names()


@with_arm()
async def test_a_stuck_creation_ends_only_when_it_is_aborted(azure: Azure) -> None:
    azure.arm.faults.mishap("stuck-creating")
    await azure.put()
    await asyncio.sleep(86_400)
    assert (await azure.get()).provisioning_state == "Creating"
    assert (await azure.refused(azure.pools.begin_delete(*azure.where, "ws1"))).status_code == 409
    await (await azure.pools.begin_abort_latest_operation(*azure.where, "ws1")).result()
    await azure.delete()


@with_arm()
async def test_a_stuck_deletion_can_be_aborted_and_tried_again(azure: Azure) -> None:
    await azure.make()
    azure.arm.faults.mishap("stuck-deleting")
    await azure.pools.begin_delete(*azure.where, "ws1")
    await asyncio.sleep(86_400)
    assert (await azure.get()).provisioning_state == "Deleting"
    await (await azure.pools.begin_abort_latest_operation(*azure.where, "ws1")).result()
    await azure.delete()
    assert azure.arm.vms() == []
