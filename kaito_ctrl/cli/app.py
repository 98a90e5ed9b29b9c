"""The commands and their options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from kaito_ctrl.cli.guard import run_guarded
from kaito_ctrl.cli.runcommand import LogLevel, NodeApi, run

if TYPE_CHECKING:
    from kaito_ctrl.reconcilers.workspace.validation import Rules

__all__ = ["app", "main"]

app = typer.Typer(
    name="kaito-ctrl",
    help="One Workspace in, a served model out: KAITO in Python.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
    node_api: Annotated[
        NodeApi, typer.Option(help="How nodes are asked for: as **machine** or as **nodeclaim**.")
    ] = "machine",
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
    options = DemoOptions(manifest or _example(), prompt, stay, boot, port, kill_controllers, node_api=node_api)
    raise typer.Exit(run_guarded(run_demo(options, console)))


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
    node_api: Annotated[
        NodeApi, typer.Option(help="How nodes are asked for: as **machine** or as **nodeclaim**.")
    ] = "machine",
    cloud: Annotated[
        Literal["sim", "aks"],
        typer.Option(
            help="Who makes machines. **sim**: a simulated cloud. **aks**: the aks provisioner and the real Azure SDK, "
            "with an Azure that is local; needs the `aks` extra."
        ),
    ] = "sim",
    log_level: Annotated[LogLevel, typer.Option(help="Which of the controllers' log lines to print.")] = "info",
) -> None:
    """An embedded cluster with KAITO in it, until Ctrl-C: for kubectl, and for developing controllers against."""
    from kaito_ctrl.cli.dev import DevOptions, run_dev
    from kaito_ctrl.cli.logs import configure_logging

    configure_logging(log_level, "text", sys.stderr)
    raise typer.Exit(
        run_guarded(run_dev(DevOptions(boot, port, kubeconfig, controllers, rbac, node_api, cloud), Console()))
    )


app.command()(run)


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
    raise typer.Exit(run_guarded(said))


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
    raise typer.Exit(run_guarded(told))


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
