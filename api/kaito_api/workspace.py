"""``kaito.sh/v1alpha1 Workspace``: a model to serve or to tune, and the machines to do it on.

The shape is KAITO v0.3.0's: there is no ``spec``; ``resource``, ``inference``, ``tuning`` and ``status`` stand next
to the metadata. The CRD is generated from these classes, so field docstrings here are what ``kubectl explain``
prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from kaito_api.meta import Condition, LabelSelector, Model, Resource, Time

__all__ = [
    "STRENGTH",
    "AdapterSpec",
    "DataDestination",
    "DataSource",
    "InferenceSpec",
    "PresetOptions",
    "PresetSpec",
    "ResourceSpec",
    "StageError",
    "StageName",
    "StageState",
    "StageStatus",
    "TuningSpec",
    "Workspace",
    "WorkspaceStatus",
]

STRENGTH = r"^(0|1|0?\.[0-9]+|0\.|1\.0*)$"
"""A number from 0 to 1 as text, without exponents and signs."""
DEFAULT_INSTANCE_TYPE = "Standard_NC12s_v3"

_Opaque = Annotated[
    Mapping[str, Any],
    Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]


class ResourceSpec(Model):
    """The machines that the workload runs on."""

    count: int = Field(default=1, ge=1, le=1000, description="How many nodes the workload needs.")
    instance_type: str = Field(
        default=DEFAULT_INSTANCE_TYPE,
        min_length=1,
        description="The cloud's name for the kind of machine, such as Standard_NC6s_v3.",
    )
    label_selector: LabelSelector = Field(
        description="Which nodes may be used: existing ones that carry these labels, and new ones, which get them."
    )
    preferred_nodes: tuple[str, ...] | None = Field(
        default=None, description="Names of existing nodes to use first, if they match."
    )


class PresetOptions(Model):
    """How to get at a preset's image."""

    image: str | None = Field(default=None, description="The image to run, for presets whose image is private.")
    image_pull_secrets: tuple[str, ...] | None = Field(
        default=None, description="Names of Secrets of this namespace with which the image is pulled."
    )


class PresetSpec(Model):
    """A model that KAITO knows how to run."""

    name: str = Field(min_length=1, description="The preset's name, such as phi-3-mini-4k-instruct.")
    access_mode: Literal["public", "private"] = Field(
        default="public", description="Whether the image is in the public registry or one of your own."
    )
    preset_options: PresetOptions | None = Field(default=None, description="Where a private image is.")


class DataSource(Model):
    """Where data comes from: exactly one of urls, image, volumeSource."""

    name: str | None = Field(
        default=None,
        description="A name for the data; an adapter is known by it.",
        json_schema_extra={"maxLength": 253},
    )
    urls: tuple[str, ...] | None = Field(default=None, description="Files to download.")
    volume_source: _Opaque | None = Field(
        default=None, description="A volume that holds the data (corev1.VolumeSource)."
    )
    image: str | None = Field(default=None, description="An OCI image or artifact that holds the data under /data.")
    image_pull_secrets: tuple[str, ...] | None = Field(
        default=None, description="Names of Secrets of this namespace with which the image is pulled."
    )


class DataDestination(Model):
    """Where results go."""

    volume_source: _Opaque | None = Field(default=None, description="A volume to write to (corev1.VolumeSource).")
    image: str | None = Field(default=None, description="The OCI image that is pushed, with its tag.")
    image_push_secret: str | None = Field(
        default=None, description="Name of the Secret of this namespace with which the image is pushed."
    )


class AdapterSpec(Model):
    """A LoRA adapter to load on top of the model."""

    source: DataSource | None = Field(default=None, description="Where the adapter's files are.")
    strength: str | None = Field(
        default=None,
        description="The adapter's weight, a decimal number from 0 to 1, as text. Default: 1.0.",
        json_schema_extra={"pattern": STRENGTH},
    )


class InferenceSpec(Model):
    """What to serve: a preset, or a pod template of your own."""

    preset: PresetSpec | None = Field(default=None, description="A model that KAITO knows how to run.")
    template: _Opaque | None = Field(
        default=None, description="A pod template (corev1.PodTemplateSpec) to run instead of a preset."
    )
    adapters: tuple[AdapterSpec, ...] | None = Field(
        default=None,
        description="LoRA adapters to load on top of the model, 10 at most.",
        json_schema_extra={"maxItems": 10},
    )


class TuningSpec(Model):
    """What to tune, with what, and where the result goes."""

    preset: PresetSpec | None = Field(default=None, description="The model to tune.")
    method: str | None = Field(default=None, description="lora or qlora.")
    config: str | None = Field(
        default=None, description="Name of a ConfigMap of this namespace with training_config.yaml."
    )
    input: DataSource = Field(description="The data to tune with.")
    output: DataDestination = Field(description="Where the adapter goes.")


StageName = Literal[
    "Admitted",
    "Planned",
    "CapacityReserved",
    "MachineLaunched",
    "NodeRegistered",
    "NodeInitialized",
    "PodScheduled",
    "ArtifactsReady",
    "EngineStarted",
    "Serving",
]
StageState = Literal["Done", "Active", "Pending", "Failed"]


class StageError(Model):
    """The last thing that went wrong in a stage; it stays when the stage has recovered."""

    code: str = Field(description="One word for machines, such as QuotaExceeded.")
    message: str = Field(description="What was said.")
    source: str = Field(description="The object that said it.")


class StageStatus(Model):
    """One step on the way from a workspace to a served model."""

    name: StageName = Field(description="The step.")
    state: StageState = Field(
        description="Done; Active (being worked on); Failed (needs somebody, or another try); Pending (not begun)."
    )
    started_at: Time | None = Field(default=None, description="When it began.")
    finished_at: Time | None = Field(default=None, description="When it was done.")
    deadline: Time | None = Field(default=None, description="When it should be done.")
    attempts: int = Field(default=0, description="How often it was tried: machines asked for, starts of the server.")
    last_attempt_at: Time | None = Field(default=None, description="When it was tried last, where that is known.")
    message: str | None = Field(default=None, description="What it waits for, or what is wrong.")
    last_error: StageError | None = Field(default=None, description="The last thing that went wrong.")
    next_action: str | None = Field(default=None, description="What a person does about it.")


class WorkspaceStatus(Model):
    """What was observed last."""

    model_config = ConfigDict(
        json_schema_extra={"x-kaito-map-lists": {"conditions": ["type"], "stages": ["name"]}},
    )

    worker_nodes: tuple[str, ...] = Field(default=(), description="Names of the nodes in use, sorted.")
    conditions: tuple[Condition, ...] = Field(default=(), description="Where the workspace stands.")
    stages: tuple[StageStatus, ...] = Field(default=(), description="How it came there, step by step.")


class Workspace(Resource):
    """A model to serve or to tune, and the machines to do it on."""

    group, version, kind, plural = "kaito.sh", "v1alpha1", "Workspace", "workspaces"
    short_names: ClassVar[tuple[str, ...]] = ("wk", "wks")
    categories: ClassVar[tuple[str, ...]] = ("workspace",)

    resource: ResourceSpec = Field(description="The machines that the workload runs on.")
    inference: InferenceSpec | None = Field(default=None, description="What to serve.")
    tuning: TuningSpec | None = Field(default=None, description="What to tune.")
    status: WorkspaceStatus = Field(default=WorkspaceStatus(), description="What was observed last.")
