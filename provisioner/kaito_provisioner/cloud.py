"""The protocol between the machine reconciler and a cloud, in the shape of Karpenter-core's ``CloudProvider``.

Four rules make a backend safe. ``create`` is idempotent by the claim's uid: asked twice, it answers with the instance
that is there. Nothing waits for the cloud: an instance that is still being made is returned as ``Creating``, together
with the operation that makes it, and asked about again. ``list`` is the truth about what costs money: every instance
carries the uid of the claim it was made for. And what a backend raises is a :class:`CloudError`, which says what went
wrong, whether it may have taken effect all the same, and what a person does next. All of it is spelled out, and tried,
by :mod:`kaito_provisioner.conformance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from kaito_api.core import Taint
from kaito_api.karpenter import Requirement
from kaito_api.meta import ConditionStatus

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
    "Throttled",
    "Unauthorized",
    "Unavailable",
    "UnknownInstanceType",
]

InstanceState = Literal["Creating", "Running", "Deleting", "Failed"]
CapacityType = Literal["on-demand", "spot", "reserved"]


@dataclass(frozen=True, slots=True)
class Offering:
    """One way to get an instance type."""

    instance_type: str
    capacity_type: CapacityType = "on-demand"
    zones: tuple[str, ...] = ()
    """Acceptable zones, as the ``topology.kubernetes.io/zone`` label spells them; empty: the cloud chooses."""
    price: float | None = None
    """Per hour, in whatever currency the backend's prices share; ``None``: not known."""
    available: bool = True
    """Whether the cloud has any now, as far as the backend knows."""


@dataclass(frozen=True, slots=True)
class InstanceType:
    """What the cloud offers. Unavailable offerings are listed too, as unavailable."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """The labels that every node of it has, e.g. ``kubernetes.io/arch``."""
    capacity: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    offerings: tuple[Offering, ...] = ()


@dataclass(frozen=True, slots=True)
class RepairPolicy:
    """A node's condition that means that the node has to be replaced once it has lasted for ``toleration`` seconds."""

    condition: str
    status: ConditionStatus
    toleration: float


@dataclass(frozen=True, slots=True)
class NodeClassKind:
    """The kind of node classes whose claims are this cloud's to serve."""

    group: str
    kind: str


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """A claim, as much of it as the cloud can be asked about.

    ``operation`` is what ``Instance.operation`` was when it was seen last, maybe by a process that is gone.
    """

    name: str
    uid: str
    provider_id: str = ""
    operation: str = ""


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What a claim asks of the cloud. ``uid`` is the idempotency token; ``disk`` is in bytes, 0 for the default."""

    name: str
    uid: str
    instance_types: tuple[str, ...]
    """Acceptable ones, the preferred first: those of ``offerings``, each once."""
    offerings: tuple[Offering, ...] = ()
    """Acceptable ways to get one, the preferred first. A backend tries the first, and raises ``OfferingError`` if the
    cloud has none; one whose cloud chooses among several by itself may ask for all of them at once."""
    kind: str = "Machine"
    """The claim's kind: instances of one kind are no orphans of the other."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    startup_taints: tuple[Taint, ...] = ()
    disk: int = 0
    requirements: tuple[Requirement, ...] = ()
    """All of the claim's, for what only the backend understands."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """The claim's, for what only the backend understands."""
    group: str = ""
    """Claims of one group ask for equal nodes. A backend whose cloud counts groups of instances, and not instances, may
    keep them in one; each is still an :class:`Instance` of its own, and deleted alone."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One machine in the cloud. Quantities are Kubernetes' (``{"nvidia.com/gpu": "1"}``)."""

    name: str
    claim_uid: str
    state: InstanceState
    instance_type: str
    provider_id: str = ""
    """What the node carries as ``spec.providerID``; may be empty while the instance is being made."""
    node_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that its node has and no other: it is found by them where the cloud does not tell the provider id."""
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    """When the claim was made, by the API server's clock, or the instance, by the cloud's."""
    error: CloudError | None = None
    """Why it is ``Failed``."""
    claim_kind: str = "Machine"
    offering: Offering | None = None
    """Which of the asked ones it was made from, where the backend can tell."""
    operation: str = ""
    """What the cloud is doing to it, as a text by which any process can ask again; empty when nothing."""
    image_id: str = ""
    group: str = ""


class CloudError(Exception):
    """The cloud said no. ``reason`` is one CamelCase word for conditions and metrics; ``fix`` is the next step for a
    person; ``retry_after`` is in seconds, from the cloud or from a limit that is known to be its."""

    reason = "LaunchFailed"
    retryable = True
    """Whether the same request may succeed later without anybody changing it."""
    ambiguous = False
    """Whether the request may have taken effect all the same: its answer was lost."""

    def __init__(self, message: str, *, fix: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.retry_after = retry_after


class NotFound(CloudError):
    """There is no such instance, or no longer."""

    reason = "InstanceNotFound"


class OfferingError(CloudError):
    """There is none of what was asked for; another offering may be had. ``offering`` is the one refused."""

    def __init__(
        self, message: str, *, fix: str = "", retry_after: float | None = None, offering: Offering | None = None
    ) -> None:
        super().__init__(message, fix=fix, retry_after=retry_after)
        self.offering = offering


class InsufficientCapacity(OfferingError):
    """The cloud has no machine of the asked types now."""

    reason = "InsufficientCapacity"


class QuotaExceeded(OfferingError):
    """The subscription may not have more of them."""

    reason = "QuotaExceeded"


class UnknownInstanceType(OfferingError):
    """The cloud does not know, or does not offer here, any of the asked types."""

    reason = "UnknownInstanceType"
    retryable = False


class InvalidRequest(CloudError):
    """The claim asks for something that this cloud can never give."""

    reason = "InvalidRequest"
    retryable = False


class Conflict(CloudError):
    """Something else is being done to it, or stands where it should; later there may be nothing in the way."""

    reason = "Conflict"


class Unauthorized(CloudError):
    """The provisioner's identity is not known, or not allowed to."""

    reason = "Unauthorized"


class Throttled(CloudError):
    """Too many requests; ``retry_after`` says when to come back."""

    reason = "Throttled"


class Unavailable(CloudError):
    """The cloud does not answer, or not sensibly. Whether it has done what it was asked is not known."""

    reason = "CloudUnavailable"
    ambiguous = True


class CloudProvider(Protocol):
    """One cloud. Every method may raise :class:`CloudError`, and nothing else of the cloud's making; all are safe for
    concurrent use, and none waits for more than the answer to its requests."""

    name: str
    node_classes: Sequence[NodeClassKind]
    """Whose NodeClaims are to be served, besides KAITO's own."""

    async def create(self, request: LaunchRequest) -> Instance:
        """Start making an instance, or return the one that was made for ``request.uid`` already, in whatever state: a
        ``Failed`` one has to be deleted, and gone, before there can be another.

        Raises ``OfferingError`` where there is none of what was asked for, and ``Conflict`` where something else has
        the name.
        """
        ...

    async def get(self, provider_id: str) -> Instance:
        """The instance of that provider id. Raises ``NotFound``."""
        ...

    async def find(self, claim: ClaimRef) -> Instance:
        """The instance made for that claim, whatever became of the answer to its creation.

        Raises ``NotFound``, which is never a guess; but what was made a moment ago the cloud may not show yet.

        An instance that could not be made is returned as ``Failed``, with why in ``error``, for as long as the cloud
        counts it.
        """
        ...

    async def list(self) -> Sequence[Instance]:
        """Every instance that was made through this protocol in this cluster, in whatever state."""
        ...

    async def delete(self, instance: Instance) -> Instance:
        """Start deleting; the answer is the instance as it goes. Raises ``NotFound`` once it is gone. Another claim's
        instance of the same name is not touched."""
        ...

    async def instance_types(self) -> Sequence[InstanceType]:
        """What there is to choose from. A claim may name types that are not listed: the cloud will know."""
        ...

    def repair_policies(self) -> Sequence[RepairPolicy]:
        """When a node of this cloud has to be replaced."""
        ...
