"""The aks backend in front of the local ARM, in one process and in virtual time: for its own tests, and for the kit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from aiohttp import ClientConnectorError
from aiohttp.client_reqrep import ConnectionKey
from azure.core.exceptions import ServiceRequestError
from azure.core.rest import AsyncHttpResponse, HttpRequest

from kaito_ctrl.testing.virtualtime import VirtualClock
from kaito_provisioner.aks import AksCloud, AksSettings, VmSize, connect_aks
from kaito_provisioner.cloud import Offering
from kaito_provisioner.conformance.bench import RETRY_AFTER, SLOW, Existing, Fault, NotApplicable, Shortage
from kaito_provisioner.testing import SIZES, LocalArm, LocalArmTransport, Timings
from kaito_provisioner.testing.errors import throttled, turned_away
from kaito_provisioner.testing.faults import Dropped
from kaito_provisioner.testing.messages import Answer, Request

_ID = "x-ms-client-request-id"
# Of different families: sizes of one share a quota.
TYPES = ("Standard_NC6s_v3", "Standard_NC24ads_A100_v4")


class AksBench:
    """Implements the kit's ``Bench``."""

    name = "aks"
    offerings: Sequence[Offering] = tuple(Offering(each) for each in TYPES)
    unavailable: Offering | None = None
    faults: Collection[Fault] = frozenset(Fault)

    def __init__(self, arm: LocalArm, clock: VirtualClock, stack: AsyncExitStack) -> None:
        self.arm = arm
        self.clock = clock
        self.settings = AksSettings(
            arm.cluster.subscription, arm.cluster.resource_group, arm.cluster.name, arm.cluster.location
        )
        self._stack = stack
        self._planned: dict[int, Fault] = {}
        self._calls = 0

    async def provider(self) -> AksCloud:
        return await self._stack.enter_async_context(
            connect_aks(
                self.settings,
                clock=self.clock,
                instance_types=[VmSize(name, SIZES[name].gpus) for name in TYPES],
                credential=self.arm.credential(),
                transport=_Wire(self),
            )
        )

    def truth(self) -> Sequence[Existing]:
        return [
            Existing(
                pool.name,
                pool.tags.get("kaito.sh_claim-uid", ""),
                next((vm.provider_id for vm in pool.vms), ""),
            )
            for pool in self.arm.pools().values()
        ]

    @property
    def calls(self) -> int:
        return self._calls

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def fail(self, fault: Fault, *, nth: int = 1) -> None:
        self._planned[self._calls + nth] = fault

    def shortage(self, offering: Offering, what: Shortage | None, *, late: bool = False) -> None:
        size = SIZES[offering.instance_type]
        if what == "capacity" and not late:
            raise NotApplicable("AKS finds out that there is no capacity only while it makes the machine")
        self.arm.capacity.lift(size.name)
        self.arm.quota.families.pop(size.family, None)
        if what == "capacity":
            self.arm.capacity.limit(size.name, 0)
        elif what == "quota":
            # The sizes of one family share a quota: what is in use of it, and no more.
            used = sum(vm.size.cores for vm in self.arm.vms() if vm.size.family == size.family)
            self.arm.quota.families[size.family] = used
            self.arm.quota.checked = "operation" if late else "request"

    def lag(self, seconds: float) -> None:
        self.arm.api.read_lag = seconds

    async def foreign(self, name: str) -> None:
        self.arm.add_pool(name, "Standard_D2s_v5")

    # -- the wire ------------------------------------------------------------------------------------------------

    def strike(self) -> Fault | None:
        """The fault of the request that is being made."""
        self._calls += 1
        return self._planned.pop(self._calls, None)

    async def answer(self, request: Request, fault: Fault | None) -> Answer:
        """What comes back, with *fault* done to it."""
        match fault:
            case None:
                return await self.arm.handle(request)
            case Fault.DROPPED:
                raise Dropped
            case Fault.THROTTLED:
                return Answer.of(throttled(int(RETRY_AFTER)))
            case Fault.FORBIDDEN:
                return Answer.of(turned_away(403, "AuthorizationFailed", "The client may not do that."))
            case Fault.ERROR:
                return Answer.of(turned_away(500, "InternalServerError", "Something went wrong."))
        answer = await self.arm.handle(request)
        match fault:
            case Fault.LOST:
                raise Dropped
            case Fault.LATE_ERROR:
                return Answer.of(turned_away(504, "GatewayTimeout", "The backend did not answer in time."))
            case Fault.SLOW:
                await asyncio.sleep(SLOW)
        return answer


class _Wire(LocalArmTransport):
    def __init__(self, bench: AksBench) -> None:
        self._bench = bench
        self._faults: dict[str, Fault | None] = {}
        """Of the requests under way, by the client's id."""
        super().__init__(self._pass)

    async def send(self, request: HttpRequest, **kwargs: Any) -> AsyncHttpResponse:
        fault = self._bench.strike()
        if fault is Fault.UNREACHABLE:
            key = ConnectionKey("management.azure.com", 443, True, True, None, None, None)
            lost = ClientConnectorError(key, OSError("no route"))
            raise ServiceRequestError(lost, error=lost) from lost
        name = request.headers[_ID]
        self._faults[name] = fault
        try:
            return await super().send(request, **kwargs)
        finally:
            del self._faults[name]

    async def _pass(self, request: Request) -> Answer:
        name = request.headers[_ID]
        fault = self._faults[name]
        if fault is Fault.LOST:
            # The HTTP library sends it once more by itself, and is not to get through.
            self._faults[name] = Fault.DROPPED
        return await self._bench.answer(request, fault)


@asynccontextmanager
async def aks_bench(*, timings: Timings | None = None) -> AsyncIterator[AksBench]:
    """One account with one cluster, in virtual time."""
    clock = VirtualClock()
    async with AsyncExitStack() as stack:
        rng = random.Random(7)
        arm = await stack.enter_async_context(LocalArm(clock=clock, rng=rng, timings=timings))
        yield AksBench(arm, clock, await stack.enter_async_context(AsyncExitStack()))
