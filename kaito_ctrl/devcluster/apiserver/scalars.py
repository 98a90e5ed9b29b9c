"""Times and quantities as Go keeps them: parsed, and written back in one canonical form."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_UP, Decimal

from kaito_api.quantity import parse_quantity

__all__ = ["canonical_quantity", "canonical_time"]

_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL = ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, ""), (-3, "m"), (-6, "u"), (-9, "n"))
_NANO = Decimal("1e-9")
_LIMIT = Decimal(2**63)


def canonical_time(text: str, *, micro: bool) -> str:
    """*text* in UTC, with whole seconds or (*micro*) six digits of them. Raises ``ValueError`` in Go's words."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or "T" not in text:
        layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
        raise ValueError(f'parsing time "{text}" as "{layout}": cannot parse "{text}" as "2006"')
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def canonical_quantity(text: str) -> str:
    """*text* with the largest suffix of its family that keeps it whole: ``1024Mi`` is ``1Gi``, ``0.5`` is ``500m``.

    Raises ``ValueError`` for what is no quantity.
    """
    if text.isascii() and text.isdigit() and (text == "0" or (text[0] != "0" and text[-3:] != "000")):
        return text
    try:
        value = parse_quantity(text)
    except ValueError:
        raise ValueError(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        ) from None
    if abs(value) >= _LIMIT:
        return text  # beyond what Go counts exactly; nothing here computes with it
    value = value.quantize(_NANO, rounding=ROUND_UP)
    if text.rstrip().endswith("i") and abs(value) >= 1024 and value == value.to_integral_value():
        whole, power = int(value), 0
        while whole % 1024 == 0 and power < len(_BINARY) - 1:
            whole, power = whole // 1024, power + 1
        return f"{whole}{_BINARY[power]}"
    exponential = text[-1:].isdigit() and "e" in text.lower()
    for exponent, suffix in _DECIMAL:
        scaled = value.scaleb(-exponent)
        if scaled == scaled.to_integral_value():
            if not scaled:
                return "0"
            return f"{int(scaled)}e{exponent}" if exponential and exponent else f"{int(scaled)}{suffix}"
    return text
