"""How long it is doubted that a claim has no instance.

A cloud's lists lag behind, and now and then they are partial. What is let go because it did not show costs money until
somebody finds it, so absence needs better evidence than presence. Pure functions.
"""

from __future__ import annotations

from datetime import UTC, datetime

from kaito_api.karpenter import LAUNCHING_ANNOTATION, NodeRequest

__all__ = ["SECOND_LOOK", "doubt", "moment"]

SECOND_LOOK = 5.0
"""Seconds between the two looks that it takes to believe that there is no instance."""
_LAUNCHING = 60.0
"""Seconds within which an instance shows that was asked for when the answer was lost."""
_CONTRADICTION = 120.0
"""Seconds for which a node has to have been something else than Ready before an inventory without its instance is
believed: while a kubelet reports, there is a machine. That of an instance that is gone is noticed after 40."""


def doubt(claim: NodeRequest, looked: float, alive: float | None) -> float:
    """Seconds until it is believed that there is no instance of *claim*; not positive if it is now. That there is none
    has been said for *looked* seconds, and a node of it was Ready *alive* seconds ago, ``None`` for never since."""
    left = SECOND_LOOK - looked
    if LAUNCHING_ANNOTATION in claim.metadata.annotations:
        # When it was asked for, the note says by a clock that may have been wrong; what we have waited is certain.
        left = max(left, _LAUNCHING - looked)
    if alive is not None:
        left = max(left, _CONTRADICTION - alive)
    return left


def moment(text: str) -> datetime | None:
    """The time that *text* says in RFC 3339, ``None`` if it says none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
