"""Which known names somebody may have meant by a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """Up to *limit* of *known*, best first; empty if nothing is near.

    Case and punctuation do not count, and a name that begins with what was typed is nearer than any similar one:
    ``phi3-mini`` means ``phi-3-mini-4k-instruct`` rather than ``phi-3.5-mini-instruct``.
    """
    squeezed: dict[str, str] = {}
    for candidate in known:
        squeezed.setdefault(_squeeze(candidate), candidate)
    typed = _squeeze(name)
    if not typed:
        return ()
    begins = sorted((s for s in squeezed if s.startswith(typed)), key=lambda s: (len(s), s))
    similar = difflib.get_close_matches(typed, squeezed, n=limit, cutoff=0.6)
    return tuple(squeezed[s] for s in dict.fromkeys((*begins, *similar)))[:limit]


def _squeeze(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
