"""Under which addresses a workspace is found. Pure."""

from __future__ import annotations

from kaito_api.core import Service, ServicePort, ServiceSpec
from kaito_api.meta import ObjectMeta
from kaito_api.workspace import Workspace
from kaito_ctrl.reconcilers.names import ENABLE_LB_ANNOTATION, WORKSPACE_LABEL

__all__ = ["HEADLESS", "PORT", "TORCH_PORT", "headless_name", "headless_service", "rendezvous", "service"]

PORT = 5000
"""Where every model server listens."""
TORCH_PORT = 29500
HEADLESS = "-headless"
"""What the name of the second Service of a distributed workspace ends in."""
_POD_LABEL = "statefulset.kubernetes.io/pod-name"


def headless_name(ws: Workspace) -> str:
    """The name under which the pods of a distributed workspace find each other."""
    return f"{ws.name}{HEADLESS}"


def rendezvous(ws: Workspace) -> str:
    """Where the processes of a distributed model meet: the first pod. The search domains of a pod complete it."""
    return f"{ws.name}-0.{headless_name(ws)}.{ws.namespace}.svc:{TORCH_PORT}"


def service(ws: Workspace, *, distributed: bool) -> Service:
    """The workspace's address: port 80 for the server, 29500 for torch's rendezvous. Of a distributed model only the
    first pod answers requests; the others work for it."""
    balanced = ws.metadata.annotations.get(ENABLE_LB_ANNOTATION) == "True"
    first = {_POD_LABEL: f"{ws.name}-0"} if distributed else {}
    return Service(
        metadata=ObjectMeta(name=ws.name, namespace=ws.namespace, labels={WORKSPACE_LABEL: ws.name}),
        spec=ServiceSpec(
            type="LoadBalancer" if balanced else "ClusterIP",
            ports=(
                ServicePort(name="http", port=80, target_port=PORT, protocol="TCP"),
                ServicePort(name="torch", port=TORCH_PORT, target_port=TORCH_PORT, protocol="TCP"),
            ),
            selector={WORKSPACE_LABEL: ws.name, **first},
        ),
    )


def headless_service(ws: Workspace) -> Service:
    """The names of the pods. They are there before the pods are ready: to become ready, the pods have to meet."""
    return Service(
        metadata=ObjectMeta(name=headless_name(ws), namespace=ws.namespace, labels={WORKSPACE_LABEL: ws.name}),
        spec=ServiceSpec(
            cluster_ip="None",
            ports=(ServicePort(name="torchrun", port=TORCH_PORT, target_port=TORCH_PORT, protocol="TCP"),),
            selector={WORKSPACE_LABEL: ws.name},
            publish_not_ready_addresses=True,
        ),
    )
