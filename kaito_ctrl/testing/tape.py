"""A tape of everything that happened, and its hash: two runs of one seed must end with the same."""

from __future__ import annotations

import hashlib

__all__ = ["Tape"]


class Tape:
    """What was noted, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, *what: object) -> None:
        """Write one line."""
        self.lines.append(" ".join(map(str, what)))

    @property
    def digest(self) -> str:
        """SHA-256 over all lines."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()
