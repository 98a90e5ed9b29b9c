"""Pods on the process kubelet: what a user sees of a container's life."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from devworld import pids, running, terminated, waiting, world

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta, find_condition, is_true
from kaito_ctrl.devcluster.kinds import Node, Pod
from kaito_ctrl.devcluster.scheduler import Scheduler
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.errors import BadRequest
from kaito_ctrl.runtime.transport import Request

NEVER = {"restartPolicy": "Never"}


async def test_a_container_finds_its_arguments_variables_and_volumes() -> None:
    async with world() as it:
        await it.client.create(
            ConfigMap(metadata=ObjectMeta(name="cfg", namespace="default"), data={"a.txt": "from the map"})
        )
        await it.pod(
            "p",
            "cat /mnt/config/a.txt; echo; echo $(GREETING) $HOSTNAME; echo kept > /scratch/out; cat /scratch/out",
            env=[{"name": "GREETING", "value": "hello"}],
            volumes=[{"name": "c", "configMap": {"name": "cfg"}}, {"name": "s", "emptyDir": {}}],
            volumeMounts=[{"name": "c", "mountPath": "/mnt/config"}, {"name": "s", "mountPath": "/scratch"}],
            **NEVER,
        )
        await it.until(Pod, "p", lambda pod: pod.status.phase == "Succeeded")
        assert await it.logs("p") == "from the map\nhello p\nkept\n"


async def test_init_containers_run_in_order_before_the_others() -> None:
    async with world() as it:
        mounts = [{"name": "s", "mountPath": "/s"}]
        inits = [
            {"name": n, "image": "x", "command": ["sh", "-c", f"echo {n} >> /s/log"], "volumeMounts": mounts}
            for n in "ab"
        ]
        await it.pod(
            "p",
            "cat /s/log",
            initContainers=inits,
            volumes=[{"name": "s", "emptyDir": {}}],
            volumeMounts=mounts,
            **NEVER,
        )
        pod = await it.until(Pod, "p", lambda pod: pod.status.phase == "Succeeded")
        assert await it.logs("p", container="main") == "a\nb\n"
        assert is_true(pod.status.conditions, "Initialized")
        assert [status.ready for status in pod.status.init_container_statuses] == [True, True]


async def test_a_failed_init_container_fails_a_pod_that_never_restarts() -> None:
    async with world() as it:
        inits = [{"name": "i", "image": "x", "command": ["sh", "-c", "exit 9"]}]
        await it.pod("p", "echo never", initContainers=inits, **NEVER)
        pod = await it.until(Pod, "p", lambda pod: pod.status.phase == "Failed")
        assert (pod.status.init_container_statuses[0].state.terminated or {})["exitCode"] == 9
        assert waiting(pod) == "PodInitializing"


async def test_the_status_of_a_failed_container_has_its_last_words_if_the_pod_asks_for_them() -> None:
    async with world() as it:
        for name, more in (("asks", {"terminationMessagePolicy": "FallbackToLogsOnError"}), ("asks-not", {})):
            await it.pod(name, "seq 100; printf last >&2; exit 3", **more, **NEVER)
        asks = await it.until(Pod, "asks", lambda pod: pod.status.phase == "Failed")
        assert terminated(asks)["message"] == "".join(f"{number}\n" for number in range(22, 101)) + "last\n"
        asks_not = await it.until(Pod, "asks-not", lambda pod: pod.status.phase == "Failed")
        assert "message" not in terminated(asks_not)


async def test_a_crashing_container_is_restarted_ever_more_slowly_and_its_last_end_is_shown() -> None:
    async with world() as it:
        seen: list[str] = []
        stop = it.dev.cluster.cache.store(Pod).listen(
            lambda change: seen.append(waiting(change.new.view())) if change.new is not None else None
        )
        await it.pod("p", "echo attempt; exit 5")
        pod = await it.until(
            Pod,
            "p",
            lambda pod: (
                pod.status.container_statuses
                and pod.status.container_statuses[0].restart_count >= 2
                and waiting(pod) == "CrashLoopBackOff"
            ),
        )
        stop()
        assert "CrashLoopBackOff" in seen
        assert (pod.status.container_statuses[0].last_state.terminated or {})["exitCode"] == 5
        assert pod.status.phase == "Running"
        assert await it.logs("p", previous="true") == "attempt\n"
        await it.client.delete(Pod, ObjectKey("default", "p"))
        await it.until_gone(Pod, "p")


async def test_readiness_follows_the_probe_and_only_then_is_the_pod_ready() -> None:
    async with world() as it:
        probe = {"exec": {"command": ["test", "-e", "/s/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
        mounts = [{"name": "s", "mountPath": "/s"}]
        await it.pod(
            "p", "sleep 60", readinessProbe=probe, volumes=[{"name": "s", "emptyDir": {}}], volumeMounts=mounts
        )
        pod = await it.until(Pod, "p", running)
        ready = find_condition(pod.status.conditions, "Ready")
        assert ready is not None
        assert (ready.status, ready.message) == ("False", "containers with unready status: [main]")
        flag = it.dev.kubelet.root / "pods" / pod.uid / "volumes" / "s" / "ready"
        flag.touch()
        await it.until(Pod, "p", lambda pod: is_true(pod.status.conditions, "Ready"))
        flag.unlink()
        await it.until(Pod, "p", lambda pod: not is_true(pod.status.conditions, "Ready"))


async def test_a_failed_liveness_probe_restarts_the_container() -> None:
    async with world() as it:
        probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
        await it.pod("p", "sleep 60", livenessProbe=probe)
        pod = await it.until(
            Pod,
            "p",
            lambda pod: (
                pod.status.container_statuses
                and pod.status.container_statuses[0].restart_count == 1
                and not waiting(pod)
            ),
        )
        assert (pod.status.container_statuses[0].last_state.terminated or {})["exitCode"] == 143


async def test_other_probes_wait_for_the_startup_probe() -> None:
    async with world() as it:
        startup = {"exec": {"command": ["true"]}, "initialDelaySeconds": 1, "periodSeconds": 1}
        await it.pod("p", "sleep 60", startupProbe=startup)
        early = await it.until(Pod, "p", running)
        assert not is_true(early.status.conditions, "Ready")
        pod = await it.until(Pod, "p", lambda pod: is_true(pod.status.conditions, "Ready"))
        assert pod.status.container_statuses[0].started


async def test_a_deleted_pod_may_say_good_bye() -> None:
    async with world() as it:
        await it.pod("p", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
        await it.until(Pod, "p", running)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(it.logs("p", follow="true"))
            while not (await it.logs("p")).startswith("up"):
                await asyncio.sleep(0.01)
            await it.client.delete(Pod, ObjectKey("default", "p"))
            await it.until_gone(Pod, "p")
        lines = following.result().splitlines()
        assert (lines[0], lines[-1]) == ("up", "bye")


async def test_a_pod_that_does_not_listen_is_killed_after_its_grace_period() -> None:
    async with world() as it:
        await it.pod("p", "trap '' TERM; sleep 60; sleep 60", terminationGracePeriodSeconds=1)
        await it.until(Pod, "p", running)
        began = time.monotonic()
        await it.client.delete(Pod, ObjectKey("default", "p"))
        await it.until_gone(Pod, "p")
        assert 0.9 < time.monotonic() - began < 10


async def test_a_forced_deletion_kills_at_once() -> None:
    async with world() as it:
        await it.pod("p", "trap '' TERM; sleep 60; sleep 60")
        pod = await it.until(Pod, "p", running)
        await it.client.delete(Pod, ObjectKey("default", "p"), grace_period=0)
        await it.until_gone(Pod, "p")
        await ended(*pids(pod))


async def ended(*numbers: int) -> None:
    async with asyncio.timeout(10):
        while any(Path(f"/proc/{pid}").exists() for pid in numbers):
            await asyncio.sleep(0.01)


async def test_what_cannot_be_started_says_why_and_starts_once_it_can() -> None:
    async with world() as it:
        await it.client.create(
            Pod.model_validate(
                {
                    "metadata": {"name": "unknown", "namespace": "default"},
                    "spec": {"containers": [{"name": "main", "image": "nginx:1.27"}]},
                }
            )
        )
        pod = await it.until(Pod, "unknown", lambda pod: waiting(pod) == "ImagePullBackOff")
        assert "runs local processes" in (pod.status.container_statuses[0].state.waiting or {})["message"]
        reference = {"configMapKeyRef": {"name": "late", "key": "word"}}
        await it.pod("late", "echo $WORD", env=[{"name": "WORD", "valueFrom": reference}], **NEVER)
        await it.until(Pod, "late", lambda pod: waiting(pod) == "CreateContainerConfigError")
        await it.client.create(ConfigMap(metadata=ObjectMeta(name="late", namespace="default"), data={"word": "now"}))
        await it.until(Pod, "late", lambda pod: pod.status.phase == "Succeeded")
        assert await it.logs("late") == "now\n"


async def test_a_command_that_does_not_exist_is_a_start_error() -> None:
    async with world() as it:
        await it.pod("p", "x", shell="/bin/sh")
        container = {"name": "main", "image": "x", "command": ["sh"], "workingDir": "/"}
        assert container
        await it.client.create(
            Pod.model_validate(
                {
                    "metadata": {"name": "q", "namespace": "default"},
                    "spec": {"restartPolicy": "Never", "containers": [{**container, "command": ["env", "no-such"]}]},
                }
            )
        )
        pod = await it.until(Pod, "q", lambda pod: pod.status.phase == "Failed")
        assert terminated(pod)["exitCode"] == 127


async def test_logs_by_tail_time_and_for_a_container_that_has_not_started() -> None:
    async with world(nodes=()) as it:
        await it.pod("p", "for n in 1 2 3 4; do echo line $n; done; echo oops >&2; sleep 60")
        with pytest.raises(BadRequest, match="does not have a host assigned"):
            await it.logs("p")
        await it.dev.kubelet.register("n1")
        await it.until(Pod, "p", running)
        async with asyncio.timeout(10):
            while "oops" not in await it.logs("p"):
                await asyncio.sleep(0.01)
        assert (await it.logs("p", tailLines="2")).startswith("line 4\n") or "oops" in await it.logs("p", tailLines="2")
        assert (await it.logs("p", timestamps="true")).split()[0].endswith("Z")
        assert await it.logs("p", sinceTime="2999-01-01T00:00:00Z") == ""
        with pytest.raises(BadRequest, match="previous terminated container"):
            await it.logs("p", previous="true")


async def test_an_unschedulable_pod_says_so_and_goes_as_soon_as_it_can() -> None:
    async with world() as it:
        await it.pod("p", "sleep 60", resources={"limits": {"nvidia.com/gpu": "1"}})
        pod = await it.until(Pod, "p", lambda pod: find_condition(pod.status.conditions, "PodScheduled"))
        scheduled = find_condition(pod.status.conditions, "PodScheduled")
        assert scheduled is not None
        assert (scheduled.reason, scheduled.message) == (
            "Unschedulable",
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        )
        await it.dev.kubelet.register("gpu", capacity={"nvidia.com/gpu": "1"}, labels={"sku": "gpu"})
        placed = await it.until(Pod, "p", running)
        assert placed.spec.node_name == "gpu"
        await it.pod("second", "sleep 60", resources={"limits": {"nvidia.com/gpu": "1"}})
        await it.until(Pod, "second", lambda pod: find_condition(pod.status.conditions, "PodScheduled"))
        await it.client.delete(Pod, ObjectKey("default", "p"))
        after = await it.until(Pod, "second", running)
        assert after.spec.node_name == "gpu"
        assert Scheduler.workers == 1


async def test_a_node_that_is_taken_away_takes_its_pods_with_it() -> None:
    async with world(nodes=("n1",)) as it:
        await it.pod("p", "trap '' TERM; sleep 60; sleep 60")
        pod = await it.until(Pod, "p", running)
        await it.dev.kubelet.deregister("n1")
        await ended(*pids(pod))
        assert (await it.client.get(Pod, "p", "default")).status.phase == "Running", "nobody is left to say otherwise"
        await it.client.delete(Node, ObjectKey("", "n1"))
        await it.until_gone(Pod, "p")


async def test_a_node_says_what_it_is_and_renews_its_lease() -> None:
    async with world(nodes=()) as it:
        await it.dev.kubelet.register("n1", labels={"a": "b"}, capacity={"nvidia.com/gpu": "2"}, provider_id="dev://1")
        node = await it.until(Node, "n1", lambda node: is_true(node.status.conditions, "Ready"))
        assert node.metadata.labels["kubernetes.io/hostname"] == "n1"
        assert node.metadata.labels["a"] == "b"
        assert node.status.allocatable["nvidia.com/gpu"] == "2"
        assert node.spec.provider_id == "dev://1"
        assert node.status.node_info["kubeletVersion"] == "v1.32.0-kaito-ctrl"


async def test_events_tell_what_happened() -> None:
    async with world() as it:
        await it.pod("p", "sleep 60")
        await it.until(Pod, "p", running)
        async with asyncio.timeout(10):
            while True:
                response = await it.dev.transport().send(Request("GET", "/api/v1/namespaces/default/events"))
                reasons = {each["reason"] for each in json.loads(await response.read())["items"]}
                if reasons >= {"Scheduled", "Started"}:
                    break
                await asyncio.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")
async def test_no_container_survives_a_killed_host_process(tmp_path: Path) -> None:
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("host_process.py")),
        str(tmp_path / "root"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert host.stdout is not None
    try:
        async with asyncio.timeout(20):
            while not (words := (await host.stdout.readline()).split())[0].isdigit():
                pass  # a log line
        numbers = [int(word) for word in words]
        assert all(Path(f"/proc/{pid}").exists() for pid in numbers)
    finally:
        os.kill(host.pid, signal.SIGKILL)
        await host.wait()
    await ended(*numbers)
