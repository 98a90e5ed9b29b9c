"""The Common Expression Language."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaito_ctrl.devcluster.apiserver.cel import CelError, CelSyntaxError, compile_expression

SELF = {
    "name": "web",
    "count": 3,
    "ratio": 0.5,
    "on": True,
    "tags": ["a", "b"],
    "map": {"k": "v", "dash-ed": 1},
    "items": [{"n": 1, "name": "x"}, {"n": 2, "name": "y"}],
    "namespace": "ns",
    "nothing": None,
}


def value(text: str, **more: Any) -> Any:
    return compile_expression(text, frozenset({"self", *more})).evaluate({"self": SELF, **more})


@pytest.mark.parametrize(
    "text",
    [
        "self.count == 3 && self.name == 'web'",
        "self.count > 2 ? self.on : false",
        "1 + 2 * 3 == 7",
        "(1 + 2) * 3 == 9",
        "10 - 3 - 2 == 5",
        "-7 / 2 == -3 && -7 % 2 == -1",
        "7.0 / 2.0 == 3.5",
        "1 == 1.0",
        "true != 1",
        "!(self.on == false)",
        "self.name.startsWith('w') && self.name.endsWith('b') && self.name.contains('e')",
        "self.name.matches('^w.b$') && matches(self.name, 'e')",
        "size(self.tags) == 2 && self.tags.size() == 2 && size('héllo') == 5",
        "'a' in self.tags && !('z' in self.tags)",
        "'k' in self.map && self.map['k'] == 'v'",
        "self.map.dash__dash__ed == 1 || self.map['dash-ed'] == 1",
        "self.__namespace__ == 'ns'",
        "self.tags[0] + self.tags[1] == 'ab'",
        "[1, 2] + [3] == [1, 2, 3]",
        "{'a': 1}.a == 1",
        "has(self.name) && !has(self.missing)",
        "self.items.all(i, i.n > 0)",
        "self.items.exists(i, i.name == 'y')",
        "self.items.exists_one(i, i.n == 1)",
        "self.items.map(i, i.n) == [1, 2]",
        "self.items.map(i, i.n > 1, i.name) == ['y']",
        "self.items.filter(i, i.n > 1).size() == 1",
        "self.map.all(k, k != '')",
        "self.items.all(i, self.items.exists(j, j.n == i.n))",
        "self.nothing == null",
        "type(self.count) == int && type('x') == string",
        "string(3) + 'x' == '3x' && int('4') == 4 && double(1) == 1.0",
        "'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
        "'ABC'.lowerAscii() == 'abc' && ' x '.trim() == 'x'",
        "'hello'.substring(1, 3) == 'el' && 'hello'.indexOf('l') == 2 && 'a-b'.replace('-', '+') == 'a+b'",
        "duration('1h30m') > duration('89m')",
        "timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h')",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && isQuantity('500m') && !isQuantity('x')",
        "r'\\d' == '\\\\d' && \"q'q\" == 'q\\'q'",
        "0x10 == 16 && 1e3 == 1000.0",
        "// a comment\ntrue",
        "[1, 2, 3].sum() == 6 && [2, 1].min() == 1 && [1, 3].isSorted()",
        "true || self.missing == 1",
        "self.missing == 1 || true",
        "!(false && self.missing == 1)",
        "!(self.missing == 1 && false)",
        "[1, 'x'].exists(i, i == 1 || i > 0)",
        "false ? self.missing : true",
        "2 > 1 == true",
        "self.count in [1, 2, 3]",
    ],
)
def test_expressions_that_hold(text: str) -> None:
    assert value(text) is True


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("self.missing == 1", "no such key: missing"),
        ("self.tags[5] == 'x'", "index out of bounds: 5"),
        ("self.count + 'x' == 'y'", "no such overload"),
        ("self.count && true", "no such overload"),
        ("1 / 0 == 1", "division by zero"),
        ("self.name > 1", "no such overload"),
        ("1 + 1.0 == 2.0", "no such overload"),
        ("int('x') == 1", "type conversion error"),
        ("self.missing == 1 || self.gone == 2", "no such key: missing"),
    ],
)
def test_expressions_without_a_value(text: str, why: str) -> None:
    with pytest.raises(CelError, match=why):
        value(text)


@pytest.mark.parametrize(
    "text", ["", "1 +", "(1", "self.", "[1,", "a b", "self.x(", "has(self)", "1 ? 2", "'open", "#"]
)
def test_text_that_is_no_expression(text: str) -> None:
    with pytest.raises(CelSyntaxError, match="ERROR: <input>:"):
        compile_expression(text, frozenset({"self"}))


@given(st.integers(-1000, 1000), st.integers(-1000, 1000).filter(bool))
def test_division_and_remainder_agree(a: int, b: int) -> None:
    assert value("(x / y) * y + x % y == x", x=a, y=b) is True


@given(st.recursive(st.integers() | st.booleans() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_every_value_equals_itself(item: Any) -> None:
    assert value("x == x", x=item) is True
