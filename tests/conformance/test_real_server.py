"""Says so when only half of the suite ran."""

from __future__ import annotations

import pytest

from tests.conformance.processes import assets


def test_the_suite_also_ran_against_a_real_server(request: pytest.FixtureRequest) -> None:
    if assets() is None:
        pytest.skip(
            "NO REAL kube-apiserver: only the embedded server was tested. Set KUBEBUILDER_ASSETS to a folder with etcd "
            "and kube-apiserver (.ci/kube-binaries makes one)"
        )
    server = request.getfixturevalue("real_server")
    assert server.version >= (1, 20)
