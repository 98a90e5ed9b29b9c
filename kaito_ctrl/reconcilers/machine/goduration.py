"""Durations as Karpenter's API writes them: ``1h30m``."""

from __future__ import annotations

import re

__all__ = ["seconds_of"]

_PART = re.compile(r"([0-9]+)([smh])")
_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> int | None:
    """The seconds that *text* says; ``None`` if it is none of the form ``^([0-9]+(s|m|h))+$`` that the API accepts."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(int(number) * _UNITS[unit] for number, unit in parts)
