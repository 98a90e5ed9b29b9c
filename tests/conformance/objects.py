"""Objects to speak about. Custom kinds are defined once a server; cases that change a definition make their own."""

from __future__ import annotations

import copy
from typing import Any

from tests.conformance.wire import Obj

__all__ = ["config_map", "crd", "deployment", "gadget_crd", "pod", "service", "widget", "widget_crd"]

GROUP = "conformance.kaito.sh"


def config_map(name: str = "a", data: dict[str, str] | None = None, **metadata: Any) -> Obj:
    return {"metadata": {"name": name, **metadata}, "data": {"k": "v"} if data is None else data}


def pod(name: str = "p", **spec: Any) -> Obj:
    """A pod that needs nothing from a controller: the token of its account is not mounted."""
    return {
        "metadata": {"name": name},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [{"name": "c", "image": "registry.local/image:1"}],
            **spec,
        },
    }


def deployment(name: str = "d", **spec: Any) -> Obj:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "registry.local/image:1"}]},
            },
            **spec,
        },
    }


def service(name: str = "s", **spec: Any) -> Obj:
    return {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"app": name}, **spec}}


def crd(plural: str, kind: str, schema: Obj, *, group: str = GROUP, scope: str = "Namespaced", **version: Any) -> Obj:
    """A definition with one version, ``v1``. ``names=`` adds to its names."""
    names = version.pop("names", {})
    return {
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"plural": plural, "kind": kind, **names},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", **schema}},
                    **version,
                }
            ],
        },
    }


_SPEC: Obj = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 10},
        "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
        "replicas": {"type": "integer"},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
        "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "limits": {"type": "object", "additionalProperties": {"type": "integer"}},
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "count": {"type": "integer", "default": 1}},
            },
        },
    },
}
_STATUS: Obj = {
    "type": "object",
    "properties": {
        "replicas": {"type": "integer"},
        "selector": {"type": "string"},
        "phase": {"type": "string"},
        "ready": {"type": "boolean"},
    },
}


def widget_crd() -> Obj:
    """A custom kind with everything: status, scale, printer columns, short names."""
    return crd(
        "widgets",
        "Widget",
        {"properties": {"spec": copy.deepcopy(_SPEC), "status": copy.deepcopy(_STATUS)}},
        names={"shortNames": ["wd"], "categories": ["all", "things"]},
        subresources={
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        additionalPrinterColumns=[
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Color", "type": "string", "jsonPath": ".spec.color", "description": "What it looks like."},
            {"name": "Ready", "type": "boolean", "jsonPath": ".status.ready", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    )


def widget(name: str = "w", **spec: Any) -> Obj:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": name},
        "spec": {"size": 3, **spec},
    }


def gadget_crd() -> Obj:
    """A custom kind without a spec wrapper, and with a status subresource, as KAITO's own."""
    return crd(
        "gadgets",
        "Gadget",
        {
            "properties": {
                "resource": {"type": "object", "properties": {"count": {"type": "integer"}}},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            }
        },
        subresources={"status": {}},
    )
