"""The floor: a client that reads and discards, with blocking sockets. What it takes is the price of the server, the
kernel and the loopback interface, which nobody can go below."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.bench.clients.harness import Bench, main

_PAGE = 500
_BUFFER = 1 << 20


def _connect(bench: Bench) -> socket.socket:
    address = urlsplit(bench.spec.url)
    assert address.hostname is not None
    assert address.port is not None
    connection = socket.create_connection((address.hostname, address.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _request(connection: socket.socket, target: str) -> bytes:
    """Send a GET; returns what came with the head of the answer, which is left in front of it."""
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: bench\r\nAccept: application/json\r\n\r\n".encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    return received


def _list(bench: Bench, path: str) -> None:
    connection = _connect(bench)
    buffer = bytearray(_BUFFER)
    for start in range(0, bench.spec.present, _PAGE):
        head, _, body = _request(connection, f"{path}?limit={_PAGE}&continue={start}").partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        left = length - len(body)
        while left > 0:
            left -= connection.recv_into(buffer, min(left, _BUFFER))
    connection.close()


def _watch(bench: Bench, path: str) -> Iterator[bytes]:
    connection = _connect(bench)
    yield _request(connection, f"{path}?watch=true&resourceVersion=1").partition(b"\r\n\r\n")[2]
    while received := connection.recv(_BUFFER):
        yield received


async def _sync(bench: Bench) -> None:
    await bench.begin(ticking=False)
    _list(bench, "/api/v1/pods")
    bench.count = bench.spec.pods
    bench.end()


async def _events(bench: Bench) -> None:
    stream = _watch(bench, "/api/v1/pods")
    next(stream)
    await bench.begin(ticking=False)
    await bench.play()
    while bench.count < bench.spec.events:
        # Every event ends a line, and no line has another end.
        bench.count += next(stream).count(b"}\n\r\n")
    bench.end()


async def _latency(bench: Bench) -> None:
    stream = _watch(bench, "/api/v1/pods")
    next(stream)
    bench.stamp()
    await bench.begin(ticking=False)
    await bench.play(spacing=bench.spec.spacing)

    def read() -> None:
        while bench.count < bench.spec.events:
            for _ in range(next(stream).count(b"}\n\r\n")):
                bench.seen(str(bench.count))

    await asyncio.to_thread(read)
    bench.end()
    await bench.latencies()


async def _idle(bench: Bench) -> None:
    streams = [_watch(bench, f"/apis/{group}/{version}/{plural}") for group, version, _, plural in bench.spec.resources]
    for stream in streams:
        next(stream)
    await bench.begin(ticking=False)
    await asyncio.to_thread(time.sleep, bench.spec.quiet)
    bench.end()


async def _run(_: Bench) -> None:
    raise NotImplementedError("the floor measures each task by itself")


if __name__ == "__main__":
    main(_run, tasks={"sync": _sync, "events": _events, "latency": _latency, "idle": _idle})
