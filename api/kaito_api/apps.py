"""``apps/v1``: the workload kinds, as partial models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from kaito_api.core import PodTemplate
from kaito_api.meta import Condition, LabelSelector, Model, Resource

__all__ = [
    "ControllerRevision",
    "Deployment",
    "DeploymentSpec",
    "DeploymentStatus",
    "DeploymentStrategy",
    "ReplicaSet",
    "ReplicaSetSpec",
    "ReplicaSetStatus",
    "RollingUpdate",
    "StatefulSet",
    "StatefulSetSpec",
    "StatefulSetStatus",
]


class RollingUpdate(Model):
    max_surge: int | str = "25%"
    max_unavailable: int | str = "25%"


class DeploymentStrategy(Model):
    type: str = "RollingUpdate"
    rolling_update: RollingUpdate | None = None


class DeploymentSpec(Model):
    replicas: int = 1
    selector: LabelSelector = LabelSelector()
    template: PodTemplate = PodTemplate()
    strategy: DeploymentStrategy = DeploymentStrategy()
    min_ready_seconds: int = 0
    revision_history_limit: int = 10
    progress_deadline_seconds: int = 600
    paused: bool = False


class DeploymentStatus(Model):
    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    unavailable_replicas: int = 0
    conditions: tuple[Condition, ...] = ()


class Deployment(Resource):
    """``apps/v1 Deployment``."""

    group, version, kind, plural = "apps", "v1", "Deployment", "deployments"

    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()


class ReplicaSetSpec(Model):
    replicas: int = 1
    selector: LabelSelector = LabelSelector()
    template: PodTemplate = PodTemplate()
    min_ready_seconds: int = 0


class ReplicaSetStatus(Model):
    observed_generation: int = 0
    replicas: int = 0
    fully_labeled_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0


class ReplicaSet(Resource):
    """``apps/v1 ReplicaSet``."""

    group, version, kind, plural = "apps", "v1", "ReplicaSet", "replicasets"

    spec: ReplicaSetSpec = ReplicaSetSpec()
    status: ReplicaSetStatus = ReplicaSetStatus()


class StatefulSetSpec(Model):
    replicas: int = 1
    selector: LabelSelector = LabelSelector()
    template: PodTemplate = PodTemplate()
    service_name: str = ""
    pod_management_policy: str = "OrderedReady"
    update_strategy: Mapping[str, Any] = Field(default_factory=dict)


class StatefulSetStatus(Model):
    observed_generation: int = 0
    replicas: int = 0
    ready_replicas: int = 0
    current_replicas: int = 0
    updated_replicas: int = 0
    current_revision: str = ""
    update_revision: str = ""
    conditions: tuple[Condition, ...] = ()


class StatefulSet(Resource):
    """``apps/v1 StatefulSet``."""

    group, version, kind, plural = "apps", "v1", "StatefulSet", "statefulsets"

    spec: StatefulSetSpec = StatefulSetSpec()
    status: StatefulSetStatus = StatefulSetStatus()


class ControllerRevision(Resource):
    """``apps/v1 ControllerRevision``: what a controller was asked for at some time. ``data`` never changes."""

    group, version, kind, plural = "apps", "v1", "ControllerRevision", "controllerrevisions"

    data: Mapping[str, Any] = Field(default_factory=dict)
    revision: int = 0
