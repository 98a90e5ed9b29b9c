"""Kubernetes resource quantities (``500m``, ``14Gi``, ``1e3``), exactly."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["format_binary", "parse_quantity"]

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
_DECIMAL = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal("1e3"),
    "M": Decimal("1e6"),
    "G": Decimal("1e9"),
    "T": Decimal("1e12"),
    "P": Decimal("1e15"),
    "E": Decimal("1e18"),
}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([KMGTPE]i|[numkMGTPE]?))")


def parse_quantity(text: str | int | float) -> Decimal:
    """The number that a quantity stands for: bytes for memory, cores for CPU, a count for devices.

    Raises ``ValueError`` for anything that the API server would refuse too.
    """
    found = _QUANTITY.fullmatch(str(text).strip())
    if found is None:
        raise ValueError(f"{text!r} is not a quantity: write a number with an optional suffix such as m, k, M, Gi")
    number, exponent, suffix = found.groups()
    if exponent:
        return Decimal(number + exponent)
    return Decimal(number) * (_BINARY[suffix] if suffix in _BINARY else _DECIMAL[suffix or ""])


def format_binary(size: int) -> str:
    """*size* bytes with the largest binary suffix that keeps it whole: 50 * 2**30 is ``50Gi``."""
    for suffix, factor in reversed(_BINARY.items()):
        if size and size % factor == 0:
            return f"{size // factor}{suffix}"
    return str(size)
