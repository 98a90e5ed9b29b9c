"""Deleting: preconditions, propagation, finalizers, and the grace that pods get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from kaito_api.meta import rfc3339
from kaito_ctrl.devcluster.apiserver.admission import Review
from kaito_ctrl.devcluster.apiserver.backend import Backend, prepare_views, view
from kaito_ctrl.devcluster.apiserver.decode import DecodeError, decode_typed, not_handled, parse_body
from kaito_ctrl.devcluster.apiserver.errors import FieldError, conflict, forbidden, invalid, not_found
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.schema import builtin
from kaito_ctrl.devcluster.apiserver.store import Obj, Stored, encode
from kaito_ctrl.devcluster.apiserver.updating import drop

__all__ = ["FOREGROUND", "ORPHAN", "DeleteOptions", "delete", "read_delete_options"]

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_PROTECTED_NAMESPACES = frozenset({"default", "kube-system", "kube-public"})
_TRIES = 8


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """``metav1.DeleteOptions``."""

    grace: int | None = None
    propagation: str = ""
    uid: str = ""
    resource_version: str = ""
    dry_run: bool = False


def read_delete_options(call: Call) -> DeleteOptions:
    """From the body if there is one, else from the query. Raises a 400 or 422 for what cannot be."""
    body: Mapping[str, Any] = {}
    if call.body and call.body.strip() not in {b"", b"null", b"{}"}:
        value = parse_body(call.body, call.content_type)
        try:
            body = decode_typed(builtin("meta.DeleteOptions"), value, [])
        except DecodeError as why:
            raise not_handled("DeleteOptions", "v1", str(why)) from why
    preconditions = body.get("preconditions") or {}
    grace = body.get("gracePeriodSeconds")
    propagation = body.get("propagationPolicy") or call.query.get("propagationPolicy")
    orphan = body.get("orphanDependents")
    if orphan is None and "orphanDependents" in call.query:
        orphan = call.query.flag("orphanDependents")
    if orphan is not None and propagation:
        both = "orphanDependents and deletionPropagation cannot be both set"
        raise invalid("meta.k8s.io", "DeleteOptions", "", [FieldError.invalid("propagationPolicy", propagation, both)])
    if orphan is not None:
        propagation = "Orphan" if orphan else "Background"
    if propagation not in {"", "Background", "Foreground", "Orphan"}:
        error = FieldError.unsupported("propagationPolicy", propagation, ["Foreground", "Background", "Orphan", "nil"])
        raise invalid("meta.k8s.io", "DeleteOptions", "", [error])
    return DeleteOptions(
        grace if grace is not None else call.query.number("gracePeriodSeconds"),
        propagation,
        preconditions.get("uid") or "",
        preconditions.get("resourceVersion") or "",
        call.dry_run or "All" in (body.get("dryRun") or ()),
    )


async def delete(
    backend: Backend, call: Call, resource: Resource, namespace: str, name: str, options: DeleteOptions
) -> tuple[Stored, bool]:
    """Ask for an object's deletion. The second value tells whether it is gone already."""
    bucket, key = backend.bucket(resource), resource.key(namespace, name)
    for _ in range(_TRIES):
        current = bucket.items.get(key)
        if current is None:
            raise not_found(resource.group, resource.plural, name)
        _check_preconditions(resource, name, current, options)
        if resource.storage == ("", "namespaces") and name in _PROTECTED_NAMESPACES:
            raise forbidden("", "namespaces", name, "this namespace may not be deleted")
        await prepare_views(resource, [current])
        live, _raw = view(resource, current)
        await backend.admission.validate(Review("DELETE", resource, key, call, old=live))
        if bucket.items.get(key) is current:
            break
    else:
        raise conflict(resource.group, resource.plural, name)
    return _mark(backend, resource, current, options)


def _check_preconditions(resource: Resource, name: str, current: Stored, options: DeleteOptions) -> None:
    metadata = current.obj["metadata"]
    for wanted, have, what, happened in (
        (options.uid, metadata["uid"], "UID", "deleted and then recreated"),
        (options.resource_version, metadata["resourceVersion"], "ResourceVersion", "modified"),
    ):
        if wanted and wanted != have:
            why = (
                f"the {what} in the precondition ({wanted}) does not match the {what} in record ({have}). "
                f"The object might have been {happened}"
            )
            raise conflict(resource.group, resource.kind, name, why)


def _mark(backend: Backend, resource: Resource, current: Stored, options: DeleteOptions) -> tuple[Stored, bool]:
    """Set what deletion sets, or remove the object when nothing holds it."""
    bucket, live = backend.bucket(resource), current.obj
    metadata: Obj = dict(live["metadata"])
    finalizers = _finalizers(metadata.get("finalizers") or [], options.propagation)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    grace = _mark_time(backend, resource, live, metadata, options)
    held = bool(finalizers) or grace > 0
    obj = {**live, "metadata": metadata}
    if resource.storage == ("", "namespaces"):
        held = held or bool((live.get("spec") or {}).get("finalizers"))
        obj["status"] = {**(live.get("status") or {}), "phase": "Terminating"}
    elif resource.storage == ("apiextensions.k8s.io", "customresourcedefinitions") and held:
        obj["status"] = _terminating(backend, live.get("status") or {})
    if options.dry_run:
        return current, not held
    if not held:
        gone = drop(backend, resource, bucket, current)
        if not resource.strategy.graceful:
            return gone, True
        # The caller is shown that its grace was none; watchers see the last state that was stored.
        shown = {**gone.obj, "metadata": {**metadata, "resourceVersion": gone.obj["metadata"]["resourceVersion"]}}
        return Stored(gone.key, shown, gone.rv, encode(shown)), True
    if obj == live:
        return current, False
    return backend.store.put(bucket, current.key, obj), False


def _mark_time(backend: Backend, resource: Resource, live: Obj, metadata: Obj, options: DeleteOptions) -> int:
    """Write deletionTimestamp and its grace into *metadata*; returns the grace that is left, in seconds."""
    strategy = resource.strategy
    if metadata.get("deletionTimestamp"):
        left = int(metadata.get("deletionGracePeriodSeconds") or 0)
        if not strategy.graceful or options.grace is None:
            return left
        wanted = strategy.grace(live, options.grace)
        if wanted < left:
            moment = datetime.fromisoformat(metadata["deletionTimestamp"]) - timedelta(seconds=left - wanted)
            metadata["deletionTimestamp"] = rfc3339(moment)
            metadata["deletionGracePeriodSeconds"] = wanted
        return min(left, wanted)
    grace = strategy.grace(live, options.grace) if strategy.graceful else 0
    metadata["deletionTimestamp"] = rfc3339(backend.clock.now() + timedelta(seconds=grace))
    metadata["deletionGracePeriodSeconds"] = grace
    if metadata.get("generation"):
        metadata["generation"] += 1
    return grace


def _finalizers(present: list[str], propagation: str) -> list[str]:
    """The finalizers after a delete with that policy; without one, what is there stays."""
    if not propagation:
        return present
    kept = [name for name in present if name not in {ORPHAN, FOREGROUND}]
    if propagation == "Orphan":
        kept.append(ORPHAN)
    elif propagation == "Foreground":
        kept.append(FOREGROUND)
    return kept


def _terminating(backend: Backend, status: Mapping[str, Any]) -> Obj:
    condition = {
        "type": "Terminating",
        "status": "True",
        "lastTransitionTime": backend.now(),
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    }
    others = [c for c in status.get("conditions") or () if c["type"] != "Terminating"]
    return {**status, "conditions": [*others, condition]}
