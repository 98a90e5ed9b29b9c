"""Deleting: answers, preconditions, finalizers, propagation, collections, and the grace of pods."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.objects import config_map, deployment, pod, service, widget, widget_crd
from tests.conformance.wire import Api, Obj, fails

HOLD = "example.com/hold"


def owned(name: str, owner: Obj, **more: Any) -> Obj:
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        **more,
    }
    return config_map(name, ownerReferences=[reference])


async def test_a_deletion_answers_with_a_status(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    answer = await api.delete(api.at("configmaps", "a"))
    assert api.code == 200
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
    assert await api.missing(api.at("configmaps", "a"))


async def test_the_status_of_a_deletion_names_the_group(api: Api) -> None:
    kind = await api.define(widget_crd())
    made = await api.post(api.at(kind), widget())
    answer = await api.delete(api.at(kind, "w"))
    assert answer["details"] == {
        "name": "w",
        "group": "conformance.kaito.sh",
        "kind": "widgets",
        "uid": made["metadata"]["uid"],
    }


async def test_a_deleted_service_is_shown(api: Api) -> None:
    await api.post(api.at("services"), service())
    answer = await api.delete(api.at("services", "s"))
    assert answer["kind"] == ("Service" if api.version >= (1, 23) else "Status")


async def test_what_is_not_there_cannot_be_deleted(api: Api) -> None:
    with fails(404, "NotFound", 'configmaps "a" not found'):
        await api.delete(api.at("configmaps", "a"))


async def test_a_uid_precondition_protects_a_namesake(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    with fails(409, "Conflict") as caught:
        await api.delete(api.at("configmaps", "a"), {"preconditions": {"uid": "other"}})
    uid = made["metadata"]["uid"]
    assert caught.value.message == (
        f'Operation cannot be fulfilled on ConfigMap "a": the UID in the precondition (other) does not match the UID '
        f"in record ({uid}). The object might have been deleted and then recreated"
    )
    await api.delete(api.at("configmaps", "a"), {"preconditions": {"uid": uid}})
    assert await api.missing(api.at("configmaps", "a"))


async def test_a_version_precondition_protects_what_changed(api: Api) -> None:
    made = await api.post(api.at("configmaps"), config_map())
    now = (await api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}}))["metadata"]["resourceVersion"]
    with fails(409, "Conflict") as caught:
        version = made["metadata"]["resourceVersion"]
        await api.delete(api.at("configmaps", "a"), {"preconditions": {"resourceVersion": version}})
    assert caught.value.message == (
        f'Operation cannot be fulfilled on ConfigMap "a": the ResourceVersion in the precondition ({version}) does not '
        f"match the ResourceVersion in record ({now}). The object might have been modified"
    )
    await api.delete(api.at("configmaps", "a"), {"preconditions": {"resourceVersion": now}})
    assert await api.missing(api.at("configmaps", "a"))


@pytest.mark.parametrize("custom", [False, True], ids=["built-in", "custom"])
async def test_a_finalizer_holds_an_object_until_it_is_taken_away(api: Api, custom: bool) -> None:
    resource = await api.define(widget_crd()) if custom else "configmaps"
    body = widget("o") if custom else config_map("o")
    body["metadata"]["finalizers"] = [HOLD]
    await api.post(api.at(resource), body)
    answer = await api.delete(api.at(resource, "o"))
    assert api.code == 200
    assert answer["metadata"]["deletionTimestamp"]
    assert answer["metadata"]["finalizers"] == [HOLD]
    first = answer["metadata"]["deletionTimestamp"]
    again = await api.delete(api.at(resource, "o"))
    assert again["metadata"]["deletionTimestamp"] == first
    assert again["metadata"]["resourceVersion"] == answer["metadata"]["resourceVersion"]
    last = await api.merge(api.at(resource, "o"), {"metadata": {"finalizers": None}})
    assert last["metadata"]["deletionTimestamp"] == first
    assert await api.missing(api.at(resource, "o"))


async def test_one_of_two_finalizers_still_holds(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(finalizers=[HOLD, "example.com/other"]))
    await api.delete(api.at("configmaps", "a"))
    await api.merge(api.at("configmaps", "a"), {"metadata": {"finalizers": ["example.com/other"]}})
    assert not await api.missing(api.at("configmaps", "a"))


async def test_no_finalizer_is_added_to_what_is_being_deleted(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(finalizers=[HOLD]))
    await api.delete(api.at("configmaps", "a"))
    with fails(422, "Invalid") as caught:
        await api.merge(api.at("configmaps", "a"), {"metadata": {"finalizers": [HOLD, "example.com/new"]}})
    assert set(caught.value.fields) == {"metadata.finalizers"}
    assert "no new finalizers can be added if the object is being deleted" in caught.value.message
    assert '"example.com/new"' in caught.value.message


async def test_what_is_being_deleted_can_still_be_changed(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(finalizers=[HOLD]))
    await api.delete(api.at("configmaps", "a"))
    changed = await api.merge(api.at("configmaps", "a"), {"data": {"k": "2"}})
    assert changed["data"] == {"k": "2"}
    assert changed["metadata"]["deletionTimestamp"]


async def test_a_client_cannot_undo_a_deletion(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map(finalizers=[HOLD]))
    await api.delete(api.at("configmaps", "a"))
    patched = await api.merge(api.at("configmaps", "a"), {"metadata": {"deletionTimestamp": None}})
    assert patched["metadata"]["deletionTimestamp"]


async def test_a_name_is_free_again_after_the_deletion(api: Api) -> None:
    first = await api.post(api.at("configmaps"), config_map())
    await api.delete(api.at("configmaps", "a"))
    second = await api.post(api.at("configmaps"), config_map())
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


async def test_an_unknown_propagation_policy_is_refused(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(422, "Invalid") as caught:
        await api.delete(api.at("configmaps", "a"), {"propagationPolicy": "Sideways"})
    assert "propagationPolicy" in caught.value.fields


async def test_propagation_policy_and_orphan_dependents_exclude_each_other(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    with fails(422, "Invalid"):
        await api.delete(api.at("configmaps", "a"), {"propagationPolicy": "Orphan", "orphanDependents": True})


async def test_foreground_and_orphan_are_finalizers(api: Api) -> None:
    for name, policy, finalizer in (("f", "Foreground", "foregroundDeletion"), ("o", "Orphan", "orphan")):
        await api.post(api.at("configmaps"), config_map(name, finalizers=[HOLD]))
        held = await api.delete(api.at("configmaps", name), propagationPolicy=policy)
        assert set(held["metadata"]["finalizers"]) == {HOLD, finalizer}


@pytest.mark.controllers
async def test_dependents_follow_in_the_background(api: Api) -> None:
    owner = await api.post(api.at("configmaps"), config_map("owner"))
    await api.post(api.at("configmaps"), owned("dependent", owner))
    await api.post(api.at("configmaps"), config_map("stranger"))
    await api.delete(api.at("configmaps", "owner"), propagationPolicy="Background")
    assert await api.missing(api.at("configmaps", "owner"))
    await api.settled(api.at("configmaps", "dependent"), None)
    assert not await api.missing(api.at("configmaps", "stranger"))


@pytest.mark.controllers
async def test_orphans_stay_and_forget_their_owner(api: Api) -> None:
    owner = await api.post(api.at("configmaps"), config_map("owner"))
    await api.post(api.at("configmaps"), owned("dependent", owner))
    await api.delete(api.at("configmaps", "owner"), propagationPolicy="Orphan")
    await api.settled(api.at("configmaps", "owner"), None)
    assert "ownerReferences" not in (await api.get(api.at("configmaps", "dependent")))["metadata"]


@pytest.mark.controllers
async def test_in_the_foreground_the_owner_waits_for_those_that_block_it(api: Api) -> None:
    owner = await api.post(api.at("configmaps"), config_map("owner"))
    body = owned("dependent", owner, blockOwnerDeletion=True)
    body["metadata"]["finalizers"] = [HOLD]
    await api.post(api.at("configmaps"), body)
    answer = await api.delete(api.at("configmaps", "owner"), propagationPolicy="Foreground")
    assert answer["metadata"]["finalizers"] == ["foregroundDeletion"]
    await api.settled(api.at("configmaps", "dependent"), lambda o: "deletionTimestamp" in o["metadata"])
    assert not await api.missing(api.at("configmaps", "owner"))
    await api.merge(api.at("configmaps", "dependent"), {"metadata": {"finalizers": None}})
    await api.settled(api.at("configmaps", "owner"), None)


@pytest.mark.controllers
async def test_a_dependent_of_two_owners_stays_until_both_are_gone(api: Api) -> None:
    one = await api.post(api.at("configmaps"), config_map("one"))
    two = await api.post(api.at("configmaps"), config_map("two"))
    body = owned("dependent", one)
    body["metadata"]["ownerReferences"] += owned("x", two)["metadata"]["ownerReferences"]
    await api.post(api.at("configmaps"), body)
    await api.delete(api.at("configmaps", "one"))
    left = await api.settled(
        api.at("configmaps", "dependent"), lambda o: len(o["metadata"].get("ownerReferences", ())) == 1
    )
    assert left["metadata"]["ownerReferences"][0]["name"] == "two"
    await api.delete(api.at("configmaps", "two"))
    await api.settled(api.at("configmaps", "dependent"), None)


@pytest.mark.controllers
async def test_a_dependent_of_an_owner_that_never_was_is_collected(api: Api) -> None:
    await api.post(api.at("configmaps"), owned("dependent", {"metadata": {"name": "ghost", "uid": "no-such-uid"}}))
    await api.settled(api.at("configmaps", "dependent"), None)


@pytest.mark.controllers
async def test_a_namesake_is_no_owner(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map("owner"))
    await api.post(api.at("configmaps"), owned("dependent", {"metadata": {"name": "owner", "uid": "of-another"}}))
    await api.settled(api.at("configmaps", "dependent"), None)


async def test_a_collection_is_deleted_by_selector(api: Api) -> None:
    for name, labels in (("a", {"x": "1"}), ("b", {"x": "1"}), ("c", {"x": "2"})):
        await api.post(api.at("configmaps"), config_map(name, labels=labels))
    await api.delete(api.at("configmaps"), labelSelector="x=1")
    left = await api.get(api.at("configmaps"), labelSelector="x")
    assert [item["metadata"]["name"] for item in left["items"]] == ["c"]
    await api.delete(api.at("configmaps"), fieldSelector="metadata.name=c")
    assert (await api.get(api.at("configmaps"), labelSelector="x"))["items"] == []


async def test_a_deleted_collection_answers_with_what_was_in_it(api: Api) -> None:
    kind = await api.define(widget_crd())
    for name in "ab":
        await api.post(api.at(kind), widget(name))
    answer = await api.delete(api.at(kind))
    assert answer["kind"] == "WidgetList"
    assert sorted(item["metadata"]["name"] for item in answer["items"]) == ["a", "b"]
    assert (await api.get(api.at(kind)))["items"] == []


async def test_a_collection_respects_finalizers(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map("held", finalizers=[HOLD], labels={"x": "1"}))
    await api.delete(api.at("configmaps"), labelSelector="x=1")
    assert (await api.get(api.at("configmaps", "held")))["metadata"]["deletionTimestamp"]


# Pods, without a kubelet.


async def test_a_pod_that_was_never_scheduled_goes_at_once(api: Api) -> None:
    await api.post(api.at("pods"), pod())
    answer = await api.delete(api.at("pods", "p"))
    assert answer["kind"] == "Pod"
    assert answer["metadata"]["deletionGracePeriodSeconds"] == 0
    assert answer["metadata"]["deletionTimestamp"]
    assert await api.missing(api.at("pods", "p"))


async def test_a_pod_on_a_node_gets_its_grace(api: Api) -> None:
    await api.post(api.at("pods"), pod(nodeName="n", terminationGracePeriodSeconds=20))
    answer = await api.delete(api.at("pods", "p"))
    assert answer["metadata"]["deletionGracePeriodSeconds"] == 20
    assert answer["metadata"]["deletionTimestamp"] > answer["metadata"]["creationTimestamp"]
    shorter = await api.delete(api.at("pods", "p"), {"gracePeriodSeconds": 5})
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    longer = await api.delete(api.at("pods", "p"), {"gracePeriodSeconds": 60})
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 5
    await api.delete(api.at("pods", "p"), {"gracePeriodSeconds": 0})
    assert await api.missing(api.at("pods", "p"))


async def test_a_pod_has_thirty_seconds_unless_told_otherwise(api: Api) -> None:
    await api.post(api.at("pods"), pod(nodeName="n"))
    assert (await api.delete(api.at("pods", "p")))["metadata"]["deletionGracePeriodSeconds"] == 30


async def test_a_finished_pod_needs_no_grace(api: Api) -> None:
    await api.post(api.at("pods"), pod(nodeName="n"))
    await api.merge(api.at("pods", "p", "status"), {"status": {"phase": "Succeeded"}})
    await api.delete(api.at("pods", "p"))
    assert await api.missing(api.at("pods", "p"))


async def test_a_forced_deletion_of_a_pod_on_a_node_is_immediate(api: Api) -> None:
    await api.post(api.at("pods"), pod(nodeName="n"))
    await api.delete(api.at("pods", "p"), gracePeriodSeconds=0)
    assert await api.missing(api.at("pods", "p"))


async def test_a_finalizer_holds_a_pod_after_its_grace(api: Api) -> None:
    body = pod(nodeName="n")
    body["metadata"]["finalizers"] = [HOLD]
    await api.post(api.at("pods"), body)
    held = await api.delete(api.at("pods", "p"), {"gracePeriodSeconds": 0})
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0
    await api.merge(api.at("pods", "p"), {"metadata": {"finalizers": None}})
    assert await api.missing(api.at("pods", "p"))


async def test_a_deployment_is_deleted_with_the_policy_of_its_version(api: Api) -> None:
    await api.post(api.at("apps/v1/deployments"), deployment())
    answer = await api.delete(api.at("apps/v1/deployments", "d"))
    assert answer["status"] == "Success"
    assert answer["details"]["group"] == "apps"


# Namespaces.


@pytest.mark.controllers
async def test_a_namespace_takes_its_contents_along(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map())
    answer = await api.delete(api.cluster("namespaces", api.namespace))
    assert answer["metadata"]["deletionTimestamp"]
    assert answer["status"]["phase"] == "Terminating"
    await api.settled(api.cluster("namespaces", api.namespace), None)
    assert (await api.get(api.at("configmaps")))["items"] == []


@pytest.mark.controllers
async def test_nothing_is_created_in_a_namespace_that_is_going_away(api: Api) -> None:
    await api.post(api.at("configmaps"), config_map("held", finalizers=[HOLD]))
    await api.delete(api.cluster("namespaces", api.namespace))
    with fails(403, "Forbidden") as caught:
        await api.post(api.at("configmaps"), config_map("late"))
    why = f"unable to create new content in namespace {api.namespace} because it is being terminated"
    assert caught.value.message == f'configmaps "late" is forbidden: {why}'
    await api.settled(api.at("configmaps", "held"), lambda o: "deletionTimestamp" in o["metadata"])
    assert not await api.missing(api.cluster("namespaces", api.namespace))
    await api.merge(api.at("configmaps", "held"), {"metadata": {"finalizers": None}})
    await api.settled(api.cluster("namespaces", api.namespace), None)


async def test_a_new_namespace_is_active_and_held_by_kubernetes(api: Api) -> None:
    found = await api.get(api.cluster("namespaces", api.namespace))
    assert found["status"] == {"phase": "Active"}
    assert found["spec"] == {"finalizers": ["kubernetes"]}


@pytest.mark.minimum("1.21")
async def test_a_namespace_carries_its_name_as_a_label(api: Api) -> None:
    found = await api.get(api.cluster("namespaces", api.namespace))
    assert found["metadata"]["labels"] == {"kubernetes.io/metadata.name": api.namespace}


async def test_the_first_namespaces_may_not_be_deleted(api: Api) -> None:
    for name in ("default", "kube-system", "kube-public"):
        with fails(403, "Forbidden", f'namespaces "{name}" is forbidden: this namespace may not be deleted'):
            await api.delete(api.cluster("namespaces", name))


@pytest.mark.controllers
async def test_a_namespace_gets_a_default_service_account(api: Api) -> None:
    await api.settled(api.at("serviceaccounts", "default"), lambda account: True)


async def test_storage_is_held_while_it_may_be_in_use(api: Api, unique: str) -> None:
    request = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"]}
    claim = await api.post(api.at("persistentvolumeclaims"), {"metadata": {"name": "c"}, "spec": request})
    assert claim["metadata"]["finalizers"] == ["kubernetes.io/pvc-protection"]
    spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}
    volume = await api.post(api.cluster("persistentvolumes"), {"metadata": {"name": unique}, "spec": spec})
    assert volume["metadata"]["finalizers"] == ["kubernetes.io/pv-protection"]
