"""Providers that break one promise each, as people have broken them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from kaito_provisioner.cloud import (
    ClaimRef,
    CloudError,
    Conflict,
    Instance,
    InstanceType,
    InsufficientCapacity,
    InvalidRequest,
    LaunchRequest,
    NodeClassKind,
    NotFound,
    OfferingError,
    QuotaExceeded,
    RepairPolicy,
    Throttled,
    Unavailable,
    UnknownInstanceType,
)
from kaito_provisioner.conformance import Bench, Existing, MakeBench
from kaito_provisioner.conformance.sim import SimBench
from kaito_provisioner.sim import SimCloud


class Through:
    """A provider as a process has it: in front of the cloud, with a memory of its own."""

    name = "broken"
    node_classes: Sequence[NodeClassKind] = ()

    def __init__(self, cloud: SimCloud, kept: dict[str, Any]) -> None:
        """*kept* outlives the process."""
        self.cloud = cloud
        self.kept = kept
        self.memory: dict[str, Any] = {}

    async def create(self, request: LaunchRequest) -> Instance:
        return await self.cloud.create(request)

    async def get(self, provider_id: str) -> Instance:
        return await self.cloud.get(provider_id)

    async def find(self, claim: ClaimRef) -> Instance:
        return await self.cloud.find(claim)

    async def list(self) -> Sequence[Instance]:
        return await self.cloud.list()

    async def delete(self, instance: Instance) -> Instance:
        return await self.cloud.delete(instance)

    async def instance_types(self) -> Sequence[InstanceType]:
        return await self.cloud.instance_types()

    def repair_policies(self) -> Sequence[RepairPolicy]:
        return self.cloud.repair_policies()


class Twice(Through):
    """In front of a cloud that makes as many instances as it is asked for: each gets a uid and a name of its own."""

    async def another(self, request: LaunchRequest) -> Instance:
        number = next(self.kept.setdefault("numbers", itertools.count()))
        own = replace(request, uid=f"{request.uid}#{number}", name=f"{request.name}-{number}")
        return plain(await self.cloud.create(own))

    async def find(self, claim: ClaimRef) -> Instance:
        for each in await self.list():
            if each.claim_uid == claim.uid:
                return each
        raise NotFound(f"there is no instance for {claim.name}")

    async def get(self, provider_id: str) -> Instance:
        return plain(await self.cloud.get(provider_id))

    async def list(self) -> Sequence[Instance]:
        found = {each.claim_uid: each for each in map(plain, await self.cloud.list())}
        return tuple(found.values())

    async def delete(self, instance: Instance) -> Instance:
        for each in self.cloud.existing():
            if plain(each).claim_uid == instance.claim_uid:
                return plain(await self.cloud.delete(each))
        raise NotFound(f"there is no instance {instance.name}")


def plain(instance: Instance) -> Instance:
    uid, _, number = instance.claim_uid.partition("#")
    return replace(instance, claim_uid=uid, name=instance.name.removesuffix(f"-{number}"))


class PlainBench(SimBench):
    def truth(self) -> Sequence[Existing]:
        return [replace(each, uid=each.uid.partition("#")[0]) for each in super().truth()]


def bench_of(provider: type[Through]) -> MakeBench:
    @asynccontextmanager
    async def make() -> AsyncIterator[Bench]:
        kept: dict[str, Any] = {}
        yield PlainBench(lambda cloud: provider(cloud, kept))

    return make


# -- create ------------------------------------------------------------------------------------------------------


class WaitsForTheBoot(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        made = await super().create(request)
        await asyncio.sleep(90)
        return made


class ForgetsTheKind(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        return await super().create(replace(request, kind="Machine"))


class TellsNoAge(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        return replace(await super().find(claim), created=None)


class MakesOneEachTime(Twice):
    async def create(self, request: LaunchRequest) -> Instance:
        return await self.another(request)


class RemembersInMemory(Twice):
    async def create(self, request: LaunchRequest) -> Instance:
        if request.uid not in self.memory:
            self.memory[request.uid] = await self.another(request)
        return await self.find(ClaimRef(request.name, request.uid))


class LooksBeforeItLeaps(Twice):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await self.find(ClaimRef(request.name, request.uid))
        except NotFound:
            await asyncio.sleep(0)
            return await self.another(request)


class TakesErrorsForAbsence(Twice):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await self.find(ClaimRef(request.name, request.uid))
        except CloudError:
            return await self.another(request)


class KeepsTheRequestInItself(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        self.memory["request"] = request
        await asyncio.sleep(0)
        return await super().create(self.memory["request"])


class AdoptsWhateverHasTheName(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except Conflict:
            return Instance(request.name, request.uid, "Running", "sim-small", "sim:///theirs")


class DeletesByName(Through):
    async def delete(self, instance: Instance) -> Instance:
        for each in self.cloud.existing():
            if each.name == instance.name:
                return replace(await super().delete(each), claim_uid=instance.claim_uid)
        raise NotFound("there is no instance of that name")


class FailsWithoutSayingWhy(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except OfferingError as error:
            raise CloudError("the launch failed", fix="look at the portal") from error


class TakesQuotaForCapacity(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except QuotaExceeded as error:
            raise InsufficientCapacity(error.message, fix=error.fix, offering=error.offering) from error


class ForgetsWhichOffering(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except InsufficientCapacity as error:
            raise InsufficientCapacity(error.message, fix=error.fix) from error


class HidesWhatFailed(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        found = await super().find(claim)
        if found.state == "Failed":
            raise NotFound("it has no node")
        return found

    async def list(self) -> Sequence[Instance]:
        return [each for each in await super().list() if each.state != "Failed"]


class SticksToTheFirstOffering(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        return await super().create(self.kept.setdefault(request.uid, request))


class HopesForUnknownTypes(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except UnknownInstanceType as error:
            raise InsufficientCapacity(error.message, fix=error.fix, offering=error.offering) from error


# -- find, get, list, instance_types, repair_policies -------------------------------------------------------------


class FindsOnlyItsOwn(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        self.memory[request.uid] = True
        return await super().create(request)

    async def find(self, claim: ClaimRef) -> Instance:
        if claim.uid not in self.memory:
            raise NotFound("never heard of it")
        return await super().find(claim)


class BelievesTheOperation(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        found = await super().find(claim)
        return replace(found, state="Creating") if claim.operation else found


class InsistsOnItsOperations(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        if claim.operation and not claim.operation.startswith("creations/"):
            raise InvalidRequest("the operation is not one of ours", fix="take the annotation away")
        return await super().find(claim)


class CallsAbsenceAnOutage(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        try:
            return await super().find(claim)
        except NotFound as error:
            raise Unavailable("the cloud says 404", fix="wait") from error


class RemembersWhatIsGone(Through):
    async def get(self, provider_id: str) -> Instance:
        if provider_id not in self.kept:
            self.kept[provider_id] = await super().get(provider_id)
        found: Instance = self.kept[provider_id]
        return found


class LabelsNodesAlike(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        return alike(await super().create(request))

    async def find(self, claim: ClaimRef) -> Instance:
        return alike(await super().find(claim))


def alike(instance: Instance) -> Instance:
    return replace(instance, provider_id="", node_labels={"agentpool": "gpu"})


class ListsEverythingAsMachines(Through):
    async def list(self) -> Sequence[Instance]:
        return [replace(each, claim_kind="Machine") for each in await super().list()]


class ListsOnlyWhatIsToBeHad(Through):
    async def instance_types(self) -> Sequence[InstanceType]:
        return [each for each in await super().instance_types() if any(o.available for o in each.offerings)]


class RepairsAtOnce(Through):
    def repair_policies(self) -> Sequence[RepairPolicy]:
        return [RepairPolicy("Ready", "False", 5.0), RepairPolicy("Ready", "Unknown", 5.0)]


class HasNoName(Through):
    name = ""


class ServesNonsense(Through):
    node_classes = (NodeClassKind("karpenter", "aksnodeclass"),)


class RepairsNothing(Through):
    def repair_policies(self) -> Sequence[RepairPolicy]:
        return ()


# -- delete ------------------------------------------------------------------------------------------------------


class DeletesWhatIsNot(Through):
    async def delete(self, instance: Instance) -> Instance:
        try:
            return await super().delete(instance)
        except NotFound:
            return replace(instance, state="Deleting")


class TakesAcceptedForGone(Through):
    async def delete(self, instance: Instance) -> Instance:
        if instance.claim_uid in self.memory:
            raise NotFound("it was deleted")
        self.memory[instance.claim_uid] = True
        return await super().delete(instance)


class WaitsForTheCreation(Through):
    async def delete(self, instance: Instance) -> Instance:
        found = await super().find(ClaimRef(instance.name, instance.claim_uid))
        if found.state == "Creating" and instance.state != "Deleting":
            self.memory[instance.claim_uid] = True
        if instance.claim_uid in self.memory:
            return replace(found, state="Deleting")
        return await super().delete(instance)


class AllowsOneDeletion(Through):
    async def delete(self, instance: Instance) -> Instance:
        if self.memory.get("busy"):
            raise InvalidRequest("it is being deleted", fix="do not delete it twice")
        self.memory["busy"] = True
        await asyncio.sleep(0)
        self.memory["busy"] = False
        return await super().delete(instance)


class ServesAClaimOnce(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().find(ClaimRef(request.name, request.uid))
        except NotFound as error:
            if request.uid in self.kept:
                raise Conflict("there was one already", fix="make another claim") from error
        made = await super().create(request)
        self.kept[request.uid] = True
        return made


class RevivesWhatGoes(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        return replace(await super().create(request), state="Running", provider_id="sim:///revived")


# -- errors ------------------------------------------------------------------------------------------------------


class SleepsWhenThrottled(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except Throttled as error:
            await asyncio.sleep(error.retry_after or 0.0)
            return await super().create(request)


class AsksAgainWhenThrottled(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        try:
            return await super().find(claim)
        except Throttled:
            await super().list()
            raise


class ForgetsWhenToComeBack(Through):
    async def delete(self, instance: Instance) -> Instance:
        try:
            return await super().delete(instance)
        except Throttled as error:
            raise Throttled(error.message, fix=error.fix) from error


class RaisesWhatItGets(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        try:
            return await super().find(claim)
        except Unavailable as error:
            raise ConnectionResetError("peer") from error


class TakesSilenceForAbsence(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        try:
            return await super().find(claim)
        except Unavailable as error:
            raise NotFound("nothing was found") from error


class TakesSilenceForAnEmptyList(Through):
    async def list(self) -> Sequence[Instance]:
        try:
            return await super().list()
        except Unavailable:
            return ()


class SaysNothingToDo(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except Unavailable as error:
            raise Unavailable(error.message) from error


class TakesSilenceForRefusal(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        try:
            return await super().create(request)
        except Unavailable as error:
            raise Conflict(error.message, fix=error.fix) from error


class SharesItsWork(Through):
    """Calls at the same time share one request, and the fate of whoever came first."""

    async def list(self) -> Sequence[Instance]:
        loop = asyncio.get_running_loop()
        if "work" in self.memory:
            shared: Sequence[Instance] = await self.memory["work"]
            return shared
        work = self.memory["work"] = loop.create_future()
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            work.set_result(await super().list())
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            del self.memory["work"]
        found: Sequence[Instance] = work.result()
        return found


class StaysBusy(Through):
    async def create(self, request: LaunchRequest) -> Instance:
        if self.memory.get("busy"):
            raise Conflict("another creation is under way", fix="wait")
        self.memory["busy"] = True
        await asyncio.sleep(0)
        self.memory["busy"] = False
        return await super().create(request)


# -- lives -------------------------------------------------------------------------------------------------------


class RemembersWhatItWasAnswered(Twice):
    async def create(self, request: LaunchRequest) -> Instance:
        if request.uid not in self.kept:
            self.kept[request.uid] = await self.another(request)
        return await self.find(ClaimRef(request.name, request.uid))


class GivesUpDeletions(Through):
    async def delete(self, instance: Instance) -> Instance:
        try:
            return await super().delete(instance)
        except Unavailable as error:
            raise NotFound("it is gone, one hopes") from error


class GivesUpDeletionsSlowly(Through):
    async def delete(self, instance: Instance) -> Instance:
        try:
            return await super().delete(instance)
        except (Throttled, Unavailable) as error:
            self.kept["errors"] = self.kept.get("errors", 0) + 1
            if self.kept["errors"] > 1:
                raise NotFound("it is gone, one hopes") from error
            raise


class KeepsTheVerdict(Through):
    """Remembers why an instance failed, and says so of the next one too."""

    async def find(self, claim: ClaimRef) -> Instance:
        found = await super().find(claim)
        if found.state == "Failed":
            self.kept[claim.uid] = found
        if claim.uid in self.kept and found.state == "Creating":
            failed: Instance = self.kept[claim.uid]
            return failed
        return found


class LooksBeforeItDeletes(Through):
    async def delete(self, instance: Instance) -> Instance:
        found = await super().find(ClaimRef(instance.name, instance.claim_uid))
        if found.state == "Deleting":
            raise NotFound("it is as good as gone")
        return await super().delete(found)


class LosesPatience(Through):
    async def delete(self, instance: Instance) -> Instance:
        try:
            return await super().delete(instance)
        except Unavailable as error:
            self.kept["errors"] = self.kept.get("errors", 0) + 1
            if self.kept["errors"] > 8:
                raise NotFound("it is gone, one hopes") from error
            raise


class FindsOnlyWhatRuns(Through):
    async def find(self, claim: ClaimRef) -> Instance:
        found = await super().find(claim)
        if found.state == "Creating":
            raise NotFound("it has no node yet")
        return found
