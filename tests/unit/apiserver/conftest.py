"""A server and a client for it: the tests say what Kubernetes does, not how we do it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from apihelpers import Api, SteppingClock
from kubectlhelpers import BINARIES, Kubectl, kubectl_against

from kaito_ctrl.devcluster.apiserver import ApiServer


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
async def server(clock: SteppingClock) -> AsyncIterator[ApiServer]:
    server = ApiServer(clock=clock, rng=random.Random(7), history=100)
    yield server
    await server.aclose()


@pytest.fixture
async def api(server: ApiServer, clock: SteppingClock) -> Api:
    return Api(server, clock)


@pytest.fixture(params=BINARIES or [""])
async def kubectl(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kubectl]:
    async with kubectl_against(request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=BINARIES or [""])
async def guarded_kubectl(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kubectl]:
    """Against a server where roles decide."""
    async with kubectl_against(request.param, tmp_path, rbac=True) as found:
        yield found
