"""The simulated cloud: instances take time to boot and to go, run out, and calls fail where they are told to.

It keeps the promises of the protocol, and it can be as unkind as real clouds are: what it did is shown late, a
provider id is told late or never, a shortage comes out while the instance is being made, creations are throttled. And
it can break on purpose: :attr:`SimCloud.fault` is asked before each call, :attr:`SimCloud.lost` before each answer.

All that becomes of an instance is a matter of the clock, and needs nobody to wait for it. A booted instance joins a
cluster through the ``Joiner`` that the cloud was given, as a real one does through its kubelet; that is what
:meth:`SimCloud.run` is for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Protocol, TypeVar

from kaito_api.quantity import format_binary
from kaito_provisioner.cloud import (
    ClaimRef,
    CloudError,
    Conflict,
    Instance,
    InstanceType,
    InsufficientCapacity,
    LaunchRequest,
    NodeClassKind,
    NotFound,
    Offering,
    OfferingError,
    RepairPolicy,
    UnknownInstanceType,
)
from kaito_provisioner.sim.catalogue import SimInstanceType
from kaito_provisioner.sim.scarcity import Limit, Scarcity, exhausted
from kaito_provisioner.unavailable import describe

__all__ = ["Joiner", "SimCloud"]

T = TypeVar("T")
Hook = Callable[[str, str], Exception | None]
"""Gets the call's name and the instance's; what it returns is raised."""
CLAIM_UID_LABEL = "kaito.sh/claim-uid"


class Joiner(Protocol):
    """Where booted machines report for duty."""

    async def join(self, instance: Instance, request: LaunchRequest) -> None:
        """The machine is up: register its node."""
        ...

    async def leave(self, instance: Instance) -> None:
        """The machine is being switched off."""
        ...


@dataclass(slots=True)
class _Machine:
    instance: Instance
    """As it is, its provider id included."""
    request: LaunchRequest
    due: float
    """When its state changes next."""
    shown: float
    """From when on the API knows of it."""
    doom: OfferingError | None = None
    """What will come out while it is made."""
    leaving: bool = False
    """Whether its node is still about to go."""


class SimCloud:
    """Implements ``CloudProvider``. Run :meth:`run` in a task group if there is a joiner."""

    name = "sim"
    node_classes: Sequence[NodeClassKind] = ()

    def __init__(
        self,
        types: Sequence[SimInstanceType],
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] | None = None,
        joiner: Joiner | None = None,
        boot: float = 3.0,
        shutdown: float = 0.5,
        latency: float = 0.0,
        lag: float = 0.0,
        provider_ids: Literal["at once", "when running", "never"] = "at once",
        operations: bool = False,
        limit: Limit | None = None,
    ) -> None:
        """Times are in seconds: *boot* and *shutdown* are what an instance takes to come and to go, *latency* each
        call, and *lag* what was done to be shown. *monotonic* is the running loop's clock if it is not given.
        *provider_ids* says when the cloud tells them, *operations* whether instances name what is being done to them,
        *limit* how many may be made."""
        self.types: Mapping[str, SimInstanceType] = {each.name: each for each in types}
        self.boot = boot
        self.shutdown = shutdown
        self.latency = latency
        self.lag = lag
        self.limit = limit
        self.joiner = joiner
        self.fault: Hook | None = None
        """Asked before each call takes effect."""
        self.lost: Hook | None = None
        """Asked once it has, before it is answered."""
        self.scarce: dict[Offering, Scarcity] = {}
        """Offerings without price or zones that are not to be had; the catalogue does not know."""
        self.foreign: set[str] = set()
        """Names of instances that are somebody else's."""
        self.calls: dict[str, int] = {}
        self._now = now
        self._monotonic = monotonic or (lambda: asyncio.get_running_loop().time())
        self._provider_ids = provider_ids
        self._operations = operations
        self._machines: dict[str, _Machine] = {}
        self._names: set[str] = set()
        self._due: list[tuple[float, int, _Machine]] = []
        self._events = itertools.count()
        self._ghosts: dict[str, tuple[Instance, float]] = {}
        """Instances that are gone, and until when they are shown all the same."""
        self._serial = 0
        self._bucket = 0.0
        """When the bucket of creations is full again."""
        self._jobs: asyncio.Queue[tuple[Literal["on", "off"], _Machine]] = asyncio.Queue()

    async def run(self) -> None:
        """Have nodes join and leave until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                job, machine = await self._jobs.get()
                work = self._switch_on(machine) if job == "on" else self._switch_off(machine)
                group.create_task(work, name=f"sim/{job}/{machine.instance.claim_uid}")

    def existing(self) -> Sequence[Instance]:
        """What there is of its own, shown or not. No call."""
        self._tick()
        return tuple(machine.instance for machine in self._machines.values())

    # -- CloudProvider -------------------------------------------------------------------------------------------

    async def create(self, request: LaunchRequest) -> Instance:
        return await self._serve("create", request.name, lambda: self._create(request))

    async def get(self, provider_id: str) -> Instance:
        def look() -> Instance:
            for uid, machine in self._machines.items():
                if machine.instance.provider_id == provider_id:
                    return self._look(uid, provider_id)
            raise NotFound(f"there is no instance {provider_id}")

        return await self._serve("get", provider_id, look)

    async def find(self, claim: ClaimRef) -> Instance:
        return await self._serve("find", claim.name, lambda: self._look(claim.uid, f"for claim {claim.name}"))

    async def list(self) -> Sequence[Instance]:
        def look() -> Sequence[Instance]:
            shown = (self._shown(uid) for uid in dict.fromkeys((*self._machines, *self._ghosts)))
            return tuple(each for each in shown if each is not None)

        return await self._serve("list", "", look)

    async def delete(self, instance: Instance) -> Instance:
        return await self._serve("delete", instance.name, lambda: self._delete(instance))

    async def instance_types(self) -> Sequence[InstanceType]:
        return await self._serve("instance_types", "", lambda: tuple(each.listed for each in self.types.values()))

    def repair_policies(self) -> Sequence[RepairPolicy]:
        return (RepairPolicy("Ready", "False", 600.0), RepairPolicy("Ready", "Unknown", 600.0))

    # -- inside --------------------------------------------------------------------------------------------------

    async def _serve(self, call: str, subject: str, effect: Callable[[], T]) -> T:
        self.calls[call] = self.calls.get(call, 0) + 1
        if self.latency:
            await asyncio.sleep(self.latency)
        self._ask(self.fault, call, subject)
        self._tick()
        try:
            answer = effect()
        except CloudError:
            self._ask(self.lost, call, subject)
            raise
        self._ask(self.lost, call, subject)
        return answer

    def _ask(self, hook: Hook | None, call: str, subject: str) -> None:
        error = hook(call, subject) if hook is not None else None
        if error is not None:
            raise error

    def _create(self, request: LaunchRequest) -> Instance:
        known = self._machines.get(request.uid)
        if known is not None:
            return self._told(known)
        if request.name in self.foreign or request.name in self._names:
            raise Conflict(
                f"there is an instance {request.name} already, and it was not made for this claim",
                fix=f"delete the instance {request.name}, or the claim",
            )
        offering = self._choose(request)
        if self.limit is not None:
            self._bucket = self.limit.admit(self._monotonic(), self._bucket)
        self._serial += 1
        chosen = self.types[offering.instance_type]
        resources = chosen.resources
        if request.disk:
            resources["ephemeral-storage"] = format_binary(request.disk)
        label = {CLAIM_UID_LABEL: request.uid} if self._provider_ids != "at once" else {}
        instance = Instance(
            name=request.name,
            claim_uid=request.uid,
            state="Creating",
            instance_type=chosen.name,
            provider_id=f"sim:///instances/{request.name}-{self._serial:04d}",
            node_labels=label,
            labels={**chosen.labels(offering), **label},
            capacity=resources,
            allocatable=resources,
            created=self._now(),
            claim_kind=request.kind,
            offering=offering,
            operation=f"creations/{self._serial:04d}" if self._operations else "",
            group=request.group,
        )
        now = self._monotonic()
        scarcity = self._scarcity(offering)
        machine = _Machine(
            instance,
            request,
            due=now + self.boot,
            shown=now + self.lag,
            doom=exhausted(offering, scarcity.what) if scarcity is not None else None,
        )
        self._machines[request.uid] = machine
        self._names.add(request.name)
        self._expect(machine)
        if self.joiner is not None:
            self._jobs.put_nowait(("on", machine))
        return self._told(machine)

    def _delete(self, instance: Instance) -> Instance:
        machine = self._machines.get(instance.claim_uid)
        if machine is None:
            raise NotFound(f"there is no instance {instance.name}")
        if machine.instance.state != "Deleting":
            operation = f"deletions/{machine.instance.name}" if self._operations else ""
            machine.instance = replace(machine.instance, state="Deleting", operation=operation)
            if self.joiner is not None:
                machine.leaving = True
                self._jobs.put_nowait(("off", machine))
            else:
                self._end(machine)
        return self._told(machine)

    def _choose(self, request: LaunchRequest) -> Offering:
        """What *request* is given: its first offering, or of its instance types the first that is there."""
        offerings = request.offerings[:1] or tuple(Offering(name) for name in request.instance_types)
        refusals: list[OfferingError] = []
        for offering in offerings:
            refusal = self._refusal(offering)
            if refusal is None:
                return offering
            refusals.append(refusal)
        if not refusals:
            raise UnknownInstanceType(
                "no instance type is asked for", fix=f"use one of: {', '.join(sorted(self.types))}"
            )
        known = [each for each in refusals if not isinstance(each, UnknownInstanceType)]
        if request.offerings or not known:
            raise refusals[0]
        for each in known:
            if not isinstance(each, InsufficientCapacity):
                raise each
        raise InsufficientCapacity(
            f"all requested instance types were unavailable during launch: {'; '.join(each.message for each in known)}",
            fix=known[0].fix,
            offering=known[0].offering,
        )

    def _refusal(self, offering: Offering) -> OfferingError | None:
        kind = self.types.get(offering.instance_type)
        if kind is None or not kind.offers(offering):
            return UnknownInstanceType(
                f"{describe(offering)} is not offered here",
                fix=f"use one of: {', '.join(sorted(self.types))}",
                offering=offering,
            )
        scarcity = self._scarcity(offering)
        if not kind.available or (scarcity is not None and not scarcity.late):
            return exhausted(offering, scarcity.what if scarcity is not None else "capacity")
        if sum(each.instance.instance_type == kind.name for each in self._machines.values()) >= kind.quota:
            return exhausted(offering, "quota")
        return None

    def _scarcity(self, offering: Offering) -> Scarcity | None:
        return self.scarce.get(Offering(offering.instance_type, offering.capacity_type))

    # -- what the API shows --------------------------------------------------------------------------------------

    def _look(self, uid: str, what: str) -> Instance:
        shown = self._shown(uid)
        if shown is None:
            raise NotFound(f"there is no instance {what}")
        return shown

    def _shown(self, uid: str) -> Instance | None:
        now = self._monotonic()
        machine = self._machines.get(uid)
        if machine is not None and machine.shown <= now:
            return self._told(machine)
        ghost, until = self._ghosts.get(uid, (None, now))
        return ghost if now < until else None

    def _told(self, machine: _Machine) -> Instance:
        running = machine.instance.state == "Running"
        if self._provider_ids == "at once" or (self._provider_ids == "when running" and running):
            return machine.instance
        return replace(machine.instance, provider_id="")

    # -- what time does ------------------------------------------------------------------------------------------

    def _expect(self, machine: _Machine) -> None:
        heapq.heappush(self._due, (machine.due, next(self._events), machine))

    def _tick(self, at_least: float = 0.0) -> None:
        """Let everything happen that is due."""
        now = max(self._monotonic(), at_least)
        while self._due and self._due[0][0] <= now:
            due, _, machine = heapq.heappop(self._due)
            uid = machine.instance.claim_uid
            if due != machine.due or self._machines.get(uid) is not machine:
                continue
            if machine.instance.state == "Creating":
                state: Literal["Failed", "Running"] = "Failed" if machine.doom is not None else "Running"
                machine.instance = replace(machine.instance, state=state, error=machine.doom, operation="")
            elif machine.instance.state == "Deleting" and not machine.leaving:
                del self._machines[uid]
                self._names.discard(machine.request.name)
                if self.lag:
                    self._ghosts[uid] = (self._told(machine), due + self.lag)

    def _end(self, machine: _Machine) -> None:
        machine.due = self._monotonic() + self.shutdown
        self._expect(machine)

    async def _switch_on(self, machine: _Machine) -> None:
        due = machine.due
        await asyncio.sleep(max(0.0, due - self._monotonic()))
        # A timer may be early by less than the clock can tell.
        self._tick(due)
        if self.joiner is not None and machine.instance.state == "Running":
            await self.joiner.join(machine.instance, machine.request)

    async def _switch_off(self, machine: _Machine) -> None:
        if self.joiner is not None:
            await self.joiner.leave(machine.instance)
        machine.leaving = False
        self._end(machine)
