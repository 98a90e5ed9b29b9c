"""The Common Expression Language, as far as validation rules use it: from text to a tree.

A Pratt parser: every operator has a binding power, and a loop takes what binds tighter. Macros (``has``, ``all``,
``exists``, ``exists_one``, ``filter``, ``map``) become nodes of their own, because they bind names or look without
reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Binary",
    "Call",
    "CelSyntaxError",
    "Conditional",
    "Has",
    "Ident",
    "Index",
    "Literal",
    "Macro",
    "MakeList",
    "MakeMap",
    "Node",
    "Select",
    "Unary",
    "parse",
    "walk",
]


class CelSyntaxError(ValueError):
    """The text is no expression; the message says where."""


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Ident:
    name: str


@dataclass(frozen=True, slots=True)
class Select:
    """``operand.field``."""

    operand: Node
    field: str


@dataclass(frozen=True, slots=True)
class Has:
    """``has(operand.field)``."""

    operand: Node
    field: str


@dataclass(frozen=True, slots=True)
class Index:
    operand: Node
    index: Node


@dataclass(frozen=True, slots=True)
class Unary:
    operator: str
    operand: Node


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Conditional:
    test: Node
    then: Node
    otherwise: Node


@dataclass(frozen=True, slots=True)
class MakeList:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class MakeMap:
    entries: tuple[tuple[Node, Node], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """A function, or with a target a method."""

    name: str
    target: Node | None
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Macro:
    """``source.name(variable, body...)``."""

    name: str
    source: Node
    variable: str
    body: tuple[Node, ...]


Node = Literal | Ident | Select | Has | Index | Unary | Binary | Conditional | MakeList | MakeMap | Call | Macro

_TOKENS = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*)
  | (?P<number>0x[0-9a-fA-F]+u?|\d+\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\d+u?)
  | (?P<string>[rRbB]{0,2}(?:\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
  | (?P<ident>[_a-zA-Z][_a-zA-Z0-9]*)
  | (?P<op>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3][0-7]{2}|.)", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}

# How tightly a binary operator binds.
_POWER = {
    "||": 20,
    "&&": 30,
    "==": 40,
    "!=": 40,
    "<": 40,
    "<=": 40,
    ">": 40,
    ">=": 40,
    "in": 40,
    "+": 50,
    "-": 50,
    "*": 60,
    "/": 60,
    "%": 60,
}
_CONDITIONAL = 10
_UNARY = 70
_MACROS = {"all": (2,), "exists": (2,), "exists_one": (2,), "filter": (2,), "map": (2, 3)}


def _unescape(match: re.Match[str]) -> str:
    code = match.group(1)
    if code[0] in "xuU":
        return chr(int(code[1:], 16))
    if len(code) == 3:
        return chr(int(code, 8))
    return _SIMPLE.get(code, code)


def _string(text: str) -> Any:
    prefix = re.match(r"[rRbB]*", text)
    marks = prefix.group().lower() if prefix else ""
    body = text[len(marks) :]
    body = body[3:-3] if body[:3] in {'"""', "'''"} else body[1:-1]
    if "r" not in marks:
        body = _ESCAPE.sub(_unescape, body)
    return body.encode() if "b" in marks else body


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        at = 0
        while at < len(text):
            match = _TOKENS.match(text, at)
            if match is None:
                raise self._error(at, f"token recognition error at: '{text[at]}'")
            if match.lastgroup != "space":
                self._tokens.append((str(match.lastgroup), match.group(), at))
            at = match.end()
        self._at = 0

    def _error(self, at: int, message: str) -> CelSyntaxError:
        line = self._text.count("\n", 0, at) + 1
        column = at - (self._text.rfind("\n", 0, at) + 1) + 1
        return CelSyntaxError(f"ERROR: <input>:{line}:{column}: {message}")

    def _peek(self) -> str:
        if self._at >= len(self._tokens):
            return ""
        kind, text, _ = self._tokens[self._at]
        return "" if kind == "string" else text

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise self._error(len(self._text), "Syntax error: mismatched input '<EOF>'")
        kind, text, _ = self._tokens[self._at]
        self._at += 1
        return kind, text

    def _expect(self, wanted: str) -> None:
        if self._peek() != wanted:
            at = self._tokens[self._at][2] if self._at < len(self._tokens) else len(self._text)
            found = self._tokens[self._at][1] if self._at < len(self._tokens) else "<EOF>"
            raise self._error(at, f"Syntax error: mismatched input '{found}' expecting '{wanted}'")
        self._at += 1

    def parse(self) -> Node:
        node = self._expression(0)
        if self._at < len(self._tokens):
            _, text, at = self._tokens[self._at]
            raise self._error(at, f"Syntax error: extraneous input '{text}' expecting <EOF>")
        return node

    def _expression(self, power: int) -> Node:
        left = self._unary()
        while True:
            operator = self._peek()
            if operator == "?" and power <= _CONDITIONAL:
                self._at += 1
                then = self._expression(_CONDITIONAL + 1)
                self._expect(":")
                left = Conditional(left, then, self._expression(_CONDITIONAL))
                continue
            binds = _POWER.get(operator)
            if binds is None or binds <= power:
                return left
            self._at += 1
            left = Binary(operator, left, self._expression(binds))

    def _unary(self) -> Node:
        if self._peek() in {"!", "-"}:
            _, operator = self._next()
            operand = self._expression(_UNARY)
            if operator == "-" and isinstance(operand, Literal) and isinstance(operand.value, (int, float)):
                return Literal(-operand.value)
            return Unary(operator, operand)
        return self._member(self._primary())

    def _member(self, node: Node) -> Node:
        while True:
            if self._peek() == ".":
                self._at += 1
                kind, name = self._next()
                if kind != "ident":
                    raise self._error(
                        self._tokens[self._at - 1][2], f"Syntax error: no viable alternative at input '.{name}'"
                    )
                node = self._method(node, name) if self._peek() == "(" else Select(node, name)
            elif self._peek() == "[":
                self._at += 1
                index = self._expression(0)
                self._expect("]")
                node = Index(node, index)
            else:
                return node

    def _method(self, target: Node, name: str) -> Node:
        at = self._tokens[self._at][2]
        arguments = self._arguments()
        if name in _MACROS and len(arguments) in _MACROS[name]:
            variable = arguments[0]
            if not isinstance(variable, Ident):
                raise self._error(at, "argument is not an identifier")
            return Macro(name, target, variable.name, arguments[1:])
        return Call(name, target, arguments)

    def _arguments(self) -> tuple[Node, ...]:
        self._expect("(")
        found: list[Node] = []
        while self._peek() != ")":
            found.append(self._expression(0))
            if self._peek() != ")":
                self._expect(",")
        self._expect(")")
        return tuple(found)

    def _primary(self) -> Node:
        kind, text = self._next()
        at = self._tokens[self._at - 1][2]
        if kind == "number":
            return Literal(_number(text))
        if kind == "string":
            return Literal(_string(text))
        if kind == "ident":
            if text in {"true", "false", "null"}:
                return Literal({"true": True, "false": False, "null": None}[text])
            if self._peek() != "(":
                return Ident(text)
            arguments = self._arguments()
            if text == "has":
                if len(arguments) != 1 or not isinstance(arguments[0], Select):
                    raise self._error(at, "invalid argument to has() macro")
                return Has(arguments[0].operand, arguments[0].field)
            return Call(text, None, arguments)
        if text == "(":
            node = self._expression(0)
            self._expect(")")
            return node
        if text == "[":
            items: list[Node] = []
            while self._peek() != "]":
                items.append(self._expression(0))
                if self._peek() != "]":
                    self._expect(",")
            self._expect("]")
            return MakeList(tuple(items))
        if text == "{":
            entries: list[tuple[Node, Node]] = []
            while self._peek() != "}":
                key = self._expression(0)
                self._expect(":")
                entries.append((key, self._expression(0)))
                if self._peek() != "}":
                    self._expect(",")
            self._expect("}")
            return MakeMap(tuple(entries))
        raise self._error(at, f"Syntax error: extraneous input '{text}'")


def _number(text: str) -> int | float:
    digits = text.rstrip("u")
    if digits.startswith("0x"):
        return int(digits, 16)
    return float(digits) if any(mark in digits for mark in ".eE") else int(digits)


def parse(text: str) -> Node:
    """The tree of *text*. Raises :class:`CelSyntaxError`."""
    return _Parser(text).parse()


def children(node: Node) -> Iterator[Node]:
    """The nodes directly under *node*."""
    match node:
        case Select(operand=operand) | Has(operand=operand) | Unary(operand=operand):
            yield operand
        case Index(operand=operand, index=index):
            yield from (operand, index)
        case Binary(left=left, right=right):
            yield from (left, right)
        case Conditional(test=test, then=then, otherwise=otherwise):
            yield from (test, then, otherwise)
        case MakeList(items=items):
            yield from items
        case MakeMap(entries=entries):
            for key, value in entries:
                yield from (key, value)
        case Call(target=target, arguments=arguments):
            if target is not None:
                yield target
            yield from arguments
        case Macro(source=source, body=body):
            yield source
            yield from body
        case _:
            return


def walk(node: Node) -> Iterator[Node]:
    """*node* and everything under it."""
    yield node
    for child in children(node):
        yield from walk(child)
