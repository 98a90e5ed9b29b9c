"""Label selectors mean here what they mean to an API server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_ctrl.devcluster.apiserver.errors import StatusError
from kaito_ctrl.devcluster.apiserver.selectors import parse_labels
from kaito_ctrl.runtime.selectors import label_matcher

KEYS = st.sampled_from(["a", "in", "notin", "example.org/b-c"])
VALUES = st.sampled_from(["", "x", "in", "Y.1"])
SPACE = st.sampled_from(["", " "])


@st.composite
def requirements(draw: st.DrawFn) -> str:
    key, gap = draw(KEYS), draw(SPACE)
    match draw(st.sampled_from(["has", "not", "=", "==", "!=", "in", "notin"])):
        case "has":
            return key
        case "not":
            return f"!{gap}{key}"
        case "in" | "notin" as operator:
            values = draw(st.lists(VALUES.filter(bool), min_size=1, max_size=3))
            return f"{key} {operator}{gap}({f',{gap}'.join(values)})"
        case operator:
            return f"{key}{gap}{operator}{gap}{draw(VALUES)}"


@given(
    st.lists(requirements(), min_size=1, max_size=3), SPACE, st.dictionaries(KEYS, VALUES | st.just("z"), max_size=3)
)
def test_a_selector_means_what_it_means_to_the_server(terms: list[str], gap: str, labels: dict[str, str]) -> None:
    text = f"{gap},{gap}".join(terms)
    try:
        server = parse_labels(text)
    except StatusError:
        return  # nothing to agree with
    ours = label_matcher(text)
    assert ours is not None
    assert ours(labels) == all(each.matches(labels) for each in server.requirements)


@pytest.mark.parametrize("text", ["a > 1", "a<1", "a in x", "a in ()", "a=b=c", "(", "a,", ",a", "!"])
def test_what_is_not_understood_is_left_to_the_server(text: str) -> None:
    assert label_matcher(text) is None


def test_no_selector_selects_everything() -> None:
    everything = label_matcher("")
    assert everything is not None
    assert everything({})
