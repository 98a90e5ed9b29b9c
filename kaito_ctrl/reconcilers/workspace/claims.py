"""The node request of a workspace, as KAITO writes it for each generation of Karpenter, and how KAITO speaks of it.

A Machine is what KAITO v0.3.0 wrote, a NodeClaim what it writes today: the same request, under other labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kaito_api.core import Taint
from kaito_api.karpenter import (
    DO_NOT_DISRUPT_ANNOTATION,
    INSTANCE_TYPE_LABEL,
    NODEPOOL_LABEL,
    PROVISIONER_NAME_LABEL,
    Machine,
    MachineSpec,
    MachineTemplateRef,
    NodeClaim,
    NodeClaimSpec,
    NodeRequest,
    Requirement,
    ResourceRequests,
)
from kaito_api.meta import ObjectMeta
from kaito_api.quantity import parse_quantity
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import (
    ACCELERATOR_LABEL,
    IMAGE_FAMILY_ANNOTATION,
    MACHINE_TYPE_LABEL,
    WORKSPACE_LABEL,
    WORKSPACE_NAMESPACE_LABEL,
)
from kaito_ctrl.reconcilers.workspace.nodes import required_labels
from kaito_ctrl.reconcilers.workspace.settings import Settings

__all__ = ["WORDS", "Words", "claim"]

_NODEPOOL = "kaito"
_SKU_LABEL = "karpenter.azure.com/sku-name"
_AZURE_CLASSES = ("kaito.sh", "karpenter.azure.com")
_UNKNOWN_DISK = "1024Gi"
"""What KAITO asks for where a model does not say: gpu-provisioner refuses a NodeClaim that asks for no disk."""


@dataclass(frozen=True, slots=True)
class Words:
    """How KAITO says in a Workspace's conditions how far its node requests of one kind are."""

    condition: str
    """The type of the condition."""
    pending: str
    failed: str
    several: str
    installed: str


WORDS: Mapping[type[NodeRequest], Words] = {
    Machine: Words(
        "MachineReady",
        "CreateMachinePending",
        "machineFailedCreation",
        "machines",
        "machines plugins have been installed successfully",
    ),
    NodeClaim: Words(
        "NodeClaimReady",
        "CreateNodeClaimPending",
        "nodeClaimFailedCreation",
        "nodeClaims",
        "nodeClaim plugins have been installed successfully",
    ),
}


def claim(ws: Workspace, name: str, disk: str, settings: Settings) -> NodeRequest:
    """A request for one node of the workspace. *disk* is what the model needs, as a quantity."""
    return (_node_claim if settings.node_api is NodeClaim else _machine)(ws, name, disk, settings)


def _machine(ws: Workspace, name: str, disk: str, _: Settings) -> Machine:
    return Machine(
        metadata=_metadata(ws, name, {PROVISIONER_NAME_LABEL: "default"}),
        spec=MachineSpec(
            machine_template_ref=MachineTemplateRef(name=name),
            requirements=(
                _one_of(INSTANCE_TYPE_LABEL, ws.resource.instance_type),
                _one_of(PROVISIONER_NAME_LABEL, "default"),
                _one_of(MACHINE_TYPE_LABEL, "gpu"),
                _one_of("kubernetes.io/arch", "amd64"),
                _one_of("kubernetes.io/os", "linux"),
            ),
            taints=_TAINTS,
            resources=ResourceRequests(requests={"storage": disk}),
        ),
    )


def _node_claim(ws: Workspace, name: str, disk: str, settings: Settings) -> NodeClaim:
    instance_type, node_class = ws.resource.instance_type, settings.node_class
    sku = (_one_of(_SKU_LABEL, instance_type),) if node_class.group in _AZURE_CLASSES else ()
    metadata = _metadata(ws, name, {NODEPOOL_LABEL: _NODEPOOL})
    return NodeClaim(
        metadata=metadata.evolve(annotations={**metadata.annotations, DO_NOT_DISRUPT_ANNOTATION: "true"}),
        spec=NodeClaimSpec(
            node_class_ref=node_class,
            requirements=(
                _one_of(NODEPOOL_LABEL, _NODEPOOL),
                _one_of(INSTANCE_TYPE_LABEL, instance_type),
                _one_of("kubernetes.io/os", "linux"),
                *sku,
            ),
            taints=_TAINTS,
            resources=ResourceRequests(requests={"storage": disk if parse_quantity(disk) > 0 else _UNKNOWN_DISK}),
            # The definition's default is a month, after which Karpenter would take a node away that serves.
            expire_after="Never",
        ),
    )


_TAINTS = (Taint(key="sku", value="gpu", effect="NoSchedule"),)


def _metadata(ws: Workspace, name: str, pool: Mapping[str, str]) -> ObjectMeta:
    labels = {
        **required_labels(ws.resource),
        ACCELERATOR_LABEL: "nvidia",
        **pool,
        WORKSPACE_LABEL: ws.name,
        WORKSPACE_NAMESPACE_LABEL: ws.namespace or "",
    }
    family = ws.metadata.annotations.get(IMAGE_FAMILY_ANNOTATION)
    annotations = {IMAGE_FAMILY_ANNOTATION: family} if family else {}
    return ObjectMeta(name=name, labels=labels, **({"annotations": annotations} if annotations else {}))


def _one_of(key: str, value: str) -> Requirement:
    return Requirement(key=key, operator="In", values=(value,))
