"""kaito-ctrl: KAITO in Python, and the controller runtime under it.

The names below are the library's façade; each is loaded when it is first used, so that importing this package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaito_ctrl.runtime import (
        Cache,
        Client,
        Cluster,
        Context,
        Controller,
        Manager,
        ObjectKey,
        Result,
        RetryAfter,
        TerminalError,
        owns,
        watches,
    )

__all__ = [
    "Cache",
    "Client",
    "Cluster",
    "Context",
    "Controller",
    "Manager",
    "ObjectKey",
    "Result",
    "RetryAfter",
    "TerminalError",
    "owns",
    "watches",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("kaito_ctrl.runtime"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
