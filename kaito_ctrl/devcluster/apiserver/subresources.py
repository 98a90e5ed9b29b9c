"""Subresources that are not part of their object: scale, binding, eviction, finalize, tokens."""

from __future__ import annotations

from typing import Any

from kaito_ctrl.devcluster.apiserver import apply as ssa
from kaito_ctrl.devcluster.apiserver.backend import Backend, prepare_views, view
from kaito_ctrl.devcluster.apiserver.cells import selector_text
from kaito_ctrl.devcluster.apiserver.decode import DecodeError, decode_typed, not_handled, parse_body
from kaito_ctrl.devcluster.apiserver.deleting import DeleteOptions, delete
from kaito_ctrl.devcluster.apiserver.errors import (
    FieldError,
    StatusError,
    conflict,
    internal,
    invalid,
    method_not_allowed,
    not_found,
    success,
)
from kaito_ctrl.devcluster.apiserver.kinds import Resource, Scale
from kaito_ctrl.devcluster.apiserver.patch import merge_patch
from kaito_ctrl.devcluster.apiserver.patching import apply_json
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.schema import builtin
from kaito_ctrl.devcluster.apiserver.selectors import match_label_selector
from kaito_ctrl.devcluster.apiserver.store import Obj, Stored
from kaito_ctrl.devcluster.apiserver.tokenrequests import issue_token
from kaito_ctrl.devcluster.apiserver.updating import put_with, write

__all__ = ["bind", "create_token", "evict", "finalize", "scale"]


def _typed(value: Any, name: str) -> Obj:
    """*value* as that built-in type. Raises a 400 for anything else."""
    kind = name.rpartition(".")[2]
    try:
        return decode_typed(builtin(name), value, [])
    except DecodeError as error:
        raise not_handled(kind, "v1", str(error)) from error


def _read(call: Call, name: str) -> Obj:
    """The body of a subresource request; without one, an empty object."""
    return _typed(parse_body(call.body, call.content_type) if call.body else {}, name)


def _get(obj: Obj, path: str) -> Any:
    value: Any = obj
    for part in path.strip(".").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _set(obj: Obj, path: str, value: Any) -> None:
    *parents, last = path.strip(".").split(".")
    for part in parents:
        obj = obj.setdefault(part, {})
    obj[last] = value


def _selector_text(selector: Any) -> str:
    """A selector as the scale's status shows it; a CRD may keep it as text already."""
    if isinstance(selector, str):
        return selector
    if not isinstance(selector, dict) or not selector:
        return ""
    plain = not selector.keys() & {"matchLabels", "matchExpressions"}
    return selector_text({"matchLabels": selector} if plain else selector)


def _scale_of(resource: Resource, paths: Scale, obj: Obj) -> Obj:
    metadata = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status: Obj = {"replicas": _get(obj, paths.status_path) or 0}
    selector = _selector_text(_get(obj, paths.selector_path)) if paths.selector_path else ""
    if selector:
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": {"replicas": _get(obj, paths.spec_path) or 0},
        "status": status,
    }


async def scale(backend: Backend, call: Call, resource: Resource, name: str) -> Obj:
    """GET, PUT and PATCH of ``scale``."""
    paths = resource.scale
    assert paths is not None
    namespace = call.target.namespace
    stored = backend.bucket(resource).items.get(resource.key(namespace, name))
    if stored is None:
        raise not_found(resource.group, resource.plural if resource.custom else f"{resource.plural}/scale", name)
    await prepare_views(resource, [stored])
    shown, _raw = view(resource, stored)
    current = _scale_of(resource, paths, shown)
    if call.method == "GET":
        if resource.custom is not None and _get(shown, paths.spec_path) is None:
            raise internal(f'the spec replicas field "{paths.spec_path}" does not exist')
        return current
    media = call.content_type.split(";")[0].strip()
    value = parse_body(call.body, media)
    if call.method == "PUT":
        wanted = value
    elif call.method == "PATCH":
        wanted = merge_patch(current, value) if "apply" in media else apply_json(media, current, value, resource)
    else:
        raise method_not_allowed()
    wanted = _typed(wanted, "autoscaling.Scale")
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    uid = (wanted.get("metadata") or {}).get("uid") or ""
    version = (wanted.get("metadata") or {}).get("resourceVersion") or ""
    if call.method == "PATCH" and not _names_version(value):
        version = ""
    if replicas < 0 and resource.custom is not None:
        error = FieldError.invalid(paths.spec_path, replicas, "should be a non-negative integer")
        raise invalid(resource.group, resource.kind, name, [error])
    if replicas < 0:
        error = FieldError.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise invalid("autoscaling", "Scale", name, [error])

    def change(draft: Obj) -> None:
        _set(draft, paths.spec_path, replicas)
        if uid and uid != draft["metadata"]["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {draft['metadata']['uid']}"
            raise conflict(resource.group, f"{resource.plural}/scale", name, why)
        if version and version != draft["metadata"]["resourceVersion"]:
            raise conflict(resource.group, resource.plural, name)

    writer = ssa.Writer(call.field_manager, "Update", resource.api_version, "scale")
    written = await write(backend, call, resource, name, put_with(change), writer)
    await prepare_views(resource, [written])
    return _scale_of(resource, paths, view(resource, written)[0])


def _names_version(value: Any) -> bool:
    metadata = value.get("metadata") if isinstance(value, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("resourceVersion"))


async def bind(backend: Backend, call: Call, pods: Resource, name: str) -> Obj:
    """POST of ``pods/binding``: give a pod its node, once."""
    body = _read(call, "core.Binding")
    node = (body.get("target") or {}).get("name")
    if not node:
        raise StatusError(500, "", str(FieldError.required("target.name")))
    uid = (body.get("metadata") or {}).get("uid")

    def change(draft: Obj) -> None:
        if uid and uid != draft["metadata"]["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {draft['metadata']['uid']}"
            raise conflict("", "pods", name, why)
        if draft["metadata"].get("deletionTimestamp"):
            raise conflict("", "pods/binding", name, f"pod {name} is being deleted, cannot be assigned to a host")
        have = draft["spec"].get("nodeName")
        if have:
            raise conflict("", "pods/binding", name, f'pod {name} is already assigned to node "{have}"')
        draft["spec"]["nodeName"] = node
        for key in ("annotations", "labels"):
            extra = (body.get("metadata") or {}).get(key)
            if extra:
                draft["metadata"][key] = {**(draft["metadata"].get(key) or {}), **extra}

    current = backend.require(pods, call.target.namespace, name)
    draft: Obj = put_with(change)(current.obj)
    status = draft.setdefault("status", {})
    others = [c for c in status.get("conditions") or () if c.get("type") != "PodScheduled"]
    condition = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": backend.now()}
    status["conditions"] = [*others, condition]
    writer = ssa.Writer(call.field_manager, "Update", "v1", "binding")
    if not call.dry_run:
        entries = ssa.track(current.obj, draft, pods.schema, writer, backend.clock.now(), frozenset())
        draft["metadata"]["managedFields"] = entries
        backend.store.put(backend.bucket(pods), current.key, draft)
    return {**success(), "code": 201}


async def evict(backend: Backend, call: Call, pods: Resource, name: str) -> Obj:
    """POST of ``pods/eviction``: a delete that respects disruption budgets."""
    namespace = call.target.namespace
    body = _read(call, "policy.Eviction")
    pod = backend.require(pods, namespace, name)
    budgets = [
        stored
        for stored in backend.store.bucket("policy", "poddisruptionbudgets").items.values()
        if stored.key[0] == namespace
        and match_label_selector((stored.obj.get("spec") or {}).get("selector") or {}, pod.labels)
    ]
    if (pod.obj.get("status") or {}).get("phase") not in {"Succeeded", "Failed", "Pending"}:
        for budget in budgets:
            if (budget.obj.get("status") or {}).get("disruptionsAllowed", 0) <= 0:
                why = f"The disruption budget {budget.key[1]} does not allow evicting pods currently"
                raise StatusError(
                    429,
                    "TooManyRequests",
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    details={
                        "causes": [
                            {
                                "reason": "DisruptionBudget",
                                "message": why,
                            }
                        ]
                    },
                )
    wanted = body.get("deleteOptions") or {}
    preconditions = wanted.get("preconditions") or {}
    options = DeleteOptions(
        wanted.get("gracePeriodSeconds"),
        wanted.get("propagationPolicy") or "",
        preconditions.get("uid") or "",
        preconditions.get("resourceVersion") or "",
        call.dry_run or "All" in (wanted.get("dryRun") or ()),
    )
    await delete(backend, call, pods, namespace, name, options)
    return {**success(), "code": 201}


async def finalize(backend: Backend, call: Call, namespaces: Resource, name: str) -> Stored:
    """PUT of ``namespaces/finalize``: the only way to change ``spec.finalizers``."""
    body = _read(call, "core.Namespace")
    finalizers = (body.get("spec") or {}).get("finalizers") or []
    version = (body.get("metadata") or {}).get("resourceVersion") or ""

    def change(draft: Obj) -> None:
        if version and version != draft["metadata"]["resourceVersion"]:
            raise conflict("", "namespaces", name)
        draft["spec"] = {"finalizers": list(finalizers)} if finalizers else {}

    writer = ssa.Writer(call.field_manager, "Update", "v1", "finalize")
    return await write(backend, call, namespaces, name, put_with(change), writer, finalize=True)


def create_token(backend: Backend, call: Call, accounts: Resource, name: str) -> Obj:
    """POST of ``serviceaccounts/token``."""
    spec = _read(call, "authentication.TokenRequest").get("spec") or {}
    return issue_token(backend, call, accounts, name, spec)
