"""A TCP proxy that can be cut: the network between one client and an API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

__all__ = ["Proxy", "proxy_to"]


class Proxy:
    """Carries bytes both ways while it is not cut. ``url`` is where it listens, over TLS from end to end."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._links: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._whole = True
        self.url = ""

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._whole = False
        for link in tuple(self._links):
            link.cancel()

    def heal(self) -> None:
        self._whole = True

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links[link] = (writer,)
        with suppress(OSError, asyncio.CancelledError):
            if self._whole:
                back_reader, back_writer = await asyncio.open_connection(*self._target)
                self._links[link] = (writer, back_writer)
                await asyncio.wait(
                    {
                        asyncio.create_task(_copy(reader, back_writer)),
                        asyncio.create_task(_copy(back_reader, writer)),
                    },
                    return_when=asyncio.FIRST_COMPLETED,
                )
        for end in self._links.pop(link):
            end.transport.abort()

    async def aclose(self) -> None:
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    """A proxy to the server at *url* (``https://HOST:PORT``)."""
    host, _, port = url.removeprefix("https://").partition(":")
    proxy = Proxy(host, int(port))
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
