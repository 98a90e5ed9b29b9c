"""What Azure Resource Manager answers when it does not do what it was asked: codes, wordings and shapes.

There are two shapes of one error. ARM's front door wraps it, ``{"error": {"code", "message"}}``; the AKS resource
provider behind it often does not, ``{"code", "details", "message", "subcode"}``. A client has to read both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ArmError", "Failure"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a long-running operation failed, as its status and its pool's ``status.provisioningError`` say it."""

    code: str
    message: str
    details: tuple[Failure, ...] = ()
    subcode: str = ""

    def wire(self) -> dict[str, Any]:
        """Its JSON."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.subcode:
            body["subcode"] = self.subcode
        if self.details:
            body["details"] = [each.wire() for each in self.details]
        return body

    def within(self, code: str, *, nested: bool = True) -> Failure:
        """This failure of a dependency as the agent pool's reconciler reports it, under its own *code*.

        The text of the inner one is always in the message; whether it is among the details too is *nested*: AKS does
        either.
        """
        text = (
            f"VMSSAgentPoolReconciler retry failed: Category: ClientError; SubCode: {self.code}; "
            f"Dependency: Microsoft.Compute/VirtualMachineScaleSet; "
            f'OrginalError: Code="{self.code}" Message="{self.message}"; AKSTeam: NodeProvisioning, Retriable: false'
        )
        return Failure(code, text, (self,) if nested else (), self.code)


@dataclass(slots=True)
class ArmError(Exception):
    """A request that is answered with an error instead of being carried out."""

    status: int
    code: str
    message: str
    wrapped: bool = False
    """Whether it is the front door's, and not the resource provider's."""
    subcode: str = ""
    target: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Its JSON."""
        if not self.wrapped:
            return {
                "code": self.code,
                "details": None,
                "message": self.message,
                "subcode": self.subcode,
                **({"target": self.target} if self.target else {}),
            }
        target = {"target": self.target} if self.target else {}
        return {"error": {"code": self.code, "message": self.message, **target}}


def refused(status: int, code: str, message: str, subcode: str = "", target: str = "") -> ArmError:
    """An error of the AKS resource provider."""
    return ArmError(status, code, message, False, subcode, target)


def turned_away(status: int, code: str, message: str, **headers: str) -> ArmError:
    """An error of ARM's front door."""
    return ArmError(status, code, message, True, headers={key.replace("_", "-"): text for key, text in headers.items()})


def throttled(wait: int, code: str = "Throttled") -> ArmError:
    """Too many requests; *wait* is in seconds. The code says whose limit it is."""
    text = (
        f"The request is being throttled as the limit has been reached for operation. Try again after {wait} seconds."
    )
    return ArmError(429, code, text, code == "SubscriptionRequestsThrottled", headers={"Retry-After": str(wait)})


def pool_is_missing(pool: str, cluster: str) -> ArmError:
    """There is no such pool in a cluster that there is."""
    return refused(
        404, "NotFound", f"Agent Pool not found: there is no agent pool '{pool}' in managed cluster '{cluster}'."
    )


def cluster_is_missing(group: str, cluster: str) -> ArmError:
    """There is no such cluster in a resource group that there is."""
    return turned_away(
        404,
        "ResourceNotFound",
        f"The Resource 'Microsoft.ContainerService/managedClusters/{cluster}' under resource group '{group}' was not "
        "found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
    )


def group_is_missing(group: str) -> ArmError:
    """There is no such resource group in a subscription that there is."""
    return turned_away(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")


def subscription_is_missing(subscription: str) -> ArmError:
    """There is no such subscription."""
    return turned_away(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")


def already_in_progress(doing: str, pool: str, *, old: bool) -> ArmError:
    """Something else is being done to it; *doing* is a provisioning state. There are two wordings about."""
    if old:
        verb = {"Creating": "create", "Deleting": "delete", "Canceling": "abort"}.get(doing, "update")
        text = f"Operation is not allowed because there's an in progress {verb} node pool operation on '{pool}'."
    else:
        text = (
            f"Operation is not allowed: Another operation ({pool} - {doing}) is in progress, please wait for it to "
            "finish before starting a new operation. See https://aka.ms/aks-pending-operation for more details"
        )
    return refused(409, "OperationNotAllowed", text)


def precondition_failed(pool: str, *, exists: bool) -> ArmError:
    """``If-None-Match: *`` on a pool that there is, or ``If-Match`` with the ETag of what it no longer is."""
    if exists:
        return refused(412, "PreconditionFailed", f"The agent pool '{pool}' exists already.")
    return refused(412, "EtagMismatch", f"The ETag of the agent pool '{pool}' does not match that of the request.")


def allocation_failed(size: str, zones: tuple[str, ...], *, spot: bool) -> Failure:
    """The region, or the zone, has none left."""
    if zones:
        return Failure(
            "OverconstrainedZonalAllocationRequest" if spot else "ZonalAllocationFailed",
            "Allocation failed. We do not have sufficient capacity for the requested VM size in this zone. Read more "
            f"about improving likelihood of allocation success at http://aka.ms/allocation-guidance ({size}, zones "
            f"{', '.join(zones)})",
        )
    return Failure(
        "OverconstrainedAllocationRequest" if spot else "AllocationFailed",
        "Allocation failed. We do not have sufficient capacity for the requested VM size in this region. Read more "
        f"about improving likelihood of allocation success at http://aka.ms/allocation-guidance ({size})",
    )


def sku_not_available(size: str, location: str) -> Failure:
    """The size is not to be had there for now."""
    return Failure(
        "SkuNotAvailable",
        f"The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size}' is "
        f"currently not available in location '{location}'. Please try another size or deploy to a different location "
        "or different zone. See https://aka.ms/azureskunotavailable for details.",
    )


def quota_exceeded(family: str, location: str, limit: int, used: int, wanted: int) -> Failure:
    """The subscription may not have as many cores of the *family*, as Compute says it in the middle of an operation."""
    cores = family if family.endswith("Cores") else f"{family} Cores"
    return Failure(
        "OperationNotAllowed",
        f"Operation could not be completed as it results in exceeding approved {cores} quota. Additional "
        f"details - Deployment Model: Resource Manager, Location: {location}, Current Limit: {limit}, Current Usage: "
        f"{used}, Additional Required: {wanted}, (Minimum) New Limit Required: {used + wanted}. Submit a request for "
        "Quota increase at https://aka.ms/ProdportalCRP specifying parameters listed in the 'Details' section.",
    )


def quota_refused(family: str, location: str, left: int, wanted: int) -> ArmError:
    """The same, as AKS says it before it starts anything."""
    return refused(
        400,
        "ErrCode_InsufficientVCPUQuota",
        f"Insufficient vcpu quota requested {wanted}, remaining {left} for family {family} for region {location}. "
        "Submit a request for Quota increase at https://aka.ms/ProdportalCRP",
        "InsufficientVCPUQuota",
    )


def size_not_allowed(size: str, location: str) -> ArmError:
    """The subscription may not have VMs of that size, or there is no such size."""
    return refused(
        400, "BadRequest", f"The VM size of {size} is not allowed in your subscription in location '{location}'."
    )


def invalid(message: str, target: str, code: str = "InvalidParameter") -> ArmError:
    """The body asks for something that cannot be."""
    return refused(400, code, message, target=target)
