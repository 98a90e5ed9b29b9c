"""What Azure's answers mean: each becomes one ``CloudError`` with a next step for a person.

All of an answer's codes and texts are looked at, and the first rule that fits any of them decides; the status decides
only where no rule does.
"""

from __future__ import annotations

import re
from typing import Literal

from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ServiceRequestTimeoutError,
)

from kaito_provisioner.aks.answers import Answer
from kaito_provisioner.cloud import (
    CloudError,
    Conflict,
    InsufficientCapacity,
    InvalidRequest,
    NotFound,
    Offering,
    OfferingError,
    QuotaExceeded,
    Throttled,
    Unauthorized,
    Unavailable,
    UnknownInstanceType,
)

__all__ = ["Call", "ClusterNotFound", "NoRoom", "classify", "classify_failure", "transport_failure"]

Call = Literal["read", "write"]

_LONGEST = 400
"""Characters of somebody else's words in a message."""


class ClusterNotFound(CloudError):
    """The managed cluster, its resource group or its subscription is not there: says nothing about any pool."""

    reason = "ClusterNotFound"


class NoRoom(CloudError):
    """The cluster can have no more pools or nodes, of whatever type."""

    reason = "ClusterFull"


_QUOTA_CODES = (
    "quotaexceeded",
    "errcode_insufficientvcpuquota",
    "insufficientvcpuquota",
    "insufficientquota",
    "subscriptionquotareached",
)
_QUOTA_TEXTS = (
    "family cores quota",
    "quota increase",
    "total regional cores quota",
    "lowprioritycores",
    "exceeding approved",
    "exceeds quota",
    "insufficient vcpu quota",
)
_CAPACITY_CODES = (
    "allocationfailed",
    "zonalallocationfailed",
    "overconstrainedallocationrequest",
    "overconstrainedzonalallocationrequest",
    "skunotavailable",
    "spotvmsnotavailable",
    "insufficientcapacity",
)
_CAPACITY_TEXTS = (
    "allocation failed",
    "sufficient capacity",
    "insufficient capacity",
    "not enough capacity",
    "is currently not available in location",
    "currently not available in zones",
)
_UNKNOWN_CODES = (
    "vmsizenotsupported",
    "skunotavailableforsubscription",
    "notavailableforsubscription",
    "invalidvmsize",
)
_UNKNOWN_TEXTS = (
    "is not allowed in your subscription in location",
    "not supported for subscription",
    "is not supported in location",
    "the vm size provided",
)
_GONE_CODES = ("resourcegroupnotfound", "subscriptionnotfound", "parentresourcenotfound", "invalidsubscriptionid")
_BUSY_TEXTS = ("in progress", "preempted by", "another operation", "aks-pending-operation")
_DENIED_CODES = (
    "authorizationfailed",
    "linkedauthorizationfailed",
    "linkedinvalidpropertyid",
    "setvnetownershipfailed",
    "invalidauthenticationtoken",
    "expiredauthenticationtoken",
    "invalidauthenticationtokentenant",
    "authenticationfailed",
)


def classify(error: HttpResponseError, call: Call, *, pool: str, offering: Offering | None = None) -> CloudError:
    """What an answer to a request means. *pool* is the agent pool that was asked for; a 404 is ``NotFound`` only where
    it is said of that pool, whatever else is missing.
    """
    answer = Answer.of(error)
    status = answer.status
    if status == 429 or answer.has("throttled", "toomanyrequests", "subscriptionrequeststhrottled"):
        return Throttled(
            f"Azure throttles requests: {answer.spoken()}",
            fix="wait: it is asked again when it said; other tools that use the same cluster spend from the same limit",
            retry_after=answer.retry_after,
        )
    if status == 404:
        return _missing(answer, pool)
    if status == 401:
        return _denied(answer)
    ruled = _by_rule(answer, offering)
    if ruled is not None:
        return ruled
    if status in (408, 500, 502, 503, 504) or status >= 500:
        return _unavailable(f"Azure answered {status}: {answer.spoken()}", call, answer.retry_after)
    # AKS says so with 400 too, and then it is no fault of the request.
    if status in (409, 412) or (status == 400 and answer.says(*_BUSY_TEXTS)):
        return _busy(answer)
    if status == 403:
        return _denied(answer)
    if status == 400:
        return InvalidRequest(
            f"AKS refuses the request: {answer.spoken()}",
            fix="change what the claim asks for: the message names it",
        )
    return _unavailable(f"Azure answered {status}: {answer.spoken()}", call, answer.retry_after)


def classify_failure(answer: Answer, *, offering: Offering | None = None) -> CloudError:
    """Why an operation ended ``Failed``, or a pool is."""
    ruled = _by_rule(answer, offering)
    if ruled is not None:
        return ruled
    if answer.says(*_BUSY_TEXTS) or answer.has("originaletagnotexpect", "operationpreempted"):
        return _busy(answer)
    return CloudError(
        f"AKS could not make the node pool: {answer.spoken()}",
        fix="it is deleted and tried again; if the same comes back, look the code up at "
        "https://aka.ms/aks/troubleshooting, or ask support with the operation's id",
    )


def transport_failure(error: BaseException, call: Call) -> CloudError:
    """No answer came, or none that makes sense."""
    # Of all that can break, only a connection that never came to be tells that nothing was received.
    never_sent = isinstance(error, ServiceRequestTimeoutError) or _unconnected(error)
    text = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    return _unavailable(f"no answer from Azure: {text}", "read" if never_sent else call, None)


def _unconnected(error: BaseException | None) -> bool:
    from aiohttp import ClientConnectorError

    while error is not None:
        if isinstance(error, ClientConnectorError):
            return True
        error = error.__cause__ or (error.inner_exception if isinstance(error, AzureError) else None)
    return False


def _by_rule(answer: Answer, offering: Offering | None) -> CloudError | None:
    """What codes and texts tell, whatever the status. The order matters: quota is refused as ``OperationNotAllowed``
    too, and a denied subnet is no reason to try another instance type.
    """
    if answer.has("insufficientsubnetsize") or answer.says("insufficient subnet size", "subnet is full"):
        return NoRoom(
            f"the subnet has no addresses left: {answer.spoken()}",
            fix="delete what is not needed, or use a larger subnet (VNET_SUBNET_ID)",
            retry_after=300.0,
        )
    if answer.says("maximum number of agent pools", "agent pool limit", "agent pools limit", "maximum of 100") or (
        answer.has("maxagentpoolcountreached", "agentpoolcountlimitexceeded", "toomanyagentpools")
    ):
        return NoRoom(
            f"the cluster has as many node pools as AKS allows (100): {answer.spoken()}",
            fix="delete what is not needed; a second cluster, or nodes with more GPUs, need no more pools",
            retry_after=300.0,
        )
    refused = _by_offering(answer, offering)
    if refused is not None:
        return refused
    if answer.has("requestdisallowedbypolicy", "requestdisallowedbyazure"):
        return Unauthorized(
            f"an Azure Policy forbids it: {answer.spoken()}",
            fix="exempt the cluster's resource group from the policy, or ask for what it allows",
        )
    if answer.has("scopelocked"):
        return Unauthorized(
            f"a lock on the resource forbids it: {answer.spoken()}",
            fix="take the lock off: az lock list --resource-group, then az lock delete",
        )
    if answer.has("missingsubscriptionregistration"):
        return Unauthorized(
            f"the subscription does not use AKS yet: {answer.spoken()}",
            fix="az provider register --namespace Microsoft.ContainerService",
        )
    if answer.has("readonlydisabledsubscription", "disabledsubscription"):
        return Unauthorized(
            f"the subscription is disabled: {answer.spoken()}", fix="have its owner enable it in the Azure portal"
        )
    if answer.has(*_DENIED_CODES):
        return _denied(answer)
    if answer.says("cluster is stopped", "power state is stopped", "cluster is in stopped"):
        return Conflict(
            f"the managed cluster is stopped: {answer.spoken()}", fix="az aks start", retry_after=answer.retry_after
        )
    if answer.says("cluster is in a failed state", "cluster is in failed state"):
        return Conflict(
            f"the managed cluster is in a failed state: {answer.spoken()}",
            fix="az aks update --resource-group GROUP --name CLUSTER, without any other flag, has AKS repair it; "
            "az aks operation show-latest tells what failed",
            retry_after=answer.retry_after,
        )
    if answer.has("propertychangenotallowed"):
        return Conflict(
            f"a pool of that name has other properties: {answer.spoken()}",
            fix="delete that node pool, or the claim: its name is taken",
        )
    return None


def _by_offering(answer: Answer, offering: Offering | None) -> OfferingError | None:
    what = _named(offering)
    if answer.has(*_QUOTA_CODES) or answer.says(*_QUOTA_TEXTS):
        return QuotaExceeded(
            f"the quota does not allow {what}: {answer.spoken()}",
            fix="ask for more quota (https://aka.ms/AzureQuotaRequest), delete what is not needed, or allow another "
            "instance type",
            offering=offering,
        )
    if answer.has(*_UNKNOWN_CODES) or answer.says(*_UNKNOWN_TEXTS):
        return UnknownInstanceType(
            f"{what} cannot be had here: {answer.spoken()}",
            fix="choose one that az vm list-skus --location REGION --size NAME lists without restrictions",
            offering=offering,
        )
    if answer.has(*_CAPACITY_CODES) or answer.says(*_CAPACITY_TEXTS):
        return InsufficientCapacity(
            f"Azure has no {what} now: {answer.spoken()}",
            fix="wait, or allow another instance type, zone or capacity type",
            retry_after=answer.retry_after,
            offering=offering,
        )
    return None


def _named(offering: Offering | None) -> str:
    if offering is None:
        return "such machine"
    where = f" in {', '.join(offering.zones)}" if offering.zones else ""
    return f"{offering.capacity_type} {offering.instance_type}{where}"


def _missing(answer: Answer, pool: str) -> CloudError:
    if answer.has(*_GONE_CODES):
        return _cluster_gone(answer)
    if pool and (
        answer.has("agentpoolnotfound")
        or answer.says("agent pool not found")
        or re.search(rf"agent\s?pools?['\":/\s]+{re.escape(pool.lower())}\b", answer.text)
        or (answer.has("notfound") and not answer.says("managed cluster", "managedcluster", "resource group"))
    ):
        return NotFound(f"there is no agent pool {pool}")
    if answer.has("resourcenotfound", "notfound"):
        return _cluster_gone(answer)
    # A proxy, a wrong endpoint, a version of the API that is not served: whatever it is, it does not speak of pools.
    return _unavailable(f"Azure answered 404: {answer.spoken()}", "read", answer.retry_after)


def _cluster_gone(answer: Answer) -> ClusterNotFound:
    return ClusterNotFound(
        f"the managed cluster is not found: {answer.spoken()}",
        fix="check ARM_SUBSCRIPTION_ID, ARM_RESOURCE_GROUP (the cluster's, not the nodes') and AZURE_CLUSTER_NAME "
        "against az aks list; if the cluster was deleted, its nodes went with it",
    )


def _denied(answer: Answer) -> Unauthorized:
    return Unauthorized(
        f"Azure denies it: {answer.spoken()}",
        fix="give the identity Microsoft.ContainerService/managedClusters/agentPools/* (read, write, delete and "
        "abort/action) on the managed cluster, which Azure Kubernetes Service Contributor Role has; "
        "Microsoft.ContainerService/locations/operations/read on the subscription; and join/action on its subnet. "
        "A new assignment needs minutes",
    )


def _busy(answer: Answer) -> Conflict:
    return Conflict(
        f"AKS is busy with something else: {answer.spoken()}",
        fix="wait: it is tried again; az aks operation show-latest tells what it does",
        retry_after=answer.retry_after,
    )


def _unavailable(message: str, call: Call, retry_after: float | None) -> Unavailable:
    error = Unavailable(
        message,
        fix="wait: it is tried again; https://azure.status.microsoft tells of outages",
        retry_after=retry_after,
    )
    error.ambiguous = call == "write"
    return error
