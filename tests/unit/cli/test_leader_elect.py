"""``kaito-ctrl run`` as two replicas of one thing."""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from kaito_api import coordination
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.local import install_crds
from kaito_ctrl.cli.runcommand import WORKSPACE_LEASE_NAME
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.runtime import Client, Cluster, Lease, ObjectKey
from kaito_ctrl.runtime.errors import NotFound

KAITO = str(Path(sys.executable).parent / "kaito-ctrl")


@asynccontextmanager
async def replica(kubeconfig: Path) -> AsyncIterator[Process]:
    command = [KAITO, "run", "--leader-elect", "--leader-elect-namespace", "default"]
    off = ["--metrics-port", "-1", "--health-port", "-1", "--kubeconfig", str(kubeconfig)]
    process = await asyncio.create_subprocess_exec(*command, *off, stdout=DEVNULL, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(40):
        while not await check():
            await asyncio.sleep(0.1)


async def test_a_standby_is_alive_and_ready_and_health_knows_of_the_lease() -> None:
    server = ApiServer()
    client = Client(server.transport())
    await install_crds(client)
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 3600}
    path = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
    await client.request("POST", path, body={"metadata": {"name": "it"}, "spec": spec})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lease = Lease("it", namespace="default")
    options = DaemonOptions(leader=lease, host="127.0.0.1", metrics_port=None, health_port=port, drain=1.0)
    manager = build_manager(Cluster(server.transport()), None, options)
    async with asyncio.TaskGroup() as group, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        group.create_task(manager.run())
        await manager.wait_ready()
        for path, check in (("/healthz", "[+]leaderElection ok"), ("/readyz", "[+]caches ok")):
            async with session.get(path, params={"verbose": ""}) as response:
                assert response.status == 200
                assert check in await response.text()
        assert not manager.leading
        manager.stop()
    await server.aclose()


async def test_the_standby_takes_over_from_a_replica_that_stops_and_one_that_is_deposed_fails(tmp_path: Path) -> None:
    async with DevCluster.start() as dev:
        client, kubeconfig = Client(dev.transport()), tmp_path / "kubeconfig"
        await install_crds(client)
        await dev.write_kubeconfig(kubeconfig)

        async def holder() -> str:
            try:
                lease = await client.get(coordination.Lease, WORKSPACE_LEASE_NAME, "default")
                return lease.spec.holder_identity or ""
            except NotFound:
                return ""

        async def held() -> bool:
            return await holder() != ""

        async with replica(kubeconfig) as first:
            await until(held)
            leader = await holder()
            async with replica(kubeconfig) as second:
                assert second.stderr is not None
                async with asyncio.timeout(30):
                    while b"waits for the lease" not in await second.stderr.readline():
                        pass
                first.terminate()
                assert await first.wait() == 0

                async def taken_over() -> bool:
                    return await holder() not in ("", leader)

                await until(taken_over)
                key = ObjectKey("default", WORKSPACE_LEASE_NAME)
                await client.patch(coordination.Lease, key, {"spec": {"holderIdentity": "somebody-else"}})
                _, said = await second.communicate()
                assert second.returncode == 1
                assert said.decode().splitlines()[-1].startswith("kaito-ctrl: lease default/ef60f9b0.io: now held by")
