"""The controller library: knows Kubernetes, knows nothing of KAITO.

Read it in this order: ``transport`` (bytes), ``client`` (verbs), ``watchstate`` and ``watch`` (one kind's life),
``store`` and ``cache`` (what is known), ``queue`` and ``source`` (whom it wakes), ``controller`` (what they do),
``manager`` (all of them).
"""

from kaito_ctrl.runtime.cache import Cache, Reader
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.controller import Context, Controller, Result
from kaito_ctrl.runtime.errors import ClusterUnavailable, RetryAfter, TerminalError
from kaito_ctrl.runtime.leader import Lease
from kaito_ctrl.runtime.manager import Cluster, Manager
from kaito_ctrl.runtime.member import Member
from kaito_ctrl.runtime.meta import ObjectKey, key_of
from kaito_ctrl.runtime.metrics import Metrics
from kaito_ctrl.runtime.source import (
    EVERY_CLUSTER,
    by_label,
    generation_changed,
    labels_changed,
    owns,
    reads,
    watches,
)
from kaito_ctrl.runtime.watch import Scope

__all__ = [
    "EVERY_CLUSTER",
    "Cache",
    "Client",
    "Cluster",
    "ClusterUnavailable",
    "Context",
    "Controller",
    "Lease",
    "Manager",
    "Member",
    "Metrics",
    "ObjectKey",
    "Reader",
    "Result",
    "RetryAfter",
    "Scope",
    "TerminalError",
    "by_label",
    "generation_changed",
    "key_of",
    "labels_changed",
    "owns",
    "reads",
    "watches",
]
