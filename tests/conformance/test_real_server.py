"""Says so when only half of the suite ran."""

from __future__ import annotations

import pytest

from tests.realbinaries import real_binaries


def test_the_suite_also_ran_against_a_real_server(request: pytest.FixtureRequest) -> None:
    real_binaries()
    assert request.getfixturevalue("real_server").version >= (1, 20)
