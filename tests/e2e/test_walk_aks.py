"""The first quick start on AKS, with an Azure that is local: the real SDK, agent pools, and their machines as nodes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod
from kaito_api.karpenter import NODE_REQUESTS
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.ask import ask
from kaito_ctrl.cli.daemon import NodeApi
from kaito_ctrl.cli.laptop import local_aks
from kaito_ctrl.cli.local import LocalKaito, local_options
from tests.e2e.conftest import Kubectl, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FILE = "examples/inference/kaito_workspace_phi_3.yaml"
NAME = "workspace-phi-3-mini"
KAITO = str(Path(sys.executable).parent / "kaito-ctrl")


@pytest.mark.parametrize("node_api", ["machine", "nodeclaim"])
async def test_the_walk_as_users_type_it(node_api: NodeApi, tmp_path: Path) -> None:
    starting = LocalKaito.start(
        root=tmp_path / "pods",
        boot=0.5,
        rng=random.Random(7),
        options=local_options(node_api=node_api),
        provider=local_aks,
        plain_node="system",
    )
    async with starting as kaito:
        kubectl = Kubectl(tmp_path / "kubeconfig")
        await kaito.dev.write_kubeconfig(kubectl.kubeconfig)
        applied = await kubectl("apply", "-f", FILE)
        assert applied.status == 0, applied.err
        waited = await kubectl("wait", "--for=condition=WorkspaceReady", f"workspace/{NAME}", "--timeout=55s")
        assert waited.status == 0, waited.err + (await kubectl("get", f"{node_api}s", "-o", "yaml")).out
        host, port = kaito.dev.proxy.address("default", NAME, 80) or ("", 0)
        assert (await ask(f"http://{host}:{port}/chat", "What is Kubernetes?")).text

        (claim,) = await kaito.client.list(NODE_REQUESTS[node_api])
        (pool,) = await kaito.provider.list()
        assert pool.name == claim.name
        assert claim.status.node_name.startswith(f"aks-{claim.name}-")
        shown = await kubectl("get", f"{node_api}s")
        assert shown.out.splitlines()[1].split()[:2] == [claim.name, "Standard_NC6s_v3"]

        deleted = await kubectl("delete", "workspace", NAME)
        assert deleted.status == 0, deleted.err

        async def nothing() -> bool:
            left = [str(each) for kind in (Workspace, NODE_REQUESTS[node_api], Deployment, Pod, Node)
                    for each in await kaito.client.list(kind)]  # fmt: skip
            return left == ["Node system"] and not await kaito.provider.list()

        await until(nothing)


async def test_it_is_one_command(tmp_path: Path) -> None:
    kubectl = Kubectl(tmp_path / "kubeconfig")
    process = await asyncio.create_subprocess_exec(
        *(KAITO, "dev", "--cloud", "aks", "--node-api", "nodeclaim", "--boot", "0.5"),
        *("--kubeconfig", str(kubectl.kubeconfig)),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=DEVNULL,
        stderr=PIPE,
    )
    talking = asyncio.create_task(process.communicate())
    try:

        async def up() -> bool:
            assert process.returncode is None, await talking
            return kubectl.kubeconfig.exists()

        await until(up)
        applied = await kubectl("apply", "-f", "examples/provisioner/nodeclaim.yaml")
        assert applied.status == 0, applied.err
        waited = await kubectl("wait", "--for=condition=Ready", "nodeclaim/gpulinux", "--timeout=40s")
        assert waited.status == 0, waited.err
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            _, said = await talking
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait((talking,))
    assert process.returncode == 0, said.decode()
    assert [each.name for each in tmp_path.iterdir() if each.name != ".kube"] == []  # that is kubectl's
