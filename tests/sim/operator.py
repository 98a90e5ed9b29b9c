"""A small operator that uses everything the runtime has: the subject of the runtime's simulated lives.

A Widget wants so many parts (ConfigMaps with names of their own making), one ticket (whose name nobody can foresee)
and something outside the cluster, which a finalizer gives back. What its parts say depends on its Tier. A Tier counts
its widgets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Protocol

from kaito_api.core import ConfigMap
from kaito_api.meta import Model, ObjectMeta, Resource
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Reader, Result, owns, watches
from kaito_ctrl.runtime.errors import AlreadyExists, NotFound

__all__ = ["CRDS", "Book", "Outside", "Ticket", "Tier", "TierController", "Widget", "WidgetController", "part_name"]


class WidgetSpec(Model):
    size: int = 0
    tier: str = ""
    poll: bool = False


class WidgetStatus(Model):
    ready: int = 0
    price: int = 0
    observed_generation: int = 0


class Widget(Resource):
    group, version, kind, plural = "sim.example", "v1", "Widget", "widgets"
    spec: WidgetSpec = WidgetSpec()
    status: WidgetStatus = WidgetStatus()


class TierSpec(Model):
    price: int = 0


class TierStatus(Model):
    users: int = 0


class Tier(Resource):
    group, version, kind, plural = "sim.example", "v1", "Tier", "tiers"
    namespaced = False
    spec: TierSpec = TierSpec()
    status: TierStatus = TierStatus()


class TicketSpec(Model):
    maker: str = ""
    """Which run of which process has made it."""


class Ticket(Resource):
    group, version, kind, plural = "sim.example", "v1", "Ticket", "tickets"
    spec: TicketSpec = TicketSpec()


def _crd(kind: type[Resource], spec: Mapping[str, str], status: Mapping[str, str]) -> dict[str, Any]:
    def fields(types: Mapping[str, str]) -> dict[str, Any]:
        return {"type": "object", "properties": {name: {"type": kind} for name, kind in types.items()}}

    schema = {"type": "object", "properties": {"spec": fields(spec), "status": fields(status)}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
            },
            "versions": [{**version, "subresources": {"status": {}}}],
        },
    }


CRDS = (
    _crd(
        Widget,
        {"size": "integer", "tier": "string", "poll": "boolean"},
        {"ready": "integer", "price": "integer", "observedGeneration": "integer"},
    ),
    _crd(Tier, {"price": "integer"}, {"users": "integer"}),
    _crd(Ticket, {"maker": "string"}, {}),
)


class Outside:
    """What is not in the cluster: one allocation for each widget, by uid. Giving one back takes a moment."""

    def __init__(self) -> None:
        self.held: dict[str, float] = {}
        """When each was asked back; infinity: it was not."""

    def take(self, uid: str) -> None:
        self.held.setdefault(uid, float("inf"))

    def give_back(self, uid: str, now: float) -> bool:
        """Whether it is gone; to be called again."""
        if uid not in self.held:
            return True
        self.held[uid] = min(self.held[uid], now + 2.0)
        if self.held[uid] > now:
            return False
        del self.held[uid]
        return True


Seen = Mapping[tuple[str, ObjectKey], str]
"""Versions of objects, by plural and key."""


class Book(Protocol):
    """Where a process writes down what its reconcilers do."""

    def begins(self, controller: str, key: ObjectKey, seen: Seen) -> None: ...
    def ends(self, controller: str, key: ObjectKey, after: float | None) -> None: ...
    def gone(self, controller: str, key: ObjectKey) -> None: ...


def part_name(widget: Widget, index: int) -> str:
    return f"{widget.name}-{widget.uid[:8]}-{index}"


def by_tier(widget: Widget) -> tuple[str, ...]:
    return (widget.spec.tier,)


def _widgets_of(tier: Tier, cache: Reader) -> list[ObjectKey]:
    return [ObjectKey(w.namespace or "", w.name) for w in cache.list(Widget, index=("tier", tier.name))]


def _tier_of(widget: Widget, _: Reader) -> tuple[ObjectKey, ...]:
    return (ObjectKey("", widget.spec.tier),)


def _version(ctx: Context, kind: type[Resource], key: ObjectKey) -> dict[tuple[str, ObjectKey], str]:
    entry = ctx.cache.store(kind).entry(key)
    return {(kind.plural, key): entry.version} if entry is not None else {}


class _Noted:
    """Notes the beginning and the end of each reconcile, whatever comes of it."""

    name: ClassVar[str]

    def __init__(self, book: Book) -> None:
        self.book = book

    @contextmanager
    def noting(self, ctx: Context, seen: Seen) -> Iterator[list[float | None]]:
        after: list[float | None] = [None]
        self.book.begins(self.name, ctx.key, seen)
        try:
            yield after
        finally:
            self.book.ends(self.name, ctx.key, after[0])


class WidgetController(_Noted, Controller[Widget]):
    name = "widget"
    kind = Widget
    finalizer = "sim.example/outside"
    sources = (owns(ConfigMap), owns(Ticket), watches(Tier, _widgets_of))
    indexes: ClassVar = {"tier": by_tier}
    workers = 2
    timeout = 60.0

    def __init__(self, book: Book, outside: Outside, maker: str, rng: random.Random) -> None:
        super().__init__(book)
        self._outside = outside
        self._maker = maker
        self._rng = rng

    async def reconcile(self, obj: Widget, ctx: Context) -> Result:
        with self.noting(ctx, self._seen(obj.uid, obj.spec.tier, ctx)) as after:
            # Children of an owner that is gone would be collected at once, and wake us to make them again.
            result = await self._step(obj, ctx) if await self._take(obj, ctx) else Result.done()
            after[0] = result.after
            return result

    async def cleanup(self, obj: Widget, ctx: Context) -> Result:
        with self.noting(ctx, self._seen(obj.uid, obj.spec.tier, ctx)) as after:
            given = self._outside.give_back(obj.uid, ctx.clock.monotonic())
            result = Result.done() if given else Result.retry_in(1.0)
            after[0] = result.after
            return result

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        self.book.gone(self.name, key)

    async def _take(self, widget: Widget, ctx: Context) -> bool:
        """What no server refuses needs more care than a write: after a restart the cache may show what is long gone,
        and whoever has stood still may lead no more."""
        if widget.uid in self._outside.held:
            return True
        live = await ctx.client.get(Widget, widget.name, widget.namespace)
        ctx.check_leading()
        if live.uid != widget.uid or live.deleting:
            return False  # the watch will say so, and wake us
        self._outside.take(widget.uid)
        return True

    def _seen(self, uid: str, tier: str, ctx: Context) -> Seen:
        seen = _version(ctx, Widget, ctx.key) | _version(ctx, Tier, ObjectKey("", tier))
        for kind in (ConfigMap, Ticket):
            store = ctx.cache.store(kind)
            for entry in store.entries():
                if uid in entry.owners:
                    seen[kind.plural, entry.key] = entry.version
        return seen

    async def _step(self, widget: Widget, ctx: Context) -> Result:
        client, namespace = ctx.client, widget.namespace
        tier = ctx.cache.get(Tier, widget.spec.tier)
        price = tier.spec.price if tier is not None else 0
        data = {"price": str(price)}
        present = {part.name: part for part in ctx.cache.list(ConfigMap, namespace, owner=widget)}
        wanted = [part_name(widget, index) for index in range(widget.spec.size)]
        for name in wanted:
            if name not in present or present[name].data != data:
                part = ConfigMap(metadata=ObjectMeta(name=name, namespace=namespace), data=data)
                await client.apply(part, owner=widget)
        for name, part in present.items():
            if name not in wanted and not part.deleting:
                with suppress(NotFound):
                    await client.delete(ConfigMap, ctx.key._replace(name=name), uid=part.uid)
        await self._one_ticket(widget, ctx)
        status = {"ready": len(wanted), "price": price, "observedGeneration": widget.metadata.generation}
        if widget.status.model_dump(by_alias=True) != status:
            await client.patch(Widget, ctx.key, {"status": status}, subresource="status")
        return Result.retry_in(20.0) if widget.spec.poll else Result.done()

    async def _one_ticket(self, widget: Widget, ctx: Context) -> None:
        """Told from the cache alone: a cache that is older than our own writes would have us make another one."""
        tickets = [ticket for ticket in ctx.cache.list(Ticket, owner=widget) if not ticket.deleting]
        if not tickets:
            name = f"{widget.name}-{self._rng.getrandbits(48):012x}"
            owner = (widget.owner_reference(),)
            meta = ObjectMeta(name=name, namespace=widget.namespace, owner_references=owner)
            with suppress(AlreadyExists):
                await ctx.client.create(Ticket(metadata=meta, spec=TicketSpec(maker=self._maker)))
        for ticket in tickets[1:]:
            with suppress(NotFound):
                await ctx.client.delete(Ticket, ObjectKey(widget.namespace or "", ticket.name), uid=ticket.uid)


class TierController(_Noted, Controller[Tier]):
    name = "tier"
    kind = Tier
    sources = (watches(Widget, _tier_of, indexes={"tier": by_tier}),)
    workers = 1

    async def reconcile(self, obj: Tier, ctx: Context) -> Result:
        widgets = ctx.cache.list(Widget, index=("tier", obj.name))
        seen = _version(ctx, Tier, ctx.key)
        for widget in widgets:
            seen |= _version(ctx, Widget, ObjectKey(widget.namespace or "", widget.name))
        with self.noting(ctx, seen):
            if obj.status.users != len(widgets):
                await ctx.client.patch(Tier, ctx.key, {"status": {"users": len(widgets)}}, subresource="status")
            return Result.done()

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        self.book.gone(self.name, key)
