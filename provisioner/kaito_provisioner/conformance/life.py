"""A claim's life, played by the rules of the protocol alone, through faults and crashes.

Create until the instance runs; delete until there is none. Whoever cannot know whether an instance was made, because an
answer was lost, a process died or the cloud shows late what it did, asks again; and before it believes that there is
none it gives the cloud :data:`~kaito_provisioner.conformance.bench.CONSISTENT` seconds since the last creation. That is
all that a controller has to do for a backend that keeps the protocol to neither leak nor double anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

from kaito_provisioner.cloud import ClaimRef, CloudError, Instance, LaunchRequest, NotFound, Offering, OfferingError
from kaito_provisioner.conformance.bench import CONSISTENT, Bench
from kaito_provisioner.conformance.case import Violation, require
from kaito_provisioner.conformance.claims import exactly_one, none_left, of
from kaito_provisioner.conformance.supervised import Supervised, start

__all__ = ["Life"]

T = TypeVar("T")
_PATIENCE = 12 * 3600.0
"""Seconds after which a claim that still waits waits for ever."""
_FIRST, _LONGEST = 5.0, 60.0
"""Seconds between two looks: at first, and at last."""


class _Crash(Exception):
    """The process is gone, and with it what it had not written down."""


class Life:
    """One claim's. :meth:`bring_up` and :meth:`take_down` raise ``Violation`` where the end is not reached."""

    def __init__(
        self,
        bench: Bench,
        request: LaunchRequest,
        *,
        process: Supervised | None = None,
        crash_on_error: bool = False,
        crash_after: Collection[int] = (),
    ) -> None:
        """It begins in *process*, or in one that has just started. The process dies at the first error of the cloud, if
        *crash_on_error*; and after each of the steps *crash_after*, counted from 1, before it has written down what it
        learned."""
        self.bench = bench
        self.request = self._asked_for = request
        self.steps = 0
        """Calls of the provider's methods so far."""
        self.operation = ""
        """What is written down in the cluster. It survives crashes, as the next one does."""
        self._asked_at: float | None = None
        self._now = 0.0
        """Seconds that this life has lasted."""
        self._pause = _FIRST
        self._seen: Instance | None = None
        self._process = process
        self.crash_on_error = crash_on_error
        self._crash_after = frozenset(crash_after)

    async def bring_up(self, *, steps: int | None = None) -> Instance | None:
        """Until the instance runs, or after that many *steps*: then ``None``."""
        self._pause = _FIRST
        offerings = self._asked_for.offerings
        while steps is None or self.steps < steps:
            try:
                instance = await self._look()
            except _Crash:
                continue
            except NotFound:
                self._seen = None
                await self._wait()
                continue
            except OfferingError as error:
                # Another one may be had; when all were refused, again from the first.
                self.request = _next(self.request, offerings)
                await self._wait(error)
                continue
            except CloudError as error:
                require(error.retryable, f"{type(error).__name__} ends what nothing is wrong with: {error.message}")
                await self._wait(error)
                continue
            exactly_one(self.bench, self.request, f"{self._now:.0f} s after the claim")
            if instance.state == "Running":
                return instance
            if instance.state == "Failed":
                await self.take_down()
                self.request = _next(self.request, offerings)
            await self._wait()
        return None

    async def take_down(self) -> None:
        """Until nothing exists for the claim any more."""
        self._pause = _FIRST
        while True:
            try:
                if self._seen is None:
                    self._keep(await self._step(lambda process: process.find(self._ref())))
                self._keep(await self._step(self._delete))
            except _Crash:
                continue
            except NotFound:
                self._seen = None
                if self._asked_at is None or self._asked_at + CONSISTENT <= self._now:
                    break
                # Once more, when the cloud has had the time to show what it was asked for last.
                await self._pass(self._asked_at + CONSISTENT - self._now)
                self._asked_at = None
                continue
            except CloudError as error:
                require(error.retryable, f"{type(error).__name__} ends a deletion: {error.message}")
                await self._wait(error)
                continue
            await self._wait()
        none_left(self.bench, self.request, "after the cloud has said that there is no instance")
        self.operation = ""

    async def settle(self) -> None:
        """Whatever the cloud still had in mind has happened: nothing may have come of it."""
        await self._pass(CONSISTENT)
        none_left(self.bench, self.request, f"{CONSISTENT:g} s after the end")
        while True:
            try:
                listed = await self._step(lambda process: process.list())
                break
            except _Crash:
                continue
            except CloudError as error:
                await self._wait(error)
        shown = [each for each in listed if each.claim_uid == self.request.uid]
        require(not shown, f"{CONSISTENT:g} s after the end list() still shows the instance: {shown}")

    # -- inside --------------------------------------------------------------------------------------------------

    async def _look(self) -> Instance:
        if self._seen is None:
            self._asked_at = self._now
            return self._keep(await self._step(lambda process: process.create(self.request)))
        return self._keep(await self._step(lambda process: process.find(self._ref())))

    async def _delete(self, process: Supervised) -> Instance:
        assert self._seen is not None
        return await process.delete(self._seen)

    def _ref(self) -> ClaimRef:
        provider_id = self._seen.provider_id if self._seen is not None else ""
        return ClaimRef(self.request.name, self.request.uid, provider_id, self.operation)

    def _keep(self, instance: Instance) -> Instance:
        self._seen = instance
        self.operation = instance.operation
        return instance

    async def _step(self, call: Callable[[Supervised], Awaitable[T]]) -> T:
        if self._process is None:
            self._process = await start(self.bench)
        self.steps += 1
        try:
            answer = await call(self._process)
        except CloudError as error:
            if self.crash_on_error and not isinstance(error, NotFound):
                self.crash_on_error = False
                raise self._crash() from error
            if self.steps in self._crash_after:
                raise self._crash() from error
            raise
        finally:
            found = of(self.bench, self.request.uid)
            if len(found) > 1:
                raise Violation(f"{len(found)} instances exist for claim {self.request.name}: {found}")
        if self.steps in self._crash_after:
            raise self._crash()
        return answer

    def _crash(self) -> _Crash:
        self._process = self._seen = None
        self.request = self._asked_for
        return _Crash()

    async def _wait(self, error: CloudError | None = None) -> None:
        wait = max(self._pause, (error.retry_after or 0.0) if error is not None else 0.0)
        self._pause = min(_LONGEST, 2 * self._pause)
        await self._pass(wait)
        require(
            self._now <= _PATIENCE,
            f"claim {self.request.name} still waits after {_PATIENCE / 3600:g} h"
            + (f": {type(error).__name__}: {error.message}" if error is not None else f", for {self._seen}"),
        )

    async def _pass(self, seconds: float) -> None:
        self._now += seconds
        await self.bench.elapse(seconds)


def _next(request: LaunchRequest, offerings: Sequence[Offering]) -> LaunchRequest:
    """*request* without its first offering; of all *offerings* again, if that was the last."""
    rest = tuple(request.offerings[1:] or offerings)
    return replace(request, offerings=rest, instance_types=tuple(dict.fromkeys(each.instance_type for each in rest)))
