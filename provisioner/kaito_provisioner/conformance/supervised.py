"""A provider, asked under supervision: what it answers, raises and how long it takes is held against the protocol."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from kaito_provisioner.cloud import (
    ClaimRef,
    CloudError,
    CloudProvider,
    Instance,
    InstanceType,
    LaunchRequest,
    NotFound,
    OfferingError,
)
from kaito_provisioner.conformance.bench import Bench
from kaito_provisioner.conformance.case import Violation, require

__all__ = ["Supervised", "start"]

T = TypeVar("T")
_LIMIT = 45.0
"""Seconds, by the loop's clock, that a call may take: more than a slow answer, less than a throttling cloud asks for,
and less than an instance takes to boot on any bench."""
_REASON = re.compile(r"[A-Z][A-Za-z]{2,63}")
_LONGEST_OPERATION = 4096
_LONGEST_MESSAGE = 1024


async def start(bench: Bench) -> Supervised:
    """The provider of a process that has just started."""
    return Supervised(await bench.provider())


class Supervised:
    """Has the methods of ``CloudProvider``. Raises what the provider raises if it may, else :class:`Violation`."""

    def __init__(self, provider: CloudProvider) -> None:
        self.provider = provider

    async def create(self, request: LaunchRequest) -> Instance:
        what = f"create({request.name})"
        try:
            made = _sound(await self._ask(what, self.provider.create(request)), what)
        except NotFound as error:
            raise Violation(f"{what} raised NotFound: {error}") from error
        require(
            made.claim_uid == request.uid,
            f"{what} answered with the instance of claim uid {made.claim_uid or '(none)'}",
        )
        return made

    async def find(self, claim: ClaimRef) -> Instance:
        what = f"find({claim.name})"
        found = _sound(await self._ask(what, self.provider.find(claim)), what)
        require(
            found.claim_uid == claim.uid,
            f"{what} answered with the instance of claim uid {found.claim_uid or '(none)'}",
        )
        return found

    async def get(self, provider_id: str) -> Instance:
        what = f"get({provider_id})"
        return _sound(await self._ask(what, self.provider.get(provider_id)), what)

    async def list(self) -> Sequence[Instance]:
        listed = await self._ask("list()", self.provider.list())
        uids = [_sound(each, "list()").claim_uid for each in listed]
        require(len(set(uids)) == len(uids), f"list() shows an instance twice: {sorted(uids)}")
        return listed

    async def delete(self, instance: Instance) -> Instance:
        what = f"delete({instance.name})"
        going = _sound(await self._ask(what, self.provider.delete(instance)), what)
        require(
            going.claim_uid == instance.claim_uid, f"{what} answered with the instance of claim uid {going.claim_uid}"
        )
        return going

    async def instance_types(self) -> Sequence[InstanceType]:
        return await self._ask("instance_types()", self.provider.instance_types())

    async def _ask(self, what: str, call: Awaitable[T]) -> T:
        watch = asyncio.timeout(_LIMIT)
        try:
            async with watch:
                return await call
        except CloudError as error:
            _check(error, what)
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Violation(f"{what} was cancelled, and nobody cancelled it: another call was, it seems") from error
        except Exception as error:
            if watch.expired():
                raise Violation(
                    f"{what} had not answered after {_LIMIT:g} s: a call waits for the answers to its requests, for "
                    "nothing else; say Creating, or Throttled, and be asked again"
                ) from error
            raise Violation(f"{what} raised {type(error).__name__}, which is no CloudError: {error}") from error


def _sound(instance: Instance, what: str) -> Instance:
    """Whether the instance makes sense by itself."""
    require(
        instance.name and instance.claim_uid, f"{what} answered with an instance without name or claim uid: {instance}"
    )
    require(instance.instance_type, f"{what} answered with an instance without a type: {instance}")
    require(
        len(instance.operation.encode()) <= _LONGEST_OPERATION,
        f"{what} answered with an operation of {len(instance.operation.encode())} bytes: it is kept in an annotation, "
        f"and may have {_LONGEST_OPERATION}",
    )
    if instance.state == "Failed":
        require(instance.error is not None, f"{what} answered with a Failed instance that does not say why")
    if instance.error is not None:
        _check(instance.error, f"{what}, in the instance's error,")
    if instance.state == "Running":
        require(
            instance.provider_id or instance.node_labels,
            f"{what} answered with a Running instance whose node nobody can find: neither provider id nor node labels",
        )
    if instance.created is not None:
        require(instance.created.tzinfo, f"{what} answered with a time of creation without a time zone")
    return instance


def _check(error: CloudError, what: str) -> None:
    """Whether a person and a controller can do something with the error."""
    kind = type(error).__name__
    require(
        _REASON.fullmatch(error.reason), f"{what} raised {kind} with the reason {error.reason!r}: one CamelCase word"
    )
    require(error.message.strip(), f"{what} raised {kind} without a message")
    require(
        len(error.message) <= _LONGEST_MESSAGE and "\n" not in error.message,
        f"{what} raised {kind} with a message that no condition can show, of {len(error.message)} characters and "
        f"{error.message.count(chr(10)) + 1} lines: {error.message[:100]!r}",
    )
    require(error.retry_after is None or error.retry_after >= 0, f"{what} raised {kind} for {error.retry_after} s")
    if not isinstance(error, NotFound):
        require(error.fix.strip(), f"{what} raised {kind} without saying what to do next: {error.message}")
    if isinstance(error, OfferingError):
        require(
            error.offering is not None, f"{what} raised {kind} without the offering that it is about: {error.message}"
        )
