"""OpenAPI documents, version 2 and 3: what ``kubectl explain``, validation and client-side merging need to know.

Built-in types come from the type table, custom resources from their definitions. Paths carry the operations' group,
version and kind and the write options, because clients look for them there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.crd import CustomVersion
from kaito_ctrl.devcluster.apiserver.kinds import Registry, Resource
from kaito_ctrl.devcluster.apiserver.openapi_proto import encode_document
from kaito_ctrl.devcluster.apiserver.schema import type_table
from kaito_ctrl.devcluster.apiserver.store import Obj, encode

__all__ = ["OpenAPI"]

# Clients ask for "...spec.v2@v1.0+protobuf", but Go cannot parse that as the type of an answer.
PROTO_V2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1"
_PACKAGES = {
    "meta": _META,
    "apiextensions": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    "autoscalingv2": "io.k8s.api.autoscaling.v2",
}
_SCALARS: Mapping[str, Mapping[str, Any]] = {
    "string": {"type": "string"},
    "int": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "number": {"type": "number", "format": "double"},
    "boolean": {"type": "boolean"},
    "time": {"type": "string", "format": "date-time"},
    "microtime": {"type": "string", "format": "date-time"},
    "bytes": {"type": "string", "format": "byte"},
    "quantity": {"type": "string"},
    "intorstr": {"type": "string", "format": "int-or-string"},
    # Said in words: kubectl explain takes an empty schema for a missing one.
    "any": {"description": "Any JSON value."},
}
_GROUPS = {"rbac": "rbac.authorization.k8s.io"}


def _full_name(name: str) -> str:
    package, _, kind = name.partition(".")
    return f"{_PACKAGES.get(package, f'io.k8s.api.{package}.v1')}.{kind}"


def _field(notation: str, prefix: str) -> Obj:
    expression, *flags = notation.split("|")
    node: Obj
    if expression.startswith("[]"):
        node = {"type": "array", "items": _field(expression[2:], prefix)}
    elif expression.startswith("{}"):
        node = {"type": "object", "additionalProperties": _field(expression[2:], prefix)}
    elif expression.startswith("@"):
        node = {"$ref": prefix + _full_name(expression[1:])}
    else:
        node = dict(_SCALARS[expression])
    for flag in flags:
        name, _, argument = flag.partition("=")
        if name == "map":
            node["x-kubernetes-list-type"] = "map"
            node["x-kubernetes-list-map-keys"] = argument.split(",")
        elif name in {"set", "atomic"} and node.get("type") == "array":
            node["x-kubernetes-list-type"] = name
        elif name == "atomic":
            node["x-kubernetes-map-type"] = "atomic"
        elif name == "patch":
            strategy, _, key = argument.partition(":")
            node["x-kubernetes-patch-strategy"] = strategy
            if key:
                node["x-kubernetes-patch-merge-key"] = key
    return node


def _builtin(name: str, prefix: str) -> Obj:
    package, _, kind = name.partition(".")
    node: Obj = {"type": "object", "properties": {}}
    required = []
    for key, notation in type_table()[package][kind].items():
        if key == "*":
            node["x-kubernetes-map-type"] = notation
            continue
        field = key.rstrip("!")
        if field != key:
            required.append(field)
        node["properties"][field] = _field(notation, prefix)
    if required:
        node["required"] = required
    if not node["properties"]:
        del node["properties"]
    return node


def _references(name: str) -> Iterator[str]:
    package, _, kind = name.partition(".")
    for notation in type_table()[package][kind].values():
        expression = notation.partition("|")[0].lstrip("[]{}")
        if expression.startswith("@"):
            yield expression[1:]


def _closure(names: list[str]) -> list[str]:
    seen: dict[str, None] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen[name] = None
            todo.extend(_references(name))
    return sorted(seen)


def _custom_name(resource: Resource) -> str:
    return ".".join([*reversed(resource.group.split(".")), resource.version, resource.kind])


_V2_KEYS = frozenset(
    {
        "additionalProperties",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
    }
)


def _for_v2(source: Mapping[str, Any]) -> Obj:
    """A custom schema in the words that version 2 has."""
    if source.get("x-kubernetes-int-or-string"):
        return {"type": "string", "format": "int-or-string", **_only(source, {"description"})}
    free = source.get("x-kubernetes-preserve-unknown-fields") or source.get("nullable")
    node = {k: v for k, v in source.items() if k in _V2_KEYS or k.startswith("x-kubernetes-")}
    if free:
        # Version 2 cannot say "and anything else": clients would refuse what the server takes.
        return _only(source, {"description"})
    if "properties" in node:
        node["properties"] = {key: _for_v2(child) for key, child in node["properties"].items()}
    if isinstance(node.get("items"), Mapping):
        node["items"] = _for_v2(node["items"])
    if isinstance(node.get("additionalProperties"), Mapping):
        node["additionalProperties"] = _for_v2(node["additionalProperties"])
    elif "additionalProperties" in node:
        node["additionalProperties"] = {}
    node.pop("x-kubernetes-validations", None)
    return node


def _only(source: Mapping[str, Any], keys: set[str]) -> Obj:
    return {key: value for key, value in source.items() if key in keys}


def _custom(resource: Resource, prefix: str, *, v2: bool) -> Obj:
    version = resource.custom
    assert isinstance(version, CustomVersion)
    node = _for_v2(version.source) if v2 else dict(version.source)
    if node.get("properties") or node.get("type") == "object":
        node["properties"] = {
            **(node.get("properties") or {}),
            "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this object."},
            "kind": {"type": "string", "description": "Kind is the REST resource this object represents."},
            "metadata": {"$ref": f"{prefix}{_META}.ObjectMeta"},
        }
    return node


def _gvk(resource: Resource) -> Obj:
    return {"group": resource.group, "kind": resource.kind, "version": resource.version}


_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")


def _operation(resource: Resource, verb: str, reference: str, *, v2: bool) -> Obj:
    action = {"create": "post", "update": "put"}.get(verb, verb)
    names: tuple[str, ...] = ()
    if verb in {"create", "update"}:
        names = _PARAMETERS
    elif verb == "patch":
        names = (*_PARAMETERS, "force")
    parameters: list[Obj] = []
    for name in names:
        kind = "boolean" if name == "force" else "string"
        parameters.append(
            {"in": "query", "name": name, "type": kind}
            if v2
            else {"in": "query", "name": name, "schema": {"type": kind}}
        )
    group = resource.group.partition(".")[0].capitalize() or "Core"
    operation: Obj = {
        "operationId": f"{verb}{group}{resource.version.capitalize()}{resource.kind}",
        "responses": {"200": {"description": "OK", "schema": {"$ref": reference}} if v2 else {
            "description": "OK", "content": {"application/json": {"schema": {"$ref": reference}}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(resource),
    }  # fmt: skip
    if parameters:
        operation["parameters"] = parameters
    if verb == "patch" and v2:
        operation["consumes"] = [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ]
    return operation


def _paths(resource: Resource, reference: str, *, v2: bool) -> Iterator[tuple[str, Obj]]:
    base = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    if resource.namespaced:
        base += "/namespaces/{namespace}"

    def operations(*verbs: str) -> Obj:
        keys = {"create": "post", "update": "put", "list": "get"}
        return {keys.get(verb, verb): _operation(resource, verb, reference, v2=v2) for verb in verbs}

    if resource.virtual:
        yield f"{base}/{resource.plural}", operations("create")
        return
    yield f"{base}/{resource.plural}", operations("list", "create")
    yield f"{base}/{resource.plural}/{{name}}", operations("get", "update", "patch", "delete")
    if resource.status:
        yield f"{base}/{resource.plural}/{{name}}/status", operations("get", "update", "patch")


class OpenAPI:
    """The documents of one registry; made when asked for, kept until a kind changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._revision = -1
        self._kept: dict[str, bytes] = {}

    def answer(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes, dict[str, str]] | None:
        """``/openapi/v2``, ``/openapi/v3`` and ``/openapi/v3/<group version>``."""
        if self._revision != self._registry.revision:
            self._kept.clear()
            self._revision = self._registry.revision
        if path == "/openapi/v2":
            if "proto-openapi.spec.v2" in headers.get("accept", ""):
                return 200, self._keep("v2:proto", lambda: encode_document(self._v2())), {"content-type": PROTO_V2}
            return 200, self._keep("v2", lambda: encode(self._v2())), {}
        if path == "/openapi/v3":
            return 200, self._keep("v3", lambda: encode(self._v3_index())), {}
        name = path.removeprefix("/openapi/v3/")
        for group, versions in self._registry.groups().items():
            for version, resources in versions.items():
                if name == (f"apis/{group}/{version}" if group else f"api/{version}"):
                    return 200, self._keep(name, lambda r=resources: encode(self._v3(r))), {}
        return None

    def _keep(self, key: str, make: Any) -> bytes:
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = make()
        return found

    def _schemas(self, resources: list[Resource], prefix: str, *, v2: bool) -> Obj:
        schemas: Obj = {}
        roots = {r.schema.name: r for r in resources if r.custom is None}
        always = ["meta.ObjectMeta", "meta.DeleteOptions"]
        for name in _closure([*roots, *always]):
            node = _builtin(name, prefix)
            if name in roots:
                node["x-kubernetes-group-version-kind"] = [_gvk(roots[name])]
            schemas[_full_name(name)] = node
        for resource in resources:
            if resource.custom is not None:
                node = _custom(resource, prefix, v2=v2)
                node["x-kubernetes-group-version-kind"] = [_gvk(resource)]
                schemas[_custom_name(resource)] = node
        return schemas

    def _reference(self, resource: Resource, prefix: str) -> str:
        return prefix + (_custom_name(resource) if resource.custom is not None else _full_name(resource.schema.name))

    def _all(self) -> list[Resource]:
        groups = self._registry.groups()
        return [r for versions in groups.values() for resources in versions.values() for r in resources]

    def _v2(self) -> Obj:
        prefix, resources = "#/definitions/", self._all()
        paths: Obj = {}
        for resource in resources:
            paths.update(_paths(resource, self._reference(resource, prefix), v2=True))
        return {
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": "v1.32.0"},
            "paths": paths,
            "definitions": self._schemas(resources, prefix, v2=True),
        }

    def _v3(self, resources: list[Resource]) -> Obj:
        prefix = "#/components/schemas/"
        paths: Obj = {}
        for resource in resources:
            paths.update(_paths(resource, self._reference(resource, prefix), v2=False))
        return {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "v1.32.0"},
            "paths": paths,
            "components": {"schemas": self._schemas(resources, prefix, v2=False)},
        }

    def _v3_index(self) -> Obj:
        paths: Obj = {}
        for group, versions in self._registry.groups().items():
            for version in versions:
                name = f"apis/{group}/{version}" if group else f"api/{version}"
                mark = hashlib.sha256(f"{name}:{self._registry.revision}".encode()).hexdigest()[:32].upper()
                paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={mark}"}
        return {"paths": paths}
