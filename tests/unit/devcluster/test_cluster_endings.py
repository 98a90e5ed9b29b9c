"""How things end: by deletion, by cancellation, by silence."""

from __future__ import annotations

import asyncio
import shutil
import sys
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from devworld import World, pids, running, world
from streams import Target

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta, find_condition, is_true
from kaito_ctrl.devcluster.kinds import Deployment, Node, Pod, ReplicaSet
from kaito_ctrl.devcluster.nodelifecycle import UNREACHABLE
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.clock import SystemClock

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")


class ShiftedClock(SystemClock):
    """The system's clock, moved at will."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def now(self) -> datetime:
        return super().now() + self.shift


async def test_deleting_a_deployment_ends_its_processes() -> None:
    async with world() as it:
        await it.deployment("web", {"command": ["sleep", "60"]}, replicas=2)
        await it.until(Deployment, "web", lambda found: found.status.available_replicas == 2)
        pods = await it.client.list(Pod, "default")
        sets = await it.client.list(ReplicaSet, "default")
        await it.client.delete(Deployment, ObjectKey("default", "web"), propagation="Background")
        for pod in pods:
            await it.until_gone(Pod, pod.name)
        await it.until_gone(ReplicaSet, sets[0].name)
        assert not any(Path(f"/proc/{pid}").exists() for pod in pods for pid in pids(pod))


@LINUX
async def test_cancellation_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    root = tmp_path / "kubelet"
    up: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def host() -> None:
        async with world(root=root) as it:
            await it.pod("p", "trap '' TERM; sleep 60; sleep 60")
            up.set_result(pids(await it.until(Pod, "p", running)))
            await asyncio.sleep(60)

    hosting = asyncio.ensure_future(host())
    numbers = await up
    hosting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hosting
    assert not any(Path(f"/proc/{pid}").exists() for pid in numbers)
    assert not root.exists()


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    async def fail() -> None:
        async with world():
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await fail()


async def test_a_silent_node_becomes_unreachable_and_loses_its_pods_in_time() -> None:
    clock = ShiftedClock()
    async with world(nodes=("n1",), clock=clock) as it:
        await it.deployment("web", {"command": ["sleep", "60"]})
        await it.until(Deployment, "web", lambda found: found.status.available_replicas == 1)
        first = (await it.client.list(Pod, "default"))[0]
        await it.dev.kubelet.deregister("n1")
        clock.shift = timedelta(seconds=41)
        await it.settled()
        node = await it.until(Node, "n1", lambda found: any(taint.key == UNREACHABLE for taint in found.spec.taints))
        ready = find_condition(node.status.conditions, "Ready")
        assert ready is not None
        assert (ready.status, ready.reason) == ("Unknown", "NodeStatusUnknown")
        distrusted = await it.until(Pod, first.name, lambda pod: not is_true(pod.status.conditions, "Ready"))
        assert not distrusted.deleting
        await it.until(Deployment, "web", lambda found: found.status.available_replicas == 0)
        clock.shift = timedelta(seconds=41 + 301)
        await it.settled()
        await it.until(Pod, first.name, lambda pod: pod.deleting)
        successors = [pod for pod in await it.client.list(Pod, "default") if not pod.deleting]
        assert [pod.spec.node_name for pod in successors] == [""], "its successor waits for a node"


async def test_a_node_that_comes_back_is_ready_and_schedulable_again() -> None:
    clock = ShiftedClock()
    async with world(nodes=("n1",), clock=clock) as it:
        await it.dev.kubelet.deregister("n1")
        clock.shift = timedelta(seconds=41)
        await it.settled()
        await it.until(Node, "n1", lambda found: found.spec.taints)
        await it.dev.kubelet.register("n1")
        await it.until(Node, "n1", lambda found: not found.spec.taints)
        await it.pod("p", "sleep 60")
        await it.until(Pod, "p", running)


async def test_a_kubelet_that_was_only_slow_takes_back_what_was_concluded() -> None:
    async with world() as it:
        await it.pod("p", "sleep 60")
        pod = await it.until(Pod, "p", lambda pod: is_true(pod.status.conditions, "Ready"))
        conditions = [
            {**each.to_wire(), "status": "False"} if each.type == "Ready" else each.to_wire()
            for each in pod.status.conditions
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(it.until(Pod, "p", lambda pod: not is_true(pod.status.conditions, "Ready")))
            await asyncio.sleep(0)  # it listens from here on, and will not miss what lasts for a moment only
            await it.client.patch(
                Pod, ObjectKey("default", "p"), {"status": {"conditions": conditions}}, subresource="status"
            )
        await it.until(Pod, "p", lambda pod: is_true(pod.status.conditions, "Ready"))


async def kubectl(config: Path, *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("kubectl", "--kubeconfig", str(config), *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
async def test_kubectl_rolls_out_reads_logs_and_undoes(tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    async with world(tcp=True) as it:
        await it.dev.write_kubeconfig(config)
        assert config.stat().st_mode & 0o077 == 0
        await it.deployment("web", {"command": ["sh", "-c", "echo one; sleep 60"]})
        assert "successfully rolled out" in await kubectl(config, "rollout", "status", "deployment/web")
        assert "condition met" in await kubectl(config, "wait", "--for=condition=Available", "deployment/web")
        await kubectl(config, "set", "env", "deployment/web", "A=b")
        assert "successfully rolled out" in await kubectl(config, "rollout", "status", "deployment/web")
        await kubectl(config, "rollout", "undo", "deployment/web")
        assert "successfully rolled out" in await kubectl(config, "rollout", "status", "deployment/web")
        assert await said(it, config) == "one\n"
        await kubectl(config, "delete", "deployment", "web")


async def said(it: World, config: Path) -> str:
    """What the Deployment's pod has printed, once it has printed anything."""
    pods = [pod for pod in await it.client.list(Pod, "default") if not pod.deleting]
    async with asyncio.timeout(10):
        while not (output := await kubectl(config, "logs", pods[0].name)):
            await asyncio.sleep(0.05)
    return output


async def test_a_client_that_goes_ends_its_watch_though_there_is_nothing_to_tell() -> None:
    async with world(tcp=True) as it:
        target, backend = Target.of(it.dev), it.dev.server.backend
        await it.settled()
        before = backend.watches
        url = f"{target.url}/api/v1/namespaces/default/configmaps?watch=true"
        await it.client.create(ConfigMap(metadata=ObjectMeta(name="first", namespace="default")))
        async with (
            aiohttp.ClientSession(headers=target.headers) as session,
            session.get(url, ssl=target.context) as answer,
        ):
            assert b'"ADDED"' in await answer.content.readline()
            assert backend.watches == before + 1
        async with asyncio.timeout(10):
            while backend.watches != before:
                await asyncio.sleep(0.01)
