"""The example of several clusters, as a process of its own, against embedded ones."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from kaito_api.core import ConfigMap
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import ApiError, NotFound
from tests.examples.walks import LIBRARY, until

CONFIGS = "/apis/example.org/v1/namespaces/default/federatedconfigs"
FLEET = str(LIBRARY / "fleet.py")


@asynccontextmanager
async def clusters(folder: Path, *names: str) -> AsyncIterator[list[Client]]:
    """Embedded clusters, each with a kubeconfig of its name in *folder*."""
    async with AsyncExitStack() as stack:
        clients = []
        for name in names:
            dev = await stack.enter_async_context(DevCluster.start())
            await dev.write_kubeconfig(folder / name)
            clients.append(Client(dev.transport(), "user"))
        yield clients


@asynccontextmanager
async def operator(folder: Path, *members: str) -> AsyncIterator[None]:
    options = [option for name in members for option in ("--member", f"{name}={folder / name}")]
    process = await asyncio.create_subprocess_exec(sys.executable, FLEET, "--hub", str(folder / "hub"), *options)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await process.wait()


async def create(hub: Client, spec: Mapping[str, Any]) -> None:
    body = {"apiVersion": "example.org/v1", "kind": "FederatedConfig", "metadata": {"name": "a"}, "spec": spec}

    async def created() -> bool:
        try:
            await hub.request("POST", CONFIGS, body=body)
        except ApiError:
            return False  # the operator has not brought the kind yet
        return True

    await until(created)


async def status(hub: Client) -> dict[str, Any]:
    found: dict[str, Any] = decode_json(await hub.request("GET", f"{CONFIGS}/a")).get("status") or {}
    return found


async def data(client: Client) -> dict[str, str] | None:
    try:
        return dict((await client.get(ConfigMap, "a", "default")).data)
    except NotFound:
        return None


async def test_the_fleet_is_served_mended_narrowed_and_left_clean(tmp_path: Path) -> None:
    async with clusters(tmp_path, "hub", "east", "west") as (hub, east, west), operator(tmp_path, "east", "west"):
        await create(hub, {"data": {"color": "blue"}})

        async def is_like(in_east: dict[str, str] | None, in_west: dict[str, str] | None) -> bool:
            return (await data(east), await data(west)) == (in_east, in_west)

        async def says(synced: str) -> bool:
            return (await status(hub)).get("synced") == synced

        async def gone() -> bool:
            try:
                await hub.request("GET", f"{CONFIGS}/a")
            except NotFound:
                return True
            return False

        blue = {"color": "blue"}
        await until(lambda: is_like(blue, blue))
        await until(lambda: says("2/2"))
        await west.delete(ConfigMap, ObjectKey("default", "a"))
        await until(lambda: is_like(blue, blue))
        merge = {"content-type": "application/merge-patch+json"}
        await hub.request("PATCH", f"{CONFIGS}/a", body={"spec": {"members": ["east"]}}, headers=merge)
        await until(lambda: is_like(blue, None))
        await until(lambda: says("1/1"))
        await hub.request("DELETE", f"{CONFIGS}/a")
        await until(gone)
        assert await is_like(None, None)


async def test_a_member_that_is_down_is_reported_and_harms_no_other(tmp_path: Path) -> None:
    async with clusters(tmp_path, "hub", "east") as (hub, east):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        (tmp_path / "north").write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: north\n"
            "contexts: [{name: north, context: {cluster: north, user: north}}]\n"
            f"clusters: [{{name: north, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n"
            "users: [{name: north, user: {}}]\n"
        )
        async with operator(tmp_path, "east", "north"):
            await create(hub, {"data": {"color": "red"}})

            async def reported() -> bool:
                return len((await status(hub)).get("members", ())) == 2

            await until(reported)
            said = await status(hub)
            states = {each["name"]: (each["state"], each.get("message", "")) for each in said["members"]}
            assert said["synced"] == "1/2"
            assert states["east"] == ("Synced", "")
            assert states["north"][0] == "Failed"
            assert "cluster 'north' is not available: not listed yet: configmaps" in states["north"][1]
            assert await data(east) == {"color": "red"}


async def test_without_arguments_it_brings_its_own_clusters() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, FLEET, stdout=PIPE)
    try:
        assert process.stdout is not None
        said: list[str] = []
        async with asyncio.timeout(40):
            while len(said) < 2:
                line = (await process.stdout.readline()).decode()
                assert line, "it ended"
                said += [line.strip()] if line.startswith("FederatedConfig") else []
        assert said == [f"FederatedConfig default/greeting on {name}: Synced" for name in ("east", "west")]
    finally:
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
