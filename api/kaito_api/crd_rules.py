"""What of each kind the API server itself checks, in CEL: it holds without any webhook.

Rules are written for the path of a field; ``[]`` stands for the items of a list. Absent optional fields have to be
asked for with ``has()``. A rule with ``oldSelf`` applies to updates only. Lists and texts that rules go through have
bounds in the schema, because the API server refuses a rule whose cost it cannot bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kaito_api.karpenter import Machine, NodeClaim
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

_KNOWN_LABELS = (
    *("beta.kubernetes.io/instance-type", "beta.kubernetes.io/arch", "beta.kubernetes.io/os"),
    *("failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region"),
    *("topology.kubernetes.io/zone", "topology.kubernetes.io/region", "node.kubernetes.io/instance-type"),
    *("kubernetes.io/arch", "kubernetes.io/os", "node.kubernetes.io/windows-build"),
)


def _in_domain(*domains: str) -> str:
    """That the label's domain is one of *domains*, or below it."""
    spelled = "|".join(domains).replace(".", "[.]")
    return f"self.matches('^([^/]+[.])?({spelled})/')"


def _any_of(values: Sequence[str]) -> str:
    return "self in [" + ", ".join(f"'{value}'" for value in values) + "]"


_NUMBER = "has(x.values) && size(x.values) == 1 && x.values[0].matches('^[0-9]+$')"
_NODE_DOMAIN = _in_domain("node.kubernetes.io", "node-restriction.kubernetes.io")
_NODECLAIM: Mapping[str, Sequence[Rule]] = {
    "spec": (("self == oldSelf", "spec is immutable"),),
    "spec.requirements": (
        (
            "self.all(x, x.operator != 'In' || (has(x.values) && size(x.values) > 0))",
            "requirements with operator 'In' must have a value defined",
        ),
        (
            f"self.all(x, !(x.operator in ['Gt', 'Lt', 'Gte', 'Lte']) || ({_NUMBER}))",
            "requirements operator 'Gt', 'Lt', 'Gte' or 'Lte' must have a single positive integer value",
        ),
        (
            "self.all(x, x.operator != 'In' || !has(x.minValues) || size(x.values) >= x.minValues)",
            "requirements with 'minValues' must have at least that many values specified in the 'values' field",
        ),
    ),
    "spec.requirements[].key": (
        (
            f"{_any_of(_KNOWN_LABELS)} || {_NODE_DOMAIN} || !{_in_domain('kubernetes.io')}",
            'label domain "kubernetes.io" is restricted',
        ),
        (f"{_in_domain('kops.k8s.io')} || !{_in_domain('k8s.io')}", 'label domain "k8s.io" is restricted'),
        (
            f"{_any_of(('karpenter.sh/capacity-type', 'karpenter.sh/nodepool'))} || !{_in_domain('karpenter.sh')}",
            'label domain "karpenter.sh" is restricted',
        ),
        ("self != 'kubernetes.io/hostname'", 'label "kubernetes.io/hostname" is restricted'),
    ),
    **{
        f"spec.nodeClassRef.{field}": (("self != ''", f"{field} may not be empty"),)
        for field in ("group", "kind", "name")
    },
}

RULES: Mapping[type[Resource], Mapping[str, Sequence[Rule]]] = {
    Workspace: _WORKSPACE,
    Machine: {},
    NodeClaim: _NODECLAIM,
}
