"""The kinds as the built-in controllers see them.

A workload controller must hand a pod template on exactly as the user wrote it, including fields that no model here
names. So the templates of these views stay raw JSON, and a :class:`Pod` made from one goes out with the template's
spec untouched. Everything that a controller looks at is typed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import msgspec
from pydantic import Field, PrivateAttr

from kaito_api import core
from kaito_api.apps import DeploymentStatus as _DeploymentStatus
from kaito_api.apps import DeploymentStrategy, ReplicaSetStatus, StatefulSetStatus
from kaito_api.meta import Condition, LabelSelector, Model, ObjectMeta, Resource, Time

__all__ = [
    "Container",
    "Deployment",
    "DeploymentCondition",
    "DeploymentSpec",
    "DeploymentStatus",
    "EndpointSlice",
    "Job",
    "JobSpec",
    "JobStatus",
    "Node",
    "NodeCondition",
    "NodeStatus",
    "Pod",
    "PodSpec",
    "ReplicaSet",
    "ReplicaSetSpec",
    "Secret",
    "StatefulSet",
    "StatefulSetSpec",
    "Template",
    "Volume",
    "safe_hash",
]

Template = Mapping[str, Any]
"""``corev1.PodTemplateSpec`` as the server has it."""

_SAFE = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes' own alphabet for generated names: no vowels, so no words


def safe_hash(value: object, length: int = 10) -> str:
    """A name part that stands for *value* (plain JSON): equal values give equal parts, whatever their key order."""
    number = int.from_bytes(hashlib.sha256(msgspec.json.encode(value, order="deterministic")).digest()[:16], "big")
    letters = []
    for _ in range(length):
        number, index = divmod(number, len(_SAFE))
        letters.append(_SAFE[index])
    return "".join(letters)


class Container(core.Container):
    """``corev1.Container`` with what only a kubelet reads."""

    env_from: tuple[Mapping[str, Any], ...] = ()
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False


class Volume(core.Volume):
    """``corev1.Volume`` with what only a kubelet reads."""

    downward_api: Mapping[str, Any] | None = Field(default=None, alias="downwardAPI")
    persistent_volume_claim: Mapping[str, Any] | None = None


class PodSpec(core.PodSpec):
    """``corev1.PodSpec`` with what only a kubelet and a scheduler read."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    scheduler_name: str = "default-scheduler"


class Pod(core.Pod):
    """``v1 Pod``."""

    spec: PodSpec = PodSpec()
    _exact: Mapping[str, Any] | None = PrivateAttr(default=None)

    @classmethod
    def stamped(
        cls,
        template: Template,
        *,
        name: str,
        owner: Resource,
        labels: Mapping[str, str] | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> Self:
        """A pod from *template*, controlled by *owner*, with more *labels* and *spec* fields; the rest as it is."""
        metadata = template.get("metadata") or {}
        exact = {**(template.get("spec") or {}), **(spec or {})}
        pod = cls(
            metadata=ObjectMeta(
                name=name,
                namespace=owner.namespace,
                labels={**(metadata.get("labels") or {}), **(labels or {})},
                annotations=dict(metadata.get("annotations") or {}),
                owner_references=(owner.owner_reference(),),
            ),
            spec=PodSpec.model_validate(exact),
        )
        pod._exact = exact
        return pod

    def to_wire(self) -> dict[str, Any]:
        wire = super().to_wire()
        return wire if self._exact is None else {**wire, "spec": dict(self._exact)}


class DeploymentCondition(Condition):
    """``appsv1.DeploymentCondition``: ``last_update_time`` moves with every sign of progress."""

    last_update_time: Time | None = None


class DeploymentSpec(Model):
    replicas: int = 1
    selector: LabelSelector = LabelSelector()
    template: Template = Field(default_factory=dict)
    strategy: DeploymentStrategy = DeploymentStrategy()
    min_ready_seconds: int = 0
    revision_history_limit: int = 10
    progress_deadline_seconds: int = 600
    paused: bool = False


class DeploymentStatus(_DeploymentStatus):
    conditions: tuple[DeploymentCondition, ...] = ()


class Deployment(Resource):
    """``apps/v1 Deployment``."""

    group, version, kind, plural = "apps", "v1", "Deployment", "deployments"

    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()


class ReplicaSetSpec(Model):
    replicas: int = 1
    selector: LabelSelector = LabelSelector()
    template: Template = Field(default_factory=dict)
    min_ready_seconds: int = 0


class ReplicaSet(Resource):
    """``apps/v1 ReplicaSet``."""

    group, version, kind, plural = "apps", "v1", "ReplicaSet", "replicasets"

    spec: ReplicaSetSpec = ReplicaSetSpec()
    status: ReplicaSetStatus = ReplicaSetStatus()


class StatefulSetSpec(Model):
    replicas: int = 1
    selector: LabelSelector = LabelSelector()
    template: Template = Field(default_factory=dict)
    service_name: str = ""
    pod_management_policy: str = "OrderedReady"
    update_strategy: Mapping[str, Any] = Field(default_factory=dict)
    min_ready_seconds: int = 0


class StatefulSetState(StatefulSetStatus):
    available_replicas: int = 0


class StatefulSet(Resource):
    """``apps/v1 StatefulSet``."""

    group, version, kind, plural = "apps", "v1", "StatefulSet", "statefulsets"

    spec: StatefulSetSpec = StatefulSetSpec()
    status: StatefulSetState = StatefulSetState()


class JobSpec(Model):
    completions: int | None = None
    parallelism: int = 1
    backoff_limit: int = 6
    active_deadline_seconds: int | None = None
    suspend: bool = False
    selector: LabelSelector | None = None
    template: Template = Field(default_factory=dict)


class JobStatus(Model):
    active: int = 0
    ready: int = 0
    succeeded: int = 0
    failed: int = 0
    start_time: Time | None = None
    completion_time: Time | None = None
    conditions: tuple[Condition, ...] = ()


class Job(Resource):
    """``batch/v1 Job``."""

    group, version, kind, plural = "batch", "v1", "Job", "jobs"

    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()


class NodeCondition(Condition):
    """``corev1.NodeCondition``."""

    last_heartbeat_time: Time | None = None


class NodeStatus(core.NodeStatus):
    conditions: tuple[NodeCondition, ...] = ()
    daemon_endpoints: Mapping[str, Any] = Field(default_factory=dict)


class Node(core.Node):
    """``v1 Node``, with heartbeats."""

    status: NodeStatus = NodeStatus()


class Secret(Resource):
    """``v1 Secret``; only a kubelet reads its data, base64 as the server has it."""

    group, version, kind, plural = "", "v1", "Secret", "secrets"

    data: Mapping[str, str] = Field(default_factory=dict)


class EndpointSlice(Resource):
    """``discovery.k8s.io/v1 EndpointSlice``."""

    group, version, kind, plural = "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"
    namespaced: ClassVar[bool] = True

    address_type: str = "IPv4"
    endpoints: tuple[Mapping[str, Any], ...] = ()
    ports: tuple[Mapping[str, Any], ...] = ()
