"""The AKS resource provider: the agent pools of one managed cluster, over Azure's REST API.

What it answers goes by the REST reference of ``Microsoft.ContainerService`` for agent pools, and where that says
nothing, by what its clients rely on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.tokenbucket import TokenBucket
from kaito_provisioner.testing.agentpool import MAX_POOLS, VERSION, changed, check_name, completed, shown, versioned
from kaito_provisioner.testing.cloud import Cloud
from kaito_provisioner.testing.errors import (
    cluster_is_missing,
    pool_is_missing,
    precondition_failed,
    refused,
    throttled,
)
from kaito_provisioner.testing.messages import Answer, Request
from kaito_provisioner.testing.state import Operation, Pool

__all__ = ["AgentPoolsApi", "Throttles"]

Wire = dict[str, Any]
_OPERATIONS_VERSION = "2017-08-31"


@dataclass(slots=True)
class Throttles:
    """Of one cluster, as ``burst, seconds per further request``: Azure's documentation, "Throttling limits on AKS
    resource provider APIs"."""

    put: tuple[int, float] = (20, 60.0)
    operation: tuple[int, float] = (200, 0.5)
    other: tuple[int, float] = (60, 1.0)
    enabled: bool = True


class AgentPoolsApi:
    """See the module's docstring. Paths are split into segments, as they came; names are compared without case."""

    def __init__(self, cloud: Cloud, clock: Clock) -> None:
        self.cloud = cloud
        self.throttles = Throttles()
        self.page_size = 50
        self.read_lag = 0.0
        """Seconds by which reads of one pool lag behind writes."""
        self.list_lag: float | None = None
        """The same for the list of all, if it is another."""
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    def cluster(self, request: Request, group: str, name: str, rest: list[str]) -> Answer:
        """What is at ``managedClusters/NAME/...``."""
        cluster = self.cloud.cluster
        if name.lower() != cluster.name.lower():
            raise cluster_is_missing(group, name)
        match request.method, [each.lower() for each in rest]:
            case "GET", []:
                return Answer(200, self._cluster())
            case "GET", ["agentpools"]:
                self._throttle("other")
                return self._list(request)
            case "GET", ["availableagentpoolversions"]:
                self._throttle("other")
                versions = [{"default": True, "kubernetesVersion": VERSION, "isPreview": False}]
                return Answer(
                    200, {"id": cluster.path, "name": "default", "properties": {"agentPoolVersions": versions}}
                )
            case "PUT", ["agentpools", _]:
                self._throttle("put")
                return self._put(request, rest[1])
            case "GET", ["agentpools", pool, *below]:
                self._throttle("other")
                return self._get(request, rest[1], below) if below else self._get_pool(request, pool, rest[1])
            case "DELETE", ["agentpools", _]:
                self._throttle("other")
                return self._delete(request, rest[1])
            case "POST", ["agentpools", _, action]:
                self._throttle("other")
                return self._act(request, rest[1], action)
        raise refused(405, "MethodNotAllowed", f"The resource does not support the method '{request.method}'.")

    def operation(self, request: Request, identifier: str) -> Answer:
        """The status of a long-running operation."""
        self._throttle("operation")
        operation = self._operation(identifier)
        body: Wire = {
            "name": operation.id,
            "status": operation.status,
            "startTime": operation.started.isoformat().replace("+00:00", "Z"),
        }
        if operation.ended is not None:
            body["endTime"] = operation.ended.isoformat().replace("+00:00", "Z")
        if operation.failure is not None:
            body["error"] = operation.failure.wire()
        elif operation.status == "Canceled":
            body["error"] = {"code": "OperationAborted", "message": "The operation was aborted."}
        return Answer(200, body, self._retry_after() if operation.status == "InProgress" else {})

    def result(self, request: Request, identifier: str) -> Answer:
        """The result of a long-running operation: nothing yet, or what it has made."""
        self._throttle("operation")
        operation = self._operation(identifier)
        if operation.status == "InProgress":
            return Answer(202, None, {"Location": _url(request, request.path), **self._retry_after()})
        if operation.failure is not None:
            raise refused(400, operation.failure.code, operation.failure.message, operation.failure.subcode)
        pool = self.cloud.cluster.pools.get(operation.pool)
        if pool is None or operation.doing in ("Deleting", "Canceling"):
            return Answer(204)
        return Answer(200, shown(pool, self.cloud.cluster))

    # -- verbs ---------------------------------------------------------------------------------------------------

    def _get_pool(self, request: Request, name: str, as_sent: str) -> Answer:
        seen = self.cloud.views.get(name, self._clock.monotonic() - self.read_lag)
        if seen is None:
            raise pool_is_missing(as_sent, self.cloud.cluster.name)
        return Answer(200, _versioned(seen, request))

    def _list(self, request: Request) -> Answer:
        lag = self.read_lag if self.list_lag is None else self.list_lag
        seen = list(self.cloud.views.all(self._clock.monotonic() - lag).values())
        token = request.query.get("$skiptoken", "0")
        start = int(token) if token.isdecimal() else 0
        body: Wire = {"value": [_versioned(each, request) for each in seen[start : start + self.page_size]]}
        if start + self.page_size < len(seen):
            query = f"api-version={request.query.get('api-version', '')}&$skiptoken={start + self.page_size}"
            body["nextLink"] = f"{request.base}{request.path}?{query}"
        return Answer(200, body)

    def _put(self, request: Request, name: str) -> Answer:
        cloud, cluster = self.cloud, self.cloud.cluster
        body = request.json()
        pool = cluster.pools.get(name.lower())
        if pool is None:
            given = body.get("properties") if isinstance(body, dict) else None
            check_name(name, str((given or {}).get("osType", "Linux")))
        wire = completed(body, pool.properties if pool is not None else None, cloud.sizes, cluster.location)
        self._check_preconditions(request, pool, name)
        cloud.check_idle(pool, name)
        if pool is not None:
            changed(pool.properties, wire)
            operation, status = cloud.update(pool, wire), 200
        else:
            self._check_limits(wire)
            pool, operation = cloud.create(name, wire)
            status = 201
        return Answer(
            status,
            _versioned(shown(pool, cluster), request),
            {**self._links(request, operation), **self._retry_after()},
        )

    def _delete(self, request: Request, name: str) -> Answer:
        cloud, cluster = self.cloud, self.cloud.cluster
        pool = cluster.pools.get(name.lower())
        if pool is None:
            return Answer(204)
        self._check_preconditions(request, pool, name)
        cloud.check_idle(pool, name)
        systems = [each for each in cluster.pools.values() if each.properties["mode"] == "System"]
        if systems == [pool]:
            raise refused(400, "OperationNotAllowed", "There has to be at least one system agent pool.")
        operation = cloud.delete(pool)
        return Answer(202, None, {**self._links(request, operation, location=True), **self._retry_after()})

    def _act(self, request: Request, name: str, action: str) -> Answer:
        cloud, cluster = self.cloud, self.cloud.cluster
        pool = cluster.pools.get(name.lower())
        if pool is None:
            raise pool_is_missing(name, cluster.name)
        if action == "abort":
            if pool.operation is None or pool.operation.doing == "Canceling":
                raise refused(
                    409, "OperationNotAllowed", f"There is no operation in progress on agent pool '{name}' to abort."
                )
            operation = cloud.abort(pool)
        elif action == "deletemachines":
            cloud.check_idle(pool, name)
            names = {str(each) for each in request.json().get("machineNames") or ()}
            unknown = names - {vm.node_name for vm in pool.vms}
            if unknown:
                raise refused(400, "InvalidParameter", f"There are no machines {', '.join(sorted(unknown))}.")
            operation = cloud.delete_machines(pool, names)
        elif action == "upgradenodeimageversion":
            cloud.check_idle(pool, name)
            operation = cloud.update(pool, pool.properties)
        else:
            raise refused(404, "NotFound", f"There is no action '{action}'.")
        return Answer(202, None, {**self._links(request, operation, location=True), **self._retry_after()})

    def _get(self, request: Request, name: str, below: list[str]) -> Answer:
        cluster = self.cloud.cluster
        pool = cluster.pools.get(name.lower())
        if pool is None:
            raise pool_is_missing(name, cluster.name)
        path = f"{cluster.path}/agentPools/{pool.name}"
        match below:
            case ["upgradeprofiles", "default"]:
                properties = {"kubernetesVersion": VERSION, "osType": pool.properties["osType"], "upgrades": []}
                return Answer(
                    200, {"id": f"{path}/upgradeProfiles/default", "name": "default", "properties": properties}
                )
            case ["machines"]:
                return Answer(
                    200, {"value": [_machine(path, vm.node_name, vm.provider_id, vm.zone) for vm in pool.vms]}
                )
            case ["machines", machine]:
                for vm in pool.vms:
                    if vm.node_name == machine:
                        return Answer(200, _machine(path, vm.node_name, vm.provider_id, vm.zone))
        raise refused(404, "NotFound", f"There is no '{'/'.join(below)}' of agent pool '{name}'.")

    # -- inside --------------------------------------------------------------------------------------------------

    def _check_preconditions(self, request: Request, pool: Pool | None, name: str) -> None:
        if_match, if_none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
        if if_none_match == "*" and pool is not None:
            raise precondition_failed(name, exists=True)
        if if_none_match not in (None, "*") and pool is not None and if_none_match.strip('"') == pool.etag:
            raise precondition_failed(name, exists=True)
        if if_match is not None and (pool is None or if_match.strip('"') not in ("*", pool.etag)):
            raise precondition_failed(name, exists=False)

    def _check_limits(self, wire: Wire) -> None:
        cloud = self.cloud
        if len(cloud.cluster.pools) >= MAX_POOLS:
            raise refused(
                400,
                "QuotaExceeded",
                f"The managed cluster has {MAX_POOLS} agent pools, which is the most that a cluster may have.",
                "MaxAgentPoolCountReached",
            )
        refusal = cloud.quota.refusal(
            cloud.sizes[wire["vmSize"]],
            wire["count"],
            spot=wire.get("scaleSetPriority") == "Spot",
            used=cloud.quota.used(cloud.vms()),
        )
        if refusal is not None:
            raise refusal

    def _throttle(self, name: str) -> None:
        limits = self.throttles
        if not limits.enabled:
            return
        now = self._clock.monotonic()
        burst, refill = getattr(limits, name)
        bucket = self._buckets.get(name) or self._buckets.setdefault(name, TokenBucket(burst, refill, now))
        if not bucket.take(now):
            raise throttled(max(1, ceil(bucket.wait(now))))

    def _operation(self, identifier: str) -> Operation:
        operation = self.cloud.cluster.operations.get(identifier.lower())
        if operation is None:
            raise refused(404, "NotFound", f"The operation '{identifier}' was not found.")
        return operation

    def _links(self, request: Request, operation: Operation, *, location: bool = False) -> dict[str, str]:
        cluster = self.cloud.cluster
        path = (
            f"/subscriptions/{cluster.subscription}/providers/Microsoft.ContainerService/locations/{cluster.location}"
        )
        links = {"Azure-AsyncOperation": _url(request, f"{path}/operations/{operation.id}")}
        if location:
            links["Location"] = _url(request, f"{path}/operationresults/{operation.id}")
        return links

    def _retry_after(self) -> dict[str, str]:
        seconds = self.cloud.timings.retry_after
        return {"Retry-After": str(seconds)} if seconds is not None else {}

    def _cluster(self) -> Wire:
        cluster = self.cloud.cluster
        return {
            "id": cluster.path,
            "name": cluster.name,
            "type": "Microsoft.ContainerService/ManagedClusters",
            "location": cluster.location,
            "properties": {
                "provisioningState": cluster.busy or "Succeeded",
                "powerState": {"code": "Running"},
                "kubernetesVersion": VERSION,
                "nodeResourceGroup": cluster.node_group,
            },
        }


def _url(request: Request, path: str) -> str:
    return f"{request.base}{path}?api-version={_OPERATIONS_VERSION}"


def _versioned(wire: Wire, request: Request) -> Wire:
    return versioned(wire, request.query.get("api-version", ""))


def _machine(path: str, name: str, provider_id: str, zone: str) -> Wire:
    resource = provider_id.removeprefix("azure://")
    return {
        "id": f"{path}/machines/{name}",
        "name": name,
        "type": "Microsoft.ContainerService/managedClusters/agentPools/machines",
        **({"zones": [zone]} if zone else {}),
        "properties": {"resourceId": resource},
    }
