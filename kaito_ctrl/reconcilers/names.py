"""The strings that users, tools and other controllers see: labels, annotations, finalizers, names of children."""

from __future__ import annotations

import hashlib

__all__ = [
    "ACCELERATOR_LABEL",
    "APPLIED_HASH_ANNOTATION",
    "ENABLE_LB_ANNOTATION",
    "GPU_RESOURCE",
    "IMAGE_FAMILY_ANNOTATION",
    "MACHINE_TYPE_LABEL",
    "REVISION_ANNOTATION",
    "REVISION_HASH_ANNOTATION",
    "REVISION_OWNER_LABEL",
    "RUNTIME_ANNOTATION",
    "WORKSPACE_FINALIZER",
    "WORKSPACE_LABEL",
    "WORKSPACE_NAMESPACE_LABEL",
    "machine_name",
]

WORKSPACE_LABEL = "kaito.sh/workspace"
WORKSPACE_NAMESPACE_LABEL = "kaito.sh/workspacenamespace"
MACHINE_TYPE_LABEL = "kaito.sh/machine-type"
ENABLE_LB_ANNOTATION = "kaito.sh/enablelb"
RUNTIME_ANNOTATION = "kaito.sh/runtime"
"""Which server serves a preset: ``transformers`` or ``vllm``."""
IMAGE_FAMILY_ANNOTATION = "kaito.sh/node-image-family"
"""On a Workspace, and so on its node requests: which operating system the nodes get, ``ubuntu`` or ``azurelinux``."""
APPLIED_HASH_ANNOTATION = "kaito.sh/applied-hash"
"""On what a workspace consists of: a hash of what was applied last."""
ACCELERATOR_LABEL = "accelerator"
"""``accelerator=nvidia`` is what NVIDIA's device plug-in selects nodes by."""
REVISION_ANNOTATION = "workspace.kaito.io/revision"
"""On a Workspace and its workload: the number of the revision that they are at."""
REVISION_HASH_ANNOTATION = "workspace.kaito.io/hash"
REVISION_OWNER_LABEL = "workspace.kaito.io/name"
WORKSPACE_FINALIZER = "workspace.finalizer.kaito.sh"
GPU_RESOURCE = "nvidia.com/gpu"
RESERVED_LABEL_DOMAINS = ("kaito.sh/", "karpenter.sh/", "kubernetes.io/", "k8s.io/")


def machine_name(workspace_uid: str, index: int) -> str:
    """The name of a workspace's machine: ``ws`` and nine hex digits, because it is an AKS pool's name too.

    It follows from the workspace and the index alone: asking again for the same machine is harmless.
    """
    digest = hashlib.sha256(f"{workspace_uid}/machine/{index}".encode()).hexdigest()
    return f"ws{digest[:9]}"
