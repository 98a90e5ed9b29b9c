"""``kaito-ctrl demo``: from nothing to an answered prompt, and then a cluster to try things on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel

from kaito_api.apps import Deployment
from kaito_api.core import Pod, Service
from kaito_api.karpenter import NODE_REQUESTS, NodeRequest
from kaito_api.meta import find_condition, is_true
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.ask import ChatError, ask
from kaito_ctrl.cli.daemon import NodeApi
from kaito_ctrl.cli.local import LocalKaito, local_options
from kaito_ctrl.cli.manifest import load_manifests
from kaito_ctrl.cli.progress import Progress
from kaito_ctrl.cli.signals import stop_on_signal
from kaito_ctrl.reconcilers.names import WORKSPACE_LABEL, WORKSPACE_NAMESPACE_LABEL
from kaito_ctrl.reconcilers.workspace.stages import current_stage
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.errors import AlreadyExists, NotFound
from kaito_ctrl.runtime.meta import collection_path

__all__ = ["DemoOptions", "Timings", "run_demo"]

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo does."""

    manifest: Path
    prompt: str
    stay: bool
    boot: float = 3.0
    port: int = 0
    kill_controllers: bool = False
    timeout: float = 600.0
    node_api: NodeApi = "machine"


@dataclass(slots=True)
class Timings:
    """Where the time went, in seconds on the loop's clock. ``own`` is what is left for our controllers."""

    began: float
    marks: dict[str, float] = field(default_factory=dict)

    def mark(self, name: str, at: float) -> None:
        self.marks.setdefault(name, at)

    def between(self, start: str, end: str) -> float:
        return max(0.0, self.marks.get(end, 0.0) - self.marks.get(start, 0.0))


async def run_demo(options: DemoOptions, console: Console) -> int:
    """Run it; returns the process's exit status."""
    manifests = load_manifests(options.manifest)
    wanted = next((each for each in manifests if each.get("kind") == "Workspace"), None)
    if wanted is None:
        console.print(f"[red]{options.manifest} holds no Workspace[/red]")
        return 2
    folder = Path(tempfile.mkdtemp(prefix="kaito-ctrl-"))
    try:
        with stop_on_signal() as stop:
            loop = asyncio.get_running_loop()
            timings = Timings(loop.time())
            async with LocalKaito.start(
                root=folder / "pods",
                boot=options.boot,
                port=options.port,
                plain_node="system",
                options=local_options(node_api=options.node_api),
            ) as kaito:
                up = loop.time() - timings.began
                kubeconfig = folder / "kubeconfig"
                await kaito.dev.write_kubeconfig(kubeconfig)
                console.print(f"An embedded Kubernetes and the controllers are up, in this process, after {up:.2f} s.")
                return await _walk(kaito, wanted, options, console, kubeconfig, timings, stop)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _walk(
    kaito: LocalKaito,
    wanted: dict[str, Any],
    options: DemoOptions,
    console: Console,
    kubeconfig: Path,
    timings: Timings,
    stop: asyncio.Event,
) -> int:
    key = ObjectKey(wanted["metadata"].get("namespace") or "default", wanted["metadata"]["name"])
    loop = asyncio.get_running_loop()
    await _apply(kaito.client, wanted)
    timings.mark("applied", loop.time())
    console.print(f"Applied [bold]{options.manifest}[/bold]; you could follow along with [bold]KUBECONFIG[/bold] set:")
    console.print(f"  export KUBECONFIG={kubeconfig}\n", highlight=False, soft_wrap=True)

    ready = asyncio.ensure_future(_until_ready(kaito, key, options, console, timings))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((ready, stopping), timeout=options.timeout, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            console.print("\nStopping.")
            return 130
        if not ready.done():
            console.print(f"[red]Not ready after {options.timeout:.0f} s.[/red]")
            return 1
        ready.result()
    finally:
        for task in (ready, stopping):
            task.cancel()
        await asyncio.gather(ready, stopping, return_exceptions=True)

    address = kaito.dev.proxy.address(key.namespace, key.name, 80)
    if address is None:
        console.print("[red]No address could be opened for the Service.[/red]")
        return 1
    service = await kaito.client.get(Service, key.name, key.namespace)
    url = f"http://{address[0]}{'' if address[1] == 80 else f':{address[1]}'}/chat"
    try:
        answer = await ask(url, options.prompt)
    except ChatError as error:
        console.print(f"[red]The model is served, but did not answer: {error}[/red]")
        return 1
    timings.mark("answered", loop.time())
    _show_answer(console, options, url, service, address, answer.text, answer.random)
    _show_timings(console, timings)
    if not options.stay:
        console.print(
            "\nRun it in a terminal, without DEMO_EXIT or --exit, for a cluster that stays up to try things on."
        )
        return 0
    _show_next(console, kubeconfig, options, key, address)
    console.print("\nThe cluster stays up until Ctrl-C.")
    await stop.wait()
    console.print("\nStopping: the pods, the controllers, the cluster.")
    return 0


async def _apply(client: Client, wanted: dict[str, Any]) -> None:
    """Create the workspace as ``kubectl apply`` would, so that a later one by hand finds nothing to complain about."""
    body = json.loads(json.dumps(wanted))
    metadata = body.setdefault("metadata", {})
    namespace = metadata.setdefault("namespace", "default")
    applied = json.dumps({**body, "metadata": {"annotations": {}, **metadata}}, separators=(",", ":")) + "\n"
    metadata["annotations"] = {**metadata.get("annotations", {}), _LAST_APPLIED: applied}
    with contextlib.suppress(AlreadyExists):
        await client.request("POST", collection_path(Workspace, namespace), body=body)


async def _until_ready(
    kaito: LocalKaito, key: ObjectKey, options: DemoOptions, console: Console, timings: Timings
) -> None:
    loop = asyncio.get_running_loop()
    killed: set[str] = set()
    with Progress(console, f"workspace/{key.name}") as progress:
        while True:
            try:
                ws = await _look(kaito.client, NODE_REQUESTS[options.node_api], key, timings, loop.time())
            except NotFound:
                await asyncio.sleep(0.1)
                continue
            note = f"the controllers were killed and started again {kaito.restarts} times" if kaito.restarts else ""
            progress.show(ws.status.stages, kaito.clock.now(), *([note] if note else []))
            if is_true(ws.status.conditions, "WorkspaceReady"):
                return
            current = current_stage(ws.status.stages)
            if options.kill_controllers and current is not None and current.name not in killed:
                killed.add(current.name)
                await kaito.kill_controllers()
            await asyncio.sleep(0.05)


async def _look(client: Client, kind: type[NodeRequest], key: ObjectKey, timings: Timings, at: float) -> Workspace:
    ws = await client.get(Workspace, key.name, key.namespace)
    claims = await client.list(kind, labels={WORKSPACE_LABEL: key.name, WORKSPACE_NAMESPACE_LABEL: key.namespace})
    pods = await client.list(Pod, key.namespace, labels={WORKSPACE_LABEL: key.name})
    try:
        deployment = await client.get(Deployment, key.name, key.namespace)
    except NotFound:
        deployment = None
    for mark, seen in (
        ("claim", bool(claims)),
        ("node", any(each.status.node_name for each in claims)),
        ("deployment", deployment is not None),
        ("pod", any(find_condition(pod.status.conditions, "PodScheduled") for pod in pods)),
        ("serving", bool(pods) and all(is_true(pod.status.conditions, "Ready") for pod in pods)),
        ("ready", is_true(ws.status.conditions, "WorkspaceReady")),
    ):
        if seen:
            timings.mark(mark, at)
    return ws


def _show_answer(
    console: Console,
    options: DemoOptions,
    url: str,
    service: Service,
    address: tuple[str, int],
    text: str,
    random: bool,
) -> None:
    if address != (service.spec.cluster_ip, 80):
        console.print(
            f"\n[yellow]Port 80 of {service.spec.cluster_ip} may not be opened here (on Linux: not without privilege); "
            f"{address[0]}:{address[1]} answers instead.[/yellow]"
        )
    console.print(f"\nPOST {url} " + json.dumps({"prompt": options.prompt}), highlight=False, soft_wrap=True)
    console.print(Panel(text, title="Result", title_align="left"), highlight=False, markup=False)
    if random:
        console.print(
            "[yellow]The model's weights are random numbers, so the answer is noise: the server, the architecture "
            "(Phi3ForCausalLM) and the way here are real; the weights of Phi-3 are not on this machine.[/yellow]"
        )


def _show_timings(console: Console, timings: Timings) -> None:
    total = timings.marks["answered"] - timings.marks["applied"]
    boot = timings.between("claim", "node")
    load = timings.between("pod", "serving")
    answer = timings.between("ready", "answered")
    own = max(0.0, total - boot - load - answer)
    console.print(
        f"\n{timings.marks['answered'] - timings.began:.1f} s in all, {total:.1f} s from apply to answer: "
        f"simulated boot {boot:.1f} s, starting the server and loading the model {load:.1f} s, "
        f"the answer {answer:.1f} s, [bold]the controllers {own:.2f} s[/bold].",
        highlight=False,
    )


def _show_next(
    console: Console, kubeconfig: Path, options: DemoOptions, key: ObjectKey, address: tuple[str, int]
) -> None:
    where = f"{address[0]}" if address[1] == 80 else f"{address[0]}:{address[1]}"
    lines = [
        f"export KUBECONFIG={kubeconfig}",
        f"kubectl get workspace {key.name}",
        f"kubectl get {NODE_REQUESTS[options.node_api].plural},nodes,deployments,pods,services",
        f"kubectl describe workspace {key.name}",
        f"kubectl logs deployment/{key.name}",
        f"curl -X POST http://{where}/chat -H 'Content-Type: application/json' -d '{{\"prompt\": \"Hello\"}}'",
        f"kubectl delete -f {options.manifest}",
    ]
    console.print("\nTry next, in another terminal:")
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
