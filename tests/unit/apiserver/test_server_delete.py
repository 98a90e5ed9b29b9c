"""Deleting: preconditions, finalizers, grace, owners, namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from apihelpers import (
    CM,
    CRDS,
    DEPLOY,
    PODS,
    WS,
    Api,
    Obj,
    config_map,
    deployment,
    fails,
    pod,
    workspace,
    workspace_crd,
)

from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.apiserver.namespaces import NamespaceController


async def test_a_deletion_answers_with_what_was_deleted(api: Api) -> None:
    made = await api.post(CM, config_map())
    done = await api.delete(f"{CM}/a")
    assert done["status"] == "Success"
    assert done["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
    with fails(404):
        await api.delete(f"{CM}/a")


async def test_preconditions_must_hold(api: Api) -> None:
    made = await api.post(CM, config_map())
    with fails(409, "Conflict"):
        await api.delete(f"{CM}/a", {"preconditions": {"uid": "other"}})
    with fails(409, "Conflict"):
        await api.delete(f"{CM}/a", {"preconditions": {"resourceVersion": "1"}})
    await api.delete(f"{CM}/a", {"preconditions": {"uid": made["metadata"]["uid"]}})


async def test_a_finalizer_holds_the_object_until_it_is_removed(api: Api) -> None:
    await api.post(CRDS, workspace_crd())
    body = workspace()
    body["metadata"]["finalizers"] = ["kaito.sh/hold"]
    await api.post(WS, body)
    held = await api.delete(f"{WS}/w")
    assert held["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:00Z"
    assert held["metadata"]["deletionGracePeriodSeconds"] == 0
    assert held["metadata"]["generation"] == 2
    with fails(422) as caught:
        await api.merge(f"{WS}/w", {"metadata": {"finalizers": ["kaito.sh/hold", "x/new"]}})
    assert "no new finalizers can be added if the object is being deleted" in caught.value.message
    await api.merge(f"{WS}/w", {"metadata": {"finalizers": None}})
    assert await api.gone(f"{WS}/w")


async def test_an_unscheduled_pod_goes_at_once_and_a_running_one_gets_its_grace(api: Api) -> None:
    await api.post(PODS, pod("unscheduled"))
    await api.delete(f"{PODS}/unscheduled")
    assert await api.gone(f"{PODS}/unscheduled")
    await api.post(PODS, pod("running", nodeName="n", terminationGracePeriodSeconds=20))
    held = await api.delete(f"{PODS}/running")
    assert held["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:20Z"
    assert held["metadata"]["deletionGracePeriodSeconds"] == 20
    # Shorter is allowed, longer changes nothing.
    shorter = await api.delete(f"{PODS}/running", {"gracePeriodSeconds": 5})
    assert shorter["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:05Z"
    longer = await api.delete(f"{PODS}/running", {"gracePeriodSeconds": 50})
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 5
    await api.delete(f"{PODS}/running", {"gracePeriodSeconds": 0})
    assert await api.gone(f"{PODS}/running")


async def test_a_collection_is_deleted_by_selector(api: Api) -> None:
    for name in "abc":
        body = config_map(name)
        body["metadata"]["labels"] = {"odd": str(name != "b")}
        await api.post(CM, body)
    deleted = await api.delete(f"{CM}?labelSelector=odd=True")
    assert [item["metadata"]["name"] for item in deleted["items"]] == ["a", "c"]
    assert [item["metadata"]["name"] for item in (await api.get(CM))["items"]] == ["b"]


@pytest.fixture
async def controllers(api: Api) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(w(api.server).run()) for w in (GarbageCollector, NamespaceController)]
        await asyncio.sleep(0)
        yield
        for task in running:
            task.cancel()


def owned(owner: dict[str, Any], kind: str, name: str, *, block: bool = False) -> dict[str, Any]:
    body = config_map(name)
    reference = {"apiVersion": owner["apiVersion"], "kind": kind, "name": owner["metadata"]["name"]}
    reference |= {"uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": block}
    body["metadata"]["ownerReferences"] = [reference]
    return body


@pytest.mark.usefixtures("controllers")
async def test_dependents_follow_their_owner(api: Api) -> None:
    owner = await api.post(DEPLOY, deployment())
    child = await api.post(CM, owned(owner, "Deployment", "child"))
    await api.post(CM, owned(child, "ConfigMap", "grandchild"))
    async with api.watch(CM) as stream:
        await stream.seen(2)
        await api.delete(f"{DEPLOY}/d")
        assert await stream.seen(2) == [("DELETED", "child"), ("DELETED", "grandchild")]


@pytest.mark.usefixtures("controllers")
async def test_foreground_deletion_waits_for_dependents_that_block(api: Api) -> None:
    owner = await api.post(DEPLOY, deployment())
    body = owned(owner, "Deployment", "child", block=True)
    body["metadata"]["finalizers"] = ["x/hold"]
    await api.post(CM, body)
    async with api.watch(CM) as stream:
        await stream.seen(1)
        held = await api.delete(f"{DEPLOY}/d", {"propagationPolicy": "Foreground"})
        assert held["metadata"]["finalizers"] == ["foregroundDeletion"]
        event = await stream.event()
        assert event["object"]["metadata"]["deletionTimestamp"]
    assert not await api.gone(f"{DEPLOY}/d")
    async with api.watch(DEPLOY) as stream:
        await stream.seen(1)
        await api.merge(f"{CM}/child", {"metadata": {"finalizers": None}})
        while (await stream.event())["type"] != "DELETED":
            pass
    assert await api.gone(f"{CM}/child")


@pytest.mark.usefixtures("controllers")
async def test_orphans_lose_their_reference_and_stay(api: Api) -> None:
    owner = await api.post(DEPLOY, deployment())
    await api.post(CM, owned(owner, "Deployment", "child"))
    async with api.watch(DEPLOY) as stream:
        await stream.seen(1)
        await api.delete(f"{DEPLOY}/d", {"propagationPolicy": "Orphan"})
        while (await stream.event())["type"] != "DELETED":
            pass
    assert "ownerReferences" not in (await api.get(f"{CM}/child"))["metadata"]


@pytest.mark.usefixtures("controllers")
async def test_an_owner_is_known_by_its_uid(api: Api) -> None:
    owner = await api.post(DEPLOY, deployment())
    await api.delete(f"{DEPLOY}/d")
    await api.post(DEPLOY, deployment())
    async with api.watch(CM) as stream:
        await api.post(CM, owned(owner, "Deployment", "child"))
        assert await stream.seen(2) == [("ADDED", "child"), ("DELETED", "child")]


@pytest.mark.usefixtures("controllers")
async def test_one_living_owner_is_enough(api: Api) -> None:
    first, second = await api.post(DEPLOY, deployment("x")), await api.post(DEPLOY, deployment("y"))
    body = owned(first, "Deployment", "child")
    extra = owned(second, "Deployment", "child")["metadata"]["ownerReferences"][0]
    body["metadata"]["ownerReferences"].append({**extra, "controller": False})
    await api.post(CM, body)
    async with api.watch(CM) as stream:
        await stream.seen(1)
        await api.delete(f"{DEPLOY}/x")
        event = await stream.event()
    assert [o["name"] for o in event["object"]["metadata"]["ownerReferences"]] == ["y"]


@pytest.mark.usefixtures("controllers")
async def test_a_cluster_scoped_object_cannot_be_owned_by_a_namespaced_one(api: Api) -> None:
    owner = await api.post(DEPLOY, deployment())
    node = {**owned(owner, "Deployment", "n")}
    node.pop("data")
    await api.post("/api/v1/nodes", node)
    child = await api.post(CM, owned(owner, "Deployment", "child"))
    async with api.watch(CM, resourceVersion=child["metadata"]["resourceVersion"]) as stream:
        await api.delete(f"{DEPLOY}/d")
        assert await stream.seen(1) == [("DELETED", "child")]
    assert not await api.gone("/api/v1/nodes/n")


@pytest.mark.usefixtures("controllers")
async def test_a_namespace_takes_its_contents_along(api: Api) -> None:
    await api.post("/api/v1/namespaces", {"metadata": {"name": "team"}})
    body = config_map()
    body["metadata"]["finalizers"] = ["x/hold"]
    await api.post("/api/v1/namespaces/team/configmaps", body)
    await api.post("/api/v1/namespaces/team/secrets", {"metadata": {"name": "s"}})
    going = await api.delete("/api/v1/namespaces/team")
    assert going["status"]["phase"] == "Terminating"
    with fails(403, "Forbidden") as caught:
        await api.post("/api/v1/namespaces/team/configmaps", config_map("late"))
    assert "unable to create new content in namespace team because it is being terminated" in caught.value.message
    assert caught.value.details["causes"][0]["reason"] == "NamespaceTerminating"
    async with api.watch("/api/v1/namespaces") as stream:
        await stream.seen(5)
        await api.merge("/api/v1/namespaces/team/configmaps/a", {"metadata": {"finalizers": None}})
        assert await stream.seen(1) == [("DELETED", "team")]
    assert await api.gone("/api/v1/namespaces/team/secrets/s")


async def test_every_namespace_has_a_default_service_account(api: Api) -> None:
    await api.post("/api/v1/namespaces", {"metadata": {"name": "team"}})
    assert await api.get("/api/v1/namespaces/team/serviceaccounts/default")
    namespaces = await api.get("/api/v1/namespaces")
    names = [n["metadata"]["name"] for n in namespaces["items"]]
    assert names == ["default", "kube-node-lease", "kube-public", "kube-system", "team"]


async def test_the_default_namespace_stays(api: Api) -> None:
    with fails(403):
        await api.delete("/api/v1/namespaces/default")


CLAIMS = "/api/v1/namespaces/default/persistentvolumeclaims"


def claim(name: str = "c") -> Obj:
    spec = {"resources": {"requests": {"storage": "1Gi"}}, "accessModes": ["ReadWriteOnce"]}
    return {"metadata": {"name": name}, "spec": spec}


async def test_a_claim_that_nobody_uses_goes_at_once(api: Api) -> None:
    await api.post(CLAIMS, claim())
    await api.delete(f"{CLAIMS}/c")
    assert await api.gone(f"{CLAIMS}/c")


async def test_a_claim_stays_until_the_last_pod_that_uses_it_is_gone(api: Api) -> None:
    await api.post(CLAIMS, claim())
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}
    for name in ("p", "q"):
        await api.post(PODS, pod(name, volumes=[volume], nodeName="n"))
    await api.delete(f"{CLAIMS}/c")
    assert (await api.get(f"{CLAIMS}/c"))["metadata"]["deletionTimestamp"]
    await api.delete(f"{PODS}/p?gracePeriodSeconds=0")
    assert not await api.gone(f"{CLAIMS}/c")
    await api.merge(f"{PODS}/q/status", {"status": {"phase": "Succeeded"}})
    assert await api.gone(f"{CLAIMS}/c")


async def test_a_volume_stays_while_it_is_bound(api: Api) -> None:
    volumes = "/api/v1/persistentvolumes"
    spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}
    await api.post(volumes, {"metadata": {"name": "v"}, "spec": spec})
    await api.merge(f"{volumes}/v/status", {"status": {"phase": "Bound"}})
    await api.delete(f"{volumes}/v")
    assert not await api.gone(f"{volumes}/v")
    await api.merge(f"{volumes}/v/status", {"status": {"phase": "Released"}})
    assert await api.gone(f"{volumes}/v")
