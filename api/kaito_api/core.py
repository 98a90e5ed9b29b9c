"""The core-group kinds that the reconcilers and the embedded cluster touch, as partial models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, SerializerFunctionWrapHandler, model_serializer

from kaito_api.meta import Condition, LocalReference, Model, Resource, Time

__all__ = [
    "Affinity",
    "ConfigMap",
    "Container",
    "ContainerPort",
    "ContainerState",
    "ContainerStatus",
    "Endpoints",
    "EnvVar",
    "HTTPGetAction",
    "Namespace",
    "Node",
    "NodeAffinity",
    "NodeSelector",
    "NodeSelectorRequirement",
    "NodeSelectorTerm",
    "NodeSpec",
    "NodeStatus",
    "Pod",
    "PodSpec",
    "PodStatus",
    "PodTemplate",
    "Probe",
    "Resources",
    "Service",
    "ServicePort",
    "ServiceSpec",
    "Taint",
    "TemplateMeta",
    "Toleration",
    "Volume",
    "VolumeMount",
]


class Taint(Model):
    """``corev1.Taint``."""

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    time_added: Time | None = None


class Toleration(Model):
    """``corev1.Toleration``; an empty key with ``Exists`` tolerates everything."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str = ""
    effect: str = ""
    toleration_seconds: int | None = None

    def tolerates(self, taint: Taint) -> bool:
        """Whether this toleration matches *taint*."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        return self.operator == "Exists" or (bool(self.key) and self.value == taint.value)


class NodeSpec(Model):
    provider_id: str = Field(default="", alias="providerID")
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class NodeAddress(Model):
    type: str
    address: str


class NodeStatus(Model):
    capacity: Mapping[str, str] = Field(default_factory=dict)
    allocatable: Mapping[str, str] = Field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    addresses: tuple[NodeAddress, ...] = ()
    node_info: Mapping[str, Any] = Field(default_factory=dict)


class Node(Resource):
    """``v1 Node``."""

    group, version, kind, plural = "", "v1", "Node", "nodes"
    namespaced: ClassVar[bool] = False

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class EnvVar(Model):
    """A value, or where it comes from; ``value_from`` stays as the server has it."""

    name: str
    value: str | None = None
    value_from: Mapping[str, Any] | None = None


class ContainerPort(Model):
    container_port: int
    name: str | None = None
    protocol: str = "TCP"


class HTTPGetAction(Model):
    port: int | str
    path: str = "/"
    host: str | None = None
    scheme: str = "HTTP"


class Probe(Model):
    """``corev1.Probe``; seconds throughout."""

    http_get: HTTPGetAction | None = None
    tcp_socket: Mapping[str, Any] | None = None
    exec: Mapping[str, Any] | None = None
    initial_delay_seconds: int = 0
    period_seconds: int = 10
    timeout_seconds: int = 1
    success_threshold: int = 1
    failure_threshold: int = 3


class Resources(Model):
    requests: Mapping[str, str] = Field(default_factory=dict)
    limits: Mapping[str, str] = Field(default_factory=dict)


class VolumeMount(Model):
    name: str
    mount_path: str
    sub_path: str | None = None
    read_only: bool | None = None


class Container(Model):
    """``corev1.Container``."""

    name: str
    image: str = ""
    image_pull_policy: str | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str | None = None
    env: tuple[EnvVar, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    resources: Resources = Resources()
    volume_mounts: tuple[VolumeMount, ...] = ()
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    security_context: Mapping[str, Any] | None = None
    termination_message_policy: Literal["File", "FallbackToLogsOnError"] | None = None
    stdin: bool | None = None
    stdin_once: bool | None = None
    tty: bool | None = None


class Volume(Model):
    """One volume; only the sources that somebody here uses are spelled out."""

    name: str
    empty_dir: Mapping[str, Any] | None = None
    config_map: Mapping[str, Any] | None = None
    secret: Mapping[str, Any] | None = None
    projected: Mapping[str, Any] | None = None
    host_path: Mapping[str, Any] | None = None


class NodeSelectorRequirement(Model):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()


class NodeSelectorTerm(Model):
    match_expressions: tuple[NodeSelectorRequirement, ...] = ()
    match_fields: tuple[NodeSelectorRequirement, ...] = ()


class NodeSelector(Model):
    node_selector_terms: tuple[NodeSelectorTerm, ...] = ()


class NodeAffinity(Model):
    required_during_scheduling_ignored_during_execution: NodeSelector | None = None


class Affinity(Model):
    node_affinity: NodeAffinity | None = None


class PodSpec(Model):
    """``corev1.PodSpec``."""

    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    volumes: tuple[Volume, ...] = ()
    node_name: str = ""
    node_selector: Mapping[str, str] = Field(default_factory=dict)
    affinity: Affinity | None = None
    tolerations: tuple[Toleration, ...] = ()
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: int = 30
    service_account_name: str | None = None
    automount_service_account_token: bool | None = None
    image_pull_secrets: tuple[LocalReference, ...] = ()
    security_context: Mapping[str, Any] | None = None
    hostname: str | None = None
    subdomain: str | None = None
    priority_class_name: str | None = None


class TemplateMeta(Model):
    """The metadata of a pod template: no identity of its own."""

    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)


class PodTemplate(Model):
    """``corev1.PodTemplateSpec``."""

    metadata: TemplateMeta = TemplateMeta()
    spec: PodSpec = PodSpec()
    _wire: Mapping[str, Any] | None = PrivateAttr(default=None)

    @classmethod
    def verbatim(cls, wire: Mapping[str, Any]) -> PodTemplate:
        """A template that is written exactly as *wire* (plain JSON), fields that no model names included."""
        template = cls()
        template._wire = wire
        return template

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return dict(self._wire) if self._wire is not None else handler(self)


class ContainerState(Model):
    """At most one of the three is set; each stays as the server has it (``reason``, ``message``, ``exitCode``...)."""

    waiting: Mapping[str, Any] | None = None
    running: Mapping[str, Any] | None = None
    terminated: Mapping[str, Any] | None = None


class ContainerStatus(Model):
    name: str
    ready: bool = False
    started: bool | None = None
    restart_count: int = 0
    image: str = ""
    image_id: str = Field(default="", alias="imageID")
    container_id: str | None = Field(default=None, alias="containerID")
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodIP(Model):
    ip: str


class PodStatus(Model):
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    pod_ip: str = Field(default="", alias="podIP")
    pod_ips: tuple[PodIP, ...] = Field(default=(), alias="podIPs")
    host_ip: str = Field(default="", alias="hostIP")
    start_time: Time | None = None
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    qos_class: str | None = None


class Pod(Resource):
    """``v1 Pod``."""

    group, version, kind, plural = "", "v1", "Pod", "pods"

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(Model):
    port: int
    name: str | None = None
    protocol: str = "TCP"
    target_port: int | str | None = None
    node_port: int | None = None


class ServiceSpec(Model):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str = Field(default="", alias="clusterIP")
    cluster_ips: tuple[str, ...] = Field(default=(), alias="clusterIPs")
    ports: tuple[ServicePort, ...] = ()
    selector: Mapping[str, str] = Field(default_factory=dict)
    publish_not_ready_addresses: bool = False


class Service(Resource):
    """``v1 Service``."""

    group, version, kind, plural = "", "v1", "Service", "services"

    spec: ServiceSpec = ServiceSpec()


class EndpointAddress(Model):
    ip: str
    node_name: str | None = None
    hostname: str | None = None
    target_ref: Mapping[str, Any] | None = None


class EndpointPort(Model):
    port: int
    name: str | None = None
    protocol: str = "TCP"


class EndpointSubset(Model):
    addresses: tuple[EndpointAddress, ...] = ()
    not_ready_addresses: tuple[EndpointAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Endpoints(Resource):
    """``v1 Endpoints``."""

    group, version, kind, plural = "", "v1", "Endpoints", "endpoints"

    subsets: tuple[EndpointSubset, ...] = ()


class ConfigMap(Resource):
    """``v1 ConfigMap``."""

    group, version, kind, plural = "", "v1", "ConfigMap", "configmaps"

    data: Mapping[str, str] = Field(default_factory=dict)


class Namespace(Resource):
    """``v1 Namespace``."""

    group, version, kind, plural = "", "v1", "Namespace", "namespaces"
    namespaced: ClassVar[bool] = False
