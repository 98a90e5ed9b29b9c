"""``x-kubernetes-validations``: the rules of a schema, compiled once and run over every write.

A rule that reads ``oldSelf`` is a transition rule: it runs only where the old value can be found, which in lists means
lists with keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kaito_ctrl.devcluster.apiserver.cel import CelError, CelSyntaxError, Expression, compile_expression, unescape
from kaito_ctrl.devcluster.apiserver.cel_syntax import Has, Ident, Index, Macro, Node, Select, children
from kaito_ctrl.devcluster.apiserver.errors import FieldError

__all__ = ["Rules", "compile_rules", "rule_errors"]

_VARIABLES = frozenset({"self", "oldSelf"})
_MISSING = object()


@dataclass(slots=True)
class _Rule:
    expression: Expression
    message: str
    message_expression: Expression | None
    reason: str
    field_path: str
    transition: bool


@dataclass(slots=True)
class Rules:
    """The rules of one schema node, and of what is under it."""

    own: list[_Rule] = field(default_factory=list)
    properties: dict[str, Rules] = field(default_factory=dict)
    items: Rules | None = None
    additional: Rules | None = None
    keys: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.own or self.properties or self.items or self.additional)

    def check(self, value: Any, old: Any = None) -> Iterator[FieldError]:
        """Every rule that *value* breaks; *old* is what it replaces, if anything."""
        yield from self._check(value, _MISSING if old is None else old, "")

    def _check(self, value: Any, old: Any, path: str) -> Iterator[FieldError]:
        for rule in self.own:
            if not rule.transition or old is not _MISSING:
                yield from _run(rule, value, old, path)
        if isinstance(value, dict):
            before = old if isinstance(old, dict) else {}
            for key, rules in self.properties.items():
                if key in value:
                    yield from rules._check(value[key], before.get(key, _MISSING), f"{path}.{key}" if path else key)
            if self.additional is not None:
                for key, item in value.items():
                    if key not in self.properties:
                        yield from self.additional._check(item, before.get(key, _MISSING), f"{path}.{key}")
        elif isinstance(value, list) and self.items is not None:
            known = {self._identity(item): item for item in old} if self.keys and isinstance(old, list) else {}
            for index, item in enumerate(value):
                yield from self.items._check(item, known.get(self._identity(item), _MISSING), f"{path}[{index}]")

    def _identity(self, item: Any) -> Any:
        return tuple(item.get(key) for key in self.keys) if isinstance(item, dict) else None


def _run(rule: _Rule, value: Any, old: Any, path: str) -> Iterator[FieldError]:
    scope = {"self": value} if old is _MISSING else {"self": value, "oldSelf": old}
    where = path + rule.field_path if path or not rule.field_path else rule.field_path.lstrip(".")
    shown: Any = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else value
    try:
        if rule.expression.evaluate(scope) is True:
            return
    except CelError as error:
        yield FieldError.invalid(where or "<nil>", shown, f"{error} evaluating rule: {rule.message}")
        return
    message = rule.message
    if rule.message_expression is not None:
        try:
            text = rule.message_expression.evaluate(scope)
            message = text.strip() if isinstance(text, str) and text.strip() and "\n" not in text.strip() else message
        except CelError:
            pass  # the fixed message stands in, as it does on a real server
    if rule.reason in {"FieldValueRequired", "FieldValueForbidden"}:
        yield FieldError(rule.reason, where or "<nil>", detail=message)
    else:
        yield FieldError(rule.reason, where or "<nil>", shown, message)


def _compile(source: Mapping[str, Any]) -> _Rule:
    text = source["rule"]
    expression = compile_expression(text, _VARIABLES)
    written = source.get("messageExpression")
    return _Rule(
        expression,
        (source.get("message") or f"failed rule: {text.strip()}").strip(),
        compile_expression(written, _VARIABLES) if written else None,
        source.get("reason") or "FieldValueInvalid",
        source.get("fieldPath") or "",
        expression.uses("oldSelf"),
    )


def compile_rules(source: Mapping[str, Any]) -> Rules:
    """The rules in *source*, which has passed :func:`rule_errors`."""
    rules = Rules([_compile(item) for item in source.get("x-kubernetes-validations") or ()])
    for key, child in (source.get("properties") or {}).items():
        found = compile_rules(child)
        if not found.empty:
            rules.properties[key] = found
    for part in source.get("allOf") or ():
        rules.own += compile_rules(part).own
    if isinstance(source.get("items"), Mapping):
        found = compile_rules(source["items"])
        rules.items = None if found.empty else found
        if source.get("x-kubernetes-list-type") == "map":
            rules.keys = tuple(source.get("x-kubernetes-list-map-keys") or ())
    if isinstance(source.get("additionalProperties"), Mapping):
        found = compile_rules(source["additionalProperties"])
        rules.additional = None if found.empty else found
    return rules


def rule_errors(source: Mapping[str, Any], path: str, *, root: bool = True) -> Iterator[FieldError]:
    """What is wrong with the rules in *source*; a definition with such a rule is refused."""
    for index, item in enumerate(source.get("x-kubernetes-validations") or ()):
        here = f"{path}.x-kubernetes-validations[{index}]"
        text = item.get("rule") or ""
        if not text.strip():
            yield FieldError.required(f"{here}.rule", "rule is not specified")
            continue
        for key in ("rule", "messageExpression"):
            if not item.get(key):
                continue
            try:
                tree = compile_expression(item[key], _VARIABLES).tree
                _check_fields(tree, source, root=root)
            except CelSyntaxError as error:
                yield FieldError.invalid(f"{here}.{key}", item[key], f"compilation failed: {error}")
    for key, child in (source.get("properties") or {}).items():
        yield from rule_errors(child, f"{path}.properties[{key}]", root=False)
    if isinstance(source.get("items"), Mapping):
        yield from rule_errors(source["items"], f"{path}.items", root=False)
    if isinstance(source.get("additionalProperties"), Mapping):
        yield from rule_errors(source["additionalProperties"], f"{path}.additionalProperties", root=False)


_OBJECT_META = {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}
_Scope = dict[str, Mapping[str, Any] | None]


def _check_fields(tree: Node, source: Mapping[str, Any], *, root: bool) -> None:
    """Refuse a select of a field that the schema does not have. ``None`` stands for a type nobody knows."""
    if root:
        base = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": _OBJECT_META}
        declared = {k: v for k, v in (source.get("properties") or {}).items() if k not in base}
        source = {**source, "properties": {**base, **declared}}
    _infer(tree, {"self": source, "oldSelf": source})


def _field(schema: Mapping[str, Any] | None, name: str) -> Mapping[str, Any] | None:
    if schema is None or schema.get("type") != "object":
        return None
    known = schema.get("properties") or {}
    if unescape(name) in known:
        found: Mapping[str, Any] = known[unescape(name)]
        return found
    extra = schema.get("additionalProperties")
    if extra is not None:
        return extra if isinstance(extra, Mapping) else None
    raise CelSyntaxError(f"ERROR: <input>:1:1: undefined field '{name}'")


def _element(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if schema is None:
        return None
    found = schema.get("items") if schema.get("type") == "array" else schema.get("additionalProperties")
    return found if isinstance(found, Mapping) else None


def _infer(node: Node, scope: _Scope) -> Mapping[str, Any] | None:
    match node:
        case Ident(name=name):
            return scope.get(name)
        case Select(operand=operand, field=name):
            return _field(_infer(operand, scope), name)
        case Has(operand=operand, field=name):
            _field(_infer(operand, scope), name)
            return {"type": "boolean"}
        case Index(operand=operand, index=index):
            _infer(index, scope)
            return _element(_infer(operand, scope))
        case Macro(source=source, variable=variable, body=body, name=name):
            container = _infer(source, scope)
            is_list = container is not None and container.get("type") == "array"
            inner = {**scope, variable: _element(container) if is_list else None}
            for part in body:
                _infer(part, inner)
            return container if name == "filter" else None
        case _:
            for child in children(node):
                _infer(child, scope)
            return None
