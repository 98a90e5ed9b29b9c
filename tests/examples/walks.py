"""What a user does with an example operator, on whatever API server, and what has to come of it."""

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
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.errors import ApiError, NotFound

LIBRARY = Path(__file__).parents[2] / "examples" / "library"
WEBSITES = "/apis/example.org/v1/namespaces/default/websites"


@asynccontextmanager
async def operator(name: str, kubeconfig: Path, *args: str) -> AsyncIterator[None]:
    """The example of that file name, as a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(LIBRARY / name), *args, env={**os.environ, "KUBECONFIG": str(kubeconfig)}
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await process.wait()


async def until(check: Callable[[], Awaitable[object]], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.05)


async def data_of(client: Client, namespace: str, name: str) -> dict[str, str] | None:
    try:
        return dict((await client.get(ConfigMap, name, namespace)).data)
    except NotFound:
        return None


async def mirror(client: Client, kubeconfig: Path, *, seconds: float = 30) -> None:
    """A ConfigMap is copied, followed, brought back, and its copy taken away, each within *seconds*."""
    await client.create(Namespace(metadata=ObjectMeta(name="copies")))
    metadata = ObjectMeta(name="a", namespace="default", labels={"mirror-to": "copies"})
    await client.create(ConfigMap(metadata=metadata, data={"color": "blue"}))

    async def copied(color: str | None) -> bool:
        return await data_of(client, "copies", "a") == (None if color is None else {"color": color})

    async with operator("mirror.py", kubeconfig):
        await until(lambda: copied("blue"), seconds=seconds)
        await client.patch(ConfigMap, ObjectKey("default", "a"), {"data": {"color": "red"}})
        await until(lambda: copied("red"), seconds=seconds)
        await client.delete(ConfigMap, ObjectKey("copies", "a"))
        await until(lambda: copied("red"), seconds=seconds)
        await client.delete(ConfigMap, ObjectKey("default", "a"))
        await until(lambda: copied(None), seconds=seconds)


async def website(
    client: Client, kubeconfig: Path, address: Callable[[], tuple[str, int] | None], *, seconds: float = 30
) -> None:
    """A Website is served at *address*, follows its spec, and takes everything with it, each within *seconds*."""
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
        found = address()
        if found is None:
            return False
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{found[0]}:{found[1]}/") as response,
            ):
                return await response.text() == text
        except aiohttp.ClientError:
            return False

    async def nothing() -> bool:
        return await data_of(client, "default", "hello") is None

    async with operator("website.py", kubeconfig):
        await until(created, seconds=seconds)
        await until(lambda: serves("<h1>Hello</h1>"), seconds=seconds)
        await client.request(
            "PATCH",
            f"{WEBSITES}/hello",
            body={"spec": {"title": "Goodbye"}},
            headers={"content-type": "application/merge-patch+json"},
        )
        await until(lambda: serves("<h1>Goodbye</h1>"), seconds=seconds)
        await client.request("DELETE", f"{WEBSITES}/hello")
        await until(nothing, seconds=seconds)
