"""The objects that a workspace consists of: its machines, its Service, its Deployment. Pure and deterministic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kaito_api.apps import Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdate
from kaito_api.core import (
    Affinity,
    Container,
    ContainerPort,
    EnvVar,
    HTTPGetAction,
    NodeAffinity,
    NodeSelector,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    PodSpec,
    PodTemplate,
    Probe,
    Resources,
    Service,
    ServicePort,
    ServiceSpec,
    Taint,
    TemplateMeta,
    Toleration,
    Volume,
    VolumeMount,
)
from kaito_api.karpenter import (
    INSTANCE_TYPE_LABEL,
    PROVISIONER_NAME_LABEL,
    Machine,
    MachineSpec,
    MachineTemplateRef,
    Requirement,
    ResourceRequests,
)
from kaito_api.meta import LabelSelector, LocalReference, ObjectMeta
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import (
    ACCELERATOR_LABEL,
    ENABLE_LB_ANNOTATION,
    GPU_RESOURCE,
    MACHINE_TYPE_LABEL,
    WORKSPACE_LABEL,
    WORKSPACE_NAMESPACE_LABEL,
)
from kaito_ctrl.reconcilers.workspace.nodes import required_labels
from kaito_presets.images import image_for, serving_command
from kaito_presets.preset import Preset
from kaito_presets.skus import Sku

__all__ = ["Settings", "inference_deployment", "machine", "service"]

PORT = 5000
TORCH_PORT = 29500
_PROBE_PERIOD = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator of kaito-ctrl decides for all workspaces."""

    registry: str = "mcr.microsoft.com/aks/kaito"
    """Where public preset images are pulled from."""


def _metadata(ws: Workspace) -> ObjectMeta:
    return ObjectMeta(name=ws.name, namespace=ws.namespace, labels={WORKSPACE_LABEL: ws.name})


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


def service(ws: Workspace) -> Service:
    """The workspace's address: port 80 for the server, 29500 for torch's rendezvous."""
    balanced = ws.metadata.annotations.get(ENABLE_LB_ANNOTATION) == "True"
    return Service(
        metadata=_metadata(ws),
        spec=ServiceSpec(
            type="LoadBalancer" if balanced else "ClusterIP",
            ports=(
                ServicePort(name="http", port=80, target_port=PORT, protocol="TCP"),
                ServicePort(name="torch", port=TORCH_PORT, target_port=TORCH_PORT, protocol="TCP"),
            ),
            selector={WORKSPACE_LABEL: ws.name},
            publish_not_ready_addresses=True,
        ),
    )


def inference_deployment(ws: Workspace, preset: Preset | None, sku: Sku | None, settings: Settings) -> Deployment:
    """What serves the model: the preset's server, or the user's own template."""
    assert ws.inference is not None
    template = (
        _preset_template(ws, preset, sku, settings)
        if preset is not None
        else _user_template(ws, ws.inference.template or {})
    )
    return Deployment(
        metadata=_metadata(ws),
        spec=DeploymentSpec(
            replicas=ws.resource.count,
            selector=LabelSelector(match_labels={WORKSPACE_LABEL: ws.name}),
            # GPUs are scarce: a new pod gets its node only when an old one has left it.
            strategy=DeploymentStrategy(
                type="RollingUpdate", rolling_update=RollingUpdate(max_surge=0, max_unavailable=1)
            ),
            template=template,
        ),
    )


def _placement(ws: Workspace) -> Affinity:
    """On nodes that the selector matches, and among the provisioned ones on this workspace's own."""

    def term(key: str, operator: Literal["In", "DoesNotExist"], *values: str) -> NodeSelectorRequirement:
        return (
            NodeSelectorRequirement(key=key, operator=operator, values=values)
            if values
            else (NodeSelectorRequirement(key=key, operator=operator))
        )

    selected = tuple(term(key, "In", value) for key, value in sorted(required_labels(ws.resource).items()))
    ours = (term(WORKSPACE_LABEL, "In", ws.name), term(WORKSPACE_NAMESPACE_LABEL, "In", ws.namespace or ""))
    nobodys = (term(WORKSPACE_LABEL, "DoesNotExist"),)
    return Affinity(
        node_affinity=NodeAffinity(
            required_during_scheduling_ignored_during_execution=NodeSelector(
                node_selector_terms=(
                    NodeSelectorTerm(match_expressions=(*selected, *ours)),
                    NodeSelectorTerm(match_expressions=(*selected, *nobodys)),
                )
            )
        )
    )


_TOLERATIONS = (
    Toleration(key=GPU_RESOURCE, operator="Exists", effect="NoSchedule"),
    Toleration(key="sku", operator="Equal", value="gpu", effect="NoSchedule"),
)


def _probe(period: int, failures: int) -> Probe:
    return Probe(
        http_get=HTTPGetAction(port=PORT, path="/healthz"),
        period_seconds=period,
        failure_threshold=failures,
        timeout_seconds=5,
    )


def _preset_template(ws: Workspace, preset: Preset, sku: Sku | None, settings: Settings) -> PodTemplate:
    assert ws.inference is not None
    assert ws.inference.preset is not None
    options = ws.inference.preset.preset_options
    gpus = str(sku.gpu_count if sku is not None else preset.gpu_count)
    container = Container(
        name=ws.name,
        image=image_for(preset, settings.registry, options.image if options is not None else None),
        command=serving_command(preset),
        # Which model an image without weights stands for; images that hold their weights do not ask.
        env=(EnvVar(name="KAITO_PRESET", value=preset.name),),
        ports=(ContainerPort(name="http", container_port=PORT, protocol="TCP"),),
        resources=Resources(requests={GPU_RESOURCE: gpus}, limits={GPU_RESOURCE: gpus}),
        # Loading may take as long as the catalogue says; from then on a server that stops answering is restarted.
        startup_probe=_probe(_PROBE_PERIOD, -(-preset.readiness_timeout_seconds // _PROBE_PERIOD)),
        readiness_probe=_probe(10, 3),
        liveness_probe=_probe(10, 6),
        volume_mounts=(VolumeMount(name="dshm", mount_path="/dev/shm"),),  # noqa: S108
        security_context={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    )
    secrets = options.image_pull_secrets if options is not None else None
    spec: dict[str, Any] = (
        {"image_pull_secrets": tuple(LocalReference(name=each) for each in secrets)} if secrets else {}
    )
    return PodTemplate(
        metadata=TemplateMeta(labels={WORKSPACE_LABEL: ws.name}),
        spec=PodSpec(
            containers=(container,),
            volumes=(Volume(name="dshm", empty_dir={"medium": "Memory"}),),
            affinity=_placement(ws),
            tolerations=_TOLERATIONS,
            automount_service_account_token=False,
            **spec,
        ),
    )


def _user_template(ws: Workspace, template: Mapping[str, Any]) -> PodTemplate:
    metadata = dict(template.get("metadata") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), WORKSPACE_LABEL: ws.name}
    spec = dict(template.get("spec") or {})
    spec["affinity"] = _placement(ws).to_wire()
    own = [each.to_wire() for each in _TOLERATIONS]
    spec["tolerations"] = [each for each in spec.get("tolerations") or [] if each not in own] + own
    return PodTemplate.verbatim({"metadata": metadata, "spec": spec})
