"""What of a Workspace the API server itself checks, in CEL: it holds without any webhook.

Rules are written for the path of a field; ``[]`` stands for the items of a list. Absent optional fields have to be
asked for with ``has()``. A rule with ``oldSelf`` applies to updates only. Lists and texts that rules go through have
bounds in the schema, because the API server refuses a rule whose cost it cannot bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kaito_api.karpenter import Machine
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace

__all__ = ["RULES", "Rule"]

Rule = tuple[str, str]
"""The expression, and what is said when it is false."""


def _one_of(*fields: str) -> str:
    return " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields) + " == 1"


_IMAGE_PRIVATE = "has(self.presetOptions) && has(self.presetOptions.image) && size(self.presetOptions.image) > 0"
_SOME_LABEL = (
    "(has(self.matchLabels) && size(self.matchLabels) > 0) || "
    "(has(self.matchExpressions) && size(self.matchExpressions) > 0)"
)
_DIFFERENT_NAMES = (
    "self.all(a, !has(a.source) || !has(a.source.name) || "
    "self.exists_one(b, has(b.source) && has(b.source.name) && b.source.name == a.source.name))"
)
_PRESET: Sequence[Rule] = (
    (
        f"!has(self.accessMode) || self.accessMode != 'private' || ({_IMAGE_PRIVATE})",
        "when accessMode is private, an image must be provided in presetOptions",
    ),
    ("self == oldSelf", "preset is immutable"),
)

_WORKSPACE: Mapping[str, Sequence[Rule]] = {
    "": (
        ("has(self.inference) != has(self.tuning)", "exactly one of inference and tuning must be specified"),
        ("has(self.inference) == has(oldSelf.inference)", "inference cannot be added or removed"),
        ("has(self.tuning) == has(oldSelf.tuning)", "tuning cannot be added or removed"),
        (
            "!has(self.tuning) || !has(self.resource.count) || self.resource.count == 1",
            "tuning does not support more than one node",
        ),
    ),
    "resource": (
        ("self.count == oldSelf.count", "count is immutable"),
        ("self.instanceType == oldSelf.instanceType", "instanceType is immutable"),
    ),
    "resource.labelSelector": (
        (
            _SOME_LABEL,
            "must select by at least one label",
        ),
        ("self == oldSelf", "labelSelector is immutable"),
    ),
    "inference": (
        ("!(has(self.preset) && has(self.template))", "preset and template cannot be set at the same time"),
        ("has(self.preset) || has(self.template)", "preset or template must be specified"),
        ("has(self.preset) == has(oldSelf.preset)", "preset cannot be set or unset"),
    ),
    "inference.preset": _PRESET,
    "inference.adapters": (
        (
            _DIFFERENT_NAMES,
            "adapters must have different names",
        ),
    ),
    "inference.adapters[]": (
        (
            "has(self.source) && has(self.source.name) && has(self.source.image)",
            "an adapter needs source.name and source.image",
        ),
    ),
    "tuning": (
        ("has(self.preset)", "a preset must be specified"),
        ("has(self.method) && self.method.matches('(?i)^q?lora$')", "method must be lora or qlora"),
        ("has(self.preset) == has(oldSelf.preset)", "preset cannot be set or unset"),
        ("self.output == oldSelf.output", "output is immutable"),
    ),
    "tuning.preset": _PRESET,
    "tuning.input": (
        (_one_of("urls", "volumeSource", "image"), "exactly one of urls, volumeSource or image must be specified"),
    ),
    "tuning.output": (
        ("has(self.volumeSource) || has(self.image)", "a destination must be specified"),
        ("!has(self.image) || has(self.imagePushSecret)", "imagePushSecret must be specified with a destination image"),
    ),
}

RULES: Mapping[type[Resource], Mapping[str, Sequence[Rule]]] = {Workspace: _WORKSPACE, Machine: {}}
