"""``CloudProvider`` on AKS: a claim is an agent pool of one machine that has the claim's name.

What makes it safe:

* A pool is created with ``If-None-Match: *``, so no pool that there is can be changed by it. Where one stands already,
  its claim's uid decides: ours is adopted, anybody else's is a ``Conflict`` that names it.
* A pool is deleted with ``If-Match`` of the one that was seen to be the claim's: one that has taken its name since is
  left alone.
* That a pool is not there is never read off a list: ``NotFound`` is the service's own answer about that pool.
* Nothing is waited for. What goes on is remembered as ``Instance.operation``; what is to be waited for is an error
  with ``retry_after``.

A pool's provisioning state says how its last operation went, not whether its machine runs: a node that works may belong
to a pool whose upgrade ``Failed``. So ``Failed`` and ``Canceled`` are the instance's own fate only as long as its claim
has no provider id, that is, before its node has ever joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from kaito_api.karpenter import CAPACITY_TYPE_LABEL, INSTANCE_TYPE_LABEL, ZONE_LABEL
from kaito_ctrl.runtime.clock import Clock
from kaito_provisioner.aks.answers import Answer
from kaito_provisioner.aks.arm import Arm, Polled
from kaito_provisioner.aks.config import AksSettings
from kaito_provisioner.aks.errors import classify_failure
from kaito_provisioner.aks.inventory import Inventory
from kaito_provisioner.aks.operations import Operation
from kaito_provisioner.aks.ownership import Ownership
from kaito_provisioner.aks.pacer import Pacer
from kaito_provisioner.aks.pools import CLAIM_UID_LABEL, Pool, pool_body, pool_of_provider_id
from kaito_provisioner.aks.sizes import VmSize
from kaito_provisioner.cloud import (
    ClaimRef,
    CloudError,
    Conflict,
    Instance,
    InstanceState,
    InstanceType,
    InvalidRequest,
    LaunchRequest,
    NodeClassKind,
    NotFound,
    Offering,
    RepairPolicy,
    Throttled,
    Unavailable,
)

__all__ = ["AksCloud"]

_AGE = 5.0
"""Seconds that a list may be old where it is not the last word."""
_SOON = 10.0
"""Seconds after which what is in the way may be gone."""

_ABORT = 300.0
"""Seconds after which a creation that goes on is asked to end once more."""
_ENDED = frozenset({"failed", "canceled"})

# Ready: gpu-provisioner's policies. The other two are written by AKS' node problem detector, and mean that hardware is
# gone (learn.microsoft.com/azure/aks/node-problem-detector and gpu-health-monitoring). XIDErrors and IBLinkFlapping are
# there too, and no reason to replace a node: among the former are a program's own faults.
_REPAIRS = (
    RepairPolicy("Ready", "False", 600.0),
    RepairPolicy("Ready", "Unknown", 600.0),
    RepairPolicy("GPUMissing", "True", 600.0),
    RepairPolicy("NVLinkStatusInactive", "True", 600.0),
)


class AksCloud:
    """Implements ``CloudProvider``. Made by :func:`~kaito_provisioner.aks.connect_aks`."""

    name = "aks"
    node_classes: Sequence[NodeClassKind] = ()
    # AKSNodeClass is Azure Karpenter's, whose claims are not ours.

    def __init__(self, arm: Arm, settings: AksSettings, *, clock: Clock, instance_types: Iterable[VmSize] = ()) -> None:
        self._arm = arm
        self._settings = settings
        self._clock = clock
        self._sizes = {each.name: each for each in instance_types}
        self._creations = Pacer(clock.monotonic, burst=20, interval=60.0, of="creations of agent pools")
        # 60, and one a second, for everything else; of which lists get what is left over here.
        self._requests = Pacer(clock.monotonic, burst=45, interval=1.5, of="requests")
        self._inventory = Inventory(arm.list, clock.monotonic)
        self._ownership = Ownership()
        self._aborted: dict[str, float] = {}
        """When the creation for a claim was last asked to end, by the claim's uid."""

    async def create(self, request: LaunchRequest) -> Instance:
        offering = self._first(request)
        size = self._sizes.get(offering.instance_type)
        body = pool_body(
            request,
            offering,
            cluster=self._settings.cluster,
            location=self._settings.location,
            subnet=self._settings.subnet,
            gpu=size.gpus > 0 if size is not None else None,
            now=self._clock.now(),
        )
        standing = await self._standing(request)
        if standing is not None:
            return self._adopted(standing, request)
        try:
            with self._creations.turn(request.name):
                pool, operation = await self._arm.create(request.name, body, offering)
        except Conflict as error:
            return await self._resolved(request, error)
        except Unavailable as error:
            if not error.ambiguous:
                self._creations.give_back()
            raise
        self._inventory.created(pool)
        return self._instance(pool, operation=operation.pack() if operation is not None else "")

    async def get(self, provider_id: str) -> Instance:
        name = pool_of_provider_id(provider_id)
        if name is None:
            raise NotFound(f"{provider_id or 'an empty provider id'} is no machine of an AKS node pool")
        pool = (await self._inventory.pools(_AGE)).get(name) or await self._get(name)
        if not self._ownership.uid(pool):
            raise NotFound(f"the agent pool {name} was not made for a claim of this cluster")
        return self._instance(pool, provider_id=provider_id)

    async def find(self, claim: ClaimRef) -> Instance:
        pool = (await self._inventory.pools(_AGE)).get(claim.name)
        operation = Operation.open(claim.operation, claim.name, self._arm.site)
        if pool is None or not self._ownership.is_of(pool, claim.uid):
            try:
                pool = await self._get(claim.name)
            except NotFound:
                return await self._hidden(claim, operation)
            if not self._ownership.is_of(pool, claim.uid):
                owner = self._ownership.owner(pool)
                raise NotFound(f"the agent pool {claim.name} belongs to {owner}, and not to this claim")
        instance = self._instance(pool, provider_id=claim.provider_id, operation=claim.operation if operation else "")
        if instance.state == "Failed" and operation is not None and operation.doing == "create":
            # The operation knows more of what went wrong than its pool does, and older APIs' pools know nothing.
            polled = await self._polled(claim.name, operation)
            if polled is not None and polled.failure is not None and polled.failure.codes:
                error = classify_failure(polled.failure, offering=instance.offering)
                instance = replace(instance, error=error)
        return instance

    async def list(self) -> Sequence[Instance]:
        pools = await self._inventory.pools()
        return tuple(self._instance(pool) for pool in pools.values() if self._ownership.uid(pool))

    async def delete(self, instance: Instance) -> Instance:
        pool = (await self._inventory.pools(_AGE)).get(instance.name)
        if pool is None or not self._ownership.is_of(pool, instance.claim_uid):
            pool = await self._still(instance)
        if pool.provisioning_state == "Deleting":
            return replace(instance, state="Deleting")
        if not pool.etag:
            # An older API, without a precondition: whose it is must at least be fresh.
            pool = await self._still(instance)
        operation = await self._delete(pool, instance)
        self._inventory.deleting(pool)
        return replace(instance, state="Deleting", operation=operation.pack() if operation is not None else "")

    async def instance_types(self) -> Sequence[InstanceType]:
        return tuple(size.instance_type() for size in self._sizes.values())

    def repair_policies(self) -> Sequence[RepairPolicy]:
        return _REPAIRS

    # -- create --------------------------------------------------------------------------------------------------

    def _first(self, request: LaunchRequest) -> Offering:
        if request.offerings:
            return request.offerings[0]
        if request.instance_types:
            return Offering(request.instance_types[0])
        raise InvalidRequest(
            "the claim names no instance type, and none is known that would do",
            fix=f"name one: {INSTANCE_TYPE_LABEL} In [...]",
        )

    async def _standing(self, request: LaunchRequest) -> Pool | None:
        """The pool of that name."""
        listed = (await self._inventory.pools(_AGE)).get(request.name)
        if listed is None or self._ownership.is_of(listed, request.uid):
            return listed
        try:
            # Lists lag: an earlier claim's may be gone.
            return await self._get(request.name)
        except NotFound:
            return None

    async def _resolved(self, request: LaunchRequest, refusal: Conflict) -> Instance:
        """What stands where the pool should, or is being done to it: ours, of a creation whose answer was lost?"""
        try:
            pool = await self._get(request.name)
        except NotFound:
            # Either the cluster is busy with something else, or it is there and not shown yet; and may be ours.
            refusal.retry_after = refusal.retry_after or _SOON
            refusal.ambiguous = True
            raise refusal from None
        except CloudError as error:
            error.ambiguous = True
            raise
        return self._adopted(pool, request)

    def _adopted(self, pool: Pool, request: LaunchRequest) -> Instance:
        going = pool.provisioning_state == "Deleting"
        if self._ownership.is_of(pool, request.uid):
            if going:
                raise Conflict(
                    f"the agent pool {pool.name} of this claim is being deleted",
                    fix="wait: it is made anew when it is gone",
                    retry_after=_SOON,
                )
            self._creations.leave(request.name)
            return self._instance(pool)
        if self._ownership.uid(pool) and going:
            raise Conflict(
                f"the agent pool {pool.name} of an earlier claim of that name is being deleted",
                fix="wait: it takes some minutes, and then this claim's is made",
                retry_after=_SOON,
            )
        raise Conflict(
            f"there is an agent pool {pool.name} already, and it belongs to {self._ownership.owner(pool)}",
            fix="give the claim another name, or delete the pool if nobody needs it: az aks nodepool delete "
            f"--resource-group {self._settings.resource_group} --cluster-name {self._settings.cluster} "
            f"--name {pool.name}",
            retry_after=60.0,
        )

    # -- requests ------------------------------------------------------------------------------------------------

    async def _get(self, name: str) -> Pool:
        with self._requests.turn(name):
            return await self._arm.get(name)

    async def _send_delete(self, pool: Pool) -> Operation | None:
        with self._requests.turn(pool.name):
            return await self._arm.delete(pool.name, pool.etag)

    # -- find ----------------------------------------------------------------------------------------------------

    async def _polled(self, name: str, operation: Operation) -> Polled | None:
        """What has become of *operation*; ``None`` if that cannot be known: what the pool itself says has to do."""
        try:
            return await self._arm.poll(name, operation)
        except (Unavailable, Throttled):
            raise
        except CloudError:
            # The right to read operations is one of its own, and old tokens name versions that are served no more.
            return None

    async def _hidden(self, claim: ClaimRef, operation: Operation | None) -> Instance:
        """The service shows no such pool: it may still be making it."""
        # One that deletes a pool is over when the pool is gone.
        if operation is not None and operation.pool is not None and operation.pool.claim_uid == claim.uid:
            polled = await self._polled(claim.name, operation)
            if polled is not None and polled.running:
                return replace(self._instance(operation.pool, operation=claim.operation), state="Creating")
        self._forget(claim.name)
        raise NotFound(f"there is no agent pool {claim.name}")

    # -- delete --------------------------------------------------------------------------------------------------

    async def _still(self, instance: Instance) -> Pool:
        """The instance's pool as it is now. Raises ``NotFound`` if it has none any more."""
        try:
            pool = await self._get(instance.name)
        except NotFound:
            await self._check_gone(instance)
            raise
        if not self._ownership.is_of(pool, instance.claim_uid):
            raise NotFound(f"the agent pool {instance.name} belongs to {self._ownership.owner(pool)} now")
        return pool

    async def _delete(self, pool: Pool, instance: Instance) -> Operation | None:
        try:
            try:
                return await self._send_delete(pool)
            except Conflict:
                # It may have changed since it was seen; it may be another one.
                now = await self._still(instance)
                if now.provisioning_state == "Deleting":
                    return None
                if now.etag == pool.etag:
                    raise
                pool = now
            return await self._send_delete(pool)
        except NotFound:
            await self._check_gone(instance)
            raise
        except Conflict as error:
            await self._make_way(pool)
            error.retry_after = error.retry_after or _SOON
            raise

    async def _check_gone(self, instance: Instance) -> None:
        """A pool that is being made may not be shown yet. Raises ``Conflict`` then."""
        operation = Operation.open(instance.operation, instance.name, self._arm.site)
        making = self._inventory.just_created(instance.name, instance.claim_uid)
        if not making and operation is not None and operation.doing == "create":
            polled = await self._polled(instance.name, operation)
            making = polled is not None and polled.running
        if making:
            raise Conflict(
                f"the agent pool {instance.name} is being made, and cannot be seen yet",
                fix="wait: it is deleted as soon as it can be seen",
                retry_after=_SOON,
            )
        self._forget(instance.name)
        self._aborted.pop(instance.claim_uid, None)

    async def _make_way(self, pool: Pool) -> None:
        """A pool cannot be deleted while it is being made, which takes minutes, or for ever: end that. Once, and again
        if nothing has come of it."""
        uid, now = self._ownership.uid(pool), self._clock.monotonic()
        if pool.provisioning_state != "Creating" or now < self._aborted.get(uid, -_ABORT) + _ABORT:
            return
        try:
            with self._requests.turn(pool.name):
                await self._arm.abort(pool.name)
        except (Unavailable, Throttled):
            return  # next time
        except CloudError:
            # Then the creation ends by itself, sooner or later, and the deletion is tried again until it does.
            pass
        self._aborted[uid] = now

    def _forget(self, name: str) -> None:
        self._inventory.gone(name)
        self._ownership.gone(name)
        self._creations.leave(name)
        self._requests.leave(name)

    # -- shape ---------------------------------------------------------------------------------------------------

    def _instance(self, pool: Pool, *, provider_id: str = "", operation: str = "") -> Instance:
        offering = pool.offering(self._settings.location)
        size = self._sizes.get(offering.instance_type)
        if pool_of_provider_id(provider_id) != pool.name:
            provider_id = ""
        state = _state(pool, joined=bool(provider_id))
        labels = {
            **(size.labels if size is not None else {}),
            INSTANCE_TYPE_LABEL: offering.instance_type,
            CAPACITY_TYPE_LABEL: offering.capacity_type,
        }
        if len(offering.zones) == 1:
            labels[ZONE_LABEL] = offering.zones[0]
        return Instance(
            name=pool.name,
            claim_uid=self._ownership.uid(pool),
            state=state,
            instance_type=offering.instance_type,
            provider_id=provider_id,
            node_labels={"agentpool": pool.name} | ({CLAIM_UID_LABEL: pool.claim_uid} if pool.claim_uid else {}),
            labels=labels,
            capacity=size.capacity if size is not None else {},
            created=pool.created,
            error=_error(pool, offering) if state == "Failed" else None,
            claim_kind=pool.claim_kind,
            offering=offering,
            operation=operation if state != "Running" else "",
            image_id=str(pool.properties.get("nodeImageVersion") or ""),
        )


def _state(pool: Pool, *, joined: bool) -> InstanceState:
    match pool.provisioning_state.lower():
        case "deleting":
            return "Deleting"
        case "creating" | "canceling":
            return "Running" if joined else "Creating"
        case ended if ended in _ENDED and not joined:
            return "Failed"
    # Succeeded, and all that is done to a pool that has succeeded before: Updating, Scaling, Upgrading, Stopping, ...
    return "Running"


def _error(pool: Pool, offering: Offering) -> CloudError:
    if pool.provisioning_error is not None:
        return classify_failure(Answer.of_body(200, pool.provisioning_error), offering=offering)
    if pool.provisioning_state.lower() == "canceled":
        return CloudError(
            f"the creation of the agent pool {pool.name} was aborted",
            fix="nothing: it is deleted, and made anew if it is still wanted",
        )
    return CloudError(
        f"the agent pool {pool.name} could not be made, and AKS does not say why",
        fix="az aks nodepool show tells its state; it is deleted and tried again",
    )
