"""CustomResourceDefinitions out of the models: the type, the schema and the columns come from one place.

``crd(Workspace)`` is a dict ready for YAML. The schema is structural (no ``$ref``, no ``anyOf`` around null), every
field has a type, and descriptions come from the fields and the classes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kaito_api.crd_karpenter import DETAILS, QUANTITY
from kaito_api.crd_rules import RULES
from kaito_api.karpenter import (
    CAPACITY_TYPE_LABEL,
    INSTANCE_TYPE_LABEL,
    NODEPOOL_LABEL,
    PROVISIONER_NAME_LABEL,
    ZONE_LABEL,
    Machine,
    NodeClaim,
)
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace

__all__ = ["Column", "all_crds", "crd", "structural_schema"]

_KEPT = (
    *("type", "format", "description", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "pattern"),
    *("minItems", "maxItems", "required", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations"),
    *("x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "anyOf"),
)


@dataclass(frozen=True, slots=True)
class Column:
    """A printed column: heading, JSONPath, OpenAPI type; priority 1 shows with ``-o wide`` only."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0
    description: str = ""

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        if self.priority:
            wire["priority"] = self.priority
        if self.description:
            wire["description"] = self.description
        return wire


def _condition(kind: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


def _label(key: str) -> str:
    return ".metadata.labels." + key.replace(".", "\\.")


_ACTIVE = '.status.stages[?(@.state=="Active")].message'
_AGE = Column("Age", ".metadata.creationTimestamp", "date")

_COLUMNS: Mapping[type[Resource], Sequence[Column]] = {
    Workspace: (
        Column("Instance", ".resource.instanceType"),
        Column("ResourceReady", _condition("ResourceReady")),
        Column("InferenceReady", _condition("InferenceReady")),
        Column("WorkspaceReady", _condition("WorkspaceReady")),
        _AGE,
        Column("Nodes", ".status.workerNodes", priority=1, description="The nodes in use"),
        Column("Reason", _condition("WorkspaceReady", "reason"), priority=1, description="Why it is not ready"),
        Column("Message", _condition("WorkspaceReady", "message"), priority=1, description="In words"),
        Column("Waiting", _ACTIVE, priority=1, description="What its present stage waits for"),
    ),
    Machine: (
        Column("Type", _label(INSTANCE_TYPE_LABEL)),
        Column("Zone", _label(ZONE_LABEL)),
        Column("Node", ".status.nodeName"),
        Column("Ready", _condition("Ready")),
        _AGE,
        Column("Capacity", _label(CAPACITY_TYPE_LABEL), priority=1),
        Column("Provisioner", _label(PROVISIONER_NAME_LABEL), priority=1),
        Column("Template", ".spec.machineTemplateRef.name", priority=1),
    ),
    NodeClaim: (
        Column("Type", _label(INSTANCE_TYPE_LABEL)),
        Column("Capacity", _label(CAPACITY_TYPE_LABEL)),
        Column("Zone", _label(ZONE_LABEL)),
        Column("Node", ".status.nodeName"),
        Column("Ready", _condition("Ready")),
        _AGE,
        Column("ImageID", ".status.imageID", priority=1),
        Column("ID", ".status.providerID", priority=1),
        Column("NodePool", _label(NODEPOOL_LABEL), priority=1),
        Column("NodeClass", ".spec.nodeClassRef.name", priority=1),
        Column("Drifted", _condition("Drifted"), priority=1),
    ),
}


def structural_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A pydantic JSON schema as a structural one: references inlined, nullability and titles dropped."""
    definitions = schema.get("$defs", {})

    def convert(node: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(node)
        if "$ref" in merged:
            target = definitions[merged.pop("$ref").rpartition("/")[2]]
            merged = {**target, **merged}
        options = [each for each in merged.get("anyOf", ()) if each.get("type") != "null"]
        if len(options) == 1:
            del merged["anyOf"]
            outer = {key: value for key, value in merged.items() if key != "default" or value is not None}
            return convert({**options[0], **outer}) if "$ref" not in options[0] else convert_ref(options[0], outer)
        if {each.get("type") for each in options} == {"integer", "string"}:
            merged.pop("anyOf")
            merged["x-kubernetes-int-or-string"] = True
        if "const" in merged:
            merged["enum"] = [merged.pop("const")]
        if merged.get("x-kaito-quantities"):
            merged["additionalProperties"] = QUANTITY
        return finish(merged)

    def convert_ref(ref: Mapping[str, Any], outer: Mapping[str, Any]) -> dict[str, Any]:
        return convert({**definitions[ref["$ref"].rpartition("/")[2]], **outer})

    def finish(node: dict[str, Any]) -> dict[str, Any]:
        out = {key: node[key] for key in _KEPT if key in node}
        # An object that is left out is left out: a default of {} would only be noise in every object stored.
        if out.get("default") in ({}, [], (), None, ""):
            out.pop("default", None)
        if isinstance(out.get("default"), dict | list):
            out.pop("default")
        if "description" in out:
            out["description"] = _plain(out["description"])
        if out.get("x-kubernetes-preserve-unknown-fields"):
            return {**out, "type": "object"}
        if "properties" in node:
            properties = {name: convert(each) for name, each in node["properties"].items()}
            for name, keys in node.get("x-kaito-map-lists", {}).items():
                properties[name] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
            out["properties"] = properties
            out["type"] = "object"
        elif isinstance(node.get("additionalProperties"), Mapping):
            values = node["additionalProperties"]
            out["additionalProperties"] = dict(values) if "anyOf" in values else convert(values)
            out["type"] = "object"
        if "items" in node:
            out["items"] = convert(node["items"])
        return out

    return convert({key: value for key, value in schema.items() if key != "$defs"})


def _plain(text: str) -> str:
    """A docstring as a description: the first paragraph, without markup."""
    first = text.split("\n\n")[0]
    return re.sub(r"\s+", " ", first).replace("``", "").strip()


def _at(schema: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of the field at *path*."""
    found: dict[str, Any] = schema
    for name in path.split(".") if path else ():
        found = found["properties"][name.removesuffix("[]")]
        found = found["items"] if name.endswith("[]") else found
    return found


def _detail(schema: dict[str, Any], keywords: Mapping[str, Any]) -> None:
    """Set the *keywords* in *schema*, add the properties, and take away what is ``None``."""
    for key, value in keywords.items():
        if key == "properties":
            schema[key] = {**schema[key], **copy.deepcopy(value)}
        elif value is None:
            schema.pop(key, None)
        else:
            schema[key] = copy.deepcopy(value)


def crd(kind: type[Resource]) -> dict[str, Any]:
    """The CustomResourceDefinition of *kind*, with one version that is served and stored."""
    schema = structural_schema(kind.model_json_schema(by_alias=True))
    properties = schema["properties"]
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    schema["properties"] = {
        name: properties[name]
        for name in ("apiVersion", "kind", "metadata", *(key for key in properties))
        if name in properties
    }
    for path, keywords in DETAILS.get(kind, {}).items():
        _detail(_at(schema, path), keywords)
    for path, rules in RULES[kind].items():
        _at(schema, path)["x-kubernetes-validations"] = [{"rule": rule, "message": text} for rule, text in rules]
    singular = kind.kind.lower()
    names: dict[str, Any] = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": singular,
    }
    for attribute, field in (("short_names", "shortNames"), ("categories", "categories")):
        if values := getattr(kind, attribute, ()):
            names[field] = list(values)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "names": names,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.to_wire() for column in _COLUMNS[kind]],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def all_crds() -> tuple[dict[str, Any], ...]:
    """The CRDs that kaito-ctrl brings."""
    return tuple(crd(kind) for kind in _COLUMNS)
