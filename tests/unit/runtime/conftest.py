"""A real API server for every test, embedded and without a socket."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime.clock import SystemClock


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    server = ApiServer(clock=SystemClock(), rng=random.Random(1))
    yield server
    await server.aclose()
