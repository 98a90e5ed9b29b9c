"""Node provisioning: the ``CloudProvider`` protocol and its backends.

The machine reconciler runs a node request's life against whatever implements the protocol; a backend knows one
cloud and nothing of Kubernetes beyond the names that instances carry.
"""

from kaito_provisioner.cloud import (
    CapacityType,
    ClaimRef,
    CloudError,
    CloudProvider,
    Conflict,
    Instance,
    InstanceState,
    InstanceType,
    InsufficientCapacity,
    InvalidRequest,
    LaunchRequest,
    NodeClassKind,
    NotFound,
    Offering,
    OfferingError,
    QuotaExceeded,
    RepairPolicy,
    Throttled,
    Unauthorized,
    Unavailable,
    UnknownInstanceType,
)
from kaito_provisioner.requirements import Requirements, ValueSet
from kaito_provisioner.selection import choose
from kaito_provisioner.unavailable import Resting, Split, UnavailableOfferings, describe

__all__ = [
    "CapacityType",
    "ClaimRef",
    "CloudError",
    "CloudProvider",
    "Conflict",
    "Instance",
    "InstanceState",
    "InstanceType",
    "InsufficientCapacity",
    "InvalidRequest",
    "LaunchRequest",
    "NodeClassKind",
    "NotFound",
    "Offering",
    "OfferingError",
    "QuotaExceeded",
    "RepairPolicy",
    "Requirements",
    "Resting",
    "Split",
    "Throttled",
    "Unauthorized",
    "Unavailable",
    "UnavailableOfferings",
    "UnknownInstanceType",
    "ValueSet",
    "choose",
    "describe",
]
