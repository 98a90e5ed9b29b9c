"""The peers' environments: one virtual environment each, outside the checkout, from the pins in ``peers.txt``."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["PINS", "Unavailable", "environment", "read_pins", "versions"]

PINS = Path(__file__).with_name("peers.txt")


class Unavailable(Exception):
    """A peer's environment cannot be built; says why."""


def read_pins(path: Path = PINS) -> dict[str, tuple[str, ...]]:
    """The requirements of each peer, by its name. Raises ``ValueError`` for a line without a pin."""
    pins = {}
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, requirements = line.partition(":")
        pins[name.strip()] = tuple(requirements.split())
        if not pins[name.strip()] or any("==" not in pin for pin in pins[name.strip()]):
            raise ValueError(f"{path.name}: {name.strip()} must name versions with ==")
    return pins


def environment(name: str, pins: tuple[str, ...], variables: Mapping[str, str] = os.environ) -> Path:
    """The Python of *name*'s environment, which is built when it is not there. Raises :class:`Unavailable`."""
    cache = Path(variables.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kaito-ctrl"
    key = hashlib.sha256("\n".join((sys.version, sys.executable, *pins)).encode()).hexdigest()[:12]
    folder = cache / f"bench-{name}-{key}"
    python = folder / "bin" / "python"
    if (folder / ".installed").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins],
    ):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or [f"exit {done.returncode}"]
            raise Unavailable(f"{name} cannot be installed ({' '.join(pins)}): {errors[-1][:200]}")
    (folder / ".installed").touch()
    return python


def versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The installed versions of those of the distributions *names* that *python* has."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name.replace('_', '-') in sys.argv[1:]}))"
    )
    # From a folder without anything in it, so that nothing but the environment counts.
    done = subprocess.run(
        [str(python), "-c", program, *names], capture_output=True, text=True, check=True, cwd=tempfile.gettempdir()
    )
    found: dict[str, str] = json.loads(done.stdout)
    return dict(sorted(found.items()))
