"""What every handler works on, and the steps that all writes share: reading a body, metadata, stored objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kaito_api.meta import rfc3339
from kaito_ctrl.devcluster.apiserver.access import Access
from kaito_ctrl.devcluster.apiserver.admission import Admission
from kaito_ctrl.devcluster.apiserver.crd import CustomVersion
from kaito_ctrl.devcluster.apiserver.decode import DecodeError, copy_json, decode_typed, not_handled
from kaito_ctrl.devcluster.apiserver.errors import FieldError, StatusError, bad_request, forbidden, invalid, not_found
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Registry, Resource
from kaito_ctrl.devcluster.apiserver.rbac import GROUP as RBAC_GROUP
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.schema import OBJECT_META
from kaito_ctrl.devcluster.apiserver.store import Bucket, Obj, Store, Stored, encode
from kaito_ctrl.devcluster.apiserver.webhook_client import WebhookCaller
from kaito_ctrl.runtime.clock import Clock

__all__ = ["Backend", "prepare_views", "read_object", "refuse_if_terminating", "to_store", "view"]


@dataclass(slots=True)
class Backend:
    """The state of one API server. ``closing`` ends every watch."""

    store: Store
    registry: Registry
    env: Environment
    admission: Admission
    access: Access
    webhooks: WebhookCaller
    closing: bool = False
    watches: int = field(default=0)
    """How many watches are open now."""
    on_close: list[Callable[[], None]] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return self.env.clock

    def now(self) -> str:
        return rfc3339(self.env.clock.now())

    def bucket(self, resource: Resource) -> Bucket:
        return self.store.bucket(*resource.storage)

    def require(self, resource: Resource, namespace: str, name: str) -> Stored:
        """The object of that name. Raises a 404."""
        found = self.bucket(resource).items.get(resource.key(namespace, name))
        if found is None:
            raise not_found(resource.group, resource.plural, name)
        return found


def view(resource: Resource, stored: Stored) -> tuple[Obj, bytes]:
    """*stored* as *resource*'s version shows it, and its JSON; both made once."""
    if not resource.converts or (resource.conversion is not None and stored.obj["apiVersion"] == resource.api_version):
        return stored.obj, stored.raw
    found = stored.views.get(resource)
    if found is None:
        assert resource.conversion is None, "prepare_views comes first"
        obj = resource.served(stored.obj)
        found = stored.views[resource] = (obj, encode(obj))
    return found


async def prepare_views(resource: Resource, objects: Iterable[Stored]) -> None:
    """Let :func:`view` show *objects*: converting them may take a webhook. Raises what that fails with."""
    if resource.conversion is None:
        return
    missing = [one for one in objects if one.obj["apiVersion"] != resource.api_version and resource not in one.views]
    if not missing:
        return
    converted = await resource.conversion.convert([one.obj for one in missing], resource.version)
    for one, obj in zip(missing, converted, strict=True):
        one.views[resource] = (obj, encode(obj))


async def to_store(resource: Resource, obj: Obj) -> Obj:
    """*obj* as it is stored. Raises what its conversion fails with."""
    if resource.conversion is not None and resource.version != resource.storage_version:
        return (await resource.conversion.convert([obj], resource.storage_version))[0]
    return resource.stored(obj)


def _report(call: Call, resource: Resource, problems: list[str]) -> None:
    """Unknown and duplicate fields: an error, a warning, or nothing, as the caller asked."""
    if not problems:
        return
    match call.field_validation:
        case "Strict":
            why = "strict decoding error: " + ", ".join(problems)
            raise not_handled(resource.kind, resource.version, why)
        case "Warn":
            call.warnings.extend(problems)


def read_object(
    call: Call, resource: Resource, value: Any, duplicates: list[str] | None = None, *, complete: bool = True
) -> Obj:
    """*value* as a fresh object of *resource*'s kind: pruned to its schema, its type and version checked.

    *complete* is false for an apply configuration, which may leave out what the kind requires.
    """
    if not isinstance(value, dict):
        raise bad_request(f"couldn't get version/kind; json: cannot unmarshal into Go value of kind {resource.kind}")
    _check_type(call, resource, value)
    problems: list[str] = []
    unknown: list[str] = []
    value, entries = _detach_entries(value)
    try:
        if isinstance(resource.custom, CustomVersion):
            obj = copy_json(value)
            metadata = obj.get("metadata")
            obj["metadata"] = decode_typed(OBJECT_META, metadata if metadata is not None else {}, unknown)
            unknown = [f"metadata.{path}" for path in unknown]
            unknown += resource.custom.prune(obj)
        else:
            obj = decode_typed(resource.schema, value, unknown, complete=complete)
            obj.setdefault("metadata", {})
    except DecodeError as error:
        raise not_handled(resource.kind, resource.version, str(error)) from error
    problems += [f'duplicate field "{path}"' for path in duplicates or ()]
    problems += [f'unknown field "{path}"' for path in unknown]
    _report(call, resource, problems)
    # Type and metadata first: that is the order in which people expect to read an object.
    metadata = obj.pop("metadata")
    if entries is not None:
        metadata["managedFields"] = entries
    obj.pop("apiVersion", None)
    obj.pop("kind", None)
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **obj}


def _check_type(call: Call, resource: Resource, value: Obj) -> None:
    """The type that the body names must be that of the path. A custom resource has to name its kind."""
    if resource.custom is not None and not value.get("kind") and call.method in {"POST", "PUT"}:
        why = f"Object 'Kind' is missing in '{encode(value).decode()}'"
        raise not_handled(resource.kind, resource.version, why)
    api_version, kind = value.get("apiVersion") or resource.api_version, value.get("kind") or resource.kind
    if (api_version, kind) == (resource.api_version, resource.kind):
        return
    if not isinstance(api_version, str) or not isinstance(kind, str):
        raise bad_request("couldn't get version/kind; json parse error: json: cannot unmarshal into Go value")
    if resource.custom is None and not call.known(api_version, kind):
        version = api_version.rpartition("/")[2]
        why = (
            f'no kind "{kind}" is registered for version "{api_version}" in scheme "pkg/api/legacyscheme/scheme.go:30"'
        )
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {resource.kind}: {why}')
    if resource.custom is None and kind != resource.kind:
        version, package = api_version.rpartition("/")[2], resource.group.partition(".")[0] or "core"
        why = f"converting ({version}.{kind}) to ({package}.{resource.kind}): unknown conversion"
        raise bad_request(f'{kind} in version "{version}" cannot be handled as a {resource.kind}: {why}')
    if api_version != resource.api_version:
        raise bad_request(
            f"the API version in the data ({api_version}) does not match the expected API version "
            f"({resource.api_version})"
        )
    metadata = value.get("metadata")
    name = str(metadata.get("name") or "") if isinstance(metadata, dict) else ""
    raise invalid(resource.group, kind, name, [FieldError.invalid("kind", kind, f"must be {resource.kind}")])


def _detach_entries(value: Obj) -> tuple[Obj, list[Obj] | None]:
    """*value* without its managedFields, and those: nobody ever changes them in place, so they need no copy."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return value, None
    entries = metadata.get("managedFields")
    if not isinstance(entries, list) or not entries:
        return value, None
    if not all(isinstance(entry, dict) and isinstance(entry.get("fieldsV1", {}), dict) for entry in entries):
        raise bad_request("metadata.managedFields: an entry is not an object")
    kept = {key: child for key, child in metadata.items() if key != "managedFields"}
    return {**value, "metadata": kept}, entries


def refuse_if_terminating(backend: Backend, resource: Resource, namespace: str, name: str) -> None:
    """Nothing is created in a namespace that is missing (404) or going away (403)."""
    if not resource.namespaced:
        return
    found = backend.store.bucket("", "namespaces").items.get(("", namespace))
    if found is None:
        raise not_found("", "namespaces", namespace)
    if found.obj["metadata"].get("deletionTimestamp"):
        why = f"unable to create new content in namespace {namespace} because it is being terminated"
        cause = {
            "reason": "NamespaceTerminating",
            "message": f"namespace {namespace} is being terminated",
            "field": "metadata.namespace",
        }
        raise forbidden(resource.group, resource.plural, name, why, [cause])


def check_grant(backend: Backend, call: Call, resource: Resource, new: Obj, old: Obj | None = None) -> None:
    """Raises a 403 when this write would give away rights that the caller does not have."""
    if resource.group == RBAC_GROUP:
        backend.access.authorizer.check_grant(call.user, resource.plural, new, old)


def check_identity(call: Call, resource: Resource, obj: Obj, name: str = "") -> None:
    """The namespace, and for an update the name, of the body must be those of the URL. Raises a 400."""
    metadata = obj["metadata"]
    namespace = call.target.namespace if resource.namespaced else ""
    given = metadata.get("namespace") or ""
    if resource.namespaced and given and given != namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    if resource.namespaced:
        metadata["namespace"] = namespace
    if name:
        have = metadata.get("name") or ""
        if have and have != name:
            raise bad_request(f"the name of the object ({have}) does not match the name on the URL ({name})")
        metadata["name"] = name


def too_many_tries(resource: Resource, name: str) -> StatusError:
    """The last word of a write that kept being overtaken."""
    from kaito_ctrl.devcluster.apiserver.errors import conflict

    return conflict(resource.group, resource.plural, name)
