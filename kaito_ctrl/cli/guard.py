"""What a person can do something about is said in a line, without a traceback; everything else is a bug, and shows."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

__all__ = ["SettingsError", "run_guarded"]


class SettingsError(Exception):
    """What was asked for cannot be started. ``problems`` are all that is wrong with it, each with what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def run_guarded(main: Coroutine[Any, Any, int | None]) -> int:
    """Run *main*; the exit status: 2 for what is wrong with the question, 1 for what is wrong with the world."""
    from kaito_ctrl.cli.manifest import ManifestError
    from kaito_ctrl.runtime.errors import KubeError, leaf_errors

    try:
        return asyncio.run(main) or 0
    except BaseException as error:
        leaves = leaf_errors(error)
        if not all(isinstance(leaf, KubeError | OSError | ManifestError | SettingsError) for leaf in leaves):
            raise
        for leaf in leaves:
            for line in leaf.problems if isinstance(leaf, SettingsError) else (leaf,):
                print(f"kaito-ctrl: {line}", file=sys.stderr)
        return 2 if isinstance(leaves[0], ManifestError | SettingsError) else 1
