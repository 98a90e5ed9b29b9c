"""Quantities, as the API server reads them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.quantity import format_binary, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("500m", Decimal("0.5")),
        ("14Gi", 14 * 2**30),
        ("1e3", 1000),
        ("1.5k", 1500),
        ("2", 2),
        (".5", Decimal("0.5")),
    ],
)
def test_what_quantities_mean(text: str, value: Decimal | int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1gi", "1KB", "--1", "1e", "nan"])
def test_what_no_quantity_is(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


@given(st.integers(0, 2**62))
def test_formatting_loses_nothing(size: int) -> None:
    assert parse_quantity(format_binary(size)) == size
