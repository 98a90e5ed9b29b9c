"""What kustomize makes of `manifests/`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

__all__ = ["MANIFESTS", "render"]

MANIFESTS = Path(__file__).parents[1] / "manifests"


def render(folder: str | Path) -> list[dict[str, Any]]:
    """The objects of a *folder* (of `manifests/`, if it is not absolute), by `kubectl kustomize`."""
    command = [os.environ.get("KUBECTL", "kubectl"), "kustomize", str(MANIFESTS / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]
