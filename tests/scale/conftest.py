"""A fleet's controllers do not log."""

from collections.abc import Iterator

import pytest
import structlog

from tests.sim.life import silence


@pytest.fixture(autouse=True, scope="module")
def _silent() -> Iterator[None]:
    silence()
    yield
    structlog.reset_defaults()
