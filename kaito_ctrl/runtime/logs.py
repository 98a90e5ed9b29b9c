"""The library's logger, loaded when it is first used.

Importing structlog takes as long as importing half of the rest, and who only imports the library has nothing to say.
"""

from __future__ import annotations

from typing import Any

__all__ = ["logger"]


def logger() -> Any:
    """structlog's, named ``kaito_ctrl``: the program's own configuration decides what becomes of what it is told."""
    import structlog

    return structlog.get_logger("kaito_ctrl")
