"""Over TCP and TLS, with the credentials of a kubeconfig."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
import yaml

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer, serve
from kaito_ctrl.runtime import Client, Cluster, Manager, ObjectKey
from kaito_ctrl.runtime.errors import NotFound, TransportError, Unauthorized
from tests.unit.runtime.test_controller import Mirror, original, until


def write(path: Path, config: dict[str, object]) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)


async def test_a_controller_works_over_tcp(server: ApiServer, tmp_path: Path) -> None:
    async with serve(server, host="127.0.0.1", port=0, token="secret") as endpoint:
        kubeconfig = write(tmp_path / "kubeconfig", endpoint.kubeconfig())
        async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
            manager = Manager(cluster, drain=1.0)
            manager.add(Mirror())
            async with asyncio.TaskGroup() as group:
                group.create_task(manager.run())
                await manager.wait_ready()
                await cluster.client.create(original(x="1"))
                await until(lambda: cluster.cache.get(ConfigMap, "a-copy", "default") is not None)
                await cluster.client.delete(ConfigMap, ObjectKey("default", "a"))
                await until(lambda: cluster.cache.get(ConfigMap, "a", "default") is None)
                manager.stop()


async def test_failures_of_the_server_are_typed(server: ApiServer, tmp_path: Path) -> None:
    async with serve(server, host="127.0.0.1", port=0, token="secret") as endpoint:
        config = endpoint.kubeconfig()
        async with Cluster.connect(kubeconfig=write(tmp_path / "good", config)) as cluster:
            with pytest.raises(NotFound, match='configmaps "none" not found'):
                await cluster.client.get(ConfigMap, "none", "default")
        config["users"][0]["user"]["token"] = "wrong"
        async with Cluster.connect(kubeconfig=write(tmp_path / "bad", config)) as cluster:
            with pytest.raises(Unauthorized):
                await cluster.client.get(ConfigMap, "none", "default")


async def test_a_server_that_is_gone_is_a_transport_error(server: ApiServer, tmp_path: Path) -> None:
    async with serve(server, host="127.0.0.1", port=0, token="secret") as endpoint:
        kubeconfig = write(tmp_path / "kubeconfig", endpoint.kubeconfig())
    async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
        with pytest.raises(TransportError, match="GET /api/v1"):
            await cluster.client.list(ConfigMap)


class Relay:
    """A wire that can be cut: a TCP port that leads to another one."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def connect(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, onward_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, onward_writer))
                group.create_task(self._pump(onward_reader, writer))
        finally:
            for each in (writer, onward_writer):
                self._writers.discard(each)
                each.transport.abort()

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.write_eof() if sink.can_write_eof() else sink.close()


async def test_a_watch_outlives_its_connection(server: ApiServer, tmp_path: Path) -> None:
    async with serve(server, host="127.0.0.1", port=0, token="secret") as endpoint:
        relay = Relay(int(endpoint.url.rpartition(":")[2]))
        await relay.connect()
        config = endpoint.kubeconfig()
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{relay.port}"
        async with Cluster.connect(kubeconfig=write(tmp_path / "kubeconfig", config)) as cluster:
            manager = Manager(cluster, drain=0.5)
            manager.add(Mirror())
            async with asyncio.TaskGroup() as group:
                group.create_task(manager.run())
                await manager.wait_ready()
                await relay.cut()
                made = ConfigMap(metadata=ObjectMeta(name="meanwhile", namespace="default"))
                await Client(server.transport()).create(made)
                await relay.connect()
                await until(lambda: cluster.cache.get(ConfigMap, "meanwhile", "default") is not None)
                manager.stop()
        await relay.cut()
