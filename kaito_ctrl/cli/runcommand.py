"""``kaito-ctrl run``: its options, and what is wrong with a combination of them."""

from __future__ import annotations

import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from kaito_api.karpenter import NodeClassRef
    from kaito_ctrl.cli.run import OpenCloud
    from kaito_ctrl.runtime.leader import Lease

__all__ = ["PROVISIONER_LEASE_NAME", "WORKSPACE_LEASE_NAME", "node_class_of", "run"]

WORKSPACE_LEASE_NAME = "ef60f9b0.io"
"""KAITO's own: the two never work on the same cluster at the same time."""
PROVISIONER_LEASE_NAME = "kaito-provisioner"
"""Of a process that only makes nodes: it leads beside the one that serves workspaces."""
_ROLES = ("workspace", "provisioner")
_AKS = "With --provisioner aks"
_KAITO_NODE_CLASS = "KaitoNodeClass.kaito.sh/default"

LogLevel = Literal["debug", "info", "warning", "error"]
NodeApi = Literal["machine", "nodeclaim"]


def run(
    kubeconfig: Annotated[
        str | None, typer.Option(envvar="KUBECONFIG", help="Default: ~/.kube/config, or the pod's own identity.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="The kubeconfig's context to use.")] = None,
    controllers: Annotated[
        str | None,
        typer.Option(
            help="Which controllers run in this process: **workspace** (workspaces become node requests, services and "
            "workloads), **provisioner** (node requests become nodes), or both, with a comma between them. "
            "Default: workspace, and provisioner too when --provisioner names one."
        ),
    ] = None,
    provisioner: Annotated[
        Literal["none", "aks"],
        typer.Option(
            help="Who makes nodes. **none**: another process, which may be ours, KAITO's gpu-provisioner or any that "
            "speaks Karpenter's API; or nobody, and you bring nodes. **aks**: this one, as agent pools of an AKS "
            "cluster; needs the `aks` extra (`pip install 'kaito-ctrl[aks]'`) and the settings below."
        ),
    ] = "none",
    node_api: Annotated[
        NodeApi,
        typer.Option(
            envvar="NODE_API",
            help="How a node is asked for. **machine**: karpenter.sh/v1alpha5 Machine, as in KAITO's quick starts. "
            "**nodeclaim**: karpenter.sh/v1 NodeClaim, for today's gpu-provisioner and Karpenter. Whoever asks and "
            "whoever provisions have to agree.",
        ),
    ] = "machine",
    node_class: Annotated[
        str,
        typer.Option(
            envvar="NODE_CLASS",
            help="What NodeClaims name as their node class, as KIND.GROUP/NAME. The default is KAITO's own, for "
            "gpu-provisioner and --provisioner aks; Azure's Karpenter has AKSNodeClass.karpenter.azure.com/default.",
        ),
    ] = _KAITO_NODE_CLASS,
    registry: Annotated[
        str, typer.Option(envvar="PRESET_REGISTRY_NAME", help="Where preset images are pulled from.")
    ] = "mcr.microsoft.com/aks/kaito",
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics; -1 switches it off.")] = 8080,
    health_port: Annotated[int, typer.Option(help="Port of /healthz and /readyz; -1 switches it off.")] = 8081,
    webhook_port: Annotated[int, typer.Option(help="Port of the admission webhook; -1 switches it off.")] = -1,
    webhook_host: Annotated[str, typer.Option(help="Address that the webhook listens on.")] = "127.0.0.1",
    webhook_url: Annotated[
        str | None, typer.Option(help="Where the API server calls it, if not at that address and port.")
    ] = None,
    webhook_service: Annotated[
        str | None, typer.Option(help="Or the Service that leads to it: NAMESPACE/NAME:PORT.")
    ] = None,
    leader_elect: Annotated[
        bool | None,
        typer.Option(
            "--leader-elect/--no-leader-elect",
            help="Of several replicas, let the one that holds a Lease do the work; the others stand by with warm "
            "caches, and take over within seconds. Needs get, create and update on leases. Default: on in a pod.",
        ),
    ] = None,
    leader_elect_namespace: Annotated[
        str | None,
        typer.Option(envvar="POD_NAMESPACE", help="Where that Lease lives. Default: the pod's own namespace."),
    ] = None,
    leader_elect_name: Annotated[
        str | None,
        typer.Option(
            help="Its name: whoever uses the same one is a replica of the same thing. Default: "
            f"{WORKSPACE_LEASE_NAME}, which is KAITO's own; {PROVISIONER_LEASE_NAME} without the workspace controller."
        ),
    ] = None,
    azure_subscription: Annotated[
        str | None,
        typer.Option(
            envvar=["ARM_SUBSCRIPTION_ID", "AZURE_SUBSCRIPTION_ID"],
            help="The subscription's id: `az account show --query id`.",
            rich_help_panel=_AKS,
        ),
    ] = None,
    azure_resource_group: Annotated[
        str | None,
        typer.Option(
            envvar="ARM_RESOURCE_GROUP",
            help="The AKS cluster's resource group; not the one that its nodes are in.",
            rich_help_panel=_AKS,
        ),
    ] = None,
    azure_cluster: Annotated[
        str | None, typer.Option(envvar="AZURE_CLUSTER_NAME", help="The AKS cluster's name.", rich_help_panel=_AKS)
    ] = None,
    azure_location: Annotated[
        str | None,
        typer.Option(
            envvar="LOCATION", help="Its region, such as eastus: zones are named after it.", rich_help_panel=_AKS
        ),
    ] = None,
    azure_identity: Annotated[
        str | None,
        typer.Option(
            envvar="AZURE_IDENTITY",
            help="Who asks: **workload** (a federated service account, in a pod), **managed** (the virtual machine's "
            "identity), **environment** (AZURE_CLIENT_SECRET and the like), **cli** (`az login`), **default** (the "
            "first of them that works). Default: workload where its webhook has set AZURE_FEDERATED_TOKEN_FILE.",
            rich_help_panel=_AKS,
        ),
    ] = None,
    azure_client: Annotated[
        str | None,
        typer.Option(envvar="AZURE_CLIENT_ID", help="The identity's client id.", rich_help_panel=_AKS),
    ] = None,
    azure_tenant: Annotated[
        str | None, typer.Option(envvar="AZURE_TENANT_ID", help="Its tenant.", rich_help_panel=_AKS)
    ] = None,
    azure_subnet: Annotated[
        str | None,
        typer.Option(
            envvar="VNET_SUBNET_ID", help="The id of the subnet for nodes. Default: AKS chooses.", rich_help_panel=_AKS
        ),
    ] = None,
    azure_cloud: Annotated[
        str | None,
        typer.Option(envvar="AZURE_CLOUD", help="public, china or usgov. Default: public.", rich_help_panel=_AKS),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="The least severe log line to print.")] = "info",
    log_format: Annotated[Literal["json", "text"], typer.Option(help="How to print it.")] = "json",
) -> None:
    """Run the controllers against a cluster, until SIGTERM. The CRDs have to be there (`kaito-ctrl crds`).

    Exits with status 1 when it loses its lease: its supervisor starts it again, as a standby; and with 2 when it
    cannot start as it was asked to, after naming everything that is wrong.
    """
    from kaito_ctrl.cli.daemon import DaemonOptions
    from kaito_ctrl.cli.guard import run_guarded
    from kaito_ctrl.cli.logs import configure_logging
    from kaito_ctrl.cli.run import run_daemon

    def on(port: int) -> int | None:
        return port if port >= 0 else None

    roles = _chosen(controllers, provisioner)
    serves = "workspace" in roles
    if not serves and (on(webhook_port) is not None or webhook_service is not None or webhook_url is not None):
        raise typer.BadParameter(
            "the webhook is the workspace controller's, which does not run here: leave it off",
            param_hint="--webhook-*",
        )
    if node_class != _KAITO_NODE_CLASS and node_api != "nodeclaim":
        raise typer.BadParameter("only NodeClaims have one: add --node-api nodeclaim", param_hint="--node-class")
    lease_name = leader_elect_name or (WORKSPACE_LEASE_NAME if serves else PROVISIONER_LEASE_NAME)
    configure_logging(log_level, log_format, sys.stderr)
    given = {
        "ARM_SUBSCRIPTION_ID": azure_subscription,
        "ARM_RESOURCE_GROUP": azure_resource_group,
        "AZURE_CLUSTER_NAME": azure_cluster,
        "LOCATION": azure_location,
        "AZURE_IDENTITY": azure_identity,
        "AZURE_CLIENT_ID": azure_client,
        "AZURE_TENANT_ID": azure_tenant,
        "VNET_SUBNET_ID": azure_subnet,
        "AZURE_CLOUD": azure_cloud,
    }
    options = DaemonOptions(
        workspaces=serves,
        node_api=node_api,
        node_class=node_class_of(node_class),
        registry=registry,
        metrics_port=on(metrics_port),
        health_port=on(health_port),
        webhook_port=on(webhook_port),
        webhook_host=webhook_host,
        webhook_url=webhook_url,
        webhook_service=_service(webhook_service) if webhook_service is not None else None,
        leader=_lease(leader_elect, leader_elect_namespace, lease_name),
    )

    async def main() -> None:
        open_cloud: OpenCloud | None = None
        if provisioner == "aks":
            from kaito_ctrl.cli.azure import open_aks, settings_from

            open_cloud = partial(open_aks, settings_from(given))
        await run_daemon(options, kubeconfig=kubeconfig, context=context, open_cloud=open_cloud)

    raise typer.Exit(run_guarded(main()))


def _chosen(controllers: str | None, provisioner: str) -> frozenset[str]:
    """Which controllers run. Raises ``BadParameter`` for what does not fit together."""
    if controllers is None:
        return frozenset(_ROLES if provisioner != "none" else _ROLES[:1])
    roles = frozenset(each.strip() for each in controllers.split(",") if each.strip())
    unknown = sorted(roles - set(_ROLES))
    if unknown or not roles:
        said = f"there is no controller {', '.join(map(repr, unknown))}: " if unknown else ""
        raise typer.BadParameter(f"{said}write workspace, provisioner, or both", param_hint="--controllers")
    if "provisioner" in roles and provisioner == "none":
        raise typer.BadParameter(
            "the provisioner needs a cloud: add --provisioner aks, or take it out of --controllers",
            param_hint="--provisioner",
        )
    if "provisioner" not in roles and provisioner != "none":
        raise typer.BadParameter(
            f"--provisioner {provisioner} makes no nodes without its controller: write --controllers "
            "workspace,provisioner, or leave --provisioner to the process that runs it",
            param_hint="--controllers",
        )
    return roles


def _lease(wanted: bool | None, namespace: str | None, name: str) -> Lease | None:
    from kaito_ctrl.runtime.leader import Lease, pod_namespace

    own = pod_namespace()
    if wanted is False or (wanted is None and own is None):
        return None
    if namespace is None and own is None:
        raise typer.BadParameter(
            "this is not a pod, so say where the Lease lives: --leader-elect-namespace NAMESPACE",
            param_hint="--leader-elect",
        )
    return Lease(name, namespace=namespace or own)


def _service(text: str) -> tuple[str, str, int]:
    found = re.fullmatch(r"([a-z0-9-]+)/([a-z0-9-]+):(\d+)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no Service: write NAMESPACE/NAME:PORT", param_hint="--webhook-service")
    return found[1], found[2], int(found[3])


def node_class_of(text: str) -> NodeClassRef:
    """The node class that *text* names as KIND.GROUP/NAME. Raises ``BadParameter``."""
    from kaito_api.karpenter import NodeClassRef

    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9]*)\.([a-z0-9.-]+)/([a-z0-9.-]+)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no node class: write KIND.GROUP/NAME", param_hint="--node-class")
    return NodeClassRef(kind=found[1], group=found[2], name=found[3])
