"""The shared cache of one cluster: a watched store per declared kind, and one reader over them.

Kinds are declared before the cache runs; reading another one raises ``NotCached`` instead of quietly starting a
watch of the whole cluster. Reads are plain function calls: there is no await between two of them, so what one pass
of a reconciler reads belongs together. The cache hears of the process's own writes and live reads (it is the client's
``Observer``), so what is read here is never older than what they have shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

from kaito_api.meta import Resource
from kaito_ctrl.runtime.cachemetrics import Census, KindSeries
from kaito_ctrl.runtime.client import Client
from kaito_ctrl.runtime.errors import (
    ApiError,
    CacheSyncTimeout,
    KubeError,
    NotCached,
    NotFound,
    TooManyRequests,
    TransportError,
    Unauthorized,
)
from kaito_ctrl.runtime.lifetime import Lifetime
from kaito_ctrl.runtime.logs import logger
from kaito_ctrl.runtime.meta import ObjectKey, address
from kaito_ctrl.runtime.metrics import Metrics
from kaito_ctrl.runtime.scope import Scope
from kaito_ctrl.runtime.store import Doubt, Indexer, Store
from kaito_ctrl.runtime.watch import Reflector
from kaito_ctrl.runtime.watchstate import State, Waiting

__all__ = ["Cache", "Reader"]

R = TypeVar("R", bound=Resource)


class Reader:
    """What reconcilers see of the cache."""

    def __init__(self, store_of: Callable[[type[Resource]], Store[Any]]) -> None:
        self._store_of = store_of

    def get(self, kind: type[R], name: str, namespace: str | None = None) -> R | None:
        """The object, or ``None``.

        Raises ``NotCached`` for an undeclared kind, ``DecodeError`` for a misfit, and ``ValueError`` for a namespaced
        kind without a namespace.
        """
        return self.store(kind).get(address(kind, name, namespace))

    def list(
        self,
        kind: type[R],
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        owner: Resource | None = None,
        index: tuple[str, str] | None = None,
    ) -> tuple[R, ...]:
        """Objects by namespace, labels, owner (by uid) and declared index, all of which must hold; ordered by key."""
        return self.store(kind).select(
            namespace=namespace if kind.namespaced else None,
            labels=labels,
            owner_uid=owner.uid if owner is not None else None,
            index=index,
        )

    def store(self, kind: type[R]) -> Store[R]:
        """The store of *kind* itself. Raises ``NotCached``."""
        return cast("Store[R]", self._store_of(kind))


class Cache(Reader):
    """Stores and the watches that feed them."""

    def __init__(
        self,
        client: Client,
        *,
        rng: Any,
        streaming: bool = True,
        sync_timeout: float = 120.0,
        metrics: Metrics | None = None,
        cluster: str = "",
    ) -> None:
        super().__init__(self._declared)
        self._client = client
        self._rng = rng
        self._streaming = streaming
        self._sync_timeout = sync_timeout
        self._cluster = cluster
        self._series = metrics.caches if metrics is not None else None
        self._kinds: dict[type[Resource], KindSeries] = {}
        self._clock: Callable[[], float] | None = None
        self._stores: dict[type[Resource], Store[Any]] = {}
        self._scopes: dict[type[Resource], Scope] = {}
        """Of the kinds for which somebody has given one."""
        self._settling: dict[type[Resource], asyncio.Lock] = {}
        self._running = False
        if self._series is not None:
            self._series.add(self)
        self._log = logger()
        self.reflectors: dict[type[Resource], tuple[Reflector, ...]] = {}
        """Of each kind, one for each namespace that is watched by itself."""

    def declare(
        self,
        kind: type[R],
        *,
        scope: Scope | None = None,
        indexes: Mapping[str, Indexer[R]] | None = None,
    ) -> Store[R]:
        """Have *kind* watched; without a *scope*, as others declare it, or else all of it.

        Raises ``RuntimeError`` once the cache runs, and ``ValueError`` for two scopes of one kind that differ.
        """
        store = self._stores.get(kind)
        known = self._scopes.get(kind, scope)
        if scope != known and scope is not None:
            raise ValueError(
                f"{kind.kind} is declared with two scopes, and is cached once: {known} and {scope}; declare it with "
                "the same scope everywhere, or in one place only"
            )
        if self._running and (store is None or (scope is not None and scope != store.scope)):
            raise RuntimeError(f"{kind.kind} must be declared before the cache runs")
        if store is None:
            store = self._stores[kind] = Store(kind)
            if self._series is not None:
                self._kinds[kind] = self._series.kind(kind.kind, self._cluster)
        if scope is not None:
            self._scopes[kind] = scope
            store.limit(scope)
        for name, indexer in (indexes or {}).items():
            store.add_index(name, indexer)
        return cast("Store[R]", store)

    @property
    def kinds(self) -> tuple[type[Resource], ...]:
        """The declared kinds."""
        return tuple(self._stores)

    def census(self) -> Iterator[Census]:
        """What there is of each kind, for :mod:`kaito_ctrl.runtime.cachemetrics`."""
        for kind, store in self._stores.items():
            heard = [each.last_frame for each in self.reflectors.get(kind, ()) if each.last_frame is not None]
            age = self._clock() - min(heard) if heard and self._clock is not None else None
            yield Census(self._cluster, kind.kind, len(store), store.bytes, store.undecodable, store.unreadable, age)

    def unsynced(self) -> list[str]:
        """Which kinds have not been listed yet, each with what it waits for."""
        waiting = []
        for kind, store in self._stores.items():
            if not store.synced:
                states = [reflector.state for reflector in self.reflectors.get(kind, ())]
                reasons = {state.reason: None for state in states if isinstance(state, Waiting) and state.reason}
                waiting.append(f"{kind.plural} ({', '.join(reasons)})" if reasons else kind.plural)
        return waiting

    async def run(self, lifetime: Lifetime, *, required: bool = True) -> None:
        """Watch every declared kind until asked to stop; started once all of them are synced.

        Raises ``CacheSyncTimeout`` when a kind cannot be listed in time. Unless it is *required*: then it is started
        all the same, as soon as every kind that is not synced has failed to be listed once, and tries on.
        """
        self._running = True
        self._clock = asyncio.get_running_loop().time
        synced = asyncio.Event()

        def on_state(kind: type[Resource], state: State) -> None:
            if isinstance(state, Waiting):
                say = self._log.warning if state.suspended else self._log.info
                say("cannot list or watch", resource=kind.plural, group=kind.group, reason=state.reason)
            if all(store.synced or (not required and self._fails(each)) for each, store in self._stores.items()):
                synced.set()

        async def on_stop() -> None:
            await lifetime.wait_stopping()
            synced.set()

        if not self._stores:
            synced.set()
        watches: list[asyncio.Task[None]] = []
        late: CacheSyncTimeout | None = None
        async with asyncio.TaskGroup() as group:
            for kind, store in self._stores.items():
                self.reflectors[kind] = tuple(
                    Reflector(
                        self._client.transport,
                        kind,
                        feed,
                        scope=store.scope,
                        namespace=feed.namespace,
                        rng=self._rng,
                        streaming=self._streaming,
                        on_state=partial(on_state, kind),
                        metrics=self._kinds.get(kind),
                    )
                    for feed in store.feeds
                )
                watches += [
                    group.create_task(each.run(), name=f"watch/{kind.plural}/{each.namespace or ''}")
                    for each in self.reflectors[kind]
                ]
            # Whoever waits for a server that is away must be able to stop at once.
            stopping = group.create_task(on_stop(), name="cache/stopping")
            try:
                async with asyncio.timeout(self._sync_timeout):
                    await synced.wait()
            except TimeoutError:
                # After a pause the last answer and the end of the time come together: then all is well.
                if required and (waiting := self.unsynced()):
                    late = CacheSyncTimeout(
                        f"not listed after {self._sync_timeout:g} s: {', '.join(waiting)}; is the CRD installed, and "
                        "may this identity list and watch it?"
                    )
            if late is None:
                if not lifetime.is_stopping:
                    lifetime.started()
                await lifetime.wait_stopping()
            for task in (*watches, stopping):
                task.cancel()
        if late is not None:
            raise late  # here, for the group would wrap it

    # -- Observer --------------------------------------------------------------------------------------------------

    def reading(self, kind: type[Resource], key: ObjectKey) -> Callable[[bytes | None], None]:
        store = self._stores.get(kind)
        key = address(kind, key.name, key.namespace)
        if store is None or not store.scope.includes(kind, key):
            return _ignore
        return partial(store.settle, store.ask(key))

    def wrote(self, kind: type[Resource], key: ObjectKey, raw: bytes) -> None:
        store = self._stores.get(kind)
        if store is not None and store.scope.includes(kind, key):
            store.wrote(raw)

    def deleted(self, kind: type[Resource], key: ObjectKey, uid: str) -> None:
        store = self._stores.get(kind)
        if store is not None:
            store.deleted(key, uid)

    def uncertain(self, kind: type[Resource], key: ObjectKey) -> None:
        store = self._stores.get(kind)
        # An object whose name only the server knows cannot be looked up: the watch will tell.
        addressable = bool(key.name) and (bool(key.namespace) or not kind.namespaced)
        if store is not None and addressable and store.scope.includes(kind, key):
            store.doubt(key)

    async def settle(self, kinds: Collection[type[Resource]] | None = None) -> None:
        """Read live each key of *kinds* (by default all) whose last write had no answer, so that what follows decides
        on facts. Callers at the same time share one read.

        Raises what the client raises for the first key that cannot be read now; its doubt then stays, and the next
        pass tries again. A read that is refused for good ends the doubt: asking again would not help.
        """
        failures: list[KubeError] = []
        for kind in self._stores if kinds is None else kinds:
            store = self._stores.get(kind)
            if store is None or not store.uncertain():
                continue
            async with self._settling.setdefault(kind, asyncio.Lock()):
                for key in sorted(store.uncertain()):
                    try:
                        await self._look_up(kind, store.ask(key))
                    except TransportError as error:
                        failures.append(error)
                        break  # nobody answers: to ask for the others as well takes as long again for each
                    except KubeError as error:
                        failures.append(error)
        if failures:
            raise failures[0]

    async def _look_up(self, kind: type[Resource], doubt: Doubt[Any]) -> None:
        store = self._stores[kind]
        raw: bytes | None = None
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            raw = await self._client.get_raw(kind, doubt.key)
        except NotFound as error:
            if not error.of_object:
                raise
        except ApiError as error:
            if error.code >= 500 or isinstance(error, TooManyRequests | Unauthorized):
                raise
            self._log.warning(
                "cannot look up what became of a write", resource=kind.plural, key=str(doubt.key), error=str(error)
            )
            store.dismiss(doubt)
            return
        finally:
            if kind in self._kinds:
                self._kinds[kind].looked_up(clock() - began)
        store.settle(doubt, raw)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _fails(self, kind: type[Resource]) -> bool:
        """Whether an attempt to list *kind* has failed, and the next one has not succeeded."""
        states = (reflector.state for reflector in self.reflectors.get(kind, ()))
        return any(isinstance(state, Waiting) and state.reason for state in states)

    def _declared(self, kind: type[Resource]) -> Store[Any]:
        try:
            return self._stores[kind]
        except KeyError:
            known = ", ".join(sorted(each.kind for each in self._stores)) or "none"
            raise NotCached(
                f"{kind.kind} is not cached: declare it (owns, watches, reads) or read it live through the client; "
                f"declared: {known}"
            ) from None


def _ignore(_: bytes | None) -> None:
    """For what is not cached."""
