"""Every case runs against the embedded server and, where its binaries are at hand, against a real one."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.apiserver.namespaces import NamespaceController
from kaito_ctrl.runtime.connect import connect
from kaito_ctrl.runtime.transport import Transport
from kaito_ctrl.testing.controlplane import ControlPlane, assets, run_control_plane
from tests.conformance.wire import Api, Target
from tests.realbinaries import real_binaries

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "minimum(version): the behaviour came with that version of Kubernetes")
    config.addinivalue_line("markers", "controllers: needs garbage collection, namespace and account controllers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        halves = ["embedded", "real"] if assets() is not None else ["embedded"]
        metafunc.parametrize("target", halves, indirect=True)


@pytest.fixture(scope="package")
def real_server() -> Iterator[ControlPlane]:
    with run_control_plane(real_binaries()) as server:
        yield server


@dataclass
class _Real:
    server: ControlPlane
    transport: Transport

    @property
    def version(self) -> tuple[int, int]:
        return self.server.version

    @property
    def controllers(self) -> bool:
        return self.server.controllers

    def compact(self) -> None:
        self.server.compact()


@dataclass
class _Embedded:
    server: ApiServer
    transport: Transport
    version: tuple[int, int]
    controllers: bool = True

    def compact(self) -> None:
        self.server.compact()


async def _connections_ended() -> None:
    """A TLS connection ends with a round trip, which the loop may not live to see: cut short what is left of it."""
    for transport in list(getattr(asyncio.get_running_loop(), "_transports", {}).values()):
        transport.abort()
    for _ in range(3):  # its protocols hear of it in the next turns of the loop
        await asyncio.sleep(0)


@pytest.fixture
async def target(request: pytest.FixtureRequest) -> AsyncIterator[Target]:
    if request.param == "real":
        real = request.getfixturevalue("real_server")
        over_tcp = await connect(kubeconfig=str(real.kubeconfig))
        yield _Real(real, over_tcp)
        await over_tcp.aclose()
        await _connections_ended()
        return
    server = ApiServer(rng=random.Random(7), rbac=True)
    async with asyncio.TaskGroup() as tasks:
        workers = [tasks.create_task(worker(server).run()) for worker in (GarbageCollector, NamespaceController)]
        yield _Embedded(server, server.transport(), (1, 32))
        await server.aclose()
        for worker in workers:
            worker.cancel()


@pytest.fixture
async def api(target: Target, request: pytest.FixtureRequest) -> Api:
    """A client with a namespace of its own. The servers are thrown away whole: nothing is cleaned up."""
    for mark in request.node.iter_markers("minimum"):
        major, minor = mark.args[0].split(".")
        if target.version < (int(major), int(minor)):
            pytest.skip(f"came with Kubernetes {mark.args[0]}")
    if request.node.get_closest_marker("controllers") and not target.controllers:
        pytest.skip("there is no kube-controller-manager in KUBEBUILDER_ASSETS")
    api = Api(target, f"case-{next(_numbers)}")
    await api.post("/api/v1/namespaces", {"metadata": {"name": api.namespace}})
    return api


@pytest.fixture
def unique(api: Api) -> str:
    """A word no other case uses, for the names of cluster-scoped objects."""
    return api.namespace.replace("-", "")
