"""Where the tests that need a real API server find its binaries; what they do when there are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kaito_ctrl.testing.controlplane import assets

__all__ = ["REQUIRED", "real_binaries"]

REQUIRED = "REQUIRE_REAL_API_SERVER"
"""Set it to have tests fail that would be skipped for want of a real API server, as CI does."""


def real_binaries() -> Path:
    """The folder with the binaries. Without one the test that asks is skipped, or fails where it may not be."""
    found = assets()
    if found is None:
        end = pytest.fail if os.environ.get(REQUIRED) else pytest.skip
        end(
            "NO REAL kube-apiserver: only the embedded server was tested. Set KUBEBUILDER_ASSETS to a folder with etcd "
            "and kube-apiserver (.ci/kube-binaries makes one)"
        )
    return found
