"""Workloads on the running cluster: real controllers, real processes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest
from devobjects import template
from devworld import READY_FAST, http_server, running, terminated, world

from kaito_api.core import Endpoints, Service
from kaito_api.meta import find_condition, is_true
from kaito_ctrl.devcluster.deployment import REVISION
from kaito_ctrl.devcluster.kinds import Deployment, Job, Pod, ReplicaSet, StatefulSet
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.errors import leaf_errors


async def get(url: str) -> str:
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as response:
        return await response.text()


def rolled_out(replicas: int, generation: int = 1) -> object:
    def holds(it: Deployment) -> bool:
        status = it.status
        return (
            status.observed_generation >= generation
            and status.updated_replicas == status.replicas == status.available_replicas == replicas
        )

    return holds


async def test_a_deployment_becomes_processes_that_answer_on_the_cluster_ip() -> None:
    async with world() as it:
        await it.service("web", {"port": 80, "targetPort": 5000})
        await it.deployment("web", {**http_server("hello"), **READY_FAST}, replicas=2)
        done = await it.until(Deployment, "web", rolled_out(2))
        assert is_true(done.status.conditions, "Available")
        progressing = find_condition(done.status.conditions, "Progressing")
        assert progressing is not None
        assert progressing.reason == "NewReplicaSetAvailable"
        pods = await it.client.list(Pod, "default", labels={"app": "web"})
        assert len({pod.status.pod_ip for pod in pods}) == 2
        await it.until(Endpoints, "web", lambda found: found.subsets and len(found.subsets[0].addresses) == 2)
        await it.settled()
        address = it.dev.proxy.address("default", "web", 80)
        assert address is not None
        answers = {await get(f"http://{address[0]}:{address[1]}/") for _ in range(4)}
        assert answers == {f"hello from {pod.name}" for pod in pods}, "every ready pod gets its turn"


async def test_a_converged_cluster_sees_no_write() -> None:
    async with world() as it:
        await it.service("web", {"port": 80, "targetPort": 5000})
        await it.deployment("web", {"command": ["sleep", "60"]}, replicas=2)
        await it.client.create(
            StatefulSet.model_validate(
                {
                    "metadata": {"name": "db", "namespace": "default"},
                    "spec": {
                        "selector": {"matchLabels": {"app": "db"}},
                        "serviceName": "db",
                        "template": {
                            "metadata": {"labels": {"app": "db"}},
                            "spec": {"containers": [{"name": "m", "image": "x", "command": ["sleep", "60"]}]},
                        },
                    },
                }
            )
        )
        await it.until(Deployment, "web", rolled_out(2))
        await it.until(StatefulSet, "db", lambda found: found.status.ready_replicas == 1)
        await it.settled()
        before = it.dev.server.store.rv
        await it.settled()
        assert it.dev.server.store.rv == before


async def test_a_new_template_replaces_the_pods_and_an_undo_brings_them_back() -> None:
    async with world() as it:
        await it.deployment("web", {**http_server("one"), **READY_FAST})
        await it.until(Deployment, "web", rolled_out(1))
        first = (await it.client.list(ReplicaSet, "default"))[0]

        def with_body(body: str) -> dict[str, object]:
            container = {"name": "main", "image": "x", **http_server(body), **READY_FAST}
            return {"spec": {"template": {"spec": {"containers": [container]}}}}

        await it.client.patch(Deployment, ObjectKey("default", "web"), with_body("two"))
        await it.until(Deployment, "web", rolled_out(1, generation=2))
        await it.until(ReplicaSet, first.name, lambda found: found.status.replicas == 0)
        await it.client.patch(Deployment, ObjectKey("default", "web"), with_body("one"))
        undone = await it.until(Deployment, "web", rolled_out(1, generation=3))
        assert undone.metadata.annotations[REVISION] == "3"
        assert len(await it.client.list(ReplicaSet, "default")) == 2
        await it.until(ReplicaSet, first.name, lambda found: found.status.ready_replicas == 1)


async def test_scaling_to_zero_ends_the_processes() -> None:
    async with world() as it:
        await it.deployment("web", {"command": ["sleep", "60"]})
        await it.until(Deployment, "web", rolled_out(1))
        pod = (await it.client.list(Pod, "default"))[0]
        await it.client.patch(Deployment, ObjectKey("default", "web"), {"spec": {"replicas": 0}})
        await it.until_gone(Pod, pod.name)
        await it.until(Deployment, "web", lambda found: found.status.replicas == 0)


async def test_a_deleted_pod_is_replaced_and_an_orphan_is_adopted() -> None:
    async with world() as it:
        orphan = await it.pod("web", "sleep 60")
        await it.until(Pod, "web", running)
        await it.deployment("web", {"command": ["sleep", "60"]})
        hashed = (await it.client.list(ReplicaSet, "default") or [None])[0]
        made = await it.until(Deployment, "web", rolled_out(1))
        assert made.status.available_replicas == 1
        pods = await it.client.list(Pod, "default", labels={"app": "web"})
        assert orphan.name in {pod.name for pod in pods}
        assert hashed is None or hashed.spec.selector.match_labels.keys() == {"app", "pod-template-hash"}
        mine = next(pod for pod in pods if pod.name != orphan.name)
        replica_set = mine.metadata.owner_references[0].name
        # Only a pod with the hash label belongs to the ReplicaSet. Given one, it is taken in, and one is too many.
        label = mine.metadata.labels["pod-template-hash"]
        await it.client.patch(
            Pod, ObjectKey("default", orphan.name), {"metadata": {"labels": {"pod-template-hash": label}}}
        )
        await it.until(ReplicaSet, replica_set, lambda found: found.status.replicas == 1)
        adopted = [
            pod
            for pod in await it.client.list(Pod, "default", labels={"app": "web"})
            if not pod.deleting and pod.metadata.owner_references
        ]
        assert len(adopted) == 1
        await it.client.delete(Pod, ObjectKey("default", adopted[0].name))
        await it.until_gone(Pod, adopted[0].name)
        await it.until(ReplicaSet, replica_set, lambda found: found.status.ready_replicas == 1)


async def test_a_stateful_set_starts_its_pods_in_order() -> None:
    async with world() as it:
        spec = {
            "replicas": 2,
            "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "m", "image": "x", "command": ["sh", "-c", "hostname; sleep 60"]}]},
            },
        }
        body = {"metadata": {"name": "db", "namespace": "default"}, "spec": spec}
        await it.client.create(StatefulSet.model_validate(body))
        done = await it.until(StatefulSet, "db", lambda found: found.status.ready_replicas == 2)
        assert done.status.current_revision == done.status.update_revision
        first = await it.client.get(Pod, "db-0", "default")
        second = await it.client.get(Pod, "db-1", "default")
        ready = find_condition(first.status.conditions, "Ready")
        assert ready is not None
        assert second.metadata.creation_timestamp is not None
        assert ready.last_transition_time is not None
        assert second.metadata.creation_timestamp >= ready.last_transition_time


@pytest.mark.parametrize(
    ("script", "condition", "succeeded", "failed"),
    [("exit 0", "Complete", 1, 0), ("exit 3", "Failed", 0, 2)],
)
async def test_a_job_runs_to_its_verdict(script: str, condition: str, succeeded: int, failed: int) -> None:
    async with world() as it:
        pod_template = template()
        pod_template["spec"] = {
            "restartPolicy": "Never",
            "containers": [{"name": "main", "image": "x", "command": ["sh", "-c", script]}],
        }
        body = {
            "metadata": {"name": "tune", "namespace": "default"},
            "spec": {"backoffLimit": 1, "template": pod_template},
        }
        await it.client.create(Job.model_validate(body))
        job = await it.until(Job, "tune", lambda found: is_true(found.status.conditions, condition))
        assert (job.status.succeeded, job.status.failed, job.status.active) == (succeeded, failed, 0)
        pods = await it.client.list(Pod, "default", labels={"job-name": "tune"})
        assert [terminated(pod)["exitCode"] for pod in pods] == [int(script.split()[1])] * (succeeded + failed)


async def test_deleting_a_service_stops_its_listener() -> None:
    async with world(nodes=()) as it:
        made = await it.service("web", {"port": 80, "targetPort": 5000})
        await it.settled()
        address = it.dev.proxy.address("default", "web", 80)
        assert address is not None
        await it.client.delete(Service, ObjectKey("default", "web"))
        await it.until_gone(Service, "web")
        await it.settled()
        assert it.dev.proxy.address("default", "web", 80) is None
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection(*address)
        assert made.spec.cluster_ip.startswith("127.96.")


async def test_leaving_the_block_leaves_nothing_behind(tmp_path: Path) -> None:
    root = tmp_path / "kubelet"
    tasks = asyncio.all_tasks()
    async with world(root=root) as it:
        await it.deployment("web", {"command": ["sh", "-c", "trap '' TERM; sleep 60"]}, replicas=2)
        await it.until(Deployment, "web", rolled_out(2))
        pods = await it.client.list(Pod, "default")
        found = [int((pod.status.container_statuses[0].container_id or "").rpartition("/")[2]) for pod in pods]
    assert asyncio.all_tasks() == tasks
    assert not root.exists()
    if sys.platform == "linux":
        assert not any(Path(f"/proc/{pid}").exists() for pid in found)


async def test_an_error_in_a_part_ends_the_cluster_and_comes_out() -> None:
    async def explode() -> None:
        raise RuntimeError("the proxy broke")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with world() as it:
            group = it.dev.proxy._group
            assert group is not None
            group.create_task(explode())
            await asyncio.sleep(30)
    assert [str(error) for error in leaf_errors(caught.value)] == ["the proxy broke"]
