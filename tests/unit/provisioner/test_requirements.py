"""The requirement algebra, against what each operator says, for whatever values and bounds."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_api.karpenter import Requirement
from kaito_provisioner.cloud import InvalidRequest
from kaito_provisioner.requirements import ANY, NONE, Requirements, ValueSet

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Gte", "Lte"]
BOUNDS: tuple[Operator, ...] = ("Gt", "Lt", "Gte", "Lte")
MOST = 2**63 - 1

words = st.sampled_from(
    ["a", "b", "c", "-2", "-1", "0", "1", "2", "3", "007", "+1", "1.5", " 1", "1_0", str(MOST), "٣"]
)
named = st.builds(
    lambda operator, values: Requirement(key="k", operator=operator, values=tuple(values)),
    st.sampled_from(["In", "NotIn"]),
    st.lists(words, max_size=4),
)
bare = st.builds(lambda operator: Requirement(key="k", operator=operator), st.sampled_from(["Exists", "DoesNotExist"]))
bounds = st.builds(
    lambda operator, value: Requirement(key="k", operator=operator, values=(str(value),)),
    st.sampled_from(BOUNDS),
    st.one_of(st.integers(-3, 4), st.sampled_from([-MOST - 1, MOST])),
)
entries = st.one_of(named, bare, bounds)


def number(text: str) -> int | None:
    """What Go's ``strconv.Atoi`` makes of it, written down a second time."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not digits or any(each not in "0123456789" for each in digits):
        return None
    return int(text) if -MOST - 1 <= int(text) <= MOST else None


def allows(entry: Requirement, value: str) -> bool:
    """The definition, one operator at a time."""
    match entry.operator:
        case "In":
            return value in entry.values
        case "NotIn":
            return value not in entry.values
        case "Exists":
            return True
        case "DoesNotExist":
            return False
    bound, found = int(entry.values[0]), number(value)
    if found is None:
        return False
    return {"Gt": found > bound, "Gte": found >= bound, "Lt": found < bound, "Lte": found <= bound}[entry.operator]


@given(entries, words)
def test_a_value_is_allowed_as_the_operator_says(entry: Requirement, value: str) -> None:
    assert (value in ValueSet.of(entry)) == allows(entry, value)


@given(st.lists(entries, max_size=4), words)
def test_several_entries_on_one_key_all_have_to_hold(claim: list[Requirement], value: str) -> None:
    assert (value in Requirements(claim).on("k")) == all(allows(each, value) for each in claim)


@given(entries, entries, entries)
def test_intersection_has_no_order_but_that_of_the_values(a: Requirement, b: Requirement, c: Requirement) -> None:
    x, y, z = ValueSet.of(a), ValueSet.of(b), ValueSet.of(c)

    def unordered(allowed: ValueSet) -> tuple[object, ...]:
        return frozenset(allowed.values), allowed.complement, allowed.lower, allowed.upper

    assert unordered(x & y) == unordered(y & x)
    assert unordered((x & y) & z) == unordered(x & (y & z))
    assert unordered(x & ANY) == unordered(x)
    assert x & NONE == NONE


@given(entries, entries)
def test_what_allows_nothing_is_known_to_allow_nothing(a: Requirement, b: Requirement) -> None:
    both = ValueSet.of(a) & ValueSet.of(b)
    if not both:
        assert both == NONE
        assert not any(allows(a, value) and allows(b, value) for value in map(str, range(-5, 6)))


def test_values_keep_the_order_in_which_they_are_named() -> None:
    entry = Requirement(key="k", operator="In", values=("c", "a", "b", "a"))
    other = Requirement(key="k", operator="In", values=("a", "b", "c", "d"))
    assert Requirements([entry]).on("k").named == ("c", "a", "b")
    assert Requirements([entry, other]).on("k").named == ("c", "a", "b")
    assert Requirements([Requirement(key="k", operator="NotIn", values=("a",)), entry]).on("k").named == ("c", "b")


def test_more_than_the_largest_number_is_nothing() -> None:
    assert not ValueSet.of(Requirement(key="k", operator="Gt", values=(str(MOST),)))
    assert not ValueSet.of(Requirement(key="k", operator="Lt", values=(str(-MOST - 1),)))


def test_bounds_that_cross_leave_nothing() -> None:
    above, below = (Requirement(key="k", operator=o, values=("4",)) for o in ("Gt", "Lt"))
    assert Requirements([above, below]).on("k") == NONE


@pytest.mark.parametrize("operator", BOUNDS)
@pytest.mark.parametrize("values", [(), ("a",), ("1", "2"), ("1.5",)])
def test_a_bound_is_one_whole_number(operator: Operator, values: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Requirements([Requirement(key="k", operator=operator, values=values)])
    assert "one whole number" in refused.value.fix


def test_deprecated_keys_mean_the_stable_ones() -> None:
    claim = Requirements(
        [
            Requirement(key="beta.kubernetes.io/instance-type", operator="In", values=("a", "b")),
            Requirement(key="node.kubernetes.io/instance-type", operator="NotIn", values=("a",)),
            Requirement(key="failure-domain.beta.kubernetes.io/zone", operator="In", values=("z",)),
        ]
    )
    assert claim.on("node.kubernetes.io/instance-type").named == ("b",)
    assert claim.on("topology.kubernetes.io/zone").named == ("z",)
    assert claim["failure-domain.beta.kubernetes.io/zone"].named == ("z",)


def test_a_key_that_nobody_mentions_may_be_anything() -> None:
    assert Requirements().on("k") == ANY
    assert "whatever" in Requirements().on("k")


def test_labels_conflict_where_a_value_is_not_allowed_and_not_where_one_is_missing() -> None:
    claim = Requirements(
        [
            Requirement(key="kubernetes.io/arch", operator="In", values=("amd64",)),
            Requirement(key="example.com/gpus", operator="Gt", values=("2",)),
        ]
    )
    assert claim.conflict({}) is None
    assert claim.conflict({"kubernetes.io/arch": "amd64", "example.com/gpus": "4"}) is None
    assert claim.conflict({"beta.kubernetes.io/arch": "arm64"}) == "beta.kubernetes.io/arch"
    assert claim.conflict({"example.com/gpus": "2"}) == "example.com/gpus"


def test_a_set_reads_as_a_claim_spells_it() -> None:
    def text(*claim: Requirement) -> str:
        return str(Requirements(claim).on("k"))

    assert text() == "Exists"
    assert text(Requirement(key="k", operator="In", values=("a", "b"))) == "In [a, b]"
    assert text(Requirement(key="k", operator="NotIn", values=("a",))) == "NotIn [a]"
    assert text(Requirement(key="k", operator="DoesNotExist")) == "DoesNotExist"
    assert text(*(Requirement(key="k", operator=o, values=("4",)) for o in ("Gt", "Lte"))) == "DoesNotExist"
    assert text(*(Requirement(key="k", operator=o, values=("4",)) for o in ("Gte", "Lte"))) == "Gte 4 and Lte 4"
