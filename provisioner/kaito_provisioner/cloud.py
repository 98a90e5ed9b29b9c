"""The protocol between the machine reconciler and a cloud, in the shape of Karpenter-core's ``CloudProvider``.

Three rules make a backend safe. ``create`` is idempotent by the claim's uid: asked twice, it answers with the
instance that is there. Nothing waits for the cloud: an instance that is still being made is returned as
``Creating``, and asked about again. ``list`` is the truth about what costs money: every instance carries the uid of
the claim it was made for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from kaito_api.core import Taint

__all__ = [
    "CloudError",
    "CloudProvider",
    "Instance",
    "InstanceState",
    "InsufficientCapacity",
    "LaunchRequest",
    "NotFound",
    "QuotaExceeded",
    "Throttled",
    "UnknownInstanceType",
]

InstanceState = Literal["Creating", "Running", "Deleting", "Failed"]


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What a claim asks of the cloud. ``uid`` is the idempotency token; ``disk`` is in bytes, 0 for the default."""

    name: str
    uid: str
    instance_types: tuple[str, ...]
    """Acceptable ones, the preferred first."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    startup_taints: tuple[Taint, ...] = ()
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine in the cloud. Quantities are Kubernetes' (``{"nvidia.com/gpu": "1"}``)."""

    name: str
    claim_uid: str
    state: InstanceState
    instance_type: str
    provider_id: str = ""
    """What the node will carry as ``spec.providerID``; may be empty while the instance is being made."""
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    error: CloudError | None = None
    """Why it is ``Failed``."""


class CloudError(Exception):
    """The cloud said no. ``reason`` is one CamelCase word for conditions and metrics; ``fix`` is the next step for a
    person. ``retryable`` says whether the same request may succeed later without anybody doing anything."""

    reason = "LaunchFailed"
    retryable = True

    def __init__(self, message: str, *, fix: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.retry_after = retry_after


class NotFound(CloudError):
    """There is no such instance, or no longer."""

    reason = "InstanceNotFound"


class InsufficientCapacity(CloudError):
    """The cloud has no machine of the asked types now."""

    reason = "InsufficientCapacity"


class QuotaExceeded(CloudError):
    """The subscription may not have more of them."""

    reason = "QuotaExceeded"


class UnknownInstanceType(CloudError):
    """The cloud does not know, or does not offer here, any of the asked types."""

    reason = "UnknownInstanceType"
    retryable = False


class Throttled(CloudError):
    """Too many requests; ``retry_after`` says when to come back."""

    reason = "Throttled"


class CloudProvider(Protocol):
    """One cloud. Every method may raise :class:`CloudError`; all are safe for concurrent use."""

    name: str

    async def create(self, request: LaunchRequest) -> Instance:
        """Start making an instance, or return the one that was made for ``request.uid`` already."""
        ...

    async def get(self, provider_id: str) -> Instance:
        """The instance of that provider id. Raises ``NotFound``."""
        ...

    async def find(self, claim_uid: str) -> Instance:
        """The instance made for that claim, whatever became of the answer to its creation. Raises ``NotFound``."""
        ...

    async def list(self) -> Sequence[Instance]:
        """Every instance that was made through this protocol in this cluster, in whatever state."""
        ...

    async def delete(self, instance: Instance) -> None:
        """Start deleting; returning means under way. Raises ``NotFound`` once it is gone."""
        ...
