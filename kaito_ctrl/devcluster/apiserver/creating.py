"""Creating objects: names, system fields, defaults, admission, validation, and the commit."""

from __future__ import annotations

from kaito_ctrl.devcluster.apiserver import apply as ssa
from kaito_ctrl.devcluster.apiserver.admission import Review
from kaito_ctrl.devcluster.apiserver.backend import (
    Backend,
    check_grant,
    check_identity,
    read_object,
    refuse_if_terminating,
    to_store,
)
from kaito_ctrl.devcluster.apiserver.builtin_services import ServiceStrategy
from kaito_ctrl.devcluster.apiserver.decode import parse_body
from kaito_ctrl.devcluster.apiserver.errors import StatusError, already_exists, invalid
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.meta import validate_meta
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.store import Obj, Stored, encode

__all__ = ["create", "create_object", "unstored"]

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_NAME_LIMIT = 63 - 5
_TRIES = 8


async def create(backend: Backend, call: Call, resource: Resource) -> Stored:
    """POST: a new object from the body."""
    duplicates: list[str] | None = [] if call.strict_body else None
    value = parse_body(call.body, call.content_type, duplicates=duplicates)
    obj = read_object(call, resource, value, duplicates)
    writer = ssa.Writer(call.field_manager, "Update", resource.api_version)
    return await create_object(backend, call, resource, obj, writer)


async def create_object(
    backend: Backend, call: Call, resource: Resource, obj: Obj, writer: ssa.Writer, *, tracked: bool = False
) -> Stored:
    """Commit *obj*, freshly decoded. *tracked*: its managedFields are already right (an apply)."""
    check_identity(call, resource, obj)
    metadata = obj["metadata"]
    if metadata.get("resourceVersion"):
        raise StatusError(500, "", "resourceVersion should not be set on objects to be created")
    refuse_if_terminating(backend, resource, metadata.get("namespace", ""), metadata.get("name") or "")
    generated = not metadata.get("name") and bool(metadata.get("generateName"))
    for attempt in range(_TRIES):
        if generated:
            suffix = "".join(backend.env.rng.choice(_SUFFIX) for _ in range(5))
            metadata["name"] = metadata["generateName"][:_NAME_LIMIT] + suffix
        try:
            return await _create_once(backend, call, resource, obj, writer, tracked=tracked)
        except StatusError as error:
            if not generated or error.reason != "AlreadyExists" or attempt == _TRIES - 1:
                raise
    raise AssertionError("unreachable")


def _system_fields(backend: Backend, resource: Resource, metadata: Obj) -> None:
    metadata["uid"] = backend.env.uids()
    metadata["creationTimestamp"] = backend.now()
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
        metadata.pop(key, None)
    if resource.strategy.generation:
        metadata["generation"] = 1


async def _create_once(
    backend: Backend, call: Call, resource: Resource, obj: Obj, writer: ssa.Writer, *, tracked: bool
) -> Stored:
    strategy, bucket = resource.strategy, backend.bucket(resource)
    fields = obj["metadata"].pop("managedFields", None) if tracked else None
    obj["metadata"].pop("managedFields", None)
    strategy.default(obj)
    key = resource.key(obj["metadata"].get("namespace", ""), obj["metadata"].get("name", ""))
    review = Review("CREATE", resource, key, call, new=obj)
    obj = await backend.admission.mutate(review)
    check_grant(backend, call, resource, obj)
    metadata = obj["metadata"]
    if resource.status and not strategy.keeps_status:
        obj.pop("status", None)
    _system_fields(backend, resource, metadata)
    strategy.prepare_create(obj, backend.env)
    errors = list(validate_meta(metadata, strategy.name_errors, namespaced=resource.namespaced))
    errors += strategy.validate(obj)
    if errors:
        raise invalid(resource.group, resource.kind, metadata.get("name") or "", errors)
    if metadata["name"] and key in bucket.items:
        raise already_exists(resource.group, resource.plural, metadata["name"])
    skip = frozenset({"status"}) if resource.status else frozenset[str]()
    metadata["managedFields"] = (
        fields if fields is not None else ssa.track(None, obj, resource.schema, writer, backend.clock.now(), skip)
    )
    await backend.admission.validate(Review("CREATE", resource, key, call, new=obj))
    stored = await to_store(resource, obj)
    if key in bucket.items:
        raise already_exists(resource.group, resource.plural, metadata["name"])
    if isinstance(strategy, ServiceStrategy):
        errors = list(strategy.allocate(obj, backend.env))
        if errors:
            raise invalid(resource.group, resource.kind, metadata["name"], errors)
        if call.dry_run:
            strategy.released(obj, backend.env)
        stored = resource.stored(obj)
    if call.dry_run:
        return unstored(key, stored)
    return backend.store.put(bucket, key, stored)


def unstored(key: tuple[str, str], obj: Obj) -> Stored:
    """What a dry run answers with: an object that was never committed."""
    return Stored(key, obj, 0, encode(obj))
