"""kaito-ctrl: KAITO in Python, and the controller runtime under it.

The library's façade is ten names:

=============  =======================================================================================================
``Cluster``    one API server: how to reach it, a live client, and a shared cache
``Client``     typed verbs: reads are live, writes are ``apply``, ``patch``, ``create`` and ``delete``
``Cache``      what is watched, read without waiting, and never older than what the process itself wrote
``Manager``    runs controllers and their surroundings, started in order and stopped in the mirror image of it
``Lease``      which of several managers does the work: ``Manager(cluster, leader=Lease("my-operator"))``
``Controller`` one kind, what wakes it, and the reconciler that brings one object where it should be
``Context``    what a reconcile works with: its client, its cache, its clock, its log, its events, other clusters
``Result``     when a reconcile that did not fail wants to be called again
``Resource``   base of all kinds: a frozen pydantic model that says where it lives in the API
``ObjectKey``  namespace and name
=============  =======================================================================================================

Around them: ``owns``, ``watches`` and ``reads`` declare what a controller follows, ``by_label`` maps by a label, and
``RetryAfter`` and ``TerminalError`` are what a reconcile may raise to say more than that it failed. Everything else is
in ``kaito_ctrl.runtime``, and each of its errors in ``kaito_ctrl.runtime.errors``.

Each name is loaded when it is first used, so that importing this package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaito_api.meta import Resource
    from kaito_ctrl.runtime import (
        Cache,
        Client,
        Cluster,
        Context,
        Controller,
        Lease,
        Manager,
        ObjectKey,
        Result,
        RetryAfter,
        TerminalError,
        by_label,
        owns,
        reads,
        watches,
    )

__all__ = [
    "Cache",
    "Client",
    "Cluster",
    "Context",
    "Controller",
    "Lease",
    "Manager",
    "ObjectKey",
    "Resource",
    "Result",
    "RetryAfter",
    "TerminalError",
    "by_label",
    "owns",
    "reads",
    "watches",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("kaito_api.meta" if name == "Resource" else "kaito_ctrl.runtime"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
