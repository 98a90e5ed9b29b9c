"""A server and a client for it: the tests say what Kubernetes does, not how we do it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
from apihelpers import Api, SteppingClock

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
