"""What can go wrong on purpose: with a request, or with the world behind it.

A request can be refused, be slow, be held until a test lets it go, or lose its connection, before it has had its effect
or after. The world can be slower than anybody has patience for, make machines that never join, or two for one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from kaito_provisioner.testing.errors import ArmError, Failure

__all__ = ["Call", "Dropped", "Fault", "Faults", "Mishap", "MishapKind"]

Call = Literal["put", "get", "list", "delete", "abort", "operation", "token", "other"]
"""The kinds of requests: of a pool ``put``, ``get``, ``delete`` and ``abort``; of all pools ``list``; of an operation's
status ``operation``; of an identity ``token``."""

MishapKind = Literal[
    "stuck-creating", "stuck-deleting", "fails", "no-node", "late-provider-id", "two-nodes", "dies", "no-gpu"
]


class Dropped(Exception):
    """The connection is gone, and with it the answer."""


@dataclass(slots=True, eq=False)
class Fault:
    """Strikes requests of one kind: the first *skip* of them pass, the next *times* do not."""

    effect: Literal["refuse", "drop", "slow", "hold"]
    call: str
    pool: str
    skip: int
    times: int
    after: bool
    """Whether the request has had its effect first."""
    resent: bool = False
    """Of a dropped connection: whether the client's HTTP library gets through when it sends the request again."""
    error: ArmError | None = None
    seconds: float = 0.0
    count: int = 0
    """How many requests it has struck."""
    struck: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it has struck since it was last cleared."""
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let go of what is held, and hold nothing more."""
        self._released.set()

    async def strike(self) -> None:
        """Do it. Raises :class:`Dropped` or the error that is the answer."""
        self.count += 1
        self.struck.set()
        match self.effect:
            case "refuse":
                assert self.error is not None
                raise self.error
            case "drop":
                raise Dropped
            case "slow":
                await asyncio.sleep(self.seconds)
            case "hold":
                await self._released.wait()


@dataclass(slots=True, eq=False)
class Mishap:
    """What is to befall a pool; the next *times* that match."""

    kind: MishapKind
    pool: str
    times: int
    seconds: float
    failure: Failure | None
    count: int = 0


class Faults:
    """What is to go wrong. Pools' names are matched as shell patterns."""

    def __init__(self) -> None:
        self.down = False
        """Nothing is answered at all: every connection is dropped before its request has any effect."""
        self.struck: Counter[str] = Counter()
        """How often what has had an effect."""
        self._faults: list[Fault] = []
        self._mishaps: list[Mishap] = []

    def refuse(
        self,
        status: int,
        code: str,
        message: str = "refused on purpose",
        *,
        on: Call | Literal["*"] = "*",
        pool: str = "*",
        skip: int = 0,
        times: int = 1,
        retry_after: int | None = None,
        wrapped: bool = False,
    ) -> Fault:
        """Answer with that error, to no effect; *retry_after* in seconds."""
        headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
        error = ArmError(status, code, message, wrapped, headers=headers)
        return self._add(Fault("refuse", on, pool, skip, times, after=False, error=error))

    def drop(
        self,
        *,
        on: Call | Literal["*"] = "*",
        pool: str = "*",
        skip: int = 0,
        times: int = 1,
        after: bool = True,
        resent: bool = False,
    ) -> Fault:
        """Drop the connection; *after* the request has had its effect, or before.

        Of a connection that is lost before there is an answer, aiohttp sends an idempotent request again by itself,
        once and at once, below all that the SDK says about retries. Only with *resent* does that one arrive, so that a
        PUT comes twice; else it is lost as well, and the SDK hears of it.
        """
        return self._add(Fault("drop", on, pool, skip, times, after, resent))

    def slow(
        self,
        seconds: float,
        *,
        on: Call | Literal["*"] = "*",
        pool: str = "*",
        skip: int = 0,
        times: int = 1,
        after: bool = False,
    ) -> Fault:
        """Take that long; *after* the request has had its effect, or before."""
        return self._add(Fault("slow", on, pool, skip, times, after, seconds=seconds))

    def hold(
        self, *, on: Call | Literal["*"] = "*", pool: str = "*", skip: int = 0, times: int = 1, after: bool = False
    ) -> Fault:
        """Neither answer nor end it until :meth:`Fault.release`: for ever, if that is never called."""
        return self._add(Fault("hold", on, pool, skip, times, after))

    def mishap(
        self,
        kind: MishapKind,
        *,
        pool: str = "*",
        times: int = 1,
        seconds: float = 0.0,
        failure: Failure | None = None,
    ) -> Mishap:
        """Have the next pool come to grief.

        ``stuck-creating``, ``stuck-deleting``: the operation never ends, unless it is aborted. ``fails``: the creation
        fails with *failure*. ``no-node``: the machine never joins. ``late-provider-id``, ``dies``: that many *seconds*
        after it has joined. ``two-nodes``: two machines where one was asked for. ``no-gpu``: its GPUs never appear.
        """
        found = Mishap(kind, pool, times, seconds, failure)
        self._mishaps.append(found)
        return found

    def clear(self) -> None:
        """Nothing more is to go wrong. What has befallen a pool already, stays; what is held is let go."""
        for fault in self._faults:
            fault.release()
        self._faults.clear()
        self._mishaps.clear()
        self.down = False

    def take(self, call: Call, pool: str) -> Fault | None:
        """The fault that strikes this request, which each fault that it matches is told of."""
        struck: Fault | None = None
        for fault in self._faults:
            if fault.call not in (call, "*") or not fnmatchcase(pool, fault.pool) or fault.times <= 0:
                continue
            if fault.skip > 0:
                fault.skip -= 1
            elif struck is None:
                fault.times -= 1
                self.struck[fault.effect] += 1
                struck = fault
        return struck

    def befalls(self, kind: MishapKind, pool: str) -> Mishap | None:
        """The mishap of that kind that is this pool's."""
        for mishap in self._mishaps:
            if mishap.kind == kind and mishap.times > 0 and fnmatchcase(pool, mishap.pool):
                mishap.times -= 1
                mishap.count += 1
                self.struck[kind] += 1
                return mishap
        return None

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault
