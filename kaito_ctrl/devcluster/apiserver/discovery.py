"""What the server says about itself: groups, versions, resources, health, version, OpenAPI."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import method_not_allowed
from kaito_ctrl.devcluster.apiserver.kinds import Registry, Resource
from kaito_ctrl.devcluster.apiserver.openapi import OpenAPI
from kaito_ctrl.devcluster.apiserver.store import Obj, encode

__all__ = ["VERSION", "Discovery"]

VERSION: Mapping[str, str] = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2024-12-11T00:00:00Z",
    "goVersion": "go1.23.3",
    "compiler": "gc",
    "platform": "linux/amd64",
}

Answer = tuple[int, bytes, dict[str, str]]
_HEALTH = frozenset({"/healthz", "/livez", "/readyz", "/healthz/ping", "/livez/ping", "/readyz/ping"})


def _scope(resource: Resource) -> str:
    return "Namespaced" if resource.namespaced else "Cluster"


def _subresources(resource: Resource) -> list[tuple[str, str, str, str, tuple[str, ...]]]:
    """Name, group, version and kind of its answer, verbs."""
    found: list[tuple[str, str, str, str, tuple[str, ...]]] = []
    own = (resource.group, resource.version, resource.kind)
    if resource.status:
        found.append(("status", *own, ("get", "patch", "update")))
    if resource.scale is not None:
        found.append(("scale", "autoscaling", "v1", "Scale", ("get", "patch", "update")))
    known: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
        "log": (*own, ("get",)),
        "exec": ("", "v1", "PodExecOptions", ("create", "get")),
        "attach": ("", "v1", "PodAttachOptions", ("create", "get")),
        "portforward": ("", "v1", "PodPortForwardOptions", ("create", "get")),
        "binding": ("", "v1", "Binding", ("create",)),
        "eviction": ("policy", "v1", "Eviction", ("create",)),
        "proxy": ("", "v1", f"{resource.kind}ProxyOptions", ("create", "delete", "get", "patch", "update")),
        "finalize": (*own, ("update",)),
        "token": ("authentication.k8s.io", "v1", "TokenRequest", ("create",)),
    }
    found += [(name, *known[name]) for name in resource.subresources]
    return sorted(found)


def _storage_hash(resource: Resource) -> str:
    text = f"{resource.group}/{resource.storage_version}/{resource.kind}".encode()
    import base64

    return base64.b64encode(hashlib.sha256(text).digest()[:8]).decode()


def _legacy(resource: Resource) -> list[Obj]:
    entry: Obj = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if not resource.virtual:
        entry["storageVersionHash"] = _storage_hash(resource)
    entries = [entry]
    for name, group, version, kind, verbs in _subresources(resource):
        sub: Obj = {
            "name": f"{resource.plural}/{name}",
            "singularName": "",
            "namespaced": resource.namespaced,
            "kind": kind,
            "verbs": list(verbs),
        }
        if (group, version) != (resource.group, resource.version):
            sub = {**sub, "group": group, "version": version}
        entries.append(sub)
    return entries


def _aggregated(resource: Resource) -> Obj:
    entry: Obj = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": _scope(resource),
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    subs = [
        {
            "subresource": name,
            "responseKind": {"group": group, "version": version, "kind": kind},
            "verbs": list(verbs),
        }
        for name, group, version, kind, verbs in _subresources(resource)
    ]
    if subs:
        entry["subresources"] = subs
    return entry


class Discovery:
    """Answers every path that names no object. What it computes is kept until a kind is added or removed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._openapi = OpenAPI(registry)
        self._revision = -1
        self._kept: dict[str, bytes] = {}

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer | None:
        """Status, body and headers; ``None`` when nobody knows the path. Raises a 405 for anything but reading."""
        path = path.rstrip("/") or "/"
        found = self._answer(path, headers)
        if found is not None and method not in {"GET", "HEAD"} and path not in _HEALTH:
            raise method_not_allowed()
        return found

    def _answer(self, path: str, headers: Mapping[str, str]) -> Answer | None:
        if path in _HEALTH:
            return 200, b"ok", {"content-type": "text/plain; charset=utf-8"}
        if path == "/version":
            return 200, encode(VERSION), {}
        if path == "/":
            return 200, encode({"paths": self._paths()}), {}
        if path.startswith("/openapi/"):
            return self._openapi.answer(path, headers)
        accept = headers.get("accept", "")
        parts = path.strip("/").split("/")
        if path in {"/api", "/apis"}:
            for version in ("v2", "v2beta1"):
                if f"v={version};" in accept + ";" and "APIGroupDiscoveryList" in accept:
                    body = self._keep(f"{path}:{version}", lambda v=version: self._aggregated(path == "/api", v))
                    media = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                    return 200, body, {"content-type": media, "vary": "Accept"}
            if path == "/api":
                addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1:6443"}]
                return (
                    200,
                    encode({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}),
                    {},
                )
            return 200, self._keep("/apis", self._group_list), {}
        groups = self._registry.groups()
        if parts[0] == "api" and len(parts) == 2 and parts[1] in groups.get("", {}):
            return 200, self._keep(path, lambda: self._resource_list("", parts[1])), {}
        if parts[0] == "apis" and len(parts) in {2, 3} and parts[1] in groups and parts[1]:
            if len(parts) == 2:
                return 200, encode({"kind": "APIGroup", "apiVersion": "v1", **self._group(parts[1])}), {}
            if parts[2] in groups[parts[1]]:
                return 200, self._keep(path, lambda: self._resource_list(parts[1], parts[2])), {}
        return None

    def _keep(self, key: str, make: Any) -> bytes:
        if self._revision != self._registry.revision:
            self._kept.clear()
            self._revision = self._registry.revision
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = encode(make())
        return found

    def _paths(self) -> list[str]:
        paths = ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
        for group, versions in self._registry.groups().items():
            if group:
                paths += [f"/apis/{group}", *(f"/apis/{group}/{version}" for version in versions)]
        return sorted(paths)

    def _group(self, group: str) -> Obj:
        versions = [{"groupVersion": f"{group}/{v}", "version": v} for v in self._registry.groups()[group]]
        return {"name": group, "versions": versions, "preferredVersion": versions[0]}

    def _group_list(self) -> Obj:
        names = [group for group in self._registry.groups() if group]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [self._group(name) for name in names]}

    def _resource_list(self, group: str, version: str) -> Obj:
        resources = self._registry.groups()[group][version]
        entries = [entry for resource in resources for entry in _legacy(resource)]
        api_version = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": entries}

    def _aggregated(self, core: bool, version: str) -> Obj:
        items = [
            {
                "metadata": {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None},
                "versions": [
                    {"version": v, "resources": [_aggregated(r) for r in resources], "freshness": "Current"}
                    for v, resources in versions.items()
                ],
            }
            for group, versions in self._registry.groups().items()
            if bool(group) != core
        ]
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"apidiscovery.k8s.io/{version}",
            "metadata": {},
            "items": items,
        }
