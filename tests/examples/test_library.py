"""The example operators, each as a process of its own, against an embedded cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from kaito_api.core import ConfigMap, Namespace
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.errors import ApiError, NotFound

LIBRARY = Path(__file__).parents[2] / "examples" / "library"


@asynccontextmanager
async def operator(name: str, dev: DevCluster, folder: Path) -> AsyncIterator[None]:
    kubeconfig = folder / "kubeconfig"
    await dev.write_kubeconfig(kubeconfig)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(LIBRARY / name), env={**os.environ, "KUBECONFIG": str(kubeconfig)}
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await process.wait()


async def until(check: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.05)


async def test_the_mirror_copies_follows_and_takes_away(tmp_path: Path) -> None:
    async with DevCluster.start() as dev:
        client = Client(dev.transport())
        await client.create(Namespace(metadata=ObjectMeta(name="copies")))
        labels = {"mirror-to": "copies"}
        made = ConfigMap(metadata=ObjectMeta(name="a", namespace="default", labels=labels), data={"color": "blue"})
        await client.create(made)

        async def copied(color: str | None) -> bool:
            try:
                return (await client.get(ConfigMap, "a", "copies")).data == {"color": color}
            except NotFound:
                return color is None

        async with operator("mirror.py", dev, tmp_path):
            await until(lambda: copied("blue"))
            await client.patch(ConfigMap, ObjectKey("default", "a"), {"data": {"color": "red"}})
            await until(lambda: copied("red"))
            await client.delete(ConfigMap, ObjectKey("copies", "a"))
            await until(lambda: copied("red"))
            await client.delete(ConfigMap, ObjectKey("default", "a"))
            await until(lambda: copied(None))


async def test_the_website_is_served_follows_its_spec_and_goes(tmp_path: Path) -> None:
    async with DevCluster.start() as dev:
        await dev.kubelet.register("node", labels={}, capacity={"cpu": "4", "memory": "8Gi", "pods": "10"})
        client = Client(dev.transport())
        path = "/apis/example.org/v1/namespaces/default/websites"
        body = {
            "apiVersion": "example.org/v1",
            "kind": "Website",
            "metadata": {"name": "hello"},
            "spec": {"title": "Hello"},
        }

        async def created() -> bool:
            try:
                await client.request("POST", path, body=body)
            except ApiError:
                return False  # the operator has not brought the kind yet
            return True

        async def page() -> str:
            address = dev.proxy.address("default", "hello", 80)
            if address is None:
                return ""
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://{address[0]}:{address[1]}/") as response,
                ):
                    return await response.text()
            except aiohttp.ClientError:
                return ""

        async def serves(text: str) -> bool:
            return await page() == text

        async def nothing() -> bool:
            return not [each for each in await client.list(ConfigMap, "default") if each.name == "hello"]

        async with operator("website.py", dev, tmp_path):
            await until(created)
            await until(lambda: serves("<h1>Hello</h1>"))
            await client.request(
                "PATCH",
                f"{path}/hello",
                body={"spec": {"title": "Goodbye"}},
                headers={"content-type": "application/merge-patch+json"},
            )
            await until(lambda: serves("<h1>Goodbye</h1>"))
            await client.request("DELETE", f"{path}/hello")
            await until(nothing)
