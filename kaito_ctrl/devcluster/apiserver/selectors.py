"""Label and field selectors as they stand in a query string.

``parse_labels`` and ``parse_fields`` raise a 400 ``StatusError`` for text that a real API server refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import StatusError, bad_request

__all__ = ["FieldSelector", "LabelSelector", "match_label_selector", "parse_fields", "parse_labels"]

_TOKEN = re.compile(r"\s*(?:(==|!=|=|!|,|\(|\)|<|>)|([^\s=!,()<>]+))")
_NAME = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "!":
                return value is None
            case _:
                return value is not None and _compare(value, self.operator, next(iter(self.values)))


def _compare(value: str, operator: str, bound: str) -> bool:
    try:
        left, right = int(value), int(bound)
    except ValueError:
        return False
    return left > right if operator == ">" else left < right


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All its requirements must hold; without any it selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.requirements)

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(term.matches(labels) for term in self.requirements)


_SIGNS = frozenset({"=", "==", "!=", "!", ",", "(", ")", "<", ">"})


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise bad_request(f"unable to parse requirement: {text!r}")
        found.append(match.group(1) or match.group(2))
        at = match.end()
    return found


def parse_labels(text: str) -> LabelSelector:
    """``a=b,c!=d,e in (f,g),h notin (i),j,!k,l>3``."""
    tokens = _tokens(text)
    terms: list[Requirement] = []
    at = 0

    def peek() -> str:
        return tokens[at] if at < len(tokens) else ""

    def fail() -> StatusError:
        return bad_request(f"unable to parse requirement: found '{peek()}', expected: identifier")

    def word() -> str:
        nonlocal at
        if not peek() or peek() in {"=", "==", "!=", "!", ",", "(", ")", "<", ">"}:
            raise fail()
        at += 1
        return tokens[at - 1]

    while at < len(tokens):
        absent = peek() == "!"
        if not absent and peek() in _SIGNS:
            raise bad_request(f"found '{peek()}', expected: !, identifier, or 'end of string'")
        if absent:
            at += 1
        key = word()
        if not _NAME.match(key):
            raise bad_request(
                f'unable to parse requirement: <nil>: Invalid value: "{key}": name part must consist of alphanumeric '
                "characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  "
                "or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            )
        if absent:
            terms.append(Requirement(key, "!"))
        elif peek() in {"", ","}:
            terms.append(Requirement(key, "exists"))
        elif peek() in {"=", "==", "!="}:
            operator = "notin" if peek() == "!=" else "in"
            at += 1
            value = "" if peek() in {"", ","} else word()
            terms.append(Requirement(key, operator, frozenset({value})))
        elif peek() in {"<", ">"}:
            operator = peek()
            at += 1
            bound = word()
            if not bound.lstrip("+-").isdigit():
                raise bad_request(
                    f'unable to parse requirement: values[0][{key}]: Invalid value: "{bound}": '
                    "for 'Gt', 'Lt' operators, the value must be an integer"
                )
            terms.append(Requirement(key, operator, frozenset({bound})))
        elif peek() in {"in", "notin"}:
            operator = peek()
            at += 1
            if peek() != "(":
                raise bad_request(f"unable to parse requirement: found '{peek()}' expected: '('")
            at += 1
            values = set()
            while peek() != ")":
                if not peek() or peek() in _SIGNS - {","}:
                    raise bad_request(
                        f"unable to parse requirement: found '{peek()}', expected: ',', ')' or identifier"
                    )
                values.add("" if peek() == "," else word())
                if peek() == ",":
                    at += 1
                elif peek() != ")":
                    raise bad_request(f"unable to parse requirement: found '{peek()}', expected: ',', or ')'")
            at += 1
            terms.append(Requirement(key, operator, frozenset(values)))
        else:
            raise bad_request(f"unable to parse requirement: found '{peek()}', expected: in, notin, =, ==, !=, gt, lt")
        if peek() == ",":
            at += 1
            if not peek() or peek() in _SIGNS - {"!"}:
                raise bad_request(f"found '{peek()}', expected: identifier after ','")
        elif peek():
            raise bad_request(f"found '{peek()}', expected: ',' or 'end of string'")
    return LabelSelector(tuple(terms))


_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!"}


def match_label_selector(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a ``metav1.LabelSelector`` (as JSON) selects *labels*."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(
        Requirement(e["key"], _OPERATORS.get(e["operator"], ""), frozenset(e.get("values") or ())).matches(labels)
        for e in selector.get("matchExpressions") or ()
    )


FieldsOf = Callable[[Mapping[str, Any]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """Terms ``(path, equal?, value)``; all must hold."""

    terms: tuple[tuple[str, bool, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def name(self) -> str:
        """The one name selected by ``metadata.name=``, if there is one."""
        return next((value for path, equal, value in self.terms if equal and path == "metadata.name"), "")

    def matches(self, fields: Mapping[str, str]) -> bool:
        return all((fields.get(path, "") == value) is equal for path, equal, value in self.terms)


def parse_fields(text: str) -> FieldSelector:
    """``a.b=c,d!=e``; a backslash escapes ``,``, ``=`` and itself."""
    terms: list[tuple[str, bool, str]] = []
    for part in re.split(r"(?<!\\),", text):
        if not part:
            continue
        match = re.match(r"^(.*?)(?<!\\)(!=|==|=)(.*)$", part)
        if match is None:
            raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
        value = re.sub(r"\\([,=\\])", r"\1", match.group(3))
        terms.append((match.group(1), match.group(2) != "!=", value))
    return FieldSelector(tuple(terms))
