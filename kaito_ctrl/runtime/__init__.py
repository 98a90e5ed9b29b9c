"""The controller library: knows Kubernetes, knows nothing of KAITO.

Read it in this order; the modules in brackets are details of the ones before them.

1. ``errors``, ``meta``, ``transport`` (bytes; ``connect`` and ``credentials`` over TCP), ``client`` (verbs).
2. ``watchstate`` and ``watch``: the life of one watch (``codec``, ``listbody``: its bytes).
3. ``store`` and ``feed``: what is known, and which of two sayings is right (``scope``, ``selectors``, ``entry``: what
   is kept of which objects); ``cache``: all kinds of a cluster.
4. ``queue`` and ``source`` (whom a change wakes), ``controller`` (what is done then), ``worker``
   (how, and how often), ``finalizer``.
5. ``lifetime``, ``phases``, ``cluster``, ``manager``: all of it, started and stopped; ``member``: other clusters.
6. ``leader`` and ``fence``: who may act, and until when.
7. Beside them: ``events`` (``tokenbucket``), ``conditions``; ``webhook`` with ``admission``, ``conversion`` and
   ``certs``; ``serving``, ``metrics`` (``cachemetrics``), ``debug`` (``stacks``), ``vitals``, ``heap``; ``clock``.
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
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.source import (
    EVERY_CLUSTER,
    by_label,
    generation_changed,
    labels_changed,
    owns,
    reads,
    watches,
)

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
