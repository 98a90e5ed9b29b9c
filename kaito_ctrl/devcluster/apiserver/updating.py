"""Changing objects: PUT, every kind of PATCH, the status subresource, and server-side apply.

All of them are one loop: read, compute the new object from the live one, check, admit, validate, commit, and start
again when somebody else was faster, unless the caller insisted on a version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kaito_ctrl.devcluster.apiserver import apply as ssa
from kaito_ctrl.devcluster.apiserver.admission import Review
from kaito_ctrl.devcluster.apiserver.backend import (
    Backend,
    check_grant,
    check_identity,
    prepare_views,
    read_object,
    to_store,
    too_many_tries,
    view,
)
from kaito_ctrl.devcluster.apiserver.builtin_services import ServiceStrategy
from kaito_ctrl.devcluster.apiserver.creating import create_object, unstored
from kaito_ctrl.devcluster.apiserver.decode import copy_json, parse_body
from kaito_ctrl.devcluster.apiserver.errors import FieldError, GoValue, conflict, invalid, not_found
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.meta import validate_meta, validate_meta_update
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.store import Bucket, Obj, Stored
from kaito_ctrl.devcluster.apiserver.structural import fill_defaults

__all__ = ["Compute", "replace", "write"]

Compute = Callable[[Obj], Obj]
"""From the live object to the new one, freshly made."""
_TRIES = 8
_SERVER_FIELDS = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")


async def replace(backend: Backend, call: Call, resource: Resource, name: str, subresource: str) -> tuple[Stored, bool]:
    """PUT. The second value tells whether the object was created, which a few kinds allow."""
    duplicates: list[str] | None = [] if call.strict_body else None
    value = parse_body(call.body, call.content_type, duplicates=duplicates)
    first = read_object(call, resource, value, duplicates)
    check_identity(call, resource, first, name)
    writer = ssa.Writer(call.field_manager, "Update", resource.api_version, subresource)
    key = resource.key(call.target.namespace, name)
    if key not in backend.bucket(resource).items and resource.strategy.create_on_update and not subresource:
        first["metadata"].pop("resourceVersion", None)
        return await create_object(backend, call, resource, first, writer), True
    drafts = [first]

    def compute(live: Obj) -> Obj:
        # A second try needs a second copy: the first was prepared in place.
        draft = drafts.pop() if drafts else read_object(call, resource, value)
        check_identity(call, resource, draft, name)
        if not draft["metadata"].get("resourceVersion") and not resource.strategy.unconditional_update:
            why = "must be specified for an update"
            error = FieldError.invalid("metadata.resourceVersion", GoValue("0x0"), why)
            # The storage knows no kinds: it names the resource.
            raise invalid(resource.group, resource.plural, name, [error])
        return draft

    return await write(backend, call, resource, name, compute, writer), False


async def write(
    backend: Backend,
    call: Call,
    resource: Resource,
    name: str,
    compute: Compute,
    writer: ssa.Writer,
    *,
    tracked: bool = False,
    finalize: bool = False,
) -> Stored:
    """Commit what *compute* makes of the live object. *tracked*: it kept managedFields itself (an apply)."""
    bucket = backend.bucket(resource)
    key = resource.key(call.target.namespace, name)
    for _ in range(_TRIES):
        current = bucket.items.get(key)
        if current is None:
            raise not_found(resource.group, resource.plural, name)
        await prepare_views(resource, [current])
        live, _raw = view(resource, current)
        new = compute(live)
        insisted = _check_versions(call, resource, name, new, live)
        new = await _prepare(backend, call, resource, new, live, writer, tracked=tracked, finalize=finalize)
        stored = await to_store(resource, new)
        if bucket.items.get(key) is not current:
            if insisted:
                raise conflict(resource.group, resource.plural, name)
            continue
        return _commit(backend, call, resource, bucket, current, new, live, stored)
    raise too_many_tries(resource, name)


def _check_versions(call: Call, resource: Resource, name: str, new: Obj, live: Obj) -> bool:
    """Refuse what was based on another version or another object; tells whether the caller named a version."""
    have, is_now = new["metadata"], live["metadata"]
    uid = have.get("uid")
    if uid and uid != is_now["uid"] and call.method == "PATCH":
        # To an update the uid is a precondition, to a patch a field like any other, and one that never changes.
        error = FieldError.invalid("metadata.uid", uid, "field is immutable")
        raise invalid(resource.group, resource.kind, name, [error])
    if uid and uid != is_now["uid"]:
        place = "/".join(part for part in (resource.storage_prefix, is_now.get("namespace"), name) if part)
        why = (
            f"StorageError: invalid object, Code: 4, Key: /registry/{place}, ResourceVersion: 0, AdditionalErrorMsg: "
            f"Precondition failed: UID in precondition: {uid}, UID in object meta: {is_now['uid']}"
        )
        raise conflict(resource.group, resource.plural, name, why)
    version = have.get("resourceVersion") or ""
    if version and version != is_now["resourceVersion"]:
        raise conflict(resource.group, resource.plural, name)
    return bool(version)


def _carry(resource: Resource, subresource: str, new: Obj, live: Obj) -> Obj:
    """*new* with everything that this write cannot change taken from *live*."""
    if subresource == "status":
        result = {key: value for key, value in live.items() if key != "status"}
        if "status" in new:
            result["status"] = new["status"]
        metadata = dict(live["metadata"])
        if new["metadata"].get("managedFields") is not None:
            metadata["managedFields"] = new["metadata"]["managedFields"]
        result["metadata"] = metadata
        return result
    metadata = new["metadata"]
    for field in _SERVER_FIELDS:
        if field in live["metadata"]:
            metadata[field] = live["metadata"][field]
        else:
            metadata.pop(field, None)
    metadata.pop("selfLink", None)
    metadata["resourceVersion"] = live["metadata"]["resourceVersion"]
    if resource.status:
        new.pop("status", None)
        if "status" in live:
            new["status"] = live["status"]
    return new


async def _prepare(
    backend: Backend,
    call: Call,
    resource: Resource,
    new: Obj,
    live: Obj,
    writer: ssa.Writer,
    *,
    tracked: bool,
    finalize: bool,
) -> Obj:
    strategy, subresource = resource.strategy, writer.subresource
    key = resource.key(live["metadata"].get("namespace", ""), live["metadata"]["name"])
    new = _carry(resource, subresource, new, live)
    if subresource != "status":
        strategy.default(new)
    elif resource.custom is not None and "status" in new:
        # The rest is shared with the stored object and has its defaults already.
        fill_defaults(new["status"], resource.schema.child("status"))
    given = new["metadata"].get("managedFields")
    new = await backend.admission.mutate(
        Review("UPDATE", resource, key, call, new=new, old=live, subresource=subresource)
    )
    check_grant(backend, call, resource, new, live)
    if subresource != "status":
        if not finalize:
            strategy.prepare_update(new, live, backend.env)
        if resource.status and resource.group != "apiextensions.k8s.io":
            new = _carry(resource, "", new, live)
        if strategy.generation and strategy.spec_changed(new, live):
            new["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
        errors = list(validate_meta_update(new["metadata"], live["metadata"]))
        errors += validate_meta(new["metadata"], strategy.name_errors, namespaced=resource.namespaced)
        errors += _validate(resource, new, live)
        errors += strategy.validate_update(new, live)
    else:
        errors = list(strategy.validate_status(new, live))
        if resource.custom is not None:
            errors += _validate(resource, new, live)
    if errors:
        raise invalid(resource.group, resource.kind, live["metadata"]["name"], errors)
    if not tracked:
        skip = frozenset({"status"}) if resource.status and subresource != "status" else frozenset[str]()
        if given is not None:
            new["metadata"]["managedFields"] = given
        else:
            new["metadata"].pop("managedFields", None)
        entries = ssa.track(live, new, resource.schema, writer, backend.clock.now(), skip)
        if entries:
            new["metadata"]["managedFields"] = entries
        else:
            new["metadata"].pop("managedFields", None)
    await backend.admission.validate(Review("UPDATE", resource, key, call, new=new, old=live, subresource=subresource))
    return new


def _validate(resource: Resource, new: Obj, live: Obj) -> list[FieldError]:
    if resource.custom is not None:
        return list(resource.custom.validate(new, live))
    return list(resource.strategy.validate(new))


def _commit(
    backend: Backend,
    call: Call,
    resource: Resource,
    bucket: Bucket,
    current: Stored,
    new: Obj,
    live: Obj,
    converted: Obj,
) -> Stored:
    """Store *new*, which is *converted* in the version of the store."""
    strategy = resource.strategy
    if isinstance(strategy, ServiceStrategy):
        # Last, because an address that was taken for a write that then fails would be lost.
        errors = list(strategy.allocate(new, backend.env, live))
        if errors:
            raise invalid(resource.group, resource.kind, current.key[1], errors)
        kept = live["spec"].get("clusterIP")
        if call.dry_run and new["spec"].get("clusterIP") != kept:
            strategy.released(new, backend.env)
        elif not call.dry_run and kept and not new["spec"].get("clusterIP"):
            strategy.released(live, backend.env)
        converted = resource.stored(new)
    if call.dry_run:
        return unstored(current.key, converted)
    converted = {**converted, "metadata": dict(converted["metadata"])}
    if is_gone(resource, new):
        return drop(backend, resource, bucket, current, converted)
    if new == live and converted["apiVersion"] == current.obj["apiVersion"]:
        return current  # nothing changed: no new version, no event
    return backend.store.put(bucket, current.key, converted)


def is_gone(resource: Resource, obj: Obj) -> bool:
    """Whether a write leaves an object that was only waiting for this: deleted, no finalizer, no grace left."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return False
    if resource.storage == ("", "namespaces"):
        return not (obj.get("spec") or {}).get("finalizers")
    return not metadata.get("deletionGracePeriodSeconds")


def drop(backend: Backend, resource: Resource, bucket: Bucket, current: Stored, last: Obj | None = None) -> Stored:
    """Remove an object for good. Its *last* stored state, if it changed with that, goes out with the DELETED event."""
    removed = backend.store.remove(bucket, current.key, last)
    resource.strategy.released(removed.obj, backend.env)
    return removed


def put_with(change: Callable[[Obj], Any]) -> Compute:
    """A compute that changes a copy of the live object, for writes the server makes itself."""

    def compute(live: Obj) -> Obj:
        draft: Obj = copy_json(live)
        change(draft)
        return draft

    return compute
