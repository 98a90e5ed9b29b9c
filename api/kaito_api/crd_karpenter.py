"""What Karpenter's own schemas of Machine and NodeClaim say beyond our models.

The models name what somebody here reads or writes, and read leniently: an object that some other release of Karpenter
let in has to be decoded all the same. The CRDs are as strict as Karpenter's, and keep every field that theirs keep, so
that nothing which a client of Karpenter's writes is pruned: Machine's as karpenter-core v0.29.2 has it, NodeClaim's as
v1.7 (gpu-provisioner 0.4's) with the operators ``Gte`` and ``Lte`` of later releases. Where Machine's schema leaves it
to a webhook which operators and effects there are, ours enumerates them.

By the path of a field (``[]``: the items of a list): keywords to set, or to take away (``None``), and under
``properties`` the fields that the model lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaito_api.karpenter import Machine, NodeClaim
from kaito_api.meta import Resource

__all__ = ["DETAILS", "QUANTITY"]

QUANTITY: Mapping[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
    "x-kubernetes-int-or-string": True,
}
"""The schema of an amount such as ``16Gi``."""
_NAME = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*(\/))?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"
)
_LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
_DURATION = "([0-9]+(s|m|h))+"


def _text(description: str, **more: Any) -> Mapping[str, Any]:
    return {"type": "string", "description": description, **more}


def _count(description: str, maximum: int | None = None) -> Mapping[str, Any]:
    bounds = {"minimum": 0} | ({"maximum": maximum} if maximum is not None else {})
    return {"type": "integer", "format": "int32", "description": description, **bounds}


def _by_name(description: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "object", "description": description, "additionalProperties": dict(values)}


_KUBELET: Mapping[str, Any] = {
    "type": "object",
    "description": "Settings of the node's kubelet, for providers that heed them.",
    "properties": {
        "clusterDNS": {
            "type": "array",
            "description": "Addresses of the cluster's DNS servers.",
            "items": {"type": "string"},
        },
        "containerRuntime": _text("Which container runtime to use."),
        "maxPods": _count("How many pods the node may run."),
        "podsPerCore": _count("How many pods it may run for each core; maxPods bounds it."),
        "systemReserved": _by_name("What is set aside for the operating system.", QUANTITY),
        "kubeReserved": _by_name("What is set aside for Kubernetes' own components.", QUANTITY),
        "evictionHard": _by_name("Thresholds at which pods are evicted at once, by signal.", {"type": "string"}),
        "evictionSoft": _by_name("Thresholds at which pods are evicted after a while.", {"type": "string"}),
        "evictionSoftGracePeriod": _by_name("How long after, by signal; Go durations.", {"type": "string"}),
        "evictionMaxPodGracePeriod": {
            "type": "integer",
            "format": "int32",
            "description": "Seconds that a pod has to end when it is evicted at a soft threshold.",
        },
        "imageGCHighThresholdPercent": _count("Disk usage above which images are collected.", 100),
        "imageGCLowThresholdPercent": _count("Disk usage down to which images are collected.", 100),
        "cpuCFSQuota": {"type": "boolean", "description": "Whether CPU limits are enforced."},
    },
}

_MACHINE: Mapping[str, Mapping[str, Any]] = {
    "spec": {"properties": {"kubelet": _KUBELET}},
    # Knative's conditions: the time is whatever text a release has put there.
    "status.conditions[]": {"required": ["type", "status"]},
    "status.conditions[].status": {"default": None},
    "status.conditions[].lastTransitionTime": {"format": None},
}

_TAINT: Mapping[str, Mapping[str, Any]] = {
    "key": {"minLength": 1, "pattern": _NAME},
    "value": {"pattern": _LABEL_VALUE},
}
_NODECLAIM: Mapping[str, Mapping[str, Any]] = {
    "": {"required": ["spec"]},
    "spec": {"required": ["nodeClassRef", "requirements"]},
    "spec.requirements": {"maxItems": 100},
    "spec.requirements[]": {
        "properties": {
            "minValues": {
                "type": "integer",
                "description": "How many different values there have to be to choose from.",
                "minimum": 1,
                "maximum": 50,
            }
        }
    },
    "spec.requirements[].key": {"maxLength": 316, "pattern": _NAME},
    "spec.requirements[].values[]": {"maxLength": 63, "pattern": _LABEL_VALUE},
    **{f"spec.taints[].{name}": keywords for name, keywords in _TAINT.items()},
    **{f"spec.startupTaints[].{name}": keywords for name, keywords in _TAINT.items()},
    "spec.nodeClassRef.group": {"pattern": "^[^/]*$"},
    "spec.terminationGracePeriod": {"pattern": f"^{_DURATION}$"},
    "spec.expireAfter": {"default": "720h", "pattern": f"^({_DURATION}|Never)$"},
    "status": {
        "properties": {
            "lastPodEventTime": _text("When a pod came to the node, or left it, last.", format="date-time"),
        }
    },
    "status.conditions": {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    "status.conditions[]": {"required": ["type", "status", "lastTransitionTime"]},
    "status.conditions[].type": {"maxLength": 316, "pattern": _NAME},
    "status.conditions[].status": {"default": None},
    "status.conditions[].reason": {"maxLength": 1024, "pattern": "^([A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?|)$"},
    "status.conditions[].message": {"maxLength": 32768},
    "status.conditions[].observedGeneration": {"format": "int64", "minimum": 0},
}

DETAILS: Mapping[type[Resource], Mapping[str, Mapping[str, Any]]] = {Machine: _MACHINE, NodeClaim: _NODECLAIM}
