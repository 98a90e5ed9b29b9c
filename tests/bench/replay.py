"""The server of the benchmark: it replays prepared bytes, so that it costs less than any client that reads them.

``python -m tests.bench.replay --pods N`` renders every object, every watch line and every chunk header once, says on
its standard output where it listens, and from then on only writes slices of what it has. It speaks as much of the
Kubernetes API as a client needs to list and watch: discovery, paged and whole lists, watches from a version, from
nothing (which begin with what there is) and with ``sendInitialEvents``. It keeps no state: whoever connects sees the
same content, and events come when they are asked for::

    GET /bench/play?count=N&spacing=S    modify the first N pods, S seconds apart; answered once a watch is open
    GET /bench/sent                      when each of these events was sent, by the system's monotonic clock, in ns

It ends when its standard input does, so that it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.bench.objects import FIRST_VERSION, GROUP, WIDGETS, pods, widgets

__all__ = ["Content", "Server", "contents"]

BOOKMARK_SECONDS = 10.0
"""A real server sends one about once a minute: a quiet daemon is measured with six times as many."""
_WIDGET_COUNT = 100


class Content:
    """All bytes of one resource."""

    def __init__(
        self,
        group: str,
        version: str,
        kind: str,
        plural: str,
        objects: Iterable[bytes],
        modified: Iterable[bytes] = (),
    ) -> None:
        self.group, self.version, self.kind, self.plural = group, version, kind, plural
        self.api_version = f"{group}/{version}" if group else version
        prefix = f'{{"kind":"{kind}","apiVersion":"{self.api_version}",'.encode()
        items, lines, lengths = bytearray(), bytearray(), []
        for body in objects:
            items += body
            items += b","
            lengths.append(len(body) + 1)
            lines += _chunk(b'{"type":"ADDED","object":' + prefix + body[1:] + b"}\n")
        self._ends = [0, *accumulate(lengths)]
        self._items = memoryview(bytes(items))
        del items
        self.count = len(lengths)
        self.present = memoryview(bytes(lines))
        """Every object as an ADDED event, in chunks of HTTP."""
        self.events = [_chunk(b'{"type":"MODIFIED","object":' + prefix + body[1:] + b"}\n") for body in modified]
        """What :meth:`Server.play` sends, in chunks of HTTP."""
        self.stream = memoryview(b"".join(self.events))
        self.newest = str(FIRST_VERSION + self.count + len(self.events))
        self._bookmark = prefix + b'"metadata":{"resourceVersion":"' + self.newest.encode() + b'"%s}}'

    @property
    def path(self) -> str:
        return f"/api/{self.version}/{self.plural}" if not self.group else f"/apis/{self.api_version}/{self.plural}"

    def page(self, start: int, limit: int) -> list[bytes | memoryview]:
        """The list from object *start* on, of at most *limit* objects (0: all of them), as parts."""
        end = min(start + limit, self.count) if limit else self.count
        head: dict[str, Any] = {"resourceVersion": str(FIRST_VERSION + self.count)}
        if end < self.count:
            head |= {"continue": str(end), "remainingItemCount": self.count - end}
        opening = {"kind": f"{self.kind}List", "apiVersion": self.api_version, "metadata": head}
        # Without the comma after the last of them.
        items = self._items[self._ends[start] : max(self._ends[end] - 1, self._ends[start])]
        return [json.dumps(opening)[:-1].encode() + b',"items":[', items, b"]}"]

    def bookmark(self, *, ends_initial: bool = False) -> bytes:
        """A BOOKMARK event, in a chunk of HTTP."""
        extra = b',"annotations":{"k8s.io/initial-events-end":"true"}' if ends_initial else b""
        return _chunk(b'{"type":"BOOKMARK","object":' + self._bookmark % extra + b"}\n")

    def discovery(self) -> dict[str, Any]:
        """The resource's entry in its group's discovery document."""
        return {
            "name": self.plural,
            "singularName": self.kind.lower(),
            "namespaced": True,
            "kind": self.kind,
            "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
        }


def _chunk(data: bytes) -> bytes:
    # One for each event, as a real server flushes them.
    return b"%x\r\n%s\r\n" % (len(data), data)


def contents(pod_count: int, event_count: int = 0) -> list[Content]:
    """*pod_count* pods, of which the first *event_count* will be modified; ten kinds of widgets; and the kinds that
    peers look for when they start."""
    modified = pods(event_count, FIRST_VERSION + pod_count)
    return [
        Content("", "v1", "Pod", "pods", pods(pod_count), modified),
        *(
            Content(GROUP, "v1", f"Widget{kind}", f"widget{kind}s", widgets(_WIDGET_COUNT, kind))
            for kind in range(WIDGETS)
        ),
        Content("", "v1", "Namespace", "namespaces", ()),
        Content("", "v1", "Event", "events", ()),
        Content("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", ()),
    ]


class _Watch:
    """An open watch; its lock keeps events whole when several threads write."""

    def __init__(self, connection: socket.socket, content: Content, *, bookmarks: bool) -> None:
        self.connection = connection
        self.content = content
        self.bookmarks = bookmarks
        self.lock = threading.Lock()

    def send(self, data: bytes | memoryview) -> None:
        with self.lock, suppress(OSError):  # it has gone: its own thread sees that too
            self.connection.sendall(data)


class Server:
    """Serves *contents* on a port of the loopback interface, with a thread for each connection: blocking writes of
    slices release the interpreter and copy nothing."""

    def __init__(self, served: Iterable[Content]) -> None:
        self._contents = {content.path: content for content in served}
        self._documents = {path: json.dumps(document).encode() for path, document in self._discovery()}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._watches: set[_Watch] = set()
        self._changed = threading.Condition()
        self._sent: list[int] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def start(self) -> None:
        """Accept connections from now on, in the background."""
        for work in (self._accept, self._bookmarks):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Accept no more, and end all watches."""
        # A thread that waits in a call does not notice that its socket is closed, but does notice its shutdown.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for watch in self._watches:
                watch.connection.shutdown(socket.SHUT_RDWR)

    def _discovery(self) -> Iterator[tuple[str, Any]]:
        groups: dict[str, list[Content]] = {}
        for content in self._contents.values():
            groups.setdefault(content.api_version, []).append(content)
        yield "/version", {"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"}
        yield "/api", {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
        described = []
        for api_version, members in groups.items():
            root = "/api" if "/" not in api_version else "/apis"
            resources = [member.discovery() for member in members]
            document = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version}
            yield f"{root}/{api_version}", {**document, "resources": resources}
            group, _, version = api_version.rpartition("/")
            if group:
                spelled = {"groupVersion": api_version, "version": version}
                described.append({"name": group, "versions": [spelled], "preferredVersion": spelled})
                yield f"/apis/{group}", {"kind": "APIGroup", "apiVersion": "v1", **described[-1]}
        yield "/apis", {"kind": "APIGroupList", "apiVersion": "v1", "groups": described}

    # -- threads -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _bookmarks(self) -> None:
        while True:
            time.sleep(BOOKMARK_SECONDS)
            with self._changed:
                watches = [watch for watch in self._watches if watch.bookmarks]
            for watch in watches:
                watch.send(watch.content.bookmark())

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        with connection:
            try:
                while True:
                    while b"\r\n\r\n" not in buffer:
                        received = connection.recv(65536)
                        if not received:
                            return
                        buffer += received
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
                    self._answer(connection, method, target)
            except OSError:
                return

    def _answer(self, connection: socket.socket, method: str, target: str) -> None:
        address = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        content = self._contents.get(address.path)
        if method != "GET":
            _respond(connection, 405, [_status(405, "MethodNotAllowed", f"{method} is not served here")])
        elif content is not None and query.get("watch", "").lower() in ("1", "true"):
            self._watch(connection, content, query)
        elif content is not None:
            _respond(connection, 200, content.page(int(query.get("continue", 0)), int(query.get("limit", 0))))
        elif address.path == "/bench/play":
            self._play(connection, int(query["count"]), float(query.get("spacing", 0)))
        elif address.path == "/bench/sent":
            _respond(connection, 200, [json.dumps(self._sent).encode()])
        elif (document := self._documents.get(address.path.rstrip("/") or "/")) is not None:
            _respond(connection, 200, [document])
        else:
            _respond(connection, 404, [_status(404, "NotFound", f"the server could not find {address.path}")])

    def _watch(self, connection: socket.socket, content: Content, query: dict[str, str]) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            b"Cache-Control: no-cache, private\r\n\r\n"
        )
        streaming = query.get("sendInitialEvents") == "true"
        if streaming or query.get("resourceVersion", "0") == "0":
            connection.sendall(content.present)
        if streaming:
            connection.sendall(content.bookmark(ends_initial=True))
        watch = _Watch(connection, content, bookmarks=query.get("allowWatchBookmarks") == "true")
        with self._changed:
            self._watches.add(watch)
            self._changed.notify_all()
        try:
            while connection.recv(65536):
                pass  # until the client closes it
        finally:
            with self._changed:
                self._watches.discard(watch)

    def _play(self, connection: socket.socket, count: int, spacing: float) -> None:
        def of_pods() -> list[_Watch]:
            return [watch for watch in self._watches if watch.content.events]

        with self._changed:
            if not self._changed.wait_for(of_pods, timeout=30):
                _respond(connection, 409, [_status(409, "Conflict", "nobody watches pods")])
                return
            watches = of_pods()
        content = watches[0].content
        self._sent = sent = []
        _respond(connection, 200, [b"{}"])
        if not spacing:
            end = sum(len(event) for event in content.events[:count])
            for watch in watches:
                watch.send(content.stream[:end])
            return
        # Not in step with anything that the client does at fixed intervals.
        rng = random.Random(0)
        for event in content.events[:count]:
            time.sleep(spacing * rng.uniform(0.5, 1.5))
            sent.append(time.monotonic_ns())
            for watch in watches:
                watch.send(event)


def _respond(connection: socket.socket, code: int, parts: list[bytes | memoryview]) -> None:
    length = sum(len(part) for part in parts)
    head = f"HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + parts[0])
    for part in parts[1:]:
        connection.sendall(part)


def _status(code: int, reason: str, message: str) -> bytes:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message}
    return json.dumps({**body, "code": code}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.replay", description="Replay prepared answers.")
    parser.add_argument("--pods", type=int, required=True)
    parser.add_argument("--events", type=int, default=0)
    options = parser.parse_args()
    server = Server(contents(options.pods, options.events))
    server.start()
    print(json.dumps({"port": server.port}), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
