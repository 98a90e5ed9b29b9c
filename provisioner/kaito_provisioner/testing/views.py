"""What clients see of the pools: how they were a while ago, when reads lag behind writes."""

from __future__ import annotations

from typing import Any

__all__ = ["Views"]

Wire = dict[str, Any]
_KEPT = 600.0


class Views:
    """Every state of every pool, for ten minutes. Moments are a monotonic clock's, in seconds."""

    def __init__(self) -> None:
        self._states: dict[str, list[tuple[float, Wire | None]]] = {}

    def record(self, name: str, state: Wire | None, now: float) -> None:
        """The pool is like that from now on; ``None``: it is gone."""
        states = self._states.setdefault(name, [])
        states.append((now, state))
        old = [index for index, (at, _) in enumerate(states) if at < now - _KEPT]
        if old:
            del states[: old[-1]]

    def get(self, name: str, at: float) -> Wire | None:
        """The pool as it was then."""
        return next((state for since, state in reversed(self._states.get(name, [])) if since <= at), None)

    def all(self, at: float) -> dict[str, Wire]:
        """All that there were then, by name, in the order in which they were made."""
        seen = {name: self.get(name, at) for name in self._states}
        return {name: state for name, state in seen.items() if state is not None}
