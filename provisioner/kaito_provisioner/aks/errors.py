"""What Azure says when it says no, and what it means: each answer becomes one ``CloudError`` with a next step.

The same refusal comes in many shapes: wrapped in ``error`` or not, at once or at the end of a long-running operation
(then with HTTP status 200), with the word that matters in ``code``, in ``subcode``, in a nested detail, or only in the
text, quoted from another service. So all codes and texts are gathered first (:class:`Answer`), and the most specific
rule that fits any of them decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ServiceRequestTimeoutError,
)

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

__all__ = ["Answer", "Call", "ClusterNotFound", "NoRoom", "classify", "classify_failure", "transport_failure"]

Call = Literal["read", "write"]

_LONGEST = 400
"""Characters of Azure's own words in a message: a condition is read on a terminal."""


class ClusterNotFound(CloudError):
    """The managed cluster, its resource group or its subscription is not there: says nothing about any pool."""

    reason = "ClusterNotFound"


class NoRoom(CloudError):
    """The cluster can have no more pools or nodes, of whatever type."""

    reason = "ClusterFull"


@dataclass(frozen=True, slots=True)
class Answer:
    """An error as Azure put it. ``codes`` are those of all levels, the outermost first; ``text`` is all texts."""

    status: int
    codes: tuple[str, ...]
    message: str
    text: str
    retry_after: float | None = None

    @classmethod
    def of_body(cls, status: int, body: object, headers: Mapping[str, str] | None = None) -> Answer:
        """From a JSON body, wrapped or not, or an operation's, or a pool's ``provisioningError``."""
        errors = tuple(_errors(body))
        texts = [str(each["message"]) for each in errors if each.get("message")]
        codes = [str(each[key]) for each in errors for key in ("code", "subcode") if each.get(key)]
        codes += [code for text in texts for code in _QUOTED.findall(text)]
        message = max(texts, key=_weight, default="")
        return cls(
            status=status,
            codes=tuple(dict.fromkeys(codes)),
            message=message,
            text="\n".join(texts).lower(),
            retry_after=_retry_after(headers or {}),
        )

    @classmethod
    def of(cls, error: HttpResponseError) -> Answer:
        """From what the SDK raised."""
        response = error.response
        status = error.status_code or 0
        if response is None:
            return cls(status, (), str(error), str(error).lower())
        try:
            text = response.text()
        except Exception:  # noqa: BLE001 - a body that was never read, or is no text: the status must do
            text = ""
        try:
            body = json.loads(text)
        except ValueError:
            body = {"message": text} if text and not text.lstrip().startswith("<") else None
        return cls.of_body(status, body, getattr(response, "headers", {}))

    def has(self, *codes: str) -> bool:
        """Whether any level has one of *codes*, which are in lower case."""
        return any(code.lower() in codes for code in self.codes)

    def says(self, *phrases: str) -> bool:
        """Whether any text has one of *phrases*, which are in lower case."""
        return any(phrase in self.text for phrase in phrases)

    def spoken(self) -> str:
        """For a message: the codes that say something, and Azure's words, cut to a readable length."""
        words = " ".join(self.message.split())
        if len(words) > _LONGEST:
            words = words[: _LONGEST - 3].rstrip() + "..."
        code = next((code for code in reversed(self.codes) if code.lower() not in _EMPTY), "")
        code = code or (self.codes[0] if self.codes else f"HTTP {self.status}")
        return f"{code}: {words}" if words and not words.startswith(code) else words or code


_QUOTED = re.compile(r"""\b(?:error ?code|subcode|code)['"]?\s*[:=]\s*\\?['"]?([A-Z][A-Za-z_]{3,})""", re.IGNORECASE)
"""Codes of other services, as AKS quotes them: ``Code="AllocationFailed"``, ``ErrorCode: X``, ``"code":"Y"``."""
_EMPTY = frozenset({"badrequest", "conflict", "forbidden", "clienterror", "internalerror", "error", "unknown"})
"""Codes that say no more than the status does."""


def _errors(body: object) -> Iterator[Mapping[str, Any]]:
    """Every error object in *body*, the outermost first."""
    if isinstance(body, list):
        for each in body:
            yield from _errors(each)
    if not isinstance(body, dict):
        return
    if any(isinstance(body.get(key), str) for key in ("code", "subcode", "message")):
        yield body
    for key in ("error", "innererror", "innerError", "errorDetail", "details"):
        yield from _errors(body.get(key))


def _weight(text: str) -> tuple[bool, int]:
    # The outermost text is often "see details": the one that names a rule's word says most, then the longest one.
    lower = text.lower()
    return any(word in lower for word in (*_QUOTA_TEXTS, *_CAPACITY_TEXTS, *_UNKNOWN_TEXTS)), len(text)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds. A date is read by the server's own clock."""
    named = {key.lower(): value for key, value in headers.items()}
    for key, scale in (("retry-after-ms", 1000.0), ("x-ms-retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = named.get(key, "").strip()
        if not value:
            continue
        try:
            return max(0.0, float(value) / scale)
        except ValueError:
            pass
        try:
            then = parsedate_to_datetime(value)
            return max(0.0, (then - parsedate_to_datetime(named["date"])).total_seconds())
        except (ValueError, TypeError, KeyError):
            continue
    return None


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
    if status in (409, 412):
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
        or answer.says("agent pool not found", f"/agentpools/{pool.lower()}'", f"/agentpools/{pool.lower()} ")
        or (answer.has("notfound", "resourcenotfound") and answer.says("agent pool", "agentpool"))
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
        fix="give the identity the role Azure Kubernetes Service Contributor Role on the managed cluster, and Network "
        "Contributor on its subnet (az role assignment create); a new assignment needs a few minutes",
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
