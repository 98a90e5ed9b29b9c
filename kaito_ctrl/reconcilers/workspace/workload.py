"""What serves a workspace's model: a Deployment, or a StatefulSet where the model is spread over nodes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kaito_api.apps import (
    Deployment,
    DeploymentSpec,
    DeploymentStrategy,
    RollingUpdate,
    StatefulSet,
    StatefulSetSpec,
)
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
    TemplateMeta,
    Toleration,
    Volume,
    VolumeMount,
)
from kaito_api.meta import LabelSelector, LocalReference, ObjectMeta
from kaito_api.workspace import AdapterSpec, Workspace
from kaito_ctrl.reconcilers.names import (
    GPU_RESOURCE,
    REVISION_ANNOTATION,
    WORKSPACE_LABEL,
    WORKSPACE_NAMESPACE_LABEL,
)
from kaito_ctrl.reconcilers.workspace.nodes import required_labels
from kaito_ctrl.reconcilers.workspace.services import PORT, headless_name, rendezvous
from kaito_ctrl.reconcilers.workspace.settings import Settings
from kaito_presets.images import LLAMA_FOLDER, image_for, serving_command, torchrun_command
from kaito_presets.preset import Preset
from kaito_presets.skus import Sku

__all__ = ["inference_workload"]

_PROBE_PERIOD = 2
_ADAPTERS = "/mnt/adapter"
_COPY_ADAPTER = 'mkdir -p "$1" && cp -R /data/. "$1"'
"""Run by the shell of the adapter's own image; the folder is an argument, so nothing of it is read as shell text."""


def inference_workload(
    ws: Workspace, preset: Preset | None, sku: Sku | None, settings: Settings, revision: int
) -> Deployment | StatefulSet:
    """What serves the model: the preset's server, or the user's own template. *revision* is noted on it."""
    assert ws.inference is not None
    metadata = ObjectMeta(
        name=ws.name,
        namespace=ws.namespace,
        labels={WORKSPACE_LABEL: ws.name},
        annotations={REVISION_ANNOTATION: str(revision)},
    )
    selector = LabelSelector(match_labels={WORKSPACE_LABEL: ws.name})
    if preset is None:
        template = _user_template(ws, ws.inference.template or {})
    else:
        template = _preset_template(ws, preset, sku, settings)
    if preset is not None and preset.distributed:
        return StatefulSet(
            metadata=metadata,
            spec=StatefulSetSpec(
                replicas=ws.resource.count,
                selector=selector,
                service_name=headless_name(ws),
                # The processes wait for each other: one pod after the other would wait for ever.
                pod_management_policy="Parallel",
                template=template,
            ),
        )
    return Deployment(
        metadata=metadata,
        spec=DeploymentSpec(
            replicas=ws.resource.count,
            selector=selector,
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
    adapters = ws.inference.adapters or ()
    mounts = [VolumeMount(name="dshm", mount_path="/dev/shm")]  # noqa: S108
    volumes = [Volume(name="dshm", empty_dir={"medium": "Memory"})]
    if adapters:
        mounts.append(VolumeMount(name="adapter-volume", mount_path=_ADAPTERS))
        volumes.append(Volume(name="adapter-volume", empty_dir={}))
    per_node = preset.gpu_count // ws.resource.count if preset.distributed else preset.gpu_count
    gpus = str(sku.gpu_count if sku is not None else max(per_node, 1))
    container = Container(
        name=ws.name,
        image=image_for(preset, settings.registry, options.image if options is not None else None),
        **_command(ws, preset),
        env=(
            # Which model an image without weights stands for; images that hold their weights do not ask.
            EnvVar(name="KAITO_PRESET", value=preset.name),
            *(EnvVar(name=_name(each), value=each.strength or "1.0") for each in adapters),
        ),
        ports=(ContainerPort(name="http", container_port=PORT, protocol="TCP"),),
        resources=Resources(requests={GPU_RESOURCE: gpus}, limits={GPU_RESOURCE: gpus}),
        # Loading may take as long as the catalogue says; from then on a server that stops answering is restarted.
        startup_probe=_probe(_PROBE_PERIOD, -(-preset.readiness_timeout_seconds // _PROBE_PERIOD)),
        readiness_probe=_probe(10, 3),
        liveness_probe=_probe(10, 6),
        volume_mounts=tuple(mounts),
        termination_message_policy=_LAST_WORDS,
        security_context=_CONFINED,
    )
    private = (options.image_pull_secrets if options is not None else None) or ()
    secrets = dict.fromkeys((*private, *(name for each in adapters for name in _secrets(each))))
    spec: dict[str, Any] = {
        **({"init_containers": tuple(_adapter_container(each) for each in adapters)} if adapters else {}),
        **({"image_pull_secrets": tuple(LocalReference(name=each) for each in secrets)} if secrets else {}),
    }
    return PodTemplate(
        metadata=TemplateMeta(labels={WORKSPACE_LABEL: ws.name}),
        spec=PodSpec(
            containers=(container,),
            volumes=tuple(volumes),
            affinity=_placement(ws),
            tolerations=_TOLERATIONS,
            automount_service_account_token=False,
            **spec,
        ),
    )


_LAST_WORDS: Literal["FallbackToLogsOnError"] = "FallbackToLogsOnError"
"""What a container printed last becomes part of its status, and so of what the workspace says when it fails."""
_CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _command(ws: Workspace, preset: Preset) -> dict[str, Any]:
    if preset.runtime != "llama-2":
        return {"command": serving_command(preset)}
    if not preset.distributed:
        return {"command": torchrun_command(preset), "working_dir": LLAMA_FOLDER}
    command = torchrun_command(preset, nodes=ws.resource.count, rendezvous=rendezvous(ws))
    return {"command": command, "working_dir": LLAMA_FOLDER}


def _adapter_container(adapter: AdapterSpec) -> Container:
    """Copies the files of one adapter to where the server looks for them, each in a folder of its name."""
    assert adapter.source is not None
    name = _name(adapter)
    return Container(
        name=name,
        image=adapter.source.image or "",
        image_pull_policy="Always",
        command=("/bin/sh", "-c", _COPY_ADAPTER, "sh", f"{_ADAPTERS}/{name}"),
        volume_mounts=(VolumeMount(name="adapter-volume", mount_path=_ADAPTERS),),
        termination_message_policy=_LAST_WORDS,
        security_context=_CONFINED,
    )


def _name(adapter: AdapterSpec) -> str:
    return (adapter.source.name if adapter.source is not None else None) or ""


def _secrets(adapter: AdapterSpec) -> tuple[str, ...]:
    return (adapter.source.image_pull_secrets if adapter.source is not None else None) or ()


def _user_template(ws: Workspace, template: Mapping[str, Any]) -> PodTemplate:
    metadata = dict(template.get("metadata") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), WORKSPACE_LABEL: ws.name}
    spec = dict(template.get("spec") or {})
    spec["affinity"] = _placement(ws).to_wire()
    own = [each.to_wire() for each in _TOLERATIONS]
    spec["tolerations"] = [each for each in spec.get("tolerations") or [] if each not in own] + own
    return PodTemplate.verbatim({"metadata": metadata, "spec": spec})
