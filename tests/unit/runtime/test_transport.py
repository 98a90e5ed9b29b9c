"""Responses let go of their connection, whatever part of them was read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from kaito_ctrl.runtime.connect import connect
from kaito_ctrl.runtime.transport import Request, Response


async def body() -> AsyncIterator[bytes]:
    yield b"never asked for"


async def test_a_response_that_nobody_reads_is_released_once() -> None:
    released: list[str] = []
    response = Response(200, {}, body(), lambda: released.append("sync"))
    async with response:
        pass
    await response.aclose()
    assert released == ["sync"]


async def test_a_release_may_take_its_time() -> None:
    released: list[str] = []

    async def close() -> None:
        await asyncio.sleep(0)
        released.append("async")

    async with Response(200, {}, body(), close) as response:
        assert await response.read() == b"never asked for"
    assert released == ["async"]


async def test_an_unread_answer_over_tcp_closes_its_connection(tmp_path: Path) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\npart")
        await writer.drain()
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
                "current-context": "c",
            }
        )
    )
    async with server:
        transport = await connect(kubeconfig=str(kubeconfig))
        async with await transport.send(Request("GET", "/version")):
            pass
        async with asyncio.timeout(5):
            await closed.wait()
        await transport.aclose()
