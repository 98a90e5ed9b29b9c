"""``kaito-ctrl dev``: the embedded cluster with KAITO in it, until Ctrl-C."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from kaito_ctrl.cli.azure import require_sdk
from kaito_ctrl.cli.daemon import NodeApi
from kaito_ctrl.cli.local import LocalKaito, OpenProvider, local_options
from kaito_ctrl.cli.signals import stop_on_signal

__all__ = ["DevOptions", "run_dev"]


@dataclass(frozen=True, slots=True)
class DevOptions:
    boot: float = 3.0
    port: int = 0
    kubeconfig: Path | None = None
    controllers: bool = True
    rbac: bool = False
    node_api: NodeApi = "machine"
    cloud: Literal["sim", "aks"] = "sim"


async def run_dev(options: DevOptions, console: Console) -> None:
    """Run until a signal."""
    if options.kubeconfig is not None and not options.kubeconfig.parent.is_dir():
        raise FileNotFoundError(f"{options.kubeconfig}: there is no folder {options.kubeconfig.parent}")
    folder = Path(tempfile.mkdtemp(prefix="kaito-ctrl-"))
    path = options.kubeconfig or folder / "kubeconfig"
    try:
        with stop_on_signal() as stop:
            async with LocalKaito.start(
                root=folder / "pods",
                boot=options.boot,
                port=options.port,
                controllers=options.controllers,
                plain_node="system",
                rbac=options.rbac,
                options=local_options(node_api=options.node_api),
                provider=_azure() if options.cloud == "aks" else None,
            ) as kaito:
                await kaito.dev.write_kubeconfig(path)
                console.print("The cluster is up until Ctrl-C. In another terminal:")
                console.print(f"  export KUBECONFIG={path}", highlight=False, soft_wrap=True)
                console.print("  kubectl apply -f examples/inference/kaito_workspace_phi_3.yaml", highlight=False)
                await stop.wait()
                console.print("\nStopping: the pods, the controllers, the cluster.")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if options.kubeconfig is not None:
            options.kubeconfig.unlink(missing_ok=True)


def _azure() -> OpenProvider:
    require_sdk()
    from kaito_ctrl.cli.laptop import local_aks

    return local_aks
