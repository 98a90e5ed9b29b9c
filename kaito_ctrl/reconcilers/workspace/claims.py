"""The node request of a workspace, as KAITO writes it for any provisioner that speaks Karpenter's ``Machine``."""

from __future__ import annotations

from kaito_api.core import Taint
from kaito_api.karpenter import (
    INSTANCE_TYPE_LABEL,
    PROVISIONER_NAME_LABEL,
    Machine,
    MachineSpec,
    MachineTemplateRef,
    Requirement,
    ResourceRequests,
)
from kaito_api.meta import ObjectMeta
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import (
    ACCELERATOR_LABEL,
    MACHINE_TYPE_LABEL,
    WORKSPACE_LABEL,
    WORKSPACE_NAMESPACE_LABEL,
)
from kaito_ctrl.reconcilers.workspace.nodes import required_labels

__all__ = ["machine"]


def machine(ws: Workspace, name: str, disk: str) -> Machine:
    """A request for one node of the workspace. *disk* is what the model needs, as a quantity."""
    labels = {
        **required_labels(ws.resource),
        ACCELERATOR_LABEL: "nvidia",
        PROVISIONER_NAME_LABEL: "default",
        WORKSPACE_LABEL: ws.name,
        WORKSPACE_NAMESPACE_LABEL: ws.namespace or "",
    }

    def one_of(key: str, value: str) -> Requirement:
        return Requirement(key=key, operator="In", values=(value,))

    return Machine(
        metadata=ObjectMeta(name=name, labels=labels),
        spec=MachineSpec(
            machine_template_ref=MachineTemplateRef(name=name),
            requirements=(
                one_of(INSTANCE_TYPE_LABEL, ws.resource.instance_type),
                one_of(PROVISIONER_NAME_LABEL, "default"),
                one_of(MACHINE_TYPE_LABEL, "gpu"),
                one_of("kubernetes.io/arch", "amd64"),
                one_of("kubernetes.io/os", "linux"),
            ),
            taints=(Taint(key="sku", value="gpu", effect="NoSchedule"),),
            resources=ResourceRequests(requests={"storage": disk}),
        ),
    )
