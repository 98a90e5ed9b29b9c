"""PATCH: which kind of patch, applied to what, and the two that create: server-side apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from kaito_ctrl.devcluster.apiserver import apply as ssa
from kaito_ctrl.devcluster.apiserver.backend import Backend, check_identity, read_object
from kaito_ctrl.devcluster.apiserver.creating import create_object
from kaito_ctrl.devcluster.apiserver.decode import copy_json, decode_typed, parse_body, parse_yaml
from kaito_ctrl.devcluster.apiserver.errors import (
    FieldError,
    StatusError,
    bad_request,
    conflict,
    invalid,
    unprocessable,
    unsupported_media_type,
)
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.patch import PatchError, json_patch, merge_patch
from kaito_ctrl.devcluster.apiserver.requests import APPLY, Call, Query
from kaito_ctrl.devcluster.apiserver.store import Obj, Stored, encode
from kaito_ctrl.devcluster.apiserver.strategic import strategic_patch
from kaito_ctrl.devcluster.apiserver.updating import write

__all__ = ["apply_json", "patch"]

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
_STRICT = Query([("fieldValidation", "Strict")])


async def patch(backend: Backend, call: Call, resource: Resource, name: str, subresource: str) -> tuple[Stored, bool]:
    """The patched object, and whether it was created."""
    media = call.content_type.split(";")[0].strip()
    if media == APPLY:
        return await _apply(backend, call, resource, name, subresource)
    if media not in {JSON, MERGE, STRATEGIC} or (media == STRATEGIC and resource.custom is not None):
        raise unsupported_media_type(", ".join([JSON, MERGE, APPLY]) if resource.custom is not None else "")
    duplicates: list[str] | None = [] if call.strict_body else None
    value = parse_body(call.body, media, duplicates=duplicates)
    writer = ssa.Writer(call.field_manager, "Update", resource.api_version, subresource)

    def compute(live: Obj) -> Obj:
        patched = apply_json(media, live, value, resource)
        try:
            new = read_object(call, resource, patched, duplicates)
        except StatusError as error:
            _, marker, why = error.message.partition(f"cannot be handled as a {resource.kind}: ")
            if not marker or media == STRATEGIC or why.startswith("strict decoding error"):
                raise
            shown = FieldError.invalid("patch", encode(patched).decode(), why)
            raise invalid("", "", "", [shown]) from error
        check_identity(call, resource, new, name)
        if not _names_version(media, value):
            # The patch took the version along with everything else: it insists on nothing.
            new["metadata"].pop("resourceVersion", None)
        return new

    return await write(backend, call, resource, name, compute, writer), False


def _names_version(media: str, value: Any) -> bool:
    """Whether a patch itself says which version it is for; a JSON patch's test has its own failure."""
    if media == JSON:
        return any(
            isinstance(op, dict) and str(op.get("path", "")).startswith("/metadata/resourceVersion") for op in value
        )
    metadata = value.get("metadata") if isinstance(value, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("resourceVersion"))


def apply_json(media: str, live: Obj, value: Any, resource: Resource) -> Any:
    """*live* after the patch *value*. Raises a 400 for a malformed patch, a 422 for one that does not fit."""
    try:
        if media == JSON:
            return json_patch(live, value)
        if not isinstance(value, dict):
            raise PatchError("json: cannot unmarshal into Go value of type map[string]interface {}", malformed=True)
        if media == STRATEGIC:
            return strategic_patch(live, value, resource.schema)
        return merge_patch(live, value)
    except PatchError as error:
        if error.malformed:
            raise bad_request(f"error decoding patch: {error}") from error
        raise unprocessable() from error


async def _apply(backend: Backend, call: Call, resource: Resource, name: str, subresource: str) -> tuple[Stored, bool]:
    if not call.query.get("fieldManager"):
        raise StatusError(
            422,
            "Invalid",
            'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
            details={
                "group": "meta.k8s.io",
                "kind": "PatchOptions",
                "causes": [
                    {
                        "reason": "FieldValueRequired",
                        "message": "Required value: is required for apply patch",
                        "field": "fieldManager",
                    }
                ],
            },
        )
    try:
        value = parse_yaml(call.body or b"")
    except (yaml.YAMLError, ValueError) as error:
        raise bad_request(f"error decoding YAML: {error}") from error
    if not isinstance(value, dict):
        raise bad_request("error decoding YAML: the apply configuration must be an object")
    config = _config(call, resource, value)
    if not config["metadata"].get("name"):
        raise bad_request(f"the name of the object ({name} based on URL) was undeterminable: name must be provided")
    check_identity(call, resource, config, name)
    writer = ssa.Writer(call.query.get("fieldManager"), "Apply", resource.api_version, subresource)
    force, now = call.query.flag("force"), backend.clock.now()
    skip = frozenset({"status"}) if resource.status and not subresource else frozenset[str]()
    key = resource.key(call.target.namespace, name)
    if key not in backend.bucket(resource).items and not subresource:
        if config["metadata"].get("uid"):
            uid = config["metadata"]["uid"]
            why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise conflict(resource.group, resource.plural, name, why)
        empty: Obj = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}}
        if resource.namespaced:
            empty["metadata"]["namespace"] = call.target.namespace
        merged, _ = ssa.apply(empty, config, resource.schema, writer, now, force=force, skip=skip)
        made = _fresh(resource, merged)
        # The entries go along as they are: everything else of the new object was decided by the server.
        return await create_object(backend, call, resource, made, writer, tracked=True), True

    def compute(live: Obj) -> Obj:
        only = skip
        if subresource == "status":
            only = frozenset(live.keys() | config.keys()) - {"status", "metadata"}
        applied = config if subresource != "status" else {**config, "metadata": {"name": name}}
        merged, _ = ssa.apply(live, applied, resource.schema, writer, now, force=force, skip=only)
        fresh = _fresh(resource, merged)
        fresh["metadata"]["resourceVersion"] = config["metadata"].get("resourceVersion") or ""
        if config["metadata"].get("uid"):
            fresh["metadata"]["uid"] = config["metadata"]["uid"]
        return fresh

    return await write(backend, call, resource, name, compute, writer, tracked=True), False


def _fresh(resource: Resource, merged: Obj) -> Obj:
    """A copy of *merged* that may be prepared in place, complete as its kind requires."""
    entries = merged["metadata"].pop("managedFields")
    fresh: Obj = copy_json(merged) if resource.custom is not None else decode_typed(resource.schema, merged, [])
    if entries:
        fresh["metadata"]["managedFields"] = entries
    return fresh


def _config(call: Call, resource: Resource, value: Mapping[str, Any]) -> Obj:
    """The apply configuration, decoded. What the schema does not know is an error: it could not be owned."""
    if not value.get("kind"):
        raise bad_request("invalid object type: kind must be set")
    version = value.get("apiVersion") or ""
    if version != resource.api_version:
        raise bad_request(
            f"Incorrect version specified in apply patch. Specified patch version: {version}, "
            f"expected: {resource.api_version}"
        )
    if (value.get("metadata") or {}).get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    strict = Call(call.method, call.target, _STRICT, call.headers, call.body, call.user, call.accept)
    try:
        return read_object(strict, resource, value, complete=False)
    except StatusError as error:
        _, marker, fields = error.message.partition("strict decoding error: ")
        if not marker:
            raise
        missing = ", ".join(
            f".{field.removeprefix('unknown field ').strip(chr(34))}: field not declared in schema"
            for field in fields.split(", ")
        )
        metadata = value.get("metadata") or {}
        where = "/".join(part for part in (call.target.namespace, str(metadata.get("name", ""))) if part)
        message = (
            f"failed to create typed patch object ({where}; {resource.api_version}, Kind={resource.kind}): {missing}"
        )
        raise StatusError(500, "", message) from error
