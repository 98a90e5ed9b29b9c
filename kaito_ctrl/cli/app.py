"""The commands and their options."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Coroutine
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

if TYPE_CHECKING:
    from kaito_ctrl.reconcilers.workspace.validation import Rules
    from kaito_ctrl.runtime.leader import Lease

__all__ = ["app", "main"]

app = typer.Typer(
    name="kaito-ctrl",
    help="One Workspace in, a served model out: KAITO in Python.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

LogLevel = Literal["debug", "info", "warning", "error"]
LEASE_NAME = "ef60f9b0.io"  # KAITO's own: the two never work on the same cluster at the same time
_EXAMPLE = Path("examples/inference/kaito_workspace_phi_3.yaml")


def _example() -> Path:
    """The first quick start's manifest: the checkout's, or the copy that comes with the package."""
    return _EXAMPLE if _EXAMPLE.exists() else Path(str(files("kaito_ctrl").joinpath(_EXAMPLE)))


@app.command()
def demo(
    manifest: Annotated[
        Path | None, typer.Option("--file", "-f", help=f"The Workspace to apply. [default: {_EXAMPLE}]")
    ] = None,
    prompt: Annotated[str, typer.Option(help="What to ask the model.")] = "What is Kubernetes?",
    boot: Annotated[float, typer.Option(min=0, help="Seconds that a simulated machine takes to boot.")] = 3.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API server; 0: any free one.")] = 0,
    exit_: Annotated[
        bool,
        typer.Option("--exit", envvar="DEMO_EXIT", help="Exit after the answer. The default without a terminal."),
    ] = False,
    kill_controllers: Annotated[
        bool,
        typer.Option("--kill-controllers", help="Kill the controllers at every stage, and start them again."),
    ] = False,
    log_file: Annotated[Path | None, typer.Option(help="Write the controllers' log here, as JSON lines.")] = None,
) -> None:
    """From nothing to an answered prompt, with no cluster, no GPU and no cloud.

    Starts a Kubernetes API server inside this process, with its controllers, a process kubelet and a simulated
    cloud; applies a Workspace; shows how it comes up; asks the model through the Service; and stays up for kubectl
    until Ctrl-C. Nothing is left behind.
    """
    from kaito_ctrl.cli.demo import DemoOptions, run_demo
    from kaito_ctrl.cli.logs import configure_logging

    console = Console()
    if log_file is not None:
        configure_logging("debug", "json", log_file)
    else:
        configure_logging("error", "text", sys.stderr)
    stay = not exit_ and console.is_terminal
    options = DemoOptions(manifest or _example(), prompt, stay, boot, port, kill_controllers)
    raise typer.Exit(_run(run_demo(options, console)))


@app.command()
def dev(
    boot: Annotated[float, typer.Option(min=0, help="Seconds that a simulated machine takes to boot.")] = 3.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API server; 0: any free one.")] = 0,
    kubeconfig: Annotated[
        Path | None, typer.Option(help="Write the kubeconfig here; default: a temporary file.")
    ] = None,
    controllers: Annotated[
        bool, typer.Option(help="Run KAITO's controllers too; without them only the cluster runs.")
    ] = True,
    rbac: Annotated[
        bool, typer.Option("--rbac", help="Let roles and bindings decide who may do what, as a real cluster does.")
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Which of the controllers' log lines to print.")] = "info",
) -> None:
    """An embedded cluster with KAITO in it, until Ctrl-C: for kubectl, and for developing controllers against."""
    from kaito_ctrl.cli.dev import DevOptions, run_dev
    from kaito_ctrl.cli.logs import configure_logging

    configure_logging(log_level, "text", sys.stderr)
    raise typer.Exit(_run(run_dev(DevOptions(boot, port, kubeconfig, controllers, rbac), Console())))


@app.command()
def run(
    kubeconfig: Annotated[
        str | None, typer.Option(envvar="KUBECONFIG", help="Default: ~/.kube/config, or the pod's own identity.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="The kubeconfig's context to use.")] = None,
    provisioner: Annotated[
        Literal["none"], typer.Option(help="Who makes nodes: none leaves Machines to another controller.")
    ] = "none",
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
        str, typer.Option(help="Its name: whoever uses the same one is a replica of the same thing.")
    ] = LEASE_NAME,
    log_level: Annotated[LogLevel, typer.Option(help="The least severe log line to print.")] = "info",
    log_format: Annotated[Literal["json", "text"], typer.Option(help="How to print it.")] = "json",
) -> None:
    """Run the controllers against a cluster, until SIGTERM. The CRDs have to be there (`kaito-ctrl crds`).

    Exits with status 1 when it loses its lease: its supervisor starts it again, as a standby.
    """
    from kaito_ctrl.cli.daemon import DaemonOptions
    from kaito_ctrl.cli.logs import configure_logging
    from kaito_ctrl.cli.run import run_daemon

    def on(port: int) -> int | None:
        return port if port >= 0 else None

    configure_logging(log_level, log_format, sys.stderr)
    options = DaemonOptions(
        registry=registry,
        metrics_port=on(metrics_port),
        health_port=on(health_port),
        webhook_port=on(webhook_port),
        webhook_host=webhook_host,
        webhook_url=webhook_url,
        webhook_service=_service(webhook_service) if webhook_service is not None else None,
        leader=_lease(leader_elect, leader_elect_namespace, leader_elect_name),
    )
    raise typer.Exit(_run(run_daemon(options, kubeconfig=kubeconfig, context=context)))


def _run(main: Coroutine[Any, Any, int | None]) -> int:
    """Run *main*; the exit status. What a person can do something about is said in a line, without a traceback."""
    from kaito_ctrl.cli.manifest import ManifestError
    from kaito_ctrl.runtime.errors import KubeError, leaf_errors

    try:
        return asyncio.run(main) or 0
    except BaseException as error:
        leaves = leaf_errors(error)
        if not all(isinstance(leaf, KubeError | OSError | ManifestError) for leaf in leaves):
            raise
        for leaf in leaves:
            print(f"kaito-ctrl: {leaf}", file=sys.stderr)
        return 2 if isinstance(leaves[0], ManifestError) else 1


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


_File = Annotated[Path, typer.Option("--file", "-f", help="The manifest; - is the standard input.")]
_With = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Objects that would be in the cluster too: ConfigMaps, Nodes. May be repeated."),
]
_Output = Annotated[Literal["text", "json"], typer.Option("--output", "-o", help="For people, or for programs.")]
_SkuCloud = Annotated[str, typer.Option("--cloud", envvar="CLOUD_PROVIDER", help="Whose instance types: azure, aws.")]


@app.command()
def validate(
    file: _File,
    old: Annotated[
        Path | None, typer.Option(help="What the cluster has now: checks the change from that, as an update.")
    ] = None,
    with_: _With = None,
    output: _Output = "text",
    cloud: _SkuCloud = "azure",
) -> None:
    """Whether a Workspace would be taken, with every problem and its fix. Needs no cluster.

    Exits with 1 when it is invalid, and with 2 when the file cannot be read. `-o json` prints
    `{"valid": ..., "errors": [{"field", "message", "fix"}], "warnings": [...]}`.
    """
    from kaito_ctrl.cli.check import judge, print_verdicts

    def main() -> int:
        verdicts = [verdict for _, verdict in judge(_rules(cloud), file, old=old, others=with_ or ())]
        return print_verdicts(verdicts, Console(), as_json=output == "json")

    raise typer.Exit(_guarded(main))


@app.command()
def plan(file: _File, with_: _With = None, output: _Output = "text", cloud: _SkuCloud = "azure") -> None:
    """What a Workspace would be given: the sizing with its working, the nodes, the types that fit. Needs no cluster.

    Nodes among the objects of `--with` (`kubectl get nodes -o yaml`) are used where they match. Exits as `validate`.
    """
    from kaito_ctrl.cli.check import look_ahead, print_outlooks

    def main() -> int:
        outlooks = look_ahead(_rules(cloud), file, others=with_ or ())
        return print_outlooks(outlooks, Console(), as_json=output == "json")

    raise typer.Exit(_guarded(main))


_Name = Annotated[str, typer.Argument(metavar="NAME", help="The workspace.")]
_Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Its namespace.")]
_Kubeconfig = Annotated[
    str | None, typer.Option(envvar="KUBECONFIG", help="Default: ~/.kube/config, or the pod's own.")
]
_KubeContext = Annotated[str | None, typer.Option(help="The kubeconfig's context to use.")]


@app.command()
def why(
    name: _Name,
    namespace: _Namespace = "default",
    output: _Output = "text",
    kubeconfig: _Kubeconfig = None,
    context: _KubeContext = None,
    cloud: _SkuCloud = "azure",
) -> None:
    """Why a workspace is not ready: from it to its machines, nodes, pods and containers; the culprit; the next step.

    It reads the cluster and changes nothing; it works without kaito-ctrl's controllers too, and says if none runs.
    """
    from kaito_ctrl.cli.why import tell_why
    from kaito_ctrl.runtime import ObjectKey

    key = ObjectKey(namespace, name)
    said = tell_why(_rules(cloud), key, Console(), kubeconfig=kubeconfig, context=context, as_json=output == "json")
    raise typer.Exit(_run(said))


@app.command()
def timeline(
    name: _Name,
    namespace: _Namespace = "default",
    output: _Output = "text",
    kubeconfig: _Kubeconfig = None,
    context: _KubeContext = None,
    cloud: _SkuCloud = "azure",
) -> None:
    """What happened to a workspace, its machines, nodes and pods, in the order in which it happened."""
    from kaito_ctrl.cli.why import tell_timeline
    from kaito_ctrl.runtime import ObjectKey

    key = ObjectKey(namespace, name)
    told = tell_timeline(
        _rules(cloud), key, Console(), kubeconfig=kubeconfig, context=context, as_json=output == "json"
    )
    raise typer.Exit(_run(told))


def _rules(cloud: str) -> Rules:
    from kaito_ctrl.reconcilers.workspace.validation import Rules
    from kaito_presets.catalogue import Catalogue
    from kaito_presets.skus import SkuTable

    try:
        return Rules(Catalogue.builtin(), SkuTable.builtin(cloud))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--cloud") from error


def _guarded(main: Callable[[], int]) -> int:
    from kaito_ctrl.cli.manifest import ManifestError

    try:
        return main()
    except ManifestError as error:
        print(f"kaito-ctrl: {error}", file=sys.stderr)
        return 2


@app.command()
def crds(
    output: Annotated[Path | None, typer.Option(help="A folder to write one file per CRD to; default: print.")] = None,
) -> None:
    """Print the CustomResourceDefinitions, generated from the models: `kaito-ctrl crds | kubectl apply -f -`."""
    from kaito_api.crd import all_crds
    from kaito_ctrl.cli.manifest import dump_yaml

    if output is None:
        print("---\n".join(dump_yaml(crd) for crd in all_crds()), end="")
        return
    output.mkdir(parents=True, exist_ok=True)
    for crd in all_crds():
        path = output / f"{crd['spec']['group']}_{crd['spec']['names']['plural']}.yaml"
        path.write_text(dump_yaml(crd), encoding="utf-8")
        print(path)


def main() -> None:
    """The entry point."""
    app()
