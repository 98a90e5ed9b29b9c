"""What importing costs, and what the façade holds."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kaito_ctrl


def loaded_by(module: str) -> set[str]:
    script = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("kaito_ctrl", {"pydantic", "msgspec", "asyncio", "aiohttp", "kubernetes_asyncio", "kaito_ctrl.runtime"}),
        ("kaito_ctrl.runtime", {"aiohttp", "kubernetes_asyncio", "torch", "cryptography"}),
        ("kaito_api.workspace", {"aiohttp", "msgspec", "kaito_ctrl"}),
        ("kaito_provisioner", {"aiohttp", "kubernetes_asyncio", "kaito_ctrl", "azure"}),
    ],
)
def test_importing_loads_nothing_that_is_not_needed_yet(module: str, heavy: set[str]) -> None:
    assert not heavy & loaded_by(module)


def test_every_exported_name_is_there() -> None:
    for name in kaito_ctrl.__all__:
        assert getattr(kaito_ctrl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kaito_ctrl.nothing
