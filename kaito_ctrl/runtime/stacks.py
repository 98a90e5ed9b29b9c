"""Where a task is, down to the innermost coroutine."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["stack_of"]


def stack_of(task: asyncio.Task[Any]) -> list[str]:
    """Where *task* is, outermost first: ``module:line in function``; the last line says what it waits for.

    Unlike ``Task.get_stack``, which knows of a suspended task only its outermost coroutine, this goes down to the
    innermost one.
    """
    lines: list[str] = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = _attribute(awaited, "frame")
        if frame is None:
            lines.append(f"awaiting {type(awaited).__name__}")
            break
        lines.append(f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        awaited = _attribute(awaited, "await") or _attribute(awaited, "yieldfrom")
    return lines


def _attribute(awaited: Any, name: str) -> Any:
    """``cr_frame`` of a coroutine, ``gi_frame`` of a generator, ``ag_frame`` of an asynchronous one."""
    return next((found for kind in ("cr", "gi", "ag") if (found := getattr(awaited, f"{kind}_{name}", None))), None)
