"""What kustomize makes of `manifests/`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

__all__ = ["MANIFESTS", "render"]

MANIFESTS = Path(__file__).parents[1] / "manifests"


def render(folder: str, kubectl: str | None = None) -> list[dict[str, Any]]:
    """The objects of that folder of `manifests/`, by `kubectl kustomize`."""
    program = kubectl or os.environ.get("KUBECTL", "kubectl")
    done = subprocess.run(
        [program, "kustomize", str(MANIFESTS / folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]
