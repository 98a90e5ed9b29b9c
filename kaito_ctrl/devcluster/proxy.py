"""The service proxy: a listener for every port of every Service with a cluster IP, and a relay to what is ready
behind it.

Cluster IPs are addresses of the loopback network, so on Linux ``curl http://$CLUSTER_IP`` works as in a cluster. Where
an address and port cannot be bound (a port below 1024 without privileges, a loopback network of one address on macOS,
somebody else's listener) the port plus 8000 is tried, and then any port of 127.0.0.1; the Service is annotated with
where it went: ``devcluster.kaito.sh/address.<port>``.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from kaito_api.core import Endpoints, Service, ServicePort
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, key_of, watches
from kaito_ctrl.runtime.lifetime import Lifetime

__all__ = ["ADDRESS_ANNOTATION", "ServiceProxy", "backends"]

ADDRESS_ANNOTATION = "devcluster.kaito.sh/address."
MAX_CONNECTIONS = 512
"""At once, for one port of one service; more are closed at once."""
CONNECT_TIMEOUT = 5.0
_CHUNK = 64 * 1024

Address = tuple[str, int]


def backends(service: Service, port: ServicePort, endpoints: Endpoints | None) -> tuple[Address, ...]:
    """Where connections to *port* can go: the ready addresses, in a stable order. Pure."""
    found: set[Address] = set()
    for subset in endpoints.subsets if endpoints is not None else ():
        for offered in subset.ports:
            if (offered.name or "") == (port.name or "") and offered.protocol == port.protocol:
                found.update((address.ip, offered.port) for address in subset.addresses)
    return tuple(sorted(found))


@dataclass(slots=True, eq=False)
class _Listener:
    """One port of one service."""

    server: asyncio.Server
    address: Address
    wanted: Address
    targets: Sequence[Address] = ()
    turn: int = 0
    connections: set[asyncio.Task[None]] = field(default_factory=set)

    def rotation(self) -> list[Address]:
        """Every target once, beginning with the next one in turn."""
        if not self.targets:
            return []
        self.turn = (self.turn + 1) % len(self.targets)
        return [*self.targets[self.turn :], *self.targets[: self.turn]]

    def close(self) -> None:
        self.server.close()
        for connection in self.connections:
            connection.cancel()


def _same_name(endpoints: Endpoints, _: Reader) -> Iterable[ObjectKey]:
    return (key_of(endpoints),)


class ServiceProxy(Controller[Service]):
    """Both a controller, which keeps listeners in line with services, and a runnable, which owns their connections."""

    name = "service-proxy"
    kind = Service
    sources = (watches(Endpoints, _same_name),)

    def __init__(self) -> None:
        self._listeners: dict[ObjectKey, dict[int, _Listener]] = {}
        self._group: asyncio.TaskGroup | None = None

    def address(self, namespace: str, service: str, port: int) -> Address | None:
        """Where that port of the service is reached on this machine; ``None`` while nobody listens for it."""
        listener = self._listeners.get(ObjectKey(namespace, service), {}).get(port)
        return listener.address if listener is not None else None

    async def run(self, lifetime: Lifetime) -> None:
        """Own the connections, until asked to stop; then listeners and connections are closed."""
        try:
            async with asyncio.TaskGroup() as self._group:
                lifetime.started()
                await lifetime.wait_stopping()
                self._close_all()
        finally:
            self._close_all()
            self._group = None

    def _close_all(self) -> None:
        for listeners in self._listeners.values():
            for listener in listeners.values():
                listener.close()
        self._listeners.clear()

    # -- the controller ------------------------------------------------------------------------------------------

    async def reconcile(self, obj: Service, ctx: Context) -> Result:
        ip = obj.spec.cluster_ip
        wanted = (
            {port.port: port for port in obj.spec.ports if port.protocol == "TCP"} if ip not in ("", "None") else {}
        )
        listeners = self._listeners.setdefault(ctx.key, {})
        for number in [number for number, each in listeners.items() if each.wanted not in {(ip, n) for n in wanted}]:
            listeners.pop(number).close()
        endpoints = ctx.cache.get(Endpoints, obj.name, obj.namespace)
        for number, port in wanted.items():
            if number not in listeners:
                listeners[number] = await self._listen((ip, number))
            listeners[number].targets = backends(obj, port, endpoints)
        await self._annotate(obj, listeners, ctx)
        return Result.done()

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        for listener in self._listeners.pop(key, {}).values():
            listener.close()

    async def _annotate(self, service: Service, listeners: Mapping[int, _Listener], ctx: Context) -> None:
        """Say where a port went, where that is not the cluster IP itself."""
        moved = {
            f"{ADDRESS_ANNOTATION}{number}": f"{each.address[0]}:{each.address[1]}"
            for number, each in listeners.items()
            if each.address != each.wanted
        }
        known = {k: v for k, v in service.metadata.annotations.items() if k.startswith(ADDRESS_ANNOTATION)}
        if known != moved:
            changes = {**dict.fromkeys(known), **moved}
            patch = {"metadata": {"uid": service.uid, "annotations": changes}}
            await ctx.client.patch(Service, ctx.key, patch)

    # -- listening and relaying ----------------------------------------------------------------------------------

    async def _listen(self, wanted: Address) -> _Listener:
        host, port = wanted
        listener: _Listener

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group = self._group
            if group is None or not listener.targets or len(listener.connections) >= MAX_CONNECTIONS:
                # As near to a refusal as one gets after the kernel has accepted: a reset.
                writer.transport.abort()
                return
            task = group.create_task(_relay(listener.rotation(), reader, writer))
            listener.connections.add(task)
            task.add_done_callback(listener.connections.discard)

        tries = [wanted, *([(host, port + 8000)] if port + 8000 < 65536 else []), ("127.0.0.1", 0)]
        for address in tries:
            try:
                server = await asyncio.start_server(accept, *address, limit=_CHUNK)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EPERM):
                    raise
            else:
                bound = server.sockets[0].getsockname()
                listener = _Listener(server, (bound[0], bound[1]), wanted)
                return listener
        raise OSError(errno.EADDRNOTAVAIL, f"no address to listen on for {host}:{port}")


async def _relay(targets: Sequence[Address], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Connect to the first target that answers, and carry bytes both ways until both sides have finished."""
    try:
        for host, port in targets:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    back_reader, back_writer = await asyncio.open_connection(host, port, limit=_CHUNK)
            except (OSError, TimeoutError):
                continue
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_copy(reader, back_writer))
                    group.create_task(_copy(back_reader, writer))
            except* OSError:
                pass  # one side was reset: the other one is too, below
            else:
                return
            finally:
                _finish(back_writer)
            break
        writer.transport.abort()
    finally:
        _finish(writer)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Until *source* ends; that end is passed on, while the other direction may still be open."""
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


def _finish(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, RuntimeError):
        writer.close()
