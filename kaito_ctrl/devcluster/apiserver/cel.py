"""The Common Expression Language at work: evaluates the trees of ``cel_syntax``.

Values are plain JSON values, plus ``datetime``, ``timedelta`` and ``bytes``. :func:`compile_expression` refuses what
this evaluator does not know, so that a rule is either understood or rejected, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from kaito_ctrl.devcluster.apiserver.cel_functions import FUNCTIONS, METHODS, CelError, equal, kind_of
from kaito_ctrl.devcluster.apiserver.cel_syntax import (
    Binary,
    Call,
    CelSyntaxError,
    Conditional,
    Has,
    Ident,
    Index,
    Literal,
    Macro,
    MakeList,
    MakeMap,
    Node,
    Select,
    Unary,
    children,
    parse,
    walk,
)

__all__ = ["CelError", "CelSyntaxError", "Expression", "compile_expression", "unescape"]

Scope = Mapping[str, Any]

_ESCAPES = {"__underscores__": "__", "__dot__": ".", "__dash__": "-", "__slash__": "/"}
_TYPES = frozenset({"int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"})


def unescape(name: str) -> str:
    """The property that a CEL identifier stands for: ``__dash__`` for ``-``, ``__in__`` for a keyword."""
    if "__" not in name:
        return name
    for mark, text in _ESCAPES.items():
        name = name.replace(mark, text)
    keyword = re.fullmatch(r"__([a-z]+)__", name)
    return keyword.group(1) if keyword else name


class Expression:
    """One compiled expression."""

    def __init__(self, text: str, tree: Node) -> None:
        self.text = text
        self.tree = tree

    def uses(self, name: str) -> bool:
        """Whether it reads the variable *name*."""
        return any(isinstance(node, Ident) and node.name == name for node in walk(self.tree))

    def evaluate(self, scope: Scope) -> Any:
        """Its value. Raises :class:`CelError` when it has none."""
        return _evaluate(self.tree, scope)


def compile_expression(text: str, variables: frozenset[str]) -> Expression:
    """*text*, ready to evaluate. Raises :class:`CelSyntaxError` for bad syntax, unknown names and unknown functions."""
    tree = parse(text)
    _check(tree, variables)
    return Expression(text, tree)


def _check(node: Node, known: frozenset[str]) -> None:
    match node:
        case Ident(name=name) if name not in known and name not in _TYPES:
            raise CelSyntaxError(f"ERROR: <input>:1:1: undeclared reference to '{name}' (in container '')")
        case Call(name=name, target=None, arguments=arguments) if not _accepts(FUNCTIONS.get(name), len(arguments)):
            raise CelSyntaxError(f"ERROR: <input>:1:1: undeclared reference to '{name}' (in container '')")
        case Call(name=name, target=target, arguments=arguments) if target is not None and not _accepts(
            METHODS.get(name), len(arguments)
        ):
            raise CelSyntaxError(f"ERROR: <input>:1:1: undeclared reference to '{name}' (in container '')")
        case Macro(source=source, variable=variable, body=body):
            _check(source, known)
            for part in body:
                _check(part, known | {variable})
            return
        case _:
            pass
    for child in children(node):
        _check(child, known)


def _accepts(found: tuple[tuple[int, ...], Callable[..., Any]] | None, count: int) -> bool:
    return found is not None and count in found[0]


def _evaluate(node: Node, scope: Scope) -> Any:
    match node:
        case Literal(value=value):
            return value
        case Ident(name=name):
            if name in scope:
                return scope[name]
            return name  # a type's own name, compared with type(x)
        case Select(operand=operand, field=field):
            return _select(_evaluate(operand, scope), unescape(field))
        case Has(operand=operand, field=field):
            value = _evaluate(operand, scope)
            if not isinstance(value, dict):
                raise CelError("no such overload: has()")
            return unescape(field) in value
        case Index(operand=operand, index=index):
            return _index(_evaluate(operand, scope), _evaluate(index, scope))
        case Unary(operator="!", operand=operand):
            return not _boolean(_evaluate(operand, scope))
        case Unary(operand=operand):
            value = _evaluate(operand, scope)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise CelError("no such overload: -_")
            return -value
        case Binary(operator="&&", left=left, right=right):
            return _logic(left, right, scope, decisive=False)
        case Binary(operator="||", left=left, right=right):
            return _logic(left, right, scope, decisive=True)
        case Binary(operator=operator, left=left, right=right):
            return _binary(operator, _evaluate(left, scope), _evaluate(right, scope))
        case Conditional(test=test, then=then, otherwise=otherwise):
            return _evaluate(then if _boolean(_evaluate(test, scope)) else otherwise, scope)
        case MakeList(items=items):
            return [_evaluate(item, scope) for item in items]
        case MakeMap(entries=entries):
            return {_evaluate(key, scope): _evaluate(value, scope) for key, value in entries}
        case Macro():
            return _macro(node, scope)
        case Call(name=name, target=target, arguments=arguments):
            values = [_evaluate(argument, scope) for argument in arguments]
            if target is None:
                return FUNCTIONS[name][1](*values)
            return METHODS[name][1](_evaluate(target, scope), *values)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise CelError("no such overload")
    return value


def _logic(left: Node, right: Node, scope: Scope, *, decisive: bool) -> bool:
    """``&&`` and ``||`` commute: an error on one side does not matter when the other side decides."""
    failed: CelError | None = None
    for side in (left, right):
        try:
            if _boolean(_evaluate(side, scope)) is decisive:
                return decisive
        except CelError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    return not decisive


def _select(value: Any, field: str) -> Any:
    if not isinstance(value, dict):
        raise CelError(f"no such overload: {kind_of(value)}.{field}")
    if field not in value:
        raise CelError(f"no such key: {field}")
    return value[field]


def _index(value: Any, index: Any) -> Any:
    if isinstance(value, list):
        if isinstance(index, bool) or not isinstance(index, int):
            raise CelError("no such overload: _[_]")
        if not 0 <= index < len(value):
            raise CelError(f"index out of bounds: {index}")
        return value[index]
    if isinstance(value, dict):
        if index not in value:
            raise CelError(f"no such key: {index}")
        return value[index]
    raise CelError("no such overload: _[_]")


def _binary(operator: str, left: Any, right: Any) -> Any:
    match operator:
        case "==":
            return equal(left, right)
        case "!=":
            return not equal(left, right)
        case "in":
            if isinstance(right, dict):
                return left in right
            if isinstance(right, list):
                return any(equal(left, item) for item in right)
            raise CelError("no such overload: @in")
        case "<" | "<=" | ">" | ">=":
            return _compare(operator, left, right)
        case _:
            return _arithmetic(operator, left, right)


def _number_like(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _compare(operator: str, left: Any, right: Any) -> bool:
    if not ((_number_like(left) and _number_like(right)) or type(left) is type(right)) or isinstance(
        left, (dict, list, type(None))
    ):
        raise CelError(f"no such overload: {kind_of(left)} {operator} {kind_of(right)}")
    if operator == "<":
        return bool(left < right)
    if operator == "<=":
        return bool(left <= right)
    return bool(left > right) if operator == ">" else bool(left >= right)


def _arithmetic(operator: str, left: Any, right: Any) -> Any:
    if operator in {"+", "-"} and isinstance(right, timedelta) and isinstance(left, (datetime, timedelta)):
        return left + right if operator == "+" else left - right
    if operator == "-" and isinstance(left, datetime) and isinstance(right, datetime):
        return left - right
    if operator == "+" and type(left) is type(right) and isinstance(left, (str, list, bytes)):
        return left + right
    if not (_number_like(left) and type(left) is type(right)):
        raise CelError(f"no such overload: {kind_of(left)} {operator} {kind_of(right)}")
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0 and isinstance(right, int):
        raise CelError("division by zero" if operator == "/" else "modulus by zero")
    if isinstance(left, float):
        return left / right if right else float("inf")
    # Go truncates towards zero, Python does not.
    quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    return quotient if operator == "/" else left - quotient * right


def _macro(node: Macro, scope: Scope) -> Any:
    source = _evaluate(node.source, scope)
    if not isinstance(source, (list, dict)):
        raise CelError(f"no such overload: {node.name}")
    items = list(source)

    def with_item(body: Node, item: Any) -> Any:
        return _evaluate(body, {**scope, node.variable: item})

    body = node.body[0]
    match node.name:
        case "filter":
            return [item for item in items if _boolean(with_item(body, item))]
        case "map" if len(node.body) == 2:
            return [with_item(node.body[1], item) for item in items if _boolean(with_item(body, item))]
        case "map":
            return [with_item(body, item) for item in items]
        case "exists_one":
            return sum(_boolean(with_item(body, item)) for item in items) == 1
        case _:
            decisive = node.name == "exists"
            failed: CelError | None = None
            for item in items:
                try:
                    if _boolean(with_item(body, item)) is decisive:
                        return decisive
                except CelError as error:
                    failed = failed or error
            if failed is not None:
                raise failed
            return not decisive
