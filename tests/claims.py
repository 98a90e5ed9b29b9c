"""Machines and NodeClaims as KAITO, gpu-provisioner's examples and Karpenter write them: not one is ours."""

from __future__ import annotations

from typing import Any

__all__ = ["KAITO_MACHINE", "KAITO_NODECLAIM", "KARPENTER_NODECLAIM", "WHOLE_MACHINE", "requirement"]

Json = dict[str, Any]
_WORKSPACE = {"kaito.sh/workspace": "ws", "kaito.sh/workspacenamespace": "default", "apps": "falcon-7b"}
_GPU_TAINT = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}


def requirement(key: str, *values: str, operator: str = "In", **more: Any) -> Json:
    """One entry of ``spec.requirements``."""
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {}), **more}


KAITO_MACHINE: Json = {
    "apiVersion": "karpenter.sh/v1alpha5",
    "kind": "Machine",
    "metadata": {"name": "ws0123456789", "labels": {"karpenter.sh/provisioner-name": "default", **_WORKSPACE}},
    "spec": {
        "machineTemplateRef": {"name": "ws0123456789"},
        "requirements": [
            requirement("node.kubernetes.io/instance-type", "Standard_NC12s_v3"),
            requirement("karpenter.sh/provisioner-name", "default"),
            requirement("kaito.sh/machine-type", "gpu"),
            requirement("kubernetes.io/arch", "amd64"),
            requirement("kubernetes.io/os", "linux"),
        ],
        "taints": [_GPU_TAINT],
        "resources": {"requests": {"storage": "50Gi"}},
    },
}
"""KAITO v0.3.0's."""

WHOLE_MACHINE: Json = {
    **KAITO_MACHINE,
    "metadata": {"name": "whole", "labels": {"karpenter.sh/provisioner-name": "default"}},
    "spec": {
        **KAITO_MACHINE["spec"],
        "machineTemplateRef": {
            "name": "default",
            "kind": "AWSNodeTemplate",
            "apiVersion": "karpenter.k8s.aws/v1alpha1",
        },
        "startupTaints": [{"key": "example.com/starting", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}],
        "resources": {"requests": {"cpu": 4, "memory": "16Gi", "pods": "3"}},
        "kubelet": {
            "clusterDNS": ["10.0.1.100"],
            "containerRuntime": "containerd",
            "maxPods": 20,
            "podsPerCore": 2,
            "systemReserved": {"cpu": "100m", "memory": "100Mi"},
            "kubeReserved": {"cpu": "200m", "ephemeral-storage": "3Gi"},
            "evictionHard": {"memory.available": "5%"},
            "evictionSoft": {"memory.available": "500Mi"},
            "evictionSoftGracePeriod": {"memory.available": "1m"},
            "evictionMaxPodGracePeriod": 60,
            "imageGCHighThresholdPercent": 85,
            "imageGCLowThresholdPercent": 80,
            "cpuCFSQuota": True,
        },
    },
}
"""One with every field that karpenter-core v0.29.2 knows."""

KAITO_NODECLAIM: Json = {
    "apiVersion": "karpenter.sh/v1",
    "kind": "NodeClaim",
    "metadata": {
        "name": "ws0123456789",
        "labels": {"karpenter.sh/nodepool": "kaito", **_WORKSPACE},
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
    },
    "spec": {
        "nodeClassRef": {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"},
        "requirements": [
            requirement("karpenter.sh/nodepool", "kaito"),
            requirement("node.kubernetes.io/instance-type", "Standard_NC12s_v3"),
            requirement("kubernetes.io/os", "linux"),
            requirement("karpenter.azure.com/sku-name", "Standard_NC12s_v3"),
        ],
        "taints": [_GPU_TAINT],
        "resources": {"requests": {"storage": "50Gi"}},
    },
}
"""Today's KAITO's, on Azure."""

KARPENTER_NODECLAIM: Json = {
    "apiVersion": "karpenter.sh/v1",
    "kind": "NodeClaim",
    "metadata": {
        "name": "default-7xk2p",
        "labels": {"karpenter.sh/nodepool": "default"},
        "annotations": {
            "karpenter.sh/nodepool-hash": "12393960163388511505",
            "karpenter.sh/nodepool-hash-version": "v3",
        },
    },
    "spec": {
        "nodeClassRef": {"group": "karpenter.azure.com", "kind": "AKSNodeClass", "name": "default"},
        "requirements": [
            requirement("karpenter.sh/capacity-type", "spot", "on-demand", minValues=2),
            requirement("topology.kubernetes.io/zone", "westus2-1", operator="NotIn"),
            requirement("karpenter.azure.com/sku-gpu-count", "0", operator="Gt"),
            requirement("node-restriction.kubernetes.io/team", operator="Exists"),
            requirement("kops.k8s.io/instancegroup", operator="DoesNotExist"),
            requirement("example.com/tier", "3", operator="Lte"),
        ],
        "taints": [{"key": "example.com/gpu", "value": "", "effect": "NoSchedule"}],
        "startupTaints": [{"key": "example.com/starting", "effect": "NoExecute"}],
        "resources": {"requests": {"cpu": "4", "nvidia.com/gpu": 1}},
        "terminationGracePeriod": "24h30m",
        "expireAfter": "Never",
    },
}
"""Karpenter's own, of one of its NodePools."""
