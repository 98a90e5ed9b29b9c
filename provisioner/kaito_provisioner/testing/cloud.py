"""The cloud behind the API: it makes, changes and deletes agent pools, which takes time and may fail.

Each long-running operation is a task. While one runs on a pool no other may begin, but an abort. One that fails
leaves its pool behind, as ``Failed``; it counts against the cluster's limits until it is deleted, and the same PUT
again tries again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kaito_ctrl.runtime.clock import Clock, uid_source
from kaito_provisioner.testing.agentpool import shown
from kaito_provisioner.testing.capacity import Capacity, Quota
from kaito_provisioner.testing.errors import Failure, already_in_progress
from kaito_provisioner.testing.faults import Faults
from kaito_provisioner.testing.sizes import VmSize
from kaito_provisioner.testing.state import Cluster, Operation, OperationStatus, Pool, Vm
from kaito_provisioner.testing.tasks import Tasks
from kaito_provisioner.testing.views import Views
from kaito_provisioner.testing.vms import Joiner, Machines, Timings, twin

__all__ = ["Cloud"]

Wire = dict[str, Any]
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_ACCELERATORS = ("accelerator", "kubernetes.azure.com/accelerator")
_RECONCILE_FAILED = "ReconcileVMSSAgentPoolFailed"


class Cloud:
    """See the module's docstring. Operations run in *tasks*."""

    def __init__(
        self,
        cluster: Cluster,
        tasks: Tasks,
        *,
        clock: Clock,
        rng: random.Random,
        timings: Timings,
        sizes: Mapping[str, VmSize],
        faults: Faults,
        joiner: Joiner | None,
    ) -> None:
        self.cluster = cluster
        self.sizes = sizes
        self.timings = timings
        self.capacity = Capacity(cluster.location)
        self.quota = Quota(cluster.location)
        self.views = Views()
        self.most_operations: int | None = None
        """How many operations the cluster takes at a time, if there is a limit."""
        self.old_wording = False
        """Whether a second operation is refused in the words that AKS used before 2024."""
        self.nested_details = True
        """Whether a failed operation's details say what has failed, or its message alone does."""
        self.history: list[tuple[datetime, str, str]] = []
        """When what has happened to which pool: ``created`` and ``deleted``."""
        self._clock = clock
        self._rng = rng
        self._uid = uid_source(rng)
        self._tasks = tasks
        self._faults = faults
        self.machines = Machines(tasks, timings, faults, joiner)

    def vms(self) -> list[Vm]:
        """Every machine there is."""
        return [vm for pool in self.cluster.pools.values() for vm in pool.vms]

    def add(self, name: str, properties: Wire) -> Pool:
        """A pool that is there already, without any machine."""
        pool = self._new(name, properties)
        pool.state = "Succeeded"
        self._publish(pool, since=float("-inf"))
        return pool

    # -- operations ----------------------------------------------------------------------------------------------

    def check_idle(self, pool: Pool | None, name: str) -> None:
        """Raises ``OperationNotAllowed`` while something else is being done to the pool, or too much to the cluster."""
        if pool is not None and pool.operation is not None:
            raise already_in_progress(pool.operation.doing, pool.name, old=self.old_wording)
        if self.cluster.busy:
            raise already_in_progress(self.cluster.busy, self.cluster.name, old=self.old_wording)
        running = self.cluster.running
        if self.most_operations is not None and len(running) >= self.most_operations:
            raise already_in_progress(running[-1].doing, running[-1].pool or name, old=self.old_wording)

    def create(self, name: str, properties: Wire) -> tuple[Pool, Operation]:
        """Begin to make a pool."""
        pool = self._new(name, properties)
        self.history.append((self._clock.now(), "created", name))
        return pool, self._begin(pool, "Creating")

    def update(self, pool: Pool, properties: Wire) -> Operation:
        """Begin to change a pool; or, after a failure, to try again."""
        scaling = properties["count"] != pool.properties["count"]
        pool.properties = properties
        pool.failure = None
        return self._begin(pool, "Scaling" if scaling else "Updating")

    def delete(self, pool: Pool) -> Operation:
        """Begin to delete a pool."""
        return self._begin(pool, "Deleting")

    def abort(self, pool: Pool) -> Operation:
        """Begin to end what is being done to the pool."""
        aborted = pool.operation
        assert aborted is not None
        assert aborted.task is not None
        aborted.task.cancel()
        self._end(aborted, "Canceled")
        return self._begin(pool, "Canceling")

    def delete_machines(self, pool: Pool, names: set[str]) -> Operation:
        """Begin to delete some machines of a pool; it is then smaller by as many."""
        gone = [vm for vm in pool.vms if vm.node_name in names]
        pool.properties = {**pool.properties, "count": pool.properties["count"] - len(gone)}
        for vm in gone:
            pool.vms.remove(vm)
            self.machines.retire(vm)
        return self._begin(pool, "Scaling")

    def _begin(self, pool: Pool, doing: str) -> Operation:
        operation = Operation(self._uid(), doing, pool.name, self._clock.now())
        self.cluster.operations[operation.id] = operation
        pool.operation, pool.state = operation, doing
        self._publish(pool)
        operation.task = self._tasks.start(self._carry_out(pool, operation), f"arm/{doing}/{pool.name}")
        return operation

    def _end(self, operation: Operation, status: OperationStatus, failure: Failure | None = None) -> None:
        operation.status = status
        operation.failure = failure
        operation.ended = self._clock.now()

    async def _carry_out(self, pool: Pool, operation: Operation) -> None:
        timings, failure, state = self.timings, None, "Succeeded"
        match operation.doing:
            case "Creating" | "Updating" | "Scaling":
                creating = operation.doing == "Creating"
                failure = await self._make(pool, timings.create if creating else timings.update)
            case "Deleting":
                await self._unmake(pool)
            case "Canceling":
                await asyncio.sleep(timings.abort)
                state = "Canceled"
        pool.operation, pool.failure = None, failure
        pool.state = "Failed" if failure is not None else state
        self._end(operation, "Failed" if failure is not None else "Succeeded", failure)
        self._publish(pool)

    async def _make(self, pool: Pool, seconds: float) -> Failure | None:
        if self._faults.befalls("stuck-creating", pool.name) is not None:
            await asyncio.get_running_loop().create_future()
        first = min(self.timings.allocation, seconds)
        await asyncio.sleep(first)
        fails = self._faults.befalls("fails", pool.name)
        failure = fails.failure or Failure("InternalOperationError", "Internal server error") if fails else None
        failure = failure or self._allocate(pool)
        if failure is not None:
            return failure.within(_RECONCILE_FAILED, nested=self.nested_details)
        await asyncio.sleep(seconds - first)
        return None

    async def _unmake(self, pool: Pool) -> None:
        if self._faults.befalls("stuck-deleting", pool.name) is not None:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(self.timings.delete / 2)
        for vm in pool.vms:
            self.machines.retire(vm)
        pool.vms.clear()
        await asyncio.sleep(self.timings.delete / 2)
        del self.cluster.pools[pool.name]
        self.history.append((self._clock.now(), "deleted", pool.name))

    def _publish(self, pool: Pool, *, since: float | None = None) -> None:
        """Have clients see the pool as it now is."""
        pool.etag = self._uid()
        there = self.cluster.pools.get(pool.name) is pool
        moment = self._clock.monotonic() if since is None else since
        self.views.record(pool.name, shown(pool, self.cluster) if there else None, moment)

    # -- machines ------------------------------------------------------------------------------------------------

    def _allocate(self, pool: Pool) -> Failure | None:
        """Make as many machines as the pool is to have; those that there are stay when there are no more."""
        size, missing = self.sizes[pool.size], pool.properties["count"] - len(pool.vms)
        for vm in pool.vms[pool.properties["count"] :]:
            pool.vms.remove(vm)
            self.machines.retire(vm)
        if missing <= 0:
            return None
        failure = self.quota.failure(size, missing, spot=pool.spot, used=Quota.used(self.vms()))
        for _ in range(missing if failure is None else 0):
            zones = tuple(pool.properties.get("availabilityZones") or ())
            zone = self.capacity.place(pool.size, zones, spot=pool.spot, existing=self.vms())
            if isinstance(zone, Failure):
                return zone
            vm = self._vm(pool, size, zone)
            twins = (twin(vm),) if self._faults.befalls("two-nodes", pool.name) is not None else ()
            for each in (vm, *twins):
                pool.vms.append(each)
                self.machines.boot(each)
        return failure

    def _new(self, name: str, properties: Wire) -> Pool:
        number = f"{self._rng.randrange(10**8):08d}"
        pool = self.cluster.pools[name] = Pool(name, properties, self._clock.now(), number)
        return pool

    def _vm(self, pool: Pool, size: VmSize, zone: str) -> Vm:
        cluster, properties, index = self.cluster, pool.properties, pool.next_vm
        pool.next_vm += 1
        compute = f"azure:///subscriptions/{cluster.subscription}/resourceGroups/{cluster.node_group.lower()}/providers"
        if properties["type"] == "VirtualMachines":
            name = f"aks-{pool.name}-{pool.number}-vms{index}"
            provider_id = f"{compute}/Microsoft.Compute/virtualMachines/{name}"
        else:
            scale_set = f"aks-{pool.name}-{pool.number}-vmss"
            name = scale_set + _base36(index)
            provider_id = f"{compute}/Microsoft.Compute/virtualMachineScaleSets/{scale_set}/virtualMachines/{index}"
        labels = {
            "agentpool": pool.name,
            "kubernetes.azure.com/agentpool": pool.name,
            "kubernetes.azure.com/cluster": cluster.node_group,
            "kubernetes.azure.com/mode": str(properties["mode"]).lower(),
            "kubernetes.azure.com/node-image-version": shown(pool, cluster)["properties"]["nodeImageVersion"],
            "kubernetes.azure.com/os-sku": str(properties["osSKU"]),
            "kubernetes.azure.com/role": "agent",
            "kubernetes.azure.com/storageprofile": str(properties["osDiskType"]).lower(),
            **{name: size.accelerator for name in _ACCELERATORS if size.accelerator},
            **(properties.get("nodeLabels") or {}),
        }
        return Vm(
            pool.name,
            name,
            provider_id,
            size,
            cluster.location,
            cluster.node_group,
            zone,
            pool.spot,
            labels,
            tuple(properties.get("nodeTaints") or ()),
            int(properties["maxPods"]),
            int(properties["osDiskSizeGB"]),
        )


def _base36(number: int) -> str:
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 36)
        digits = _BASE36[digit] + digits
    return digits
