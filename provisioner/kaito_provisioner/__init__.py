"""Node provisioning: the ``CloudProvider`` protocol and its backends.

The machine reconciler runs a node request's life against whatever implements the protocol; a backend knows one
cloud and nothing of Kubernetes beyond the names that instances carry.
"""

from kaito_provisioner.cloud import (
    CloudError,
    CloudProvider,
    Instance,
    InsufficientCapacity,
    LaunchRequest,
    NotFound,
    QuotaExceeded,
    Throttled,
    UnknownInstanceType,
)

__all__ = [
    "CloudError",
    "CloudProvider",
    "Instance",
    "InsufficientCapacity",
    "LaunchRequest",
    "NotFound",
    "QuotaExceeded",
    "Throttled",
    "UnknownInstanceType",
]
