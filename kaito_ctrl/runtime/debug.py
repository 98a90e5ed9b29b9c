"""``/debug/controllers``: what every controller is doing, for whoever wonders why nothing happens.

The page is JSON, or with ``?pretty`` text for people: what each queue holds, which reconciles run, since when and where
in the code they wait, why keys fail, how far each cache is, who leads. ``?limit=`` says how many keys of one queue are
listed (the counts are always of all). It is told to callers on the same machine only, as it names objects and code;
``kubectl port-forward`` and ``kubectl exec`` are such callers.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aiohttp import web

from kaito_ctrl.runtime.cache import Cache
from kaito_ctrl.runtime.codec import encode_json
from kaito_ctrl.runtime.leader import Elector
from kaito_ctrl.runtime.manager import Manager
from kaito_ctrl.runtime.serving import Page
from kaito_ctrl.runtime.stacks import stack_of
from kaito_ctrl.runtime.worker import Worker

__all__ = ["DEBUG_PATH", "debug_page", "snapshot"]

DEBUG_PATH = "/debug/controllers"
_LIMIT = 100


def debug_page(manager: Manager) -> Page:
    """The page about *manager*, for :meth:`~kaito_ctrl.runtime.serving.HttpServer.add_page`."""

    async def answer(request: web.Request) -> web.Response:
        if not (_is_local(request.remote or "") and _is_local(request.url.host or "")):
            raise web.HTTPForbidden(text="for callers on this machine only: use kubectl port-forward\n")
        limit = request.query.get("limit", str(_LIMIT))
        if not limit.isdecimal():
            raise web.HTTPBadRequest(text="limit must be a number\n")
        seen = snapshot(manager, limit=int(limit))
        if "pretty" in request.query:
            return web.Response(text="\n".join(_text(seen)) + "\n")
        return web.Response(body=encode_json(seen), content_type="application/json")

    return answer


def snapshot(manager: Manager, *, limit: int = _LIMIT) -> dict[str, Any]:
    """What the page says, as plain JSON; all times in seconds. Of one queue, *limit* keys are listed."""
    return {
        "ready": manager.ready,
        "leading": manager.leading,
        "lease": _lease(manager.elector) if manager.elector is not None else None,
        "controllers": [_controller(worker, limit) for worker in manager.workers],
        "caches": [
            each
            for name, cluster in {"": manager.cluster, **manager.clusters}.items()
            for each in _caches(name, cluster.cache)
        ],
    }


def _lease(elector: Elector) -> dict[str, Any]:
    return {
        "name": str(elector.key),
        "identity": elector.identity,
        "leads": elector.leads,
        "remaining": round(max(elector.fence.remaining(), 0.0), 3),
    }


def _controller(worker: Worker[Any], limit: int) -> dict[str, Any]:
    held = list(worker.queue.contents())
    now = worker.clock.monotonic()
    listed: list[dict[str, Any]] = []
    running: list[dict[str, Any]] = []
    for each in held:
        entry: dict[str, Any] = {"key": str(each.key), "age": round(each.age, 3), "failures": each.failures}
        if each.state == "working":
            task = worker.running.get(each.key)
            running.append({**entry, "again": each.again, "stack": stack_of(task) if task is not None else []})
        else:
            listed.append({**entry, "state": each.state, "priority": each.priority, "due": round(each.due, 3)})
    failing = sorted(worker.failing.items(), key=lambda item: item[1].last, reverse=True)
    return {
        "name": worker.name,
        "kind": worker.controller.kind.kind,
        "workers": worker.controller.workers,
        "ready": sum(each.state == "ready" for each in held),
        "delayed": sum(each.state == "delayed" for each in held),
        "running": running,
        "queue": listed[:limit],
        "failing": len(failing),
        "errors": [
            {
                "key": str(key),
                "error": failure.text,
                "times": failure.times,
                "since": round(now - failure.since, 3),
                "last": round(now - failure.last, 3),
            }
            for key, failure in failing[:limit]
        ],
    }


def _caches(cluster: str, cache: Cache) -> Iterator[dict[str, Any]]:
    now = asyncio.get_running_loop().time()
    for kind in cache.kinds:
        store = cache.store(kind)
        yield {
            "cluster": cluster,
            "resource": f"{kind.plural}.{kind.group}" if kind.group else kind.plural,
            "version": kind.version,
            "objects": len(store),
            "synced": store.synced,
            "undecodable": store.undecodable,
            "watches": [
                {
                    "namespace": each.namespace or "",
                    "state": type(each.state).__name__.lower(),
                    "reason": getattr(each.state, "reason", ""),
                    "resourceVersion": getattr(each.state, "version", ""),
                    "lastFrame": round(now - each.last_frame, 3) if each.last_frame is not None else None,
                }
                for each in cache.reflectors.get(kind, ())
            ],
        }


# -- for people ----------------------------------------------------------------------------------------------------


def _text(seen: Mapping[str, Any]) -> Iterator[str]:
    lease = seen["lease"]
    yield f"ready: {_word(seen['ready'])}   leading: {_word(seen['leading'])}" + (
        f"   lease: {lease['name']} as {lease['identity']}, {lease['remaining']:g} s left" if lease else ""
    )
    controllers: Sequence[Mapping[str, Any]] = seen["controllers"]
    yield ""
    yield from _table(
        ("CONTROLLER", "KIND", "WORKERS", "RUNNING", "READY", "DELAYED", "FAILING"),
        (
            (each["name"], each["kind"], each["workers"], len(each["running"]), *_counts(each))
            for each in controllers
        ),
    )  # fmt: skip
    for each in controllers:
        for run in each["running"]:
            yield ""
            yield f"{each['name']}/{run['key']}: running for {run['age']:g} s" + (", wanted again" * run["again"])
            yield from (f"    {line}" for line in run["stack"])
    rows = [(each["name"], *_row(item)) for each in controllers for item in each["queue"]]
    if rows:
        yield ""
        yield from _table(("CONTROLLER", "KEY", "STATE", "AGE", "DUE", "PRIORITY", "FAILURES"), rows)
    for each in controllers:
        for error in each["errors"]:
            yield ""
            yield f"{each['name']}/{error['key']}: failed {error['times']} times like this, {error['last']:g} s ago"
            yield f"    {error['error']}"
    yield ""
    yield from _table(
        ("CLUSTER", "RESOURCE", "VERSION", "NAMESPACE", "OBJECTS", "SYNCED", "WATCH", "LAST FRAME", "RESOURCEVERSION"),
        (_watch_row(cache, watch) for cache in seen["caches"] for watch in cache["watches"]),
    )


def _counts(controller: Mapping[str, Any]) -> tuple[int, int, int]:
    return controller["ready"], controller["delayed"], controller["failing"]


def _row(item: Mapping[str, Any]) -> tuple[object, ...]:
    return item["key"], item["state"], _age(item["age"]), _age(item["due"]), item["priority"], item["failures"]


def _watch_row(cache: Mapping[str, Any], watch: Mapping[str, Any]) -> tuple[object, ...]:
    where = (cache["cluster"] or "-", cache["resource"], cache["version"], watch["namespace"] or "*")
    how_far = watch["resourceVersion"] or watch["reason"] or "-"
    return (*where, cache["objects"], _word(cache["synced"]), watch["state"], _age(watch["lastFrame"]), how_far)


def _word(value: bool) -> str:
    return "yes" if value else "no"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}s"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    cells = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _is_local(host: str) -> bool:
    """A loopback address, or a name of one: a web page of somebody else's may have a name that leads here too."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
