"""One real control plane for all tests that leave it as it was; those that break theirs start their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kaito_ctrl.testing.controlplane import ControlPlane, run_control_plane
from tests.real.joined import SERVICE_CIDR
from tests.realbinaries import real_binaries


@pytest.fixture(scope="package")
def binaries() -> Path:
    return real_binaries()


@pytest.fixture(scope="package")
def plane(binaries: Path) -> Iterator[ControlPlane]:
    with run_control_plane(
        binaries, controllers=["*"], api_server={"service-cluster-ip-range": SERVICE_CIDR}
    ) as running:
        yield running


@pytest.fixture(scope="package")
def working(plane: ControlPlane) -> ControlPlane:
    """One whose controllers work."""
    if not plane.controllers:
        pytest.skip("there is no kube-controller-manager in KUBEBUILDER_ASSETS")
    return plane
