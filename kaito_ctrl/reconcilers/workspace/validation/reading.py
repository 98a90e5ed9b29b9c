"""Plain JSON as a Workspace, as far as it is one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.workspace.validation.problem import Problem

__all__ = ["read"]


def read(raw: Mapping[str, Any]) -> tuple[Workspace | None, tuple[Problem, ...]]:
    """The workspace, and where *raw* does not fit its model. What does not fit is left out, so that the rules can look
    at the rest; ``None`` when nothing is left to look at."""
    problems: list[Problem] = []
    try:
        rest = copy.deepcopy({key: value for key, value in raw.items() if key != "status"})
    except RecursionError:
        return None, (Problem("", "is nested too deeply", "a Workspace has at most a few levels"),)
    for _ in range(50):
        try:
            return Workspace.model_validate(rest), tuple(problems)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False):
                problems.append(Problem(_path(detail["loc"]), _says(detail), _fix(detail)))
                if not _repair(rest, detail["loc"], missing=detail["type"] == "missing"):
                    return None, tuple(problems)
    return None, tuple(problems)


def _says(detail: Mapping[str, Any]) -> str:
    return "is required" if detail["type"] == "missing" else str(detail["msg"])


def _fix(detail: Mapping[str, Any]) -> str:
    kind = str(detail["type"])
    if kind == "missing":
        return f"add {_path(detail['loc'][-1:])}"
    if kind == "extra_forbidden":
        return "remove it"
    return _FORMS.get(kind, "see kubectl explain workspace")


_FORMS = {
    "string_type": 'write text, in quotes if it looks like a number: "1.0"',
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "greater_than_equal": "write a larger number",
    "less_than_equal": "write a smaller number",
    "string_too_short": "write something, or leave it out",
    "list_type": "write a list",
    "tuple_type": "write a list",
    "model_type": "write an object with its fields",
    "mapping_type": "write an object",
    "dict_type": "write an object",
}


def _path(loc: Iterable[int | str]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _repair(raw: Any, loc: tuple[int | str, ...], *, missing: bool) -> bool:
    """Take out what does not fit, or stand something empty in for what is missing. False when that cannot help."""
    if not loc:
        return False
    holder: Any = raw
    for part in loc[:-1]:
        holder = _inside(holder, part)
        if holder is None:
            return _repair(raw, loc[:-1], missing=False) if len(loc) > 1 else False
    last = loc[-1]
    if missing and last in ("resource", "labelSelector", "input", "output") and isinstance(holder, dict):
        holder[last] = {"labelSelector": {}} if last == "resource" else {}
        return True
    if missing:
        return _repair(raw, loc[:-1], missing=False)
    if isinstance(holder, dict) and last in holder:
        del holder[last]
        return True
    return _repair(raw, loc[:-1], missing=False)


def _inside(holder: Any, part: int | str) -> Any:
    if isinstance(holder, dict):
        return holder.get(part)
    # Fields of an element can be taken out; elements cannot, or the ones after them would be reported under its number.
    if isinstance(holder, list) and isinstance(part, int) and part < len(holder):
        return holder[part]
    return None
