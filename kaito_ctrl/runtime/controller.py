"""A controller: one kind, what wakes it, and the reconciler that brings one object where it should be.

Subclass :class:`Controller`, declare the wiring as class data, write ``reconcile``::

    class MirrorController(Controller[Mirror]):
        name = "mirror"
        kind = Mirror
        sources = (owns(ConfigMap),)

        async def reconcile(self, mirror: Mirror, ctx: Context) -> Result:
            await ctx.client.apply(wanted(mirror), owner=mirror)
            return Result.done()

Promises: a key is never in two reconciles at once; no wake-up is lost; a reconcile never sees a cache older than the
process's own writes; a failure is retried with back-off and never ends the controller; cancellation is no failure.

:mod:`kaito_ctrl.runtime.worker` keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from kaito_api.meta import Resource
from kaito_ctrl.runtime.cache import Reader
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.codec import Header
from kaito_ctrl.runtime.errors import DecodeError
from kaito_ctrl.runtime.events import DISCARD, EventSink
from kaito_ctrl.runtime.member import Member
from kaito_ctrl.runtime.meta import ObjectKey
from kaito_ctrl.runtime.queue import RetryPolicy
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.source import Owned, Predicate, Source
from kaito_ctrl.runtime.store import Entry, Indexer

__all__ = ["Context", "Controller", "Result"]

R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Result:
    """What a reconcile that did not fail says about its next call."""

    after: float | None = None
    """Seconds until the next call; ``None``: when something changes."""
    backoff: bool = False
    """Come back with back-off, as after a failure, but without being one."""

    @staticmethod
    def done() -> Result:
        """Nothing more to do until something changes."""
        return _DONE

    @staticmethod
    def retry_in(seconds: float) -> Result:
        """Look again in *seconds*, or earlier if something changes."""
        return Result(after=seconds)

    @staticmethod
    def soon() -> Result:
        """Look again with back-off."""
        return Result(backoff=True)


_DONE = Result()


@dataclass(frozen=True, slots=True)
class Context:
    """What a reconcile works with. Its client writes under the controller's name."""

    key: ObjectKey
    attempt: int
    """How many calls for this key have failed in a row before this one."""
    client: Client
    cache: Reader
    clock: Clock
    log: Any
    events: EventSink = DISCARD
    """Tells ``kubectl describe`` what happened, in the controller's name."""
    members: Mapping[str, Member] = field(default_factory=dict)
    """The manager's extra clusters, by name; :meth:`cluster` enters one."""

    async def cluster(self, name: str) -> Member:
        """The extra cluster of that name, to be asked for in each reconcile anew.

        Raises ``ValueError`` when there is none, and ``ClusterUnavailable`` when what is known of it cannot be relied
        on for now: a reconcile that concerns others as well goes on with them, and comes back.
        """
        if name not in self.members:
            raise ValueError(f"no cluster is called {name!r}; this manager has: {', '.join(self.members) or 'none'}")
        member = self.members[name]
        await member.enter()
        return member

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        return self.clock.now()

    def check_leading(self) -> None:
        """To be called right before anything is changed outside of the cluster; the client's writes check by
        themselves. Raises ``LeaseLost`` when somebody else may lead: the reconcile then simply ends."""
        if self.client.fence is not None:
            self.client.fence.check()


class Controller(Generic[R]):
    """Base of all controllers; see the module's docstring. Instances are used by one manager."""

    name: str
    kind: type[R]
    sources: tuple[Source | Owned, ...] = ()
    needs_leader: ClassVar[bool] = True
    """Off for a controller that every replica runs, whoever leads."""
    workers: ClassVar[int] = 4
    """Reconciles at once; each is of another key."""
    timeout: ClassVar[float | None] = 300.0
    """Seconds for one reconcile."""
    finalizer: ClassVar[str | None] = None
    """If set, it is put on every object before ``reconcile``, and taken off when ``cleanup`` is done."""
    retry: ClassVar[RetryPolicy] = RetryPolicy()
    when: ClassVar[Predicate | None] = None
    """Which changes of the objects themselves matter; that one is being deleted, or gone, always does."""
    scope: ClassVar[Scope | None] = None
    indexes: Mapping[str, Indexer[Any]] = {}

    def concerns(self, entry: Entry[R]) -> bool:
        """Whether an object is this controller's at all. Whatever is not, maybe because somebody else has the same
        finalizer on it, is left alone: it gets none, and is neither reconciled nor cleaned up after.

        Asked before anything is done about *entry*, of whatever version it is, and also of one that does not fit its
        model; to be answered by what the object says, which may change.
        """
        return True

    async def reconcile(self, obj: R, ctx: Context) -> Result:
        """Bring *obj* one step closer to what its spec says. Called again and again; must be idempotent."""
        raise NotImplementedError

    async def cleanup(self, obj: R, ctx: Context) -> Result:
        """Undo everything outside the cluster, and whatever garbage collection will not; *obj* was just read live.

        ``Result.done()`` says that nothing is left: the finalizer then comes off.
        """
        raise NotImplementedError

    async def abandon(self, header: Header, ctx: Context) -> Result:
        """Like :meth:`cleanup`, for an object that does not fit its model: only its header is known, and its bytes
        (``ctx.cache.store(self.kind).entry(ctx.key)``). The result means the same.

        By default, and whenever it raises ``DecodeError``, the finalizer stays on until the object changes.
        """
        raise DecodeError(
            f"{self.kind.kind} {ctx.key} is being deleted and does not fit its model, so that {self.name} cannot "
            f"clean up after it; its finalizer {self.finalizer} stays"
        )

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        """The object has left the cache. For letting go of what the process holds; by default nothing."""

    def bound_sources(self) -> tuple[Source, ...]:
        """The sources with ``owns`` completed by this controller's kind."""
        return tuple(each.bind(self.kind) if isinstance(each, Owned) else each for each in self.sources)
