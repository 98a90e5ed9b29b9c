"""A claim's instance: asked for one offering after the other until the cloud grants one, or has refused them all.

The order is :func:`kaito_provisioner.choose`'s. What was refused rests for every claim of the process, so the number of
requests is bounded whatever the number of claims; whatever is decided is told as an event of the claim.

Before the cloud is asked, the claim says so (``provisioner.kaito.sh/launching``); it goes on saying so for as long as
it is not known what became of that. That write is also the live look without which nothing is bought: it fails if the
claim is not any more what it was taken for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kaito_api.karpenter import (
    CAPACITY_TYPE_LABEL,
    INSTANCE_TYPE_LABEL,
    LAUNCHING_ANNOTATION,
    OPERATION_ANNOTATION,
    ZONE_LABEL,
    Machine,
    NodeRequest,
)
from kaito_api.meta import find_condition, rfc3339
from kaito_api.quantity import parse_quantity
from kaito_ctrl.reconcilers.machine import telling
from kaito_ctrl.reconcilers.machine.deadlines import LAUNCHING
from kaito_ctrl.reconcilers.names import (
    GPU_RESOURCE,
    MACHINE_TYPE_LABEL,
    WORKSPACE_LABEL,
    WORKSPACE_NAMESPACE_LABEL,
)
from kaito_ctrl.runtime import Context
from kaito_provisioner import (
    ClaimRef,
    CloudError,
    CloudProvider,
    Instance,
    InstanceType,
    InsufficientCapacity,
    InvalidRequest,
    LaunchRequest,
    NotFound,
    Offering,
    OfferingError,
    QuotaExceeded,
    Resting,
    UnavailableOfferings,
    UnknownInstanceType,
    choose,
    describe,
)

__all__ = [
    "DELETING",
    "FACTS",
    "Attempt",
    "Launcher",
    "implied_labels",
    "launch_request",
    "may_have_instance",
    "patience",
    "reference",
]

_GIB = 2**30
_LARGEST_BARE = 2048
"""Up to here, gibibytes is what a Machine means that asks for storage without a unit: KAITO's presets of that time do
("400"), and gpu-provisioner v0.2 took the number for the size of AKS' disk, which is 2048 at most."""
_LEAST, _MOST = 5.0, 300.0
_HOPELESS_LEAST, _HOPELESS_MOST = 600.0, 1800.0
_GLANCE = 30.0
"""Seconds after which a claim whose offerings all rest looks whether one has been granted to another claim. That takes
no call of the cloud."""
_TYPES = 60.0
"""Seconds for which the cloud's list of instance types is remembered."""
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
FACTS = (INSTANCE_TYPE_LABEL, CAPACITY_TYPE_LABEL, ZONE_LABEL, "topology.kubernetes.io/region")
"""Labels by which an instance says what it is: whatever the claim says, or said of an instance before."""
DELETING = "InstanceDeleting"
"""The reason of a claim whose instance goes before its node has come."""
CREATION_LABEL = "kaito.sh/creation-timestamp"
"""When the claim was made, on its instance, as gpu-provisioner writes it: colons are no part of a label's value."""
_UNAVAILABLE = "all requested instance types were unavailable during launch"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of asking for an instance: there is one, or an error."""

    claim: NodeRequest
    """As it is after what was noted on it."""
    instance: Instance | None = None
    error: CloudError | None = None
    asked: bool = True
    """Whether the cloud was asked for one."""

    @property
    def definite(self) -> bool:
        """Whether it is known what the cloud did."""
        return self.asked and (self.error is None or not self.error.ambiguous)


class Launcher:
    """Asks one cloud, and remembers for all claims what it refused."""

    def __init__(self, cloud: CloudProvider, unavailable: UnavailableOfferings | None = None) -> None:
        self._cloud = cloud
        self._unavailable = unavailable
        self._types: tuple[float, Sequence[InstanceType]] = (-_TYPES, ())
        self._asking = asyncio.Lock()

    async def launch(self, claim: NodeRequest, ctx: Context) -> Attempt:
        """Get *claim* an instance; to be called when the cloud says that it has none. Raises what the client raises."""
        try:
            types = await self._instance_types(ctx)
            request = launch_request(claim)
            offerings = choose(claim.spec.requirements, types, resources=claim.spec.resources.requests)
        except CloudError as error:
            return Attempt(claim, error=error, asked=False)
        registry, announced = self._registry(ctx), False
        ready = registry.split(offerings).ready
        for place, offering in enumerate(ready):
            if not registry.attempt(offering):
                continue  # another claim is finding out
            try:
                if not announced:
                    claim, announced = await _announce(claim, ctx), True
                ctx.check_leading()
                instance = await self._cloud.create(_narrowed(request, ready[place:], types))
            except OfferingError as error:
                self._refuse(claim, error.offering or offering, error, ctx)
            except CloudError as error:
                registry.abandon(offering)
                return Attempt(claim, error=error)
            except BaseException:
                registry.abandon(offering)
                raise
            else:
                if instance.state != "Deleting":  # or it is one that could not be made, and has not gone yet
                    telling.offering_chosen(ctx.events, claim, describe(instance.offering or offering))
                return Attempt(claim, instance)
        shortage = _all_refused(registry.split(offerings).waiting)
        telling.insufficient_capacity(ctx.events, claim, shortage.message)
        return Attempt(claim, error=shortage, asked=announced)

    async def give_up(self, claim: NodeRequest, instance: Instance, ctx: Context) -> tuple[Instance, CloudError, float]:
        """Delete *instance*, which could not be made: it counts against the cloud's limits, and stands in the way of
        another one. The instance as it goes, why it could not be made, and seconds until the next look: another
        offering is asked for as soon as nothing is in its way, the same one with patience. Never raises ``CloudError``.
        """
        error = instance.error or CloudError("the cloud could not make the instance")
        if isinstance(error, OfferingError):
            self._refuse(claim, _offering_of(instance), error, ctx)
        else:
            ctx.events.warning(claim, error.reason, error.message, action="Launch")
        wait = _LEAST if isinstance(error, OfferingError) else patience(claim, error, ctx.now()) or _MOST
        ctx.check_leading()
        try:
            instance = await self._cloud.delete(instance)
        except NotFound:
            instance = replace(instance, state="Deleting", operation="")
        except CloudError as refusal:
            ctx.log.warning("the cloud refused to delete", reason=refusal.reason, error=refusal.message)
            wait = max(wait, patience(claim, refusal, ctx.now()) or _MOST)
        return instance, error, wait

    def granted(self, instance: Instance, ctx: Context) -> None:
        """*instance* runs: the cloud does have its kind."""
        self._registry(ctx).granted(_offering_of(instance))

    def going(self, instance: Instance, ctx: Context) -> None:
        """*instance*, which could not be made, is being deleted: by when it is gone, the next offering has its turn."""
        self._registry(ctx).keep(_offering_of(instance))

    async def _instance_types(self, ctx: Context) -> Sequence[InstanceType]:
        async with self._asking:
            now = ctx.clock.monotonic()
            if now - self._types[0] >= _TYPES:
                self._types = (now, await self._cloud.instance_types())
            return self._types[1]

    def _refuse(self, claim: NodeRequest, offering: Offering, error: OfferingError, ctx: Context) -> None:
        rest = self._registry(ctx).refused(offering, error)
        ctx.log.warning("refused", offering=describe(offering), reason=error.reason, error=error.message, rests=rest)
        telling.offering_refused(ctx.events, claim, describe(offering), error.message)

    def _registry(self, ctx: Context) -> UnavailableOfferings:
        if self._unavailable is None:
            self._unavailable = UnavailableOfferings(monotonic=ctx.clock.monotonic)
        return self._unavailable


def reference(claim: NodeRequest) -> ClaimRef:
    """*claim* as the cloud is asked about it."""
    operation = claim.metadata.annotations.get(OPERATION_ANNOTATION, "")
    return ClaimRef(claim.name, claim.uid, claim.status.provider_id, operation)


def may_have_instance(claim: NodeRequest) -> bool:
    """Whether the cloud may have an instance of *claim*. Whoever asks for one says so on the claim before, until it is
    known that there is none."""
    noted, status = claim.metadata.annotations, claim.status
    if LAUNCHING_ANNOTATION in noted or OPERATION_ANNOTATION in noted or status.provider_id:
        return True
    launched = find_condition(status.conditions, claim.launched)
    return launched is not None and (launched.status == "True" or launched.reason in (LAUNCHING, DELETING))


def patience(claim: NodeRequest, error: CloudError, now: datetime) -> float:
    """Seconds until the cloud is asked again.

    What the error says, else a quarter of the claim's age, from 5 s to 5 min. That doubles as it goes, like any
    back-off, but is kept in the object: a restart neither forgets nor resets it. What nobody expects to go better next
    time is tried again all the same, every half an hour in the end: clouds err in what they call hopeless, too.
    """
    if error.retry_after is not None:
        return max(error.retry_after, 1.0)
    least, most = (_LEAST, _MOST) if error.retryable else (_HOPELESS_LEAST, _HOPELESS_MOST)
    born = claim.metadata.creation_timestamp
    age = (now - born).total_seconds() if born is not None else 0.0
    return min(max(age / 4.0, least), most)


def launch_request(claim: NodeRequest) -> LaunchRequest:
    """What *claim* asks for, but for the offerings. Raises ``InvalidRequest``."""
    labels = claim.metadata.labels
    workspace = labels.get(WORKSPACE_LABEL)
    born = claim.metadata.creation_timestamp
    # The instance's age is told by the clock of the API server, as everything is that it is compared with.
    made = {CREATION_LABEL: born.astimezone(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")} if born is not None else {}
    return LaunchRequest(
        name=claim.name,
        uid=claim.uid,
        instance_types=(),
        kind=claim.kind,
        labels={**implied_labels(claim), **{key: value for key, value in labels.items() if key not in FACTS}, **made},
        taints=claim.spec.taints,
        startup_taints=claim.spec.startup_taints,
        disk=_disk(claim),
        requirements=claim.spec.requirements,
        annotations=claim.metadata.annotations,
        group=f"{labels.get(WORKSPACE_NAMESPACE_LABEL, '')}/{workspace}" if workspace else "",
    )


def implied_labels(claim: NodeRequest) -> dict[str, str]:
    """The labels about which the claim's requirements leave no choice."""
    single = {each.key: claim.spec.values(each.key) for each in claim.spec.requirements if each.operator == "In"}
    return {key: found[0] for key, found in single.items() if len(found) == 1 and _LABEL_VALUE.fullmatch(found[0])}


def _disk(claim: NodeRequest) -> int:
    requests = claim.spec.resources.requests
    for resource, amount in requests.items():
        try:
            parse_quantity(amount)
        except ValueError as error:
            raise InvalidRequest(f"resources.requests.{resource}: {error}", fix="write an amount like 100Gi") from error
    disk = int(parse_quantity(requests.get("storage", "0")))
    if claim.kind == Machine.kind and 0 < disk <= _LARGEST_BARE:
        disk *= _GIB
    if disk < 0 or 0 < disk < _GIB:
        raise InvalidRequest(
            f"resources.requests.storage is {requests['storage']}, which is less than 1Gi",
            fix="write it with its unit, like 100Gi; 0 takes the cloud's default",
        )
    return disk


def _narrowed(request: LaunchRequest, offerings: Sequence[Offering], types: Sequence[InstanceType]) -> LaunchRequest:
    names = tuple(dict.fromkeys(each.instance_type for each in offerings))
    kind = next((each for each in types if each.name == names[0]), None)
    # Azure's sizes with a GPU are its N series; of a type that the cloud does not list there is no other knowledge.
    gpu = GPU_RESOURCE in kind.capacity if kind is not None and kind.capacity else names[0].startswith("Standard_N")
    labels = {MACHINE_TYPE_LABEL: "gpu" if gpu else "cpu", **request.labels}
    return replace(request, offerings=tuple(offerings), instance_types=names, labels=labels)


def _offering_of(instance: Instance) -> Offering:
    if instance.offering is not None:
        return instance.offering
    if isinstance(instance.error, OfferingError) and instance.error.offering is not None:
        return instance.error.offering
    spot = instance.labels.get(CAPACITY_TYPE_LABEL) == "spot"
    return Offering(instance.instance_type, "spot" if spot else "on-demand")


def _all_refused(waiting: Sequence[Resting]) -> CloudError:
    message = f"{_UNAVAILABLE}: {'; '.join(map(str, waiting))}"
    fixes = dict.fromkeys(each.error.fix for each in waiting if each.error.fix)
    # The cause of all is said as such: what to do about a quota is something else than about a shortage.
    kinds = {type(each.error) for each in waiting}
    kind = kinds.pop() if len(kinds) == 1 else InsufficientCapacity
    if kind not in (QuotaExceeded, UnknownInstanceType):
        kind = InsufficientCapacity
    retry_after = min((each.seconds for each in waiting), default=_LEAST)
    return kind(message, fix="; ".join(fixes), retry_after=min(retry_after, _GLANCE))


async def _announce(claim: NodeRequest, ctx: Context) -> NodeRequest:
    """Note on *claim* that the cloud is being asked. Raises ``Conflict`` if the claim has changed."""
    metadata = {
        "uid": claim.uid,
        "resourceVersion": claim.metadata.resource_version,
        "annotations": {LAUNCHING_ANNOTATION: rfc3339(ctx.now())},
    }
    return await ctx.client.patch(type(claim), ctx.key, {"metadata": metadata})
