"""``karpenter.sh``: the node request, in its two spellings.

``Machine`` (v1alpha5) is what KAITO v0.3.0 writes, ``NodeClaim`` (v1) what today's Karpenter and gpu-provisioner
read. Both are cluster-scoped; everything that a controller does with them goes by what they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from kaito_api.core import Taint
from kaito_api.meta import Condition, Model, Resource

__all__ = [
    "INSTANCE_TYPE_LABEL",
    "Machine",
    "MachineSpec",
    "MachineStatus",
    "MachineTemplateRef",
    "Requirement",
    "ResourceRequests",
]

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"
CAPACITY_TYPE_LABEL = "karpenter.sh/capacity-type"
PROVISIONER_NAME_LABEL = "karpenter.sh/provisioner-name"
REGISTERED_LABEL = "karpenter.sh/registered"
INITIALIZED_LABEL = "karpenter.sh/initialized"
ZONE_LABEL = "topology.kubernetes.io/zone"
TERMINATION_FINALIZER = "karpenter.sh/termination"
DISRUPTED_TAINT = Taint(key="karpenter.sh/disrupted", effect="NoSchedule")


class Requirement(Model):
    """``corev1.NodeSelectorRequirement``: what the node's labels have to fulfil."""

    key: str = Field(description="The label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="How the values relate to the label's value."
    )
    values: tuple[str, ...] = Field(default=(), description="The values.")


class ResourceRequests(Model):
    """What the node has to offer at least."""

    requests: Mapping[str, str] = Field(
        default_factory=dict,
        description="Minimum amounts by resource name.",
        json_schema_extra={"x-kaito-quantities": True},
    )


class MachineTemplateRef(Model):
    """The provider's own settings for the node."""

    name: str = Field(description="The name of the provider's template.")
    kind: str | None = Field(default=None, description="Its kind.")
    api_version: str | None = Field(default=None, description="Its API version.")


class MachineSpec(Model):
    """What the node has to be like."""

    requirements: tuple[Requirement, ...] = Field(default=(), description="What the node's labels have to fulfil.")
    resources: ResourceRequests = Field(default=ResourceRequests(), description="What the node has to offer at least.")
    taints: tuple[Taint, ...] = Field(default=(), description="Taints that the node keeps.")
    startup_taints: tuple[Taint, ...] = Field(
        default=(), description="Taints that something else takes off before the node counts as initialized."
    )
    machine_template_ref: MachineTemplateRef | None = Field(
        default=None, description="The provider's own settings for the node."
    )

    def values(self, key: str) -> tuple[str, ...]:
        """The values that the ``In`` requirements on *key* allow, in their order; empty when there is none."""
        allowed = [each.values for each in self.requirements if each.key == key and each.operator == "In"]
        if not allowed:
            return ()
        return tuple(value for value in allowed[0] if all(value in other for other in allowed[1:]))


class MachineStatus(Model):
    """How far the node is."""

    node_name: str = Field(default="", description="The node, once it has registered.")
    provider_id: str = Field(default="", alias="providerID", description="The cloud's identifier of the instance.")
    capacity: Mapping[str, str] = Field(
        default_factory=dict,
        description="What the instance has.",
        json_schema_extra={"x-kaito-quantities": True},
    )
    allocatable: Mapping[str, str] = Field(
        default_factory=dict,
        description="What of it pods can use.",
        json_schema_extra={"x-kaito-quantities": True},
    )
    conditions: tuple[Condition, ...] = Field(default=(), description="How far the node is.")


class Machine(Resource):
    """A request for one node."""

    group, version, kind, plural = "karpenter.sh", "v1alpha5", "Machine", "machines"
    namespaced: ClassVar[bool] = False
    categories: ClassVar[tuple[str, ...]] = ("karpenter",)

    spec: MachineSpec = Field(default=MachineSpec(), description="What the node has to be like.")
    status: MachineStatus = Field(default=MachineStatus(), description="How far the node is.")
