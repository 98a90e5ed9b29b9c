"""The aks backend as a whole, through the real SDK, against the local ARM in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from kaito_api.core import Taint
from kaito_api.karpenter import Requirement
from kaito_ctrl.testing.virtualtime import run_virtual
from kaito_provisioner.aks import AksCloud
from kaito_provisioner.aks.errors import ClusterNotFound, NoRoom
from kaito_provisioner.cloud import (
    ClaimRef,
    Conflict,
    Instance,
    InsufficientCapacity,
    LaunchRequest,
    NotFound,
    Offering,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unavailable,
    UnknownInstanceType,
)
from kaito_provisioner.conformance.bench import Fault
from kaito_provisioner.testing.messages import Answer, Request
from tests.unit.provisioner.aksbench import TYPES, AksBench, aks_bench

SMALL, LARGE = (Offering(each) for each in TYPES)
Test = Callable[[AksBench, AksCloud], Awaitable[None]]


def on_bench(test: Test) -> None:
    async def main() -> None:
        async with aks_bench() as bench:
            await test(bench, await bench.provider())

    run_virtual(main())


def request(name: str = "ws1", uid: str = "uid-1", offering: Offering = SMALL, **fields: object) -> LaunchRequest:
    base = LaunchRequest(name, uid, (offering.instance_type,), (offering,), labels={"kaito.sh/workspace": "w"})
    return replace(base, **fields)  # type: ignore[arg-type]


def claim(name: str = "ws1", uid: str = "uid-1", *, provider_id: str = "", operation: str = "") -> ClaimRef:
    return ClaimRef(name, uid, provider_id, operation)


# -- create ----------------------------------------------------------------------------------------------------------


def test_a_claim_becomes_a_pool_of_one_machine_that_carries_its_name() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        made = await cloud.create(
            request(
                disk=100 * 2**30 + 1,
                taints=(Taint(key="sku", value="gpu", effect="NoSchedule"),),
                startup_taints=(Taint(key="starting", effect="NoExecute"),),
                requirements=(Requirement(key="kubernetes.azure.com/os-sku", operator="In", values=("AzureLinux",)),),
            )
        )
        pool = bench.arm.pools()["ws1"]
        assert made.state == "Creating"
        assert made.operation
        assert made.node_labels == {"agentpool": "ws1", "kaito.sh/claim-uid": "uid-1"}
        assert pool.properties["count"] == 1
        assert pool.properties["vmSize"] == SMALL.instance_type
        assert pool.properties["osDiskSizeGB"] == 101
        assert pool.properties["osSKU"] == "AzureLinux"
        assert pool.properties["nodeTaints"] == ["sku=gpu:NoSchedule", "starting=:NoExecute"]
        assert pool.properties["nodeLabels"]["kaito.sh/workspace"] == "w"
        assert pool.tags["kaito.sh_claim-uid"] == "uid-1"
        await bench.elapse(300)
        found = await cloud.find(claim(operation=made.operation))
        assert (found.state, found.operation) == ("Running", "")
        assert len(bench.arm.vms()) == 1

    on_bench(test)


def test_a_creation_is_answered_while_the_machine_is_still_being_made() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        before = bench.clock.monotonic()
        await cloud.create(request())
        assert bench.clock.monotonic() == before

    on_bench(test)


def test_a_creation_asked_for_again_answers_with_what_is_there() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        await cloud.create(request())
        again = await cloud.create(request())
        other = await (await bench.provider()).create(request(offering=LARGE))
        assert again.claim_uid == other.claim_uid == "uid-1"
        assert other.instance_type == SMALL.instance_type
        assert bench.arm.requests.counts["put"] == 1

    on_bench(test)


def test_a_creation_whose_answer_was_lost_is_adopted_by_the_next_process() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.fail(Fault.LOST, nth=2)  # after the list
        with pytest.raises(Unavailable) as lost:
            await cloud.create(request())
        assert lost.value.ambiguous
        found = await (await bench.provider()).find(claim())
        assert found.state == "Creating"
        assert (await (await bench.provider()).create(request())).claim_uid == "uid-1"
        assert bench.arm.requests.counts["put"] == 1

    on_bench(test)


def test_a_creation_that_cannot_be_seen_yet_is_adopted_when_it_stands_in_the_way() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.lag(30.0)
        await cloud.create(request())
        late = await bench.provider()
        with pytest.raises(Conflict) as busy:  # the service knows it, and shows it to nobody
            await late.create(request())
        assert busy.value.retry_after
        await bench.elapse(40)
        assert (await late.create(request())).claim_uid == "uid-1"
        assert len(bench.arm.pools()) == 1

    on_bench(test)


def test_what_is_known_not_to_have_been_sent_is_not_in_doubt() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.fail(Fault.UNREACHABLE, nth=2)
        with pytest.raises(Unavailable) as refused:
            await cloud.create(request())
        assert not refused.value.ambiguous

    on_bench(test)


def test_a_pool_of_somebody_else_is_neither_changed_nor_deleted() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        await bench.foreign("ws1")
        before = dict(bench.arm.pools()["ws1"].properties)
        with pytest.raises(Conflict) as conflict:
            await cloud.create(request())
        assert "somebody else" in conflict.value.message
        assert "az aks nodepool delete" in conflict.value.fix
        assert await cloud.list() == ()
        with pytest.raises(NotFound):
            await cloud.find(claim())
        with pytest.raises(NotFound):
            await cloud.delete(replace(await _made(cloud, "ws2"), name="ws1", claim_uid="uid-1"))
        assert bench.arm.pools()["ws1"].properties == before

    on_bench(test)


def test_a_pool_that_was_taken_between_the_list_and_the_request_is_not_overwritten() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        await _running(bench, await bench.provider(), "uid-0")
        bench.arm.api.list_lag = 1000.0  # and it is idle by now: a plain PUT would change it
        before = dict(bench.arm.pools()["ws1"].properties)
        with pytest.raises(Conflict) as conflict:
            await cloud.create(request())
        assert "uid-0" in conflict.value.message
        assert bench.arm.pools()["ws1"].properties == before
        assert [entry.status for entry in bench.arm.requests.log if entry.call == "put"] == [201, 412]

    on_bench(test)


def test_a_name_whose_earlier_pool_is_still_going_is_waited_for() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        await cloud.delete(await _running(bench, cloud, uid="uid-0"))
        with pytest.raises(Conflict) as conflict:
            await cloud.create(request())
        assert conflict.value.retry_after
        await bench.elapse(300)
        assert (await cloud.create(request())).state == "Creating"

    on_bench(test)


async def _made(cloud: AksCloud, name: str, uid: str = "other") -> Instance:
    return await cloud.create(request(name, uid))


async def _running(bench: AksBench, cloud: AksCloud, uid: str = "uid-1") -> Instance:
    made = await cloud.create(request(uid=uid))
    await bench.elapse(300)
    return await cloud.find(claim(uid=uid, operation=made.operation))


# -- what can be missing ---------------------------------------------------------------------------------------------


def test_quota_that_aks_finds_missing_at_once_is_the_offerings_refusal() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.shortage(SMALL, "quota")
        with pytest.raises(QuotaExceeded) as refused:
            await cloud.create(request())
        assert refused.value.offering == SMALL
        assert not bench.arm.pools()

    on_bench(test)


@pytest.mark.parametrize(("what", "error"), [("quota", QuotaExceeded), ("capacity", InsufficientCapacity)])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("old_api", [True, False])
def test_what_is_found_missing_while_the_machine_is_made_is_the_instances_error(
    what: str, error: type[Exception], nested: bool, old_api: bool
) -> None:
    async def test(bench: AksBench, _: AksCloud) -> None:
        bench.arm.cloud.nested_details = nested
        if old_api:
            # Those do not tell why a pool has failed: the operation does.
            bench.settings = replace(bench.settings, api_version="2024-09-01")
        cloud = await bench.provider()
        bench.shortage(SMALL, what, late=True)  # type: ignore[arg-type]
        made = await cloud.create(request())
        await bench.elapse(120)
        # By another process, from what the first has left in the cluster.
        found = await (await bench.provider()).find(claim(operation=made.operation))
        assert found.state == "Failed"
        assert isinstance(found.error, error)
        assert found.error.offering == SMALL  # type: ignore[union-attr]
        assert found.error.fix
        if not old_api:
            listed = await cloud.list()
            assert isinstance(listed[0].error, error)

    on_bench(test)


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AuthorizationFailed"), (400, "InvalidApiVersionParameter"), (410, "Gone")]
)
def test_an_operation_that_may_not_be_asked_about_hides_nothing_of_its_pool(status: int, code: str) -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.shortage(SMALL, "capacity", late=True)
        made = await cloud.create(request())
        await bench.elapse(120)
        bench.arm.faults.refuse(status, code, on="operation", times=100)
        failed = await cloud.find(claim(operation=made.operation))
        assert failed.state == "Failed"
        assert isinstance(failed.error, InsufficientCapacity)
        await cloud.delete(failed)
        await bench.elapse(300)
        with pytest.raises(NotFound):
            await cloud.find(claim(operation=made.operation))

    on_bench(test)


def test_a_pool_that_failed_is_deleted_like_any_other() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.shortage(SMALL, "capacity", late=True)
        made = await cloud.create(request())
        await bench.elapse(120)
        failed = await cloud.find(claim(operation=made.operation))
        await cloud.delete(failed)
        await bench.elapse(300)
        with pytest.raises(NotFound):
            await cloud.find(claim(operation=failed.operation))
        assert not bench.arm.pools()

    on_bench(test)


def test_a_size_that_the_subscription_may_not_have_is_unknown_here() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        nowhere = Offering("Standard_Nowhere_v1")
        with pytest.raises(UnknownInstanceType) as refused:
            await cloud.create(request(offering=nowhere))
        assert "is not allowed in your subscription in location" in refused.value.message
        assert refused.value.offering == nowhere

    on_bench(test)


def test_the_hundredth_pool_is_the_clusters_limit_and_no_offerings() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        for number in range(99):
            bench.arm.add_pool(f"u{number}", "Standard_D2s_v5")
        with pytest.raises(NoRoom):
            await cloud.create(request())

    on_bench(test)


def test_spot_machines_in_given_zones_are_asked_for_as_such() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        made = await cloud.create(request(offering=Offering(TYPES[0], "spot", ("eastus-2",))))
        properties = bench.arm.pools()["ws1"].properties
        assert properties["scaleSetPriority"] == "Spot"
        assert properties["scaleSetEvictionPolicy"] == "Delete"
        assert properties["spotMaxPrice"] == -1
        assert properties["availabilityZones"] == ["2"]
        assert made.offering == Offering(TYPES[0], "spot", ("eastus-2",))
        assert made.labels["topology.kubernetes.io/zone"] == "eastus-2"
        assert made.labels["karpenter.sh/capacity-type"] == "spot"

    on_bench(test)


# -- find and list ---------------------------------------------------------------------------------------------------


def test_a_list_that_is_old_is_never_the_last_word_on_a_missing_pool() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        assert await cloud.list() == ()
        await (await bench.provider()).create(request())
        assert (await cloud.find(claim())).state == "Creating"

    on_bench(test)


def test_what_was_just_made_is_there_although_no_list_shows_it() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.lag(30.0)
        await cloud.create(request())
        await bench.elapse(10)
        assert (await cloud.find(claim())).state == "Creating"
        assert [each.claim_uid for each in await cloud.list()] == ["uid-1"]

    on_bench(test)


def test_a_pool_that_cannot_be_seen_is_being_made_as_long_as_its_operation_runs() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.lag(55.0)
        made = await cloud.create(request())
        other = await bench.provider()
        found = await other.find(claim(operation=made.operation))
        assert (found.state, found.instance_type) == ("Creating", SMALL.instance_type)
        assert found.operation == made.operation
        with pytest.raises(Conflict):
            await other.delete(found)
        await bench.elapse(60)
        assert (await other.find(claim(operation=made.operation))).state == "Creating"

    on_bench(test)


def test_an_operation_that_is_garbage_or_somebody_elses_is_ignored() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        other = await cloud.create(request("ws2", "uid-2"))
        for operation in ("garbage", "aks1:garbage", other.operation):
            with pytest.raises(NotFound):
                await cloud.find(claim(operation=operation))
        assert not bench.arm.requests.counts["operation"]

    on_bench(test)


def test_a_failed_pool_whose_node_has_joined_is_running() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        running = await _running(bench, cloud)
        provider_id = bench.arm.vms()[0].provider_id
        # Somebody scales the pool by hand, and there is no second machine to be had.
        bench.arm.capacity.limit(SMALL.instance_type, 1)
        body = {"properties": {**bench.arm.pools()["ws1"].properties, "count": 2}}
        async with bench.arm.client() as client:
            cluster = bench.arm.cluster
            await client.agent_pools.begin_create_or_update(cluster.resource_group, cluster.name, "ws1", body)
        await bench.elapse(90)
        assert bench.arm.pools()["ws1"].state == "Failed"
        assert (await cloud.find(claim(provider_id=provider_id))).state == "Running"
        assert (await cloud.get(provider_id)).state == "Running"
        assert (await cloud.find(claim())).state == "Failed"
        assert running.state == "Running"

    on_bench(test)


def test_a_machine_is_found_by_its_provider_id_in_whatever_case() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        await _running(bench, cloud)
        provider_id = bench.arm.vms()[0].provider_id
        for text in (provider_id, provider_id.replace("virtualMachineScaleSets", "virtualmachinescalesets")):
            found = await cloud.get(text)
            assert (found.name, found.provider_id) == ("ws1", text)
        for text in ("", "kind://ws1", "azure:///subscriptions/s/virtualMachines/alone"):
            with pytest.raises(NotFound):
                await cloud.get(text)

    on_bench(test)


def test_a_claim_that_gpu_provisioner_has_served_keeps_its_pool_and_takes_it_along() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        for name in ("ws1", "ws2"):
            labels = {"karpenter.sh/nodepool": "kaito", "kaito.sh/workspace": "w", "kaito.sh/machine-type": "gpu"}
            bench.arm.add_pool(name, SMALL.instance_type, nodeLabels=labels)
        assert await cloud.list() == ()  # nobody has asked for one yet
        found = await cloud.find(claim())
        assert (found.state, found.claim_uid, found.node_labels) == ("Running", "uid-1", {"agentpool": "ws1"})
        assert [each.claim_uid for each in await cloud.list()] == ["uid-1"]
        with pytest.raises(NotFound):
            await cloud.find(claim(uid="uid-9"))
        assert (await cloud.create(request())).state == "Running"
        await cloud.delete(found)
        await bench.elapse(300)
        assert set(bench.arm.pools()) == {"ws2"}
        with pytest.raises(NotFound):
            await cloud.delete(found)

    on_bench(test)


@pytest.mark.parametrize("tag", ["kaito.sh_cluster", "kaito.sh_claim-uid", "kaito.sh_claim-kind"])
def test_a_policy_that_rewrites_tags_makes_no_pool_nobodys(tag: str) -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        await _running(bench, cloud)
        bench.arm.pools()["ws1"].properties["tags"][tag] = "inherited"
        late = await bench.provider()
        assert [(each.claim_uid, each.claim_kind) for each in await late.list()] == [("uid-1", "Machine")]
        found = await late.find(claim())
        with pytest.raises(NotFound, match="the Machine of uid uid-1, and not to this claim"):
            await late.find(claim(uid="uid-2"))
        await late.delete(found)
        await bench.elapse(300)
        assert not bench.arm.pools()

    on_bench(test)


def test_a_missing_cluster_is_no_missing_pool() -> None:
    async def test(bench: AksBench, _: AksCloud) -> None:
        for settings in (
            replace(bench.settings, cluster="gone"),
            replace(bench.settings, resource_group="gone"),
            replace(bench.settings, subscription="99999999-0000-0000-0000-000000000000"),
        ):
            bench.settings = settings
            cloud = await bench.provider()
            for call in (cloud.find(claim()), cloud.list(), cloud.create(request())):
                with pytest.raises(ClusterNotFound) as gone:
                    await call  # type: ignore[misc]
                assert "AZURE_CLUSTER_NAME" in gone.value.fix

    on_bench(test)


def test_a_full_cluster_comes_and_goes_without_one_refusal_by_the_service() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        log = bench.arm.requests
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_insist(cloud, n)) for n in range(99)]
        instances = [task.result() for task in tasks]
        await bench.elapse(300)

        log.clear()
        async with asyncio.TaskGroup() as group:
            for each in instances:
                group.create_task(cloud.find(claim(each.name, each.claim_uid, operation=each.operation)))
        assert log.counts == {"list": 2}  # two pages of fifty, and no request for any one pool

        async def delete(instance: Instance) -> None:
            wait = 0.0
            while True:
                await asyncio.sleep(wait)
                try:
                    instance, wait = await cloud.delete(instance), 10.0
                except NotFound:
                    return
                except Throttled as error:
                    wait = error.retry_after or 0.0

        log.clear()
        before = bench.clock.monotonic()
        async with asyncio.TaskGroup() as group:
            for each in instances:
                group.create_task(delete(each))
        took = bench.clock.monotonic() - before
        assert not bench.arm.pools()
        # Each is asked to go once, and looked at once when it is gone; the rest is lists for all, one in five seconds.
        assert (log.counts["delete"], log.counts["get"]) == (99, 99)
        assert log.counts["list"] <= 2 * (took / 5 + 1)
        assert took < 300
        assert not any(entry.status == 429 for entry in log.log)

    on_bench(test)


async def _insist(cloud: AksCloud, number: int) -> Instance:
    """As a controller does that is told to wait."""
    while True:
        try:
            return await cloud.create(request(f"ws{number}", f"uid-{number}"))
        except Throttled as error:
            await asyncio.sleep(error.retry_after or 0.0)


# -- delete ----------------------------------------------------------------------------------------------------------


def test_a_deletion_goes_on_until_the_service_says_that_the_pool_is_gone() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        instance = await _running(bench, cloud)
        states = []
        try:
            while True:
                instance = await cloud.delete(instance)
                states.append(instance.state)
                await bench.elapse(10)
        except NotFound:
            pass
        assert set(states) == {"Deleting"}
        assert not bench.arm.pools()
        assert bench.arm.requests.counts["delete"] == 1

    on_bench(test)


def test_a_pool_that_is_being_made_is_aborted_once_and_then_deleted() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.arm.faults.mishap("stuck-creating")
        instance = await cloud.create(request())
        waits: list[float | None] = []
        for _ in range(60):
            try:
                await cloud.delete(instance)
            except Conflict as error:
                waits.append(error.retry_after)
            except NotFound:
                break
            await bench.elapse(10)
        assert waits
        assert all(waits)
        assert not bench.arm.pools()
        assert bench.arm.requests.counts["abort"] == 1

    on_bench(test)


def test_an_abort_that_was_refused_is_tried_again_as_long_as_the_creation_hangs() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.arm.faults.mishap("stuck-creating")
        bench.arm.faults.refuse(403, "AuthorizationFailed", on="abort")
        instance = await cloud.create(request())
        for _ in range(90):
            try:
                await cloud.delete(instance)
            except Conflict:
                pass
            except NotFound:
                break
            await bench.elapse(10)
        assert not bench.arm.pools()
        assert bench.arm.requests.counts["abort"] == 2

    on_bench(test)


def test_a_pool_that_took_the_name_since_is_left_alone() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        old = await _running(bench, cloud, "uid-0")
        other = await bench.provider()
        await other.delete(old)
        await bench.elapse(300)
        await other.create(request())
        with pytest.raises(NotFound):
            await cloud.delete(old)
        # And also if the list that it was seen on is older than that.
        assert bench.arm.pools()["ws1"].state == "Creating"
        assert not any(entry.call == "delete" and entry.status == 412 for entry in bench.arm.requests.log)

    on_bench(test)


def test_a_name_that_changes_hands_after_the_list_is_protected_by_its_etag() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        old = await _running(bench, cloud, "uid-0")
        bench.arm.api.list_lag = 59.0
        await cloud.list()
        other = await bench.provider()
        await other.delete(old)
        while "ws1" in bench.arm.pools():
            await bench.elapse(5)
        await other.create(request())
        bench.arm.api.list_lag = 250.0  # so far behind that the list still shows the old one
        with pytest.raises(NotFound):
            await cloud.delete(old)
        assert bench.arm.pools()["ws1"].tags["kaito.sh_claim-uid"] == "uid-1"
        assert any(entry.call == "delete" and entry.status == 412 for entry in bench.arm.requests.log)

    on_bench(test)


# -- limits and rights -----------------------------------------------------------------------------------------------


def test_the_services_limit_on_creations_is_kept_and_everybody_is_told_their_place() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        waits: list[float] = []
        texts: list[str] = []
        for number in range(30):
            try:
                await cloud.create(request(f"ws{number}", f"uid-{number}"))
            except Throttled as error:
                waits.append(error.retry_after or 0.0)
                texts.append(error.message)
        assert len(bench.arm.pools()) == 20
        assert texts[2] == "3 of 3 in the queue for AKS's limit on creations of agent pools, 3 min 0 s to go"
        assert waits == [max(60.0, 15.0 * (n + 1)) for n in range(10)]  # those with long to wait look in meanwhile
        assert not any(entry.status == 429 for entry in bench.arm.requests.log)

    on_bench(test)


def test_all_of_a_crowd_get_their_pools_without_one_refusal_by_the_service() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(_insist(cloud, number))
        assert len(bench.arm.pools()) == 60
        assert bench.clock.monotonic() == pytest.approx(40 * 60.0, abs=1.0)
        assert not any(entry.status == 429 for entry in bench.arm.requests.log)
        assert bench.arm.requests.counts["put"] == 60

    on_bench(test)


def test_a_throttle_of_the_services_own_keeps_the_claims_place() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.fail(Fault.THROTTLED, nth=2)
        with pytest.raises(Throttled) as first:
            await cloud.create(request())
        assert first.value.retry_after == 120.0
        with pytest.raises(Throttled) as second:
            await cloud.create(request("ws2", "uid-2"))
        assert second.value.message.endswith("3 min 0 s to go")
        assert bench.arm.requests.counts["put"] == 0
        await bench.elapse(120)
        await cloud.create(request())

    on_bench(test)


def test_a_throttled_list_is_not_asked_for_again_before_its_time() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.fail(Fault.THROTTLED)
        for wait in (120.0, 110.0):
            with pytest.raises(Throttled) as error:
                await cloud.list()
            assert error.value.retry_after == pytest.approx(wait)
            await bench.elapse(10)
        assert bench.calls == 1

    on_bench(test)


def test_nothing_is_retried_behind_the_callers_back() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.arm.faults.refuse(503, "ServiceUnavailable", on="list", times=100, retry_after=7)
        before = bench.clock.monotonic()
        with pytest.raises(Unavailable) as error:
            await cloud.list()
        assert not error.value.ambiguous
        assert error.value.retry_after == 7.0
        assert bench.arm.requests.counts == {"list": 1}
        assert bench.clock.monotonic() == before

    on_bench(test)


def test_a_right_that_is_missing_is_said_with_the_role_that_has_it() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.arm.issuer.denied.add("write")
        with pytest.raises(Unauthorized) as error:
            await cloud.create(request())
        assert "AuthorizationFailed" in error.value.message
        assert "Contributor" in error.value.fix

    on_bench(test)


def test_a_request_that_is_never_answered_is_given_up() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.arm.faults.hold(on="put", after=True)
        with pytest.raises(Unavailable) as error:
            await cloud.create(request())
        assert error.value.ambiguous
        assert bench.clock.monotonic() <= 90.0
        assert (await cloud.find(claim())).state == "Creating"

    on_bench(test)


def test_every_request_says_who_asks() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        answer, names = bench.answer, []

        async def watch(request: Request, fault: Fault | None) -> Answer:
            names.append(request.headers["user-agent"])
            return await answer(request, fault)

        bench.answer = watch  # type: ignore[method-assign]
        await cloud.delete(await _running(bench, cloud))
        assert len(names) > 3
        assert all(each.startswith("kaito-ctrl/") for each in names)

    on_bench(test)


def test_a_link_that_leads_to_another_host_is_not_followed() -> None:
    async def test(bench: AksBench, cloud: AksCloud) -> None:
        bench.arm.base_url = "https://elsewhere.example"
        bench.arm.api.page_size = 1
        bench.arm.add_pool("u1", "Standard_D2s_v5")
        answer = bench.answer

        async def astray(request: Request, fault: Fault | None) -> Answer:
            given = await answer(request, fault)
            if isinstance(given.body, dict) and "nextLink" in given.body:
                given.body["nextLink"] = "https://elsewhere.example/agentPools?$skiptoken=1"
            return given

        bench.answer = astray  # type: ignore[method-assign]
        with pytest.raises(Unavailable) as error:
            await cloud.list()
        assert "elsewhere.example" in error.value.message
        assert bench.calls == 1

    on_bench(test)
