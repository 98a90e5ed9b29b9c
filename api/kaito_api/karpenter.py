"""``karpenter.sh``: the node request, in its two spellings.

``Machine`` (v1alpha5) is what KAITO v0.3.0 writes, ``NodeClaim`` (v1) what today's Karpenter and gpu-provisioner
read. Both are cluster-scoped; everything that a controller does with them goes by what they share: ``NodeRequest``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from kaito_api.core import Taint
from kaito_api.meta import Condition, Model, Resource

__all__ = [
    "INSTANCE_TYPE_LABEL",
    "NODE_REQUESTS",
    "Machine",
    "MachineSpec",
    "MachineStatus",
    "MachineTemplateRef",
    "NodeClaim",
    "NodeClaimSpec",
    "NodeClaimStatus",
    "NodeClassRef",
    "NodeRequest",
    "NodeRequestSpec",
    "NodeRequestStatus",
    "Requirement",
    "ResourceRequests",
]

INSTANCE_TYPE_LABEL = "node.kubernetes.io/instance-type"
CAPACITY_TYPE_LABEL = "karpenter.sh/capacity-type"
PROVISIONER_NAME_LABEL = "karpenter.sh/provisioner-name"
NODEPOOL_LABEL = "karpenter.sh/nodepool"
REGISTERED_LABEL = "karpenter.sh/registered"
INITIALIZED_LABEL = "karpenter.sh/initialized"
ZONE_LABEL = "topology.kubernetes.io/zone"
TERMINATION_FINALIZER = "karpenter.sh/termination"
TERMINATION_TIMESTAMP_ANNOTATION = "karpenter.sh/nodeclaim-termination-timestamp"
DO_NOT_DISRUPT_ANNOTATION = "karpenter.sh/do-not-disrupt"
DO_NOT_EVICT_ANNOTATION = "karpenter.sh/do-not-evict"
"""What pods said before ``do-not-disrupt``."""
LAUNCHING_ANNOTATION = "provisioner.kaito.sh/launching"
"""When the cloud was asked for the instance, while its answer is not known. RFC 3339."""
OPERATION_ANNOTATION = "provisioner.kaito.sh/operation"
"""The cloud's long-running operation on the instance, as its backend resumes it."""
DISRUPTED_TAINT = Taint(key="karpenter.sh/disrupted", effect="NoSchedule")


def _as_text(amount: Any) -> Any:
    return str(amount) if isinstance(amount, int) else amount


Quantities = Mapping[str, Annotated[str, BeforeValidator(_as_text)]]
"""Amounts by resource name. On the wire, unlike in core kinds, each may be a number: ``cpu: 4``."""


class Requirement(Model):
    """``corev1.NodeSelectorRequirement``: what the node's labels have to fulfil."""

    key: str = Field(description="The label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Gte", "Lte"] = Field(
        description="How the values relate to the label's value."
    )
    values: tuple[str, ...] = Field(default=(), description="The values.")


class ResourceRequests(Model):
    """What the node has to offer at least."""

    requests: Quantities = Field(
        default_factory=dict,
        description="Minimum amounts by resource name.",
        json_schema_extra={"x-kaito-quantities": True},
    )


class MachineTemplateRef(Model):
    """The provider's own settings for the node."""

    name: str = Field(description="The name of the provider's template.")
    kind: str | None = Field(default=None, description="Its kind.")
    api_version: str | None = Field(default=None, description="Its API version.")


class NodeRequestSpec(Model):
    """What the node has to be like."""

    requirements: tuple[Requirement, ...] = Field(default=(), description="What the node's labels have to fulfil.")
    resources: ResourceRequests = Field(default=ResourceRequests(), description="What the node has to offer at least.")
    taints: tuple[Taint, ...] = Field(default=(), description="Taints that the node keeps.")
    startup_taints: tuple[Taint, ...] = Field(
        default=(), description="Taints that something else takes off before the node counts as initialized."
    )

    def values(self, key: str) -> tuple[str, ...]:
        """The values that the ``In`` requirements on *key* allow, in their order; empty when there is none."""
        allowed = [each.values for each in self.requirements if each.key == key and each.operator == "In"]
        if not allowed:
            return ()
        return tuple(value for value in allowed[0] if all(value in other for other in allowed[1:]))


class NodeRequestStatus(Model):
    """How far the node is."""

    node_name: str = Field(default="", description="The node, once it has registered.")
    provider_id: str = Field(default="", alias="providerID", description="The cloud's identifier of the instance.")
    capacity: Quantities = Field(
        default_factory=dict,
        description="What the instance has.",
        json_schema_extra={"x-kaito-quantities": True},
    )
    allocatable: Quantities = Field(
        default_factory=dict,
        description="What of it pods can use.",
        json_schema_extra={"x-kaito-quantities": True},
    )
    conditions: tuple[Condition, ...] = Field(default=(), description="How far the node is.")


class NodeRequest(Resource):
    """A request for one node, in whichever spelling. Abstract: what there is are its subclasses."""

    namespaced: ClassVar[bool] = False
    categories: ClassVar[tuple[str, ...]] = ("karpenter",)
    launched: ClassVar[str]
    """The type of the condition that says that the cloud has granted an instance."""
    registered: ClassVar[str]
    """The type of the condition that says that its node has joined."""
    initialized: ClassVar[str]
    """The type of the condition that says that its node can be used."""
    pool_label: ClassVar[str]
    """The label that names whatever the claim was made for in Karpenter's terms."""

    spec: NodeRequestSpec = Field(default=NodeRequestSpec(), description="What the node has to be like.")
    status: NodeRequestStatus = Field(default=NodeRequestStatus(), description="How far the node is.")


class MachineSpec(NodeRequestSpec):
    """What the node has to be like."""

    machine_template_ref: MachineTemplateRef | None = Field(
        default=None, description="The provider's own settings for the node."
    )


class MachineStatus(NodeRequestStatus):
    """How far the node is."""


class Machine(NodeRequest):
    """A request for one node."""

    group, version, kind, plural = "karpenter.sh", "v1alpha5", "Machine", "machines"
    launched, registered, initialized = "MachineLaunched", "MachineRegistered", "MachineInitialized"
    pool_label = PROVISIONER_NAME_LABEL

    spec: MachineSpec = Field(default=MachineSpec(), description="What the node has to be like.")
    status: MachineStatus = Field(default=MachineStatus(), description="How far the node is.")


class NodeClassRef(Model):
    """The provider's own settings for the node, by reference. All three are needed."""

    group: str = Field(description="The API group of the node class.")
    kind: str = Field(description="Its kind.")
    name: str = Field(description="Its name.")


class NodeClaimSpec(NodeRequestSpec):
    """What the node has to be like. Immutable."""

    node_class_ref: NodeClassRef | None = Field(default=None, description="The provider's own settings for the node.")
    termination_grace_period: str | None = Field(
        default=None, description="How long draining may take before pods are deleted by force. A Go duration."
    )
    expire_after: str | None = Field(default=None, description="The node's longest life: a Go duration, or Never.")


class NodeClaimStatus(NodeRequestStatus):
    """How far the node is."""

    image_id: str = Field(default="", alias="imageID", description="The image that the node was started from.")


class NodeClaim(NodeRequest):
    """A request for one node."""

    group, version, kind, plural = "karpenter.sh", "v1", "NodeClaim", "nodeclaims"
    launched, registered, initialized = "Launched", "Registered", "Initialized"
    pool_label = NODEPOOL_LABEL

    spec: NodeClaimSpec = Field(default=NodeClaimSpec(), description="What the node has to be like.")
    status: NodeClaimStatus = Field(default=NodeClaimStatus(), description="How far the node is.")


NODE_REQUESTS: Mapping[str, type[NodeRequest]] = {"machine": Machine, "nodeclaim": NodeClaim}
"""The spellings, by the word that ``--node-api`` takes."""
