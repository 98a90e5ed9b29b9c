"""The daemon: which controllers run, with what around them. The same for a pod in a cluster and for a laptop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kaito_api.karpenter import NODE_REQUESTS, NodeClassRef, NodeRequest
from kaito_ctrl.reconcilers.machine.controller import MachineController
from kaito_ctrl.reconcilers.machine.gc import GarbageCollection
from kaito_ctrl.reconcilers.machine.health import HealthController
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.reconcilers.workspace.admission import workspace_webhooks
from kaito_ctrl.reconcilers.workspace.controller import WorkspaceController
from kaito_ctrl.reconcilers.workspace.settings import Settings
from kaito_ctrl.reconcilers.workspace.telling import WorkspaceMetrics
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.runtime import Cluster, Lease, Manager
from kaito_ctrl.runtime.debug import DEBUG_PATH, debug_page
from kaito_ctrl.runtime.serving import HealthServer, MetricsServer
from kaito_ctrl.runtime.vitals import Vitals
from kaito_ctrl.runtime.webhook import WebhookServer
from kaito_presets.catalogue import Catalogue
from kaito_presets.skus import SkuTable
from kaito_provisioner import CloudProvider
from kaito_provisioner.metered import CloudMetrics, MeteredCloud

__all__ = ["DaemonOptions", "NodeApi", "build_manager"]

NodeApi = Literal["machine", "nodeclaim"]
"""How a node is asked for; see ``kaito_api.karpenter.NODE_REQUESTS``."""


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How the daemon runs. A port of ``None`` switches that server off, 0 takes any free one."""

    workspaces: bool = True
    """Whether the workspace controller runs here, and its webhook."""
    node_api: NodeApi = "machine"
    node_class: NodeClassRef = Settings().node_class
    """What NodeClaims name as their node class."""
    registry: str = Settings().registry
    sku_cloud: str = "azure"
    host: str = "0.0.0.0"  # noqa: S104 - the kubelet probes, and Prometheus scrapes, from outside the pod
    metrics_port: int | None = 8080
    health_port: int | None = 8081
    webhook_host: str = "127.0.0.1"
    webhook_port: int | None = None
    webhook_url: str | None = None
    webhook_service: tuple[str, str, int] | None = None
    """Namespace, name and port of the Service through which the API server calls the webhook."""
    instance: str | None = None
    """What tells this replica's webhook from the others behind that Service; by default the host's name."""
    leader: Lease | None = None
    """The Lease that settles which of several replicas runs the controllers; ``None``: there is only this one."""
    drain: float = 20.0


def build_manager(cluster: Cluster, cloud: CloudProvider | None, options: DaemonOptions) -> Manager:
    """Everything that the daemon runs against *cluster*; without a *cloud*, somebody else provisions nodes."""
    manager = Manager(cluster, leader=options.leader, drain=options.drain)
    if options.metrics_port is not None:
        cluster.metrics.add_process()
        manager.add_server(Vitals(cluster.metrics))
        manager.add_server(MetricsServer(cluster.metrics.registry, host=options.host, port=options.metrics_port))
    if options.health_port is not None:

        def caches() -> str | None:
            waiting = cluster.cache.unsynced()
            return f"not listed yet: {', '.join(waiting)}" if waiting else None

        def started() -> str | None:
            return None if manager.ready else "starting"

        health = HealthServer(
            live={"ping": lambda: None, **({"leaderElection": manager.elector.check} if manager.elector else {})},
            ready={"caches": caches, "controllers": started},
            host=options.host,
            port=options.health_port,
        )
        health.add_page(DEBUG_PATH, debug_page(manager))
        manager.add_server(health)
    if options.workspaces:
        _serve_workspaces(manager, options)
    if cloud is not None:
        _provision(manager, cloud, NODE_REQUESTS[options.node_api])
    return manager


def _serve_workspaces(manager: Manager, options: DaemonOptions) -> None:
    cluster = manager.cluster
    rules = Rules(Catalogue.builtin(), SkuTable.builtin(options.sku_cloud))
    if options.webhook_port is not None:
        manager.add_webhook(
            WebhookServer(
                cluster.client,
                workspace_webhooks(rules, cluster.client),
                clock=cluster.clock,
                metrics=cluster.metrics,
                host=options.webhook_host,
                port=options.webhook_port,
                url=options.webhook_url,
                service=options.webhook_service,
                instance=options.instance,
            )
        )
    settings = Settings(options.registry, node_api=NODE_REQUESTS[options.node_api], node_class=options.node_class)
    figures = WorkspaceMetrics(cluster.metrics.registry, cluster.cache, settings.node_api)
    manager.add(WorkspaceController(rules, settings, figures))


def _provision(manager: Manager, cloud: CloudProvider, kind: type[NodeRequest]) -> None:
    cluster = manager.cluster
    calls, figures = CloudMetrics(cluster.metrics.registry), ClaimMetrics(kind, cluster.metrics.registry)

    def metered(controller: str) -> CloudProvider:
        return MeteredCloud(cloud, calls, controller)

    manager.add(MachineController(metered("lifecycle"), kind, metrics=figures))
    manager.add(HealthController(metered(HealthController.name), kind, figures))
    manager.add_runnable(
        GarbageCollection(
            metered(GarbageCollection.name),
            manager.client(GarbageCollection.name),
            kind,
            clock=cluster.clock,
            rng=cluster.rng,
            events=manager.events.named(GarbageCollection.name),
            metrics=figures,
        ),
        leader=True,
    )
    figures.count_conditions(cluster.cache)
