"""Azure's answers, as they were seen in the wild, and what each is taken for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError
from azure.core.rest import HttpRequest

from kaito_provisioner.aks.answers import Answer
from kaito_provisioner.aks.errors import ClusterNotFound, NoRoom, classify, classify_failure, transport_failure
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
from kaito_provisioner.testing.messages import Answer as Given
from kaito_provisioner.testing.transport import _Response

OFFERING = Offering("Standard_NC6s_v3")
Body = dict[str, Any]


def raised(status: int, body: Any, headers: dict[str, str] | None = None) -> HttpResponseError:
    """As the SDK raises it."""
    given = Given(status, body, dict(headers or {}))
    return HttpResponseError(response=_Response(HttpRequest("PUT", "https://arm.example/p"), given))  # type: ignore[arg-type]


def wrapped(code: str, message: str, **more: Any) -> Body:
    return {"error": {"code": code, "message": message, **more}}


def bare(code: str, message: str, subcode: str = "") -> Body:
    return {"code": code, "details": None, "message": message, "subcode": subcode}


REGIONAL = (
    "Operation could not be completed as it results in exceeding approved Total Regional Cores quota. Additional "
    "details - Deployment Model: Resource Manager, Location: northeurope, Current Limit: 100, Current Usage: 100, "
    "Additional Required: 4. Submit a request for Quota increase at https://aka.ms/ProdportalCRP"
)
NOT_ALLOWED = (
    "The VM size of AgentPoolProfile:ws1 is not allowed in your subscription in location 'westus'. For more details, "
    "please visit https://aka.ms/aks/quotas-skus-regions"
)
IN_PROGRESS = "Operation is not allowed because there's an in progress create node pool operation on 'ws1'."
PENDING = (
    "Operation is not allowed: Another operation (ws1 - Updating) is in progress, please wait for it to finish before "
    "starting a new operation. See https://aka.ms/aks-pending-operation for more details"
)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, bare("NotFound", "Agent Pool not found"), NotFound),
        (404, wrapped("NotFound", "Could not find the agentpool ws1"), NotFound),
        (
            404,
            wrapped(
                "ResourceNotFound",
                "The Resource 'Microsoft.ContainerService/managedClusters/c/agentPools/ws1' was not found.",
            ),
            NotFound,
        ),
        (
            404,
            wrapped(
                "ResourceNotFound",
                "The Resource 'Microsoft.ContainerService/managedClusters/c' under resource group 'g' was not found.",
            ),
            ClusterNotFound,
        ),
        (
            404,
            wrapped(
                "ResourceNotFound",
                "The Resource 'Microsoft.ContainerService/managedClusters/agentpool-x' under resource group 'g' was "
                "not found.",
            ),
            ClusterNotFound,
        ),
        (404, bare("NotFound", "Managed Cluster c not found"), ClusterNotFound),
        (404, wrapped("ResourceGroupNotFound", "Resource group 'g' could not be found."), ClusterNotFound),
        (404, wrapped("SubscriptionNotFound", "The subscription 's' could not be found."), ClusterNotFound),
        (404, wrapped("ParentResourceNotFound", "Failed to perform 'write' on resource(s) ..."), ClusterNotFound),
        (404, wrapped("InvalidResourceType", "No registered resource provider found"), Unavailable),
        (404, None, Unavailable),
        (409, bare("OperationNotAllowed", IN_PROGRESS), Conflict),
        (409, bare("OperationNotAllowed", PENDING), Conflict),
        (400, bare("OperationNotAllowed", PENDING), Conflict),
        (400, wrapped("BadRequest", "Cluster is in a failed state; reconcile it first"), Conflict),
        (409, bare("OriginalEtagNotExpect", "The etag has changed"), Conflict),
        (412, bare("EtagMismatch", "The etag does not match"), Conflict),
        (409, wrapped("ScopeLocked", "The scope is locked"), Unauthorized),
        (409, wrapped("MissingSubscriptionRegistration", "The subscription is not registered"), Unauthorized),
        (400, bare("BadRequest", NOT_ALLOWED), UnknownInstanceType),
        (400, bare("VMSizeNotSupported", "The VM size Standard_X is not supported"), UnknownInstanceType),
        (400, bare("InvalidParameter", "The value of parameter nodeTaints is invalid"), InvalidRequest),
        (400, bare("InvalidLabelPrefix", "the prefix is reserved"), InvalidRequest),
        (400, bare("PropertyChangeNotAllowed", "Changing property 'vmSize' is not allowed"), Conflict),
        (
            400,
            bare("ErrCode_InsufficientVCPUQuota", "Insufficient vcpu quota requested 6", "InsufficientVCPUQuota"),
            QuotaExceeded,
        ),
        (403, wrapped("QuotaExceeded", "Provisioning failed"), QuotaExceeded),
        (409, wrapped("OperationNotAllowed", REGIONAL), QuotaExceeded),
        (400, bare("InsufficientSubnetSize", "Pre-allocated IPs 31 exceeds IPs available 10"), NoRoom),
        (400, bare("QuotaExceeded", "100 agent pools", "MaxAgentPoolCountReached"), NoRoom),
        (403, wrapped("AuthorizationFailed", "The client does not have authorization"), Unauthorized),
        (403, wrapped("RequestDisallowedByPolicy", "Resource was disallowed by policy"), Unauthorized),
        (401, wrapped("ExpiredAuthenticationToken", "The access token expiry UTC time is in the past."), Unauthorized),
        (429, wrapped("SubscriptionRequestsThrottled", "Number of requests exceeded"), Throttled),
        (429, bare("Throttled", "The request is being throttled"), Throttled),
        (500, bare("InternalOperationError", "Internal server error"), Unavailable),
        (503, None, Unavailable),
        (502, "<html>Bad Gateway</html>", Unavailable),
        (418, {"unheard": "of"}, Unavailable),
    ],
)
def test_an_answer_is_taken_for_what_it_means(status: int, body: Any, kind: type[CloudError]) -> None:
    error = classify(raised(status, body), "write", pool="ws1", offering=OFFERING)
    assert type(error) is kind
    assert error.fix or kind is NotFound
    if isinstance(error, OfferingError):
        assert error.offering == OFFERING


@pytest.mark.parametrize("call", ["read", "write"])
def test_a_server_error_leaves_a_write_in_doubt_and_a_read_not(call: Any) -> None:
    assert classify(raised(500, None), call, pool="ws1").ambiguous == (call == "write")
    assert transport_failure(ServiceRequestError("reset"), call).ambiguous == (call == "write")
    assert transport_failure(TimeoutError(), call).ambiguous == (call == "write")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "17"}, 17.0),
        ({"Retry-After-Ms": "500"}, 0.5),
        ({"Retry-After": "Fri, 20 Nov 2026 10:01:00 GMT", "Date": "Fri, 20 Nov 2026 10:00:00 GMT"}, 60.0),
        ({"Retry-After": "Fri, 20 Nov 2026 09:00:00 GMT", "Date": "Fri, 20 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"Retry-After": "Fri, 20 Nov 2026 10:01:00 GMT"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_when_to_come_back_is_read_by_the_servers_clock(headers: dict[str, str], seconds: float | None) -> None:
    assert classify(raised(429, None, headers), "write", pool="ws1").retry_after == seconds


def reconciler(inner: str, message: str) -> str:
    return (
        f"VMSSAgentPoolReconciler retry failed: Category: ClientError; SubCode: {inner}; Dependency: "
        f'Microsoft.Compute/VirtualMachineScaleSet; OrginalError: Code="{inner}" Message="{message}"; '
        "AKSTeam: NodeProvisioning, Retriable: false"
    )


ALLOCATION = "Allocation failed. We do not have sufficient capacity for the requested VM size in this region."
SKU = (
    "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: Standard_NC6s_v3' is "
    "currently not available in location 'eastus'."
)


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("AllocationFailed", ALLOCATION, InsufficientCapacity),
        ("ZonalAllocationFailed", ALLOCATION, InsufficientCapacity),
        ("OverconstrainedAllocationRequest", "Allocation failed. VM(s) with ...", InsufficientCapacity),
        ("OverconstrainedZonalAllocationRequest", "Allocation failed. VM(s) with ...", InsufficientCapacity),
        ("SkuNotAvailable", SKU, InsufficientCapacity),
        ("SkuNotAvailableForSubscription", "The size is not offered to you", UnknownInstanceType),
        ("OperationNotAllowed", REGIONAL, QuotaExceeded),
        ("QuotaExceeded", "LowPriorityCores quota", QuotaExceeded),
        ("VMExtensionProvisioningError", "VM has reported a failure when processing extension", CloudError),
        ("InternalOperationError", "Internal server error", CloudError),
        ("OriginalEtagNotExpect", "preempted by Deleting", Conflict),
    ],
)
@pytest.mark.parametrize("shape", ["detail", "subcode", "text", "template"])
def test_the_end_of_an_operation_is_read_wherever_the_word_stands(
    code: str, message: str, kind: type[CloudError], shape: str
) -> None:
    inner = {"code": code, "message": message}
    error: Body = {"code": "ReconcileVMSSAgentPoolFailed", "message": "see details"}
    match shape:
        case "detail":
            error["details"] = [{"code": "Conflict", "message": json.dumps(inner), "details": [inner]}]
        case "subcode":
            error |= {"message": message, "subcode": code}
        case "text":
            error["message"] = reconciler(code, message)
        case "template":
            error = {
                "code": "InvalidTemplateDeployment",
                "message": "The template deployment is not valid",
                "details": [inner],
            }
    body = {"name": "guid", "status": "Failed", "startTime": "t", "endTime": "t", "error": error}
    found = classify_failure(Answer.of_body(200, body), offering=OFFERING)
    assert type(found) is kind
    assert code in found.message


def test_a_message_holds_azures_own_words_on_one_line_and_not_too_many() -> None:
    error = classify(raised(400, bare("InvalidParameter", "one\n  two\n" + "x" * 3000)), "write", pool="ws1")
    assert "InvalidParameter: one two x" in error.message
    assert "\n" not in error.message
    assert len(error.message) < 600
