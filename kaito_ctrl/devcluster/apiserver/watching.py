"""WATCH: the changes of one kind as a stream of JSON lines.

A watcher keeps only its place in the kind's log and reads on when woken, so a slow reader costs nothing and a change
costs each watcher of that kind one wake-up. Who falls behind the log's end gets the 410 that a real server sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from kaito_ctrl.devcluster.apiserver.backend import Backend, prepare_views, view
from kaito_ctrl.devcluster.apiserver.errors import FieldError, StatusError, expired, invalid, too_large_resource_version
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.listing import Filter
from kaito_ctrl.devcluster.apiserver.requests import Call, parse_rv
from kaito_ctrl.devcluster.apiserver.store import Change, Obj, Stored, encode
from kaito_ctrl.devcluster.apiserver.table import partial, table

__all__ = ["WatchOptions", "watch"]

BOOKMARK_SECONDS = 60.0
BATCH = 500
"""Events encoded in one go: few enough that a long replay does not hold up everybody else."""
_DEFAULT_SECONDS = 1800
_INITIAL_END = {"k8s.io/initial-events-end": "true"}

Line = Callable[[str, Stored], bytes]


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What the query of a watch says."""

    rv: int | None
    bookmarks: bool
    seconds: float
    initial: bool
    """Begin with the present state, as ADDED events."""
    initial_end: bool
    """Mark the end of the present state with an annotated bookmark."""

    @classmethod
    def of(cls, backend: Backend, call: Call) -> WatchOptions:
        """Raises a 422 for combinations that make no sense."""
        query = call.query
        text, match = query.get("resourceVersion"), query.get("resourceVersionMatch")
        errors = []
        if "sendInitialEvents" in query and match != "NotOlderThan":
            errors.append(
                FieldError.forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                )
            )
        if match and "sendInitialEvents" not in query:
            errors.append(
                FieldError.forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                )
            )
        if errors:
            raise invalid("meta.k8s.io", "ListOptions", "", errors)
        rv = parse_rv(text) if text else None
        streaming = query.flag("sendInitialEvents")
        # Without a version a watch starts with the state of now, whichever way that is asked for.
        initial = streaming or ("sendInitialEvents" not in query and not rv)
        timeout = query.number("timeoutSeconds") or 0
        seconds = float(timeout) if timeout > 0 else _DEFAULT_SECONDS * (1 + backend.env.rng.random())
        return cls(rv, query.flag("allowWatchBookmarks"), seconds, initial, streaming)


def _object_lines(resource: Resource) -> Line:
    def line(kind: str, stored: Stored) -> bytes:
        return b'{"type":"%b","object":%b}\n' % (kind.encode(), view(resource, stored)[1])

    return line


def _shaped_lines(backend: Backend, call: Call, resource: Resource) -> Line:
    """Tables and partial objects; a table's headers go out once."""
    accept, include = call.accept, call.query.get("includeObject", "Metadata")
    first = [True]

    def line(kind: str, stored: Stored) -> bytes:
        obj = view(resource, stored)[0]
        if accept.form == "table":
            metadata = {"resourceVersion": obj["metadata"]["resourceVersion"]}
            shaped = table(
                resource.printer,
                [obj],
                metadata,
                backend.clock,
                include=include,
                version=accept.version,
                headers=first[0],
            )
            first[0] = False
        else:
            shaped = partial(obj, accept.version)
        return encode({"type": kind, "object": shaped}) + b"\n"

    return line


def _bookmark(call: Call, resource: Resource, rv: int, annotations: dict[str, str] | None = None) -> bytes:
    metadata: Obj = {"resourceVersion": str(rv), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    obj: Obj = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
    if call.accept.form == "table":
        row = {"cells": [], "object": partial(obj, call.accept.version)}
        obj = {
            "kind": "Table",
            "apiVersion": f"meta.k8s.io/{call.accept.version}",
            "metadata": {"resourceVersion": str(rv)},
            "columnDefinitions": None,
            "rows": [row],
        }
    elif call.accept.form != "object":
        obj = partial(obj, call.accept.version)
    return encode({"type": "BOOKMARK", "object": obj}) + b"\n"


def _error(error: StatusError) -> bytes:
    return encode({"type": "ERROR", "object": error.status()}) + b"\n"


def _event(change: Change, chosen: Filter) -> tuple[str, Stored] | None:
    """What a watcher with a selector sees: entering it is an addition, leaving it a deletion."""
    before = change.before is not None and chosen.matches(change.before)
    now = change.type != "DELETED" and chosen.matches(change.now)
    if now:
        return "MODIFIED" if before else "ADDED", change.now
    if not before:
        return None
    if change.type == "DELETED":
        return "DELETED", change.now
    assert change.before is not None
    # It left the selector: its last matching state, at the version of the change that took it out.
    old = change.before.obj
    obj = {**old, "metadata": {**old["metadata"], "resourceVersion": str(change.rv)}}
    return "DELETED", Stored(change.now.key, obj, change.rv, encode(obj))


def watch(
    backend: Backend, call: Call, resource: Resource, chosen: Filter, options: WatchOptions
) -> AsyncIterator[bytes]:
    """The stream. It ends after its timeout, when the kind is no longer served, and when the server closes.

    It begins with the state and the version of this call, however late its first line is read.
    """
    bucket = backend.bucket(resource)
    if not options.initial:
        cursor = backend.store.rv if options.rv is None else options.rv
        return _stream(backend, call, resource, chosen, options, cursor, [])
    if options.rv is not None and options.rv > backend.store.rv:
        raise too_large_resource_version(options.rv, backend.store.rv)
    keys = bucket.keys(chosen.namespace if resource.namespaced else "")
    present = [stored for stored in map(bucket.items.__getitem__, keys) if chosen.matches(stored)]
    return _stream(backend, call, resource, chosen, options, backend.store.rv, present)


async def _stream(
    backend: Backend,
    call: Call,
    resource: Resource,
    chosen: Filter,
    options: WatchOptions,
    cursor: int,
    present: list[Stored],
) -> AsyncIterator[bytes]:
    bucket = backend.bucket(resource)
    line = _object_lines(resource) if call.accept.form == "object" else _shaped_lines(backend, call, resource)
    if not options.initial and cursor < bucket.floor:
        yield _error(expired(f"too old resource version: {cursor} ({bucket.floor})"))
        return
    waker = bucket.subscribe()
    backend.watches += 1
    loop = asyncio.get_running_loop()
    try:
        if options.initial:
            for start in range(0, len(present), BATCH):
                some = present[start : start + BATCH]
                await prepare_views(resource, some)
                yield b"".join([line("ADDED", stored) for stored in some])
            present.clear()
            if options.initial_end and options.bookmarks:
                yield _bookmark(call, resource, cursor, _INITIAL_END)
        end = loop.time() + options.seconds
        bookmark_at = loop.time() + BOOKMARK_SECONDS
        while not backend.closing and (now := loop.time()) < end:
            waker.clear()
            if cursor < bucket.floor:
                yield _error(expired(f"too old resource version: {cursor} ({bucket.floor})"))
                return
            changes = bucket.since(cursor, BATCH)
            if changes:
                cursor = changes[-1].rv
                events = [found for change in changes if (found := _event(change, chosen)) is not None]
                if events:
                    await prepare_views(resource, [stored for _, stored in events])
                    yield b"".join([line(kind, stored) for kind, stored in events])
                continue
            served = backend.registry.find(resource.group, resource.version, resource.plural)
            if served is None:
                return
            if served is not resource:  # its definition changed
                resource = served
                line = (
                    _object_lines(resource) if call.accept.form == "object" else _shaped_lines(backend, call, resource)
                )
            if options.bookmarks and now >= bookmark_at:
                # Everything up to the store's version has been looked at: nothing of this kind happened since.
                cursor = max(cursor, backend.store.rv)
                bookmark_at = now + BOOKMARK_SECONDS
                yield _bookmark(call, resource, cursor)
                continue
            if waker.is_set():
                continue
            pause = min(end, bookmark_at) if options.bookmarks else end
            try:
                async with asyncio.timeout(pause - now):
                    await waker.wait()
            except TimeoutError:
                continue
        if options.bookmarks and not backend.closing:
            # A reader may have taken its time: what it was not shown is after its last bookmark, and not before it.
            shown = cursor if bucket.since(cursor, 1) else max(cursor, backend.store.rv)
            yield _bookmark(call, resource, shown)
    except StatusError as error:  # what is to be shown cannot be converted
        yield _error(error)
    finally:
        bucket.unsubscribe(waker)
        backend.watches -= 1
