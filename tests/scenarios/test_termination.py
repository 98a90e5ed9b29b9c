"""The end of a claim, in the stated order, whatever stands in its way."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import timedelta

import pytest

from kaito_api.core import Node
from kaito_api.karpenter import (
    DISRUPTED_TAINT,
    DO_NOT_DISRUPT_ANNOTATION,
    DO_NOT_EVICT_ANNOTATION,
    LAUNCHING_ANNOTATION,
    OPERATION_ANNOTATION,
    TERMINATION_FINALIZER,
    TERMINATION_TIMESTAMP_ANNOTATION,
    Machine,
    NodeClaim,
    NodeRequest,
)
from kaito_api.meta import rfc3339
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.codec import encode_json
from kaito_ctrl.runtime.errors import DecodeError
from kaito_ctrl.runtime.transport import Request, Response
from kaito_provisioner import ClaimRef, CloudError, Conflict, Instance, NotFound, Throttled, Unavailable
from tests.scenarios.ending import BOOT, NAME, SHUTDOWN, Scene, ending
from tests.scenarios.kubelet import GRACE

KINDS = (Machine, NodeClaim)
PROMPT = 5.0
"""Seconds beside what the outside takes."""
KEY = ObjectKey("", NAME)
FOREVER = [
    {"key": each, "operator": "Exists"} for each in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
]


@pytest.mark.parametrize("kind", KINDS)
@ending()
async def test_a_claim_ends_in_order(scene: Scene, kind: type[NodeRequest]) -> None:
    await scene.up()
    await scene.pod("web")
    began = scene.now
    await scene.delete()
    assert await scene.until_gone(GRACE + SHUTDOWN + PROMPT) > SHUTDOWN
    assert scene.did(began) == [
        "PATCH nodes/ws1",
        "DELETE nodes/ws1",
        "POST namespaces/default/pods/web/eviction",
        f"PATCH {kind.plural}/ws1/status",
        "CLOUD delete ws1",
        f"PATCH {kind.plural}/ws1/status",
        "PATCH nodes/ws1",
        f"PATCH {kind.plural}/ws1",
    ]
    closing = next(each.body for each in scene.steps if each.what == "nodes/ws1")
    assert DISRUPTED_TAINT.to_wire() in closing["spec"]["taints"]
    assert closing["metadata"]["labels"] == {"node.kubernetes.io/exclude-from-external-load-balancers": "karpenter"}
    assert {"uid", "resourceVersion"} < set(closing["metadata"]), "one patch, for the node as it was read"


@pytest.mark.parametrize("kind", KINDS)
@ending()
async def test_each_stage_of_the_end_is_said_on_the_claim_and_each_only_once(
    scene: Scene, kind: type[NodeRequest]
) -> None:
    await scene.up()
    await scene.pod("web")
    await scene.delete()
    await asyncio.sleep(1)
    waiting = "False" if kind is Machine else "Unknown"
    assert await scene.said("Drained") == (waiting, "Draining", "1 pod is waiting to be evicted")
    await asyncio.sleep(GRACE + 2)
    assert [(await scene.said(each))[0] for each in ("Drained", "VolumesDetached", "InstanceTerminating")] == [
        "True"
    ] * 3
    await scene.until_gone(SHUTDOWN + PROMPT)
    assert len([each for each in scene.steps if each.what.endswith("/status")]) == 2
    assert [each.note for each in await scene.events("Evicted")] == ["Evicted pod: Forceful Termination"]
    samples = {
        sample.name: sample.value
        for family in scene.figures.registry.collect()
        for sample in family.samples
        if sample.labels.get("code", "201") == "201"
    }
    assert samples["karpenter_nodes_drained_total"] == samples["karpenter_nodes_eviction_requests_total"] == 1
    assert samples[f"karpenter_{kind.plural}_instance_termination_duration_seconds_count"] == 1
    assert SHUTDOWN < samples[f"karpenter_{kind.plural}_instance_termination_duration_seconds_sum"] < SHUTDOWN + 4


# -- pods --------------------------------------------------------------------------------------------------------------


@ending()
async def test_a_disruption_budget_that_holds_for_an_hour_is_heard_for_an_hour(scene: Scene) -> None:
    await scene.up()
    await scene.pod("web")
    await scene.pod("other")
    await scene.budget("web", 0)
    await scene.delete()
    await asyncio.sleep(3600)
    assert await scene.pods() == ["web"], "what the budget does not protect has gone"
    assert scene.cloud.calls.get("delete", 0) == 0
    assert await scene.said("Drained") == ("Unknown", "Draining", "1 pod is waiting to be evicted")
    assert len([each for each in scene.steps if each.what.endswith("web/eviction")]) < 500
    held = await scene.events("FailedDraining")
    assert [(each.regarding.kind, each.regarding.name) for each in held] == [("Node", NAME)], "one series, no flood"
    assert "violates a PDB" in held[0].note
    assert scene.asked == [], "as long as pods run, the cloud need not be asked"
    await scene.budget("web", 1)
    await scene.until_gone(10 + GRACE + SHUTDOWN + PROMPT)


@pytest.mark.parametrize("annotation", [DO_NOT_DISRUPT_ANNOTATION, DO_NOT_EVICT_ANNOTATION])
@ending()
async def test_a_pod_that_must_not_be_disrupted_is_waited_for_until_the_deadline(scene: Scene, annotation: str) -> None:
    await scene.up(spec={"terminationGracePeriod": "1h"})
    await scene.pod("training", metadata={"annotations": {annotation: "true"}}, terminationGracePeriodSeconds=600)
    await scene.budget("training", 0)
    await scene.delete()
    await asyncio.sleep(2)
    claim = await scene.user.get(NodeClaim, NAME)
    deletion = claim.metadata.deletion_timestamp
    assert deletion is not None
    deadline = rfc3339(deletion + timedelta(hours=1))
    assert claim.metadata.annotations[TERMINATION_TIMESTAMP_ANNOTATION] == deadline
    told = await scene.events("TerminationGracePeriodExpiring")
    assert {each.regarding.kind for each in told} == {"NodeClaim", "Node"}
    assert all(deadline in each.note for each in told)
    await asyncio.sleep(3600 - 600 - 30)
    assert await scene.pods() == ["training"]
    assert not [each for each in scene.steps if each.what.endswith("/eviction")]
    await asyncio.sleep(45)
    assert await scene.pods() == [], "with its whole grace period, it would be done at the deadline"
    [request] = [each for each in scene.steps if each.what.endswith("pods/training")]
    assert 590 <= request.body["gracePeriodSeconds"] <= 600
    assert len(await scene.events("Disrupted")) == 1
    await scene.until_gone(GRACE + SHUTDOWN + PROMPT)


@ending()
async def test_without_a_deadline_it_is_waited_for_until_it_ends_by_itself(scene: Scene) -> None:
    await scene.up()
    await scene.pod("training", metadata={"annotations": {DO_NOT_DISRUPT_ANNOTATION: "true"}})
    await scene.delete()
    await asyncio.sleep(24 * 3600)
    assert await scene.pods() == ["training"]
    assert "is annotated karpenter.sh/do-not-disrupt" in (await scene.events("FailedDraining"))[0].note
    await scene.finish("training")
    await scene.until_gone(10 + SHUTDOWN + PROMPT)


@pytest.mark.parametrize("kind", KINDS)
@ending()
async def test_a_deadline_that_has_passed_before_the_deletion_asks_nobody(
    scene: Scene, kind: type[NodeRequest]
) -> None:
    """As the repair of an unhealthy node has it, for both kinds."""
    past = {TERMINATION_TIMESTAMP_ANNOTATION: rfc3339(scene.wall)}
    await scene.up(annotations=past)
    await scene.pod("training", metadata={"annotations": {DO_NOT_DISRUPT_ANNOTATION: "true"}})
    await scene.pod("web", priorityClassName="system-cluster-critical")
    await scene.budget("web", 0)
    await _attach(scene, "disk")
    await scene.delete()
    await scene.until_gone(GRACE + SHUTDOWN + PROMPT)
    grace = {
        each.what: each.body.get("gracePeriodSeconds") for each in scene.steps if each.what.startswith("namespaces")
    }
    assert grace == {"namespaces/default/pods/training": 1, "namespaces/default/pods/web": 1}


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-13-01T00:00:00Z"])
@ending()
async def test_a_deadline_that_is_none_is_no_deadline(scene: Scene, text: str) -> None:
    await scene.up(annotations={TERMINATION_TIMESTAMP_ANNOTATION: text})
    await scene.pod("web")
    await scene.budget("web", 0)
    await scene.delete()
    await asyncio.sleep(60)
    assert await scene.pods() == ["web"]
    await scene.budget("web", 1)
    await scene.until_gone(10 + GRACE + SHUTDOWN + PROMPT)


@ending()
async def test_pods_go_in_groups_and_the_critical_ones_last(scene: Scene) -> None:
    await scene.up()
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d", "controller": True}
    daemon = {"ownerReferences": [owner]}
    critical = {"priorityClassName": "system-node-critical"}
    await scene.pod("a-critical-daemon", metadata=daemon, **critical)
    await scene.pod("b-critical", **critical)
    await scene.pod("c-daemon", metadata=daemon)
    await scene.pod("d-plain")
    await scene.pod("e-plain")
    await scene.delete()
    await scene.until_gone(4 * (GRACE + 2) + SHUTDOWN + PROMPT)
    evicted = [(each.what.split("/")[-2], each.at) for each in scene.steps if each.what.endswith("/eviction")]
    assert [name for name, _ in evicted] == ["d-plain", "e-plain", "c-daemon", "b-critical", "a-critical-daemon"]
    moments = [at for _, at in evicted]
    assert moments[1] - moments[0] < 0.5
    assert all(later - earlier >= GRACE for earlier, later in itertools.pairwise(moments[1:]))


@ending()
async def test_pods_that_stay_to_the_end_hold_up_nothing(scene: Scene) -> None:
    await scene.up()
    await scene.pod("agent", tolerations=[{"operator": "Exists"}])
    await scene.pod("static", metadata={"annotations": {"kubernetes.io/config.mirror": "x"}})
    await scene.pod("done")
    await scene.finish("done")
    await scene.delete()
    await scene.until_gone(SHUTDOWN + PROMPT)
    assert not [each for each in scene.steps if each.what.endswith("/eviction")]


@ending()
async def test_a_pod_that_never_ends_is_given_up_a_minute_after_its_grace_period(scene: Scene) -> None:
    await scene.up()
    await scene.pod("stuck", metadata={"finalizers": ["example.com/stuck"]}, terminationGracePeriodSeconds=30)
    await scene.delete()
    took = await scene.until(lambda: _asked_to_delete(scene), GRACE + 60 + PROMPT + 10)
    assert took > 60


async def _asked_to_delete(scene: Scene) -> bool:
    return bool(scene.cloud.calls.get("delete"))


# -- a silent node -----------------------------------------------------------------------------------------------------


@ending()
async def test_the_pods_of_a_silent_node_have_the_time_that_kubernetes_gives_them(scene: Scene) -> None:
    await scene.up()
    await scene.pod("protected", metadata={"annotations": {DO_NOT_DISRUPT_ANNOTATION: "true"}}, tolerations=FOREVER)
    scene.kubelet.fall_silent(NAME)
    await scene.until(lambda: scene.node_is(NAME, "Unknown"), 60)
    await scene.delete()
    await asyncio.sleep(280)
    assert not await _asked_to_delete(scene), "most silences are shorter"
    await scene.until(lambda: _asked_to_delete(scene), 30)
    await asyncio.sleep(1)
    status, reason, message = await scene.said("Drained")
    assert (status, reason) == ("False", "NodeNotReady")
    assert NAME in message
    await scene.until_gone(SHUTDOWN + PROMPT)


@ending()
async def test_a_pod_on_a_silent_node_is_not_waited_for_longer_than_its_grace_period(scene: Scene) -> None:
    await scene.up()
    await scene.pod("web", terminationGracePeriodSeconds=20)
    scene.kubelet.switch_off(NAME)
    await scene.until(lambda: scene.node_is(NAME, "Unknown"), 60)
    await scene.delete()
    took = await scene.until(lambda: _asked_to_delete(scene), 20 + 10)
    assert took > 19


@ending()
async def test_a_silent_node_without_an_instance_is_let_go_at_once(scene: Scene) -> None:
    await scene.up()
    await scene.pod("protected", metadata={"annotations": {DO_NOT_DISRUPT_ANNOTATION: "true"}}, tolerations=FOREVER)
    [instance] = scene.cloud.existing()
    await scene.cloud.delete(instance)
    await scene.until(lambda: scene.node_is(NAME, "Unknown"), 120)
    await scene.delete()
    # Two looks, as nobody has asked for that deletion.
    await scene.until_gone(5 + PROMPT)


# -- volumes -----------------------------------------------------------------------------------------------------------


async def _attach(scene: Scene, volume: str, node: str = NAME) -> None:
    body = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttachment",
        "metadata": {"name": f"csi-{volume}"},
        "spec": {"attacher": "disk.csi.azure.com", "nodeName": node, "source": {"persistentVolumeName": volume}},
    }
    await scene.user.request("POST", "/apis/storage.k8s.io/v1/volumeattachments", body=body)


async def _detach(scene: Scene, volume: str) -> None:
    await scene.user.request("DELETE", f"/apis/storage.k8s.io/v1/volumeattachments/csi-{volume}")


@ending()
async def test_the_volumes_of_drained_pods_are_detached_before_the_instance_goes(scene: Scene) -> None:
    await scene.up()
    await scene.pod("web")
    await _attach(scene, "disk")
    await _attach(scene, "elsewhere", node="other")
    await scene.delete()
    await asyncio.sleep(600)
    assert not await _asked_to_delete(scene)
    status, reason, message = await scene.said("VolumesDetached")
    assert (status, reason) == ("Unknown", "AwaitingVolumeDetachment")
    assert "csi-disk" in message
    assert "elsewhere" not in message
    assert len(await scene.events("AwaitingVolumeDetachment")) == 1
    await _detach(scene, "disk")
    await scene.until_gone(10 + SHUTDOWN + PROMPT)


@ending()
async def test_volumes_of_pods_that_stay_are_not_waited_for(scene: Scene) -> None:
    await scene.up()
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "logs"},
        "spec": {
            "volumeName": "disk",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    await scene.user.request("POST", "/api/v1/namespaces/default/persistentvolumeclaims", body=claim)
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "logs"}}]
    await scene.pod("agent", tolerations=[{"operator": "Exists"}], volumes=volumes)
    await _attach(scene, "disk")
    await scene.delete()
    await scene.until_gone(SHUTDOWN + PROMPT)


@ending()
async def test_past_the_deadline_volumes_are_not_waited_for(scene: Scene) -> None:
    await scene.up(spec={"terminationGracePeriod": "5m"})
    await _attach(scene, "disk")
    await scene.delete()
    await asyncio.sleep(290)
    assert not await _asked_to_delete(scene)
    await asyncio.sleep(25)
    assert (await scene.said("VolumesDetached"))[:2] == ("False", "TerminationGracePeriodElapsed")
    await scene.until_gone(SHUTDOWN + PROMPT)


# -- the cloud ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@ending(boot=240.0)
async def test_an_instance_that_is_being_made_is_deleted_as_soon_as_the_cloud_allows(
    scene: Scene, kind: type[NodeRequest]
) -> None:
    claim = await scene.claim()
    await scene.launch(claim)

    def busy(call: str, _: str) -> Exception | None:
        making = [each for each in scene.cloud.existing() if each.state == "Creating"]
        return (
            Conflict("Another operation (Creating) is in progress", fix="wait") if call == "delete" and making else None
        )

    scene.cloud.fault = busy
    await scene.delete()
    await asyncio.sleep(5)
    status, reason, message = await scene.said("InstanceTerminating")
    assert (status, reason, message) == ("False", "Conflict", "Another operation (Creating) is in progress; wait")
    assert "Another operation" in (await scene.events("FailedTermination"))[0].note
    await scene.until_gone(240.0 + 60 + SHUTDOWN + PROMPT)
    assert 5 <= scene.cloud.calls["delete"] <= 20


@ending()
async def test_a_cloud_that_throttles_is_left_alone_for_as_long_as_it_says(scene: Scene) -> None:
    await scene.up()
    number = 0

    def throttle(call: str, _: str) -> Exception | None:
        nonlocal number
        if call != "delete":
            return None
        number += 1
        return Throttled(f"request {number} came too soon", retry_after=600)

    scene.cloud.fault = throttle
    await scene.delete()
    await asyncio.sleep(590)
    assert number == 1, "not even our own status, which is another one each time, makes us ask earlier"
    assert (await scene.said("InstanceTerminating"))[1] == "Throttled"
    scene.cloud.fault = None
    await scene.until_gone(100 + SHUTDOWN + PROMPT)


@pytest.mark.parametrize("call", ["find", "delete"])
@ending()
async def test_a_cloud_that_says_now_is_not_asked_all_the_time(scene: Scene, call: str) -> None:
    await scene.up()
    scene.cloud.fault = lambda what, _: Throttled("now", retry_after=0) if what == call else None
    await scene.delete()
    await asyncio.sleep(60)
    assert scene.cloud.calls[call] < 65
    scene.cloud.fault = None
    await scene.until_gone(SHUTDOWN + PROMPT)


@ending()
async def test_a_cloud_that_is_away_for_an_hour_does_not_keep_the_node_from_being_drained(scene: Scene) -> None:
    await scene.up()
    await scene.pod("web")
    scene.cloud.fault = lambda *_: Unavailable("nobody answers")
    await scene.delete()
    await asyncio.sleep(3600)
    assert await scene.pods() == []
    assert (await scene.said("InstanceTerminating"))[1] == "CloudUnavailable"
    scene.cloud.fault = None
    await scene.until_gone(6 + SHUTDOWN + PROMPT)


@ending()
async def test_a_deletion_whose_answer_was_lost_is_not_asked_for_again(scene: Scene) -> None:
    await scene.up()
    scene.cloud.lost = lambda call, _: Unavailable("connection reset") if call == "delete" else None
    await scene.delete()
    await scene.until_gone(15 + SHUTDOWN + PROMPT)
    assert scene.cloud.calls["delete"] == 1


@ending()
async def test_a_deletion_that_failed_is_repeated_and_its_reason_said(scene: Scene) -> None:
    await scene.up()
    real, broken = scene.cloud.find, True

    async def find(claim: ClaimRef) -> Instance:
        instance = await real(claim)
        if broken and instance.state == "Deleting":
            error = CloudError("the subnet is in use", fix="delete what uses it")
            return replace(instance, state="Failed", error=error)
        return instance

    scene.cloud.find = find  # type: ignore[method-assign]
    scene.cloud.shutdown = 100000.0
    await scene.delete()
    await asyncio.sleep(300)
    text = "the cloud has not deleted instance ws1: the subnet is in use; delete what uses it"
    assert [each.note for each in await scene.events("FailedTermination")] == [f"Failed terminating, {text}"]
    assert scene.cloud.calls["delete"] >= 3
    assert scene.cloud.calls["delete"] < 12
    assert await scene.find(Node) is not None
    broken = False
    await asyncio.sleep(60)
    assert (await scene.said("InstanceTerminating"))[0] == "True"


@ending(provider_ids="never", operations=True)
async def test_what_the_cloud_is_doing_is_remembered_in_the_cluster(scene: Scene) -> None:
    claim = await scene.claim(annotations={OPERATION_ANNOTATION: "creations/0001"})
    await scene.launch(claim)
    await scene.delete()
    await asyncio.sleep(3)
    assert scene.asked[0][1].operation == "creations/0001"
    found = await scene.user.get(NodeClaim, NAME)
    assert found.metadata.annotations[OPERATION_ANNOTATION] == "deletions/ws1"
    assert scene.asked[-1][1].operation == "deletions/ws1"
    await scene.until_gone(SHUTDOWN + PROMPT)


# -- what is not there -------------------------------------------------------------------------------------------------


@ending()
async def test_an_instance_that_nothing_in_the_cluster_names_is_found_by_the_claims_uid(scene: Scene) -> None:
    claim = await scene.claim()
    await scene.launch(claim, persist=False)
    await scene.delete()
    await scene.until_gone(SHUTDOWN + PROMPT)


@ending(provider_ids="never")
async def test_a_node_whose_provider_id_the_cloud_does_not_tell_is_drained_like_any_other(scene: Scene) -> None:
    claim = await scene.claim()
    await scene.launch(claim)
    await scene.until(lambda: scene.node_is(NAME, "True"), BOOT + 20)
    await scene.pod("web")
    await scene.budget("web", 0)
    await scene.delete()
    await asyncio.sleep(30)
    node = await scene.user.get(Node, NAME)
    assert node.deleting
    assert TERMINATION_FINALIZER in node.metadata.finalizers, "it has not registered, and is held all the same"
    assert (await scene.user.get(NodeClaim, NAME)).status.provider_id == node.spec.provider_id
    assert await scene.pods() == ["web"]
    await scene.budget("web", 1)
    await scene.until_gone(10 + GRACE + SHUTDOWN + PROMPT)


@ending(boot=30.0)
async def test_a_node_that_joins_while_its_claim_ends_is_let_go_as_well(scene: Scene) -> None:
    claim = await scene.claim()
    instance = await scene.launch(claim)
    await scene.delete()
    await asyncio.sleep(5)
    await scene.kubelet.add_node("late", labels={}, provider_id=instance.provider_id)
    await scene.until_gone(SHUTDOWN + PROMPT)


@ending()
async def test_that_there_is_no_instance_is_believed_at_the_second_look(scene: Scene) -> None:
    claim = await scene.claim()
    await scene.launch(claim, persist=False)
    looks = 0

    def overlook(call: str, _: str) -> Exception | None:
        nonlocal looks
        looks += call == "find"
        return NotFound("there is none") if call == "find" and looks == 1 else None

    scene.cloud.fault = overlook
    await scene.delete()
    await asyncio.sleep(2)
    assert (await scene.said("InstanceTerminating"))[1] == "InstanceNotFound"
    await scene.until_gone(5 + SHUTDOWN + PROMPT)
    assert scene.cloud.calls["delete"] == 1


@ending()
async def test_a_claim_for_which_nothing_was_made_is_gone_after_two_looks(scene: Scene) -> None:
    await scene.claim()
    began = scene.now
    await scene.delete()
    await scene.until_gone(5 + PROMPT)
    assert len(scene.asked) == 2
    assert scene.asked[1][0] - scene.asked[0][0] >= 5
    assert scene.now - began < 8


@ending(lag=40.0)
async def test_an_instance_that_shows_late_after_a_lost_answer_is_waited_for(scene: Scene) -> None:
    claim = await scene.claim(annotations={LAUNCHING_ANNOTATION: rfc3339(scene.wall)})
    await scene.launch(claim, persist=False)
    await asyncio.sleep(3)
    await scene.delete()
    await asyncio.sleep(30)
    assert await scene.find(scene.kind) is not None
    await scene.until_gone(40 + 40 + SHUTDOWN + PROMPT)
    assert scene.cloud.calls["delete"] == 1


@pytest.mark.parametrize("ahead", [0, -45, -3600, 7200])
@ending()
async def test_what_an_instance_takes_to_show_is_waited_for_and_no_longer(scene: Scene, ahead: int) -> None:
    """Whatever the clock said when the cloud was asked."""
    await scene.claim(annotations={LAUNCHING_ANNOTATION: rfc3339(scene.wall + timedelta(seconds=ahead))})
    await scene.delete()
    assert await scene.until_gone(70) > 55


@ending()
async def test_an_inventory_that_contradicts_a_ready_node_is_disbelieved_for_a_while(scene: Scene) -> None:
    await scene.up()
    partial = True
    scene.cloud.fault = lambda call, _: NotFound("there is none") if call == "find" and partial else None
    await scene.delete()
    await asyncio.sleep(60)
    assert await scene.find(Node) is not None
    partial = False
    await scene.until_gone(10 + SHUTDOWN + PROMPT)
    assert scene.cloud.calls["delete"] == 1


@ending()
async def test_other_finalizers_are_left_to_those_who_put_them_on(scene: Scene) -> None:
    await scene.up(finalizers=[TERMINATION_FINALIZER, "example.com/theirs"])
    await scene.user.patch(Node, KEY, {"metadata": {"finalizers": [TERMINATION_FINALIZER, "example.com/theirs"]}})
    await scene.delete()

    async def ours_are_off() -> bool:
        claim, node = await scene.find(scene.kind), await scene.find(Node)
        both = [each.metadata.finalizers for each in (claim, node) if each is not None]
        return both == [("example.com/theirs",)] * 2

    await scene.until(ours_are_off, SHUTDOWN + PROMPT)
    assert scene.cloud.existing() == ()
    before = len(scene.steps)
    await asyncio.sleep(3600)
    assert len(scene.steps) == before


@ending()
async def test_a_hundred_claims_end_at_once(scene: Scene) -> None:
    for number in range(100):
        await scene.launch(await scene.claim(f"c{number}"))
    await asyncio.sleep(BOOT + 15)
    began = scene.now
    await asyncio.gather(*(scene.delete(f"c{number}") for number in range(100)))
    await scene.until_gone(SHUTDOWN + 20)
    assert scene.now - began < SHUTDOWN + 20
    assert scene.cloud.calls["delete"] == 100


@ending(kind=Machine)
async def test_a_claim_that_does_not_fit_its_model_ends_in_the_same_order(scene: Scene) -> None:
    await scene.up(annotations={TERMINATION_TIMESTAMP_ANNOTATION: rfc3339(scene.wall + timedelta(hours=1))})
    await scene.pod("web")
    await scene.budget("web", 0)
    found = await scene.user.get(Machine, NAME)
    odd = {"type": "Odd", "status": "True", "lastTransitionTime": "yesterday"}
    status = {"conditions": [*(each.to_wire() for each in found.status.conditions), odd]}
    await scene.user.patch_raw(Machine, KEY, {"status": status}, subresource="status")
    with pytest.raises(DecodeError):
        await scene.user.get(Machine, NAME)
    await scene.delete()
    await asyncio.sleep(30)
    assert await scene.pods() == ["web"]
    assert (await scene.user.get(Node, NAME)).deleting
    assert await scene.events("TerminationGracePeriodExpiring")
    await scene.budget("web", 1)
    await scene.until_gone(10 + GRACE + SHUTDOWN + PROMPT)


@ending()
async def test_a_claim_whose_status_cannot_be_written_ends_all_the_same(scene: Scene) -> None:
    await scene.up()
    await scene.pod("web")
    refusal = {"kind": "Status", "code": 422, "reason": "Invalid", "message": "no", "details": {"name": NAME}}

    def refuse(request: Request) -> Response | None:
        return Response.of(422, encode_json(refusal)) if request.path.endswith("/status") else None

    scene.answer = refuse
    await scene.delete()
    await scene.until_gone(GRACE + SHUTDOWN + PROMPT)
    assert scene.cloud.calls["delete"] == 1


@ending()
async def test_a_node_whose_pods_must_not_be_seen_is_not_taken_from_under_them(scene: Scene) -> None:
    await scene.up()
    await scene.pod("web")
    text = 'pods is forbidden: User "kaito" cannot list resource "pods"'
    refusal = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": text}

    def refuse(request: Request) -> Response | None:
        return Response.of(403, encode_json(refusal)) if request.path == "/api/v1/pods" else None

    scene.answer = refuse
    await scene.delete()
    await asyncio.sleep(600)
    assert scene.cloud.calls.get("delete", 0) == 0
    assert await scene.said("Drained") == ("Unknown", "Forbidden", text)
    scene.answer = None
    await scene.until_gone(10 + GRACE + SHUTDOWN + PROMPT)


@pytest.mark.parametrize("after", [0.0, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("seconds", [-7200.0, 7200.0])
@ending()
async def test_a_clock_that_jumps_costs_nothing(scene: Scene, seconds: float, after: float) -> None:
    await scene.up()
    await scene.pod("web")
    await scene.delete()
    await asyncio.sleep(after)
    scene.host.clock.jump(seconds)
    await scene.until_gone(GRACE + SHUTDOWN + PROMPT + 5)
    assert scene.cloud.calls["delete"] == 1
    assert not await scene.events("FailedTermination")
