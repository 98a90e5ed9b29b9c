"""Simulated controllers do not log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.sim.life import silence


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    silence()
    yield
    structlog.reset_defaults()
