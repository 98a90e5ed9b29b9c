"""The example operators, each as a process of its own, on a real API server with its own controllers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from kaito_api.core import ConfigMap, Namespace, Node
from kaito_api.meta import ObjectMeta
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import ApiError, NotFound
from kaito_ctrl.testing.controlplane import ControlPlane, run_control_plane
from kaito_ctrl.testing.envtest import Environment, envtest
from tests.real.joined import nodes_on

LIBRARY = Path(__file__).parents[2] / "examples" / "library"
FLEET = "/apis/example.org/v1/namespaces/default/federatedconfigs"
WEBSITES = "/apis/example.org/v1/namespaces/default/websites"


@asynccontextmanager
async def operator(name: str, kubeconfig: Path, *args: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(LIBRARY / name), *args, env={**os.environ, "KUBECONFIG": str(kubeconfig)}
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await process.wait()


async def until(check: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(40):
        while not await check():
            await asyncio.sleep(0.05)


async def data_of(client: Client, namespace: str, name: str) -> dict[str, str] | None:
    try:
        return dict((await client.get(ConfigMap, name, namespace)).data)
    except NotFound:
        return None


async def test_the_mirror_copies_follows_and_takes_away(plane: ControlPlane) -> None:
    async with envtest(plane) as env:
        client = env.client
        await client.create(Namespace(metadata=ObjectMeta(name="copies")))
        labels = {"mirror-to": "copies"}
        made = ConfigMap(metadata=ObjectMeta(name="a", namespace="default", labels=labels), data={"color": "blue"})
        await client.create(made)

        async def copied(color: str | None) -> bool:
            return await data_of(client, "copies", "a") == (None if color is None else {"color": color})

        async with operator("mirror.py", plane.kubeconfig):
            await until(lambda: copied("blue"))
            await client.patch(ConfigMap, ObjectKey("default", "a"), {"data": {"color": "red"}})
            await until(lambda: copied("red"))
            await client.delete(ConfigMap, ObjectKey("copies", "a"))
            await until(lambda: copied("red"))
            await client.delete(ConfigMap, ObjectKey("default", "a"))
            await until(lambda: copied(None))


@pytest.mark.timeout(120)
async def test_the_fleet_serves_who_is_there_and_makes_up_for_who_was_not(plane: ControlPlane, binaries: Path) -> None:
    with run_control_plane(binaries, controllers=()) as far:
        async with envtest(plane) as hub, envtest(far) as east, envtest() as west:
            members = [f"--member=east={far.kubeconfig}", f"--member=west={await west.kubeconfig()}"]

            async def write(method: str, path: str, color: str) -> bool:
                body = {
                    "apiVersion": "example.org/v1",
                    "kind": "FederatedConfig",
                    "metadata": {"name": "theme"},
                    "spec": {"data": {"color": color}},
                }
                media = "application/json" if method == "POST" else "application/merge-patch+json"
                try:
                    await hub.client.request(method, path, body=body, headers={"content-type": media})
                except ApiError:
                    return False  # the operator has not brought the kind yet
                return True

            async def copied(env: Environment, color: str | None) -> bool:
                return await data_of(env.client, "default", "theme") == (None if color is None else {"color": color})

            async def synced(text: str) -> bool:
                found = decode_json(await hub.client.request("GET", f"{FLEET}/theme"))
                return bool(found.get("status", {}).get("synced") == text)

            async with operator("fleet.py", plane.kubeconfig, f"--hub={plane.kubeconfig}", *members):
                await until(lambda: write("POST", FLEET, "blue"))
                await until(lambda: copied(east, "blue"))
                await until(lambda: copied(west, "blue"))
                await until(lambda: synced("2/2"))
                far.kill()
                await write("PATCH", f"{FLEET}/theme", "red")
                await until(lambda: copied(west, "red"))
                await until(lambda: synced("1/2"))
                await asyncio.to_thread(far.restart)
                await until(lambda: copied(east, "red"))
                await until(lambda: synced("2/2"))
                await hub.client.request("DELETE", f"{FLEET}/theme")
                await until(lambda: copied(east, None))
                await until(lambda: copied(west, None))


@pytest.mark.timeout(120)
async def test_the_website_is_served_follows_its_spec_and_goes(working: ControlPlane, tmp_path: Path) -> None:
    async with envtest(working) as env, nodes_on(working, tmp_path / "pods") as nodes:
        await nodes.kubelet.register("node", labels={}, capacity={"cpu": "4", "memory": "8Gi", "pods": "10"})
        client = env.client
        body = {
            "apiVersion": "example.org/v1",
            "kind": "Website",
            "metadata": {"name": "hello"},
            "spec": {"title": "Hello"},
        }

        async def created() -> bool:
            try:
                await client.request("POST", WEBSITES, body=body)
            except ApiError:
                return False  # the operator has not brought the kind yet
            return True

        async def serves(text: str) -> bool:
            address = nodes.proxy.address("default", "hello", 80)
            if address is None:
                return False
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://{address[0]}:{address[1]}/") as response,
                ):
                    return await response.text() == text
            except aiohttp.ClientError:
                return False

        async def nothing() -> bool:
            return await data_of(client, "default", "hello") is None

        async with operator("website.py", working.kubeconfig):
            await until(created)
            await until(lambda: serves("<h1>Hello</h1>"))
            await client.request(
                "PATCH",
                f"{WEBSITES}/hello",
                body={"spec": {"title": "Goodbye"}},
                headers={"content-type": "application/merge-patch+json"},
            )
            await until(lambda: serves("<h1>Goodbye</h1>"))
            await client.request("DELETE", f"{WEBSITES}/hello")
            await until(nothing)
        await nodes.kubelet.deregister("node")
        await client.delete(Node, ObjectKey("", "node"))
