"""A kind of three versions, each of which says the same in its own way, and the webhook that converts between them."""

from __future__ import annotations

from typing import Any

from kaito_ctrl.runtime.conversion import ConversionError, ConversionWebhook, Spoke

__all__ = ["BOXES", "box", "boxes_crd"]

Obj = dict[str, Any]
_COLOUR = "example.org/colour"


def box(version: str, name: str = "a", **spec: Any) -> Obj:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": f"example.org/{version}", "kind": "Box", "metadata": metadata, "spec": spec}


def _from_v1(obj: Obj) -> Obj:
    size = obj["spec"].get("size", "")
    width, cross, height = size.partition("x")
    if not cross:
        raise ConversionError(f"{size!r} is no size")
    annotations = obj["metadata"].pop("annotations", {})
    obj["spec"] = {"width": int(width), "height": int(height), "colour": annotations.pop(_COLOUR, "")}
    if annotations:
        obj["metadata"]["annotations"] = annotations
    return obj


def _to_v1(obj: Obj) -> Obj:
    spec = obj["spec"]
    if spec["colour"]:  # of which v1 knows nothing
        obj["metadata"]["annotations"] = {**obj["metadata"].get("annotations", {}), _COLOUR: spec["colour"]}
    obj["spec"] = {"size": f"{spec['width']}x{spec['height']}"}
    return obj


def _from_v3(obj: Obj) -> Obj:
    width, height = obj["spec"]["dimensions"]
    obj["spec"] = {"width": width, "height": height, "colour": obj["spec"].get("colour", "")}
    return obj


def _to_v3(obj: Obj) -> Obj:
    spec = obj["spec"]
    colour = {"colour": spec["colour"]} if spec["colour"] else {}
    obj["spec"] = {"dimensions": [spec["width"], spec["height"]], **colour}
    return obj


BOXES = ConversionWebhook(
    "boxes.example.org", hub="v2", spokes={"v1": Spoke(_from_v1, _to_v1), "v3": Spoke(_from_v3, _to_v3)}
)


def boxes_crd() -> Obj:
    """Its definition, which stores v2 and knows of no webhook."""
    number = {"type": "integer"}
    specs: dict[str, Obj] = {
        "v1": {"size": {"type": "string"}},
        "v2": {"width": number, "height": number, "colour": {"type": "string"}},
        "v3": {"dimensions": {"type": "array", "items": number}, "colour": {"type": "string"}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.example.org"},
        "spec": {
            "group": "example.org",
            "scope": "Namespaced",
            "names": {"kind": "Box", "plural": "boxes", "singular": "box", "listKind": "BoxList"},
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": version == "v2",
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {"spec": {"type": "object", "properties": properties}},
                        }
                    },
                }
                for version, properties in specs.items()
            ],
        },
    }
