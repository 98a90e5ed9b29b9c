"""Whoever makes the nodes may be somebody else: the two halves of KAITO know each other by Karpenter's API alone."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod
from kaito_api.karpenter import NODE_REQUESTS, NodeClaim
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.ask import ask
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.laptop import local_aks
from kaito_ctrl.cli.local import LocalKaito
from kaito_ctrl.runtime import Cluster, Manager, ObjectKey
from tests.deployed import running
from tests.e2e.conftest import ROOT, Kubectl, until
from tests.standin import StandIn

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

NodeApi = Literal["machine", "nodeclaim"]
FILE = "examples/inference/kaito_workspace_phi_3.yaml"
NAME = "workspace-phi-3-mini"
GPU_NODE = {
    "apps": "phi-3",
    "node.kubernetes.io/instance-type": "Standard_NC6s_v3",
    "accelerator": "nvidia",
}


@dataclass(frozen=True)
class Parts:
    """An embedded cluster in which nothing of ours runs but what a test starts."""

    kaito: LocalKaito
    kubectl: Kubectl
    stack: AsyncExitStack

    async def run(self, manager: Manager) -> None:
        """Have it run until the test is over."""
        await self.stack.enter_async_context(running(manager))

    def cluster(self, user: str) -> Cluster:
        return Cluster(self.kaito.dev.transport(user=user), rng=random.Random(user))

    async def serve_workspaces(self, node_api: NodeApi) -> None:
        """The workspace controller alone, as ``kaito-ctrl run`` without a provisioner."""
        options = DaemonOptions(node_api=node_api, metrics_port=None, health_port=None, webhook_port=0, drain=2.0)
        await self.run(build_manager(self.cluster("kaito-ctrl"), None, options))

    async def provision(self, node_api: NodeApi) -> None:
        """The provisioner alone, as ``kaito-ctrl run --controllers provisioner``."""
        options = DaemonOptions(workspaces=False, node_api=node_api, metrics_port=None, health_port=None, drain=2.0)
        await self.run(build_manager(self.cluster("kaito-provisioner"), self.kaito.provider, options))

    async def names(self, *kinds: type[Resource]) -> list[str]:
        return [str(each) for kind in kinds for each in await self.kaito.client.list(kind)]


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with LocalKaito.start(root=tmp_path / "pods", boot=0.3, rng=random.Random(7), controllers=False) as kaito:
        await kaito.dev.write_kubeconfig(tmp_path / "kubeconfig")
        async with AsyncExitStack() as stack:
            yield Parts(kaito, Kubectl(tmp_path / "kubeconfig"), stack)


async def served(parts: Parts) -> None:
    """The first quick start from ``kubectl apply`` to an answer."""
    applied = await parts.kubectl("apply", "-f", FILE)
    assert applied.status == 0, applied.err
    waited = await parts.kubectl("wait", "--for=condition=WorkspaceReady", f"workspace/{NAME}", "--timeout=55s")
    assert waited.status == 0, waited.err + (await parts.kubectl("get", "workspace", NAME, "-o", "yaml")).out
    host, port = parts.kaito.dev.proxy.address("default", NAME, 80) or ("", 0)
    assert (await ask(f"http://{host}:{port}/chat", "What is Kubernetes?")).text


async def given_back(parts: Parts, *kinds: type[Resource]) -> None:
    """The quick start's deletion: of *kinds*, and of what serves it, nothing is left."""
    deleted = await parts.kubectl("delete", "workspace", NAME)
    assert deleted.status == 0, deleted.err

    async def nothing() -> bool:
        return not await parts.names(Workspace, Deployment, Pod, *kinds)

    await until(nothing)


@pytest.mark.parametrize("node_api", ["machine", "nodeclaim"])
async def test_a_provisioner_that_is_not_ours_makes_the_nodes_of_a_workspace(parts: Parts, node_api: NodeApi) -> None:
    standin = StandIn(node_api, parts.kaito.dev.kubelet)
    theirs = Manager(parts.cluster("karpenter"), drain=2.0)
    theirs.add(standin)
    await parts.run(theirs)
    await parts.serve_workspaces(node_api)
    await served(parts)
    assert len(standin.launched) == 1
    assert len(await parts.names(Node)) == 1
    assert not await parts.kaito.cloud.list(), "our cloud is not asked"
    await given_back(parts, Node, NODE_REQUESTS[node_api])


@pytest.mark.parametrize("node_api", ["machine", "nodeclaim"])
async def test_what_it_says_of_a_refusal_is_what_the_user_reads(parts: Parts, node_api: NodeApi) -> None:
    standin = StandIn(node_api, parts.kaito.dev.kubelet)
    standin.refusal = "no quota for Standard_NC6s_v3 in eastus"
    theirs = Manager(parts.cluster("karpenter"), drain=2.0)
    theirs.add(standin)
    await parts.run(theirs)
    await parts.serve_workspaces(node_api)
    await parts.kubectl("apply", "-f", FILE)

    async def told() -> bool:
        shown = await parts.kubectl("get", "workspace", NAME, "-o", "wide")
        return standin.refusal in shown.out

    await until(told)
    standin.refusal = ""
    await served(parts)
    assert len(standin.launched) == 1


async def test_nodes_that_the_user_brings_need_no_provisioner(parts: Parts) -> None:
    capacity: dict[str, Any] = {"nvidia.com/gpu": "1"}
    await parts.kaito.dev.kubelet.register("mine", labels=GPU_NODE, capacity=capacity)
    await parts.serve_workspaces("machine")
    await served(parts)
    assert await parts.names(*NODE_REQUESTS.values()) == []
    ready = await parts.kubectl("get", "workspace", NAME, "-o", "jsonpath={.status.workerNodes}")
    assert ready.out == '["mine"]', ready.err
    await given_back(parts)
    assert await parts.names(Node) == ["Node mine"], "what is the user's stays"


# -- our provisioner, and whoever asks it ------------------------------------------------------------------------------


@pytest.fixture
async def azure(tmp_path: Path) -> AsyncIterator[Parts]:
    """The same with an Azure that is local, and its nodes."""
    starting = LocalKaito.start(
        root=tmp_path / "pods", boot=0.5, rng=random.Random(7), controllers=False, provider=local_aks
    )
    async with starting as kaito:
        await kaito.dev.write_kubeconfig(tmp_path / "kubeconfig")
        async with AsyncExitStack() as stack:
            yield Parts(kaito, Kubectl(tmp_path / "kubeconfig"), stack)


@pytest.mark.parametrize(
    ("node_api", "file"),
    [
        ("machine", "kaito_machine.yaml"),
        ("machine", "machine.yaml"),
        ("nodeclaim", "kaito_nodeclaim_gate.yaml"),
        ("nodeclaim", "kaito_nodeclaim.yaml"),
        ("nodeclaim", "nodeclaim.yaml"),
    ],
)
async def test_our_provisioner_serves_claims_as_others_write_them(azure: Parts, node_api: NodeApi, file: str) -> None:
    await azure.provision(node_api)
    path = f"examples/provisioner/{file}"
    wanted = yaml.safe_load((ROOT / path).read_text())
    name = wanted["metadata"]["name"]
    applied = await azure.kubectl("apply", "-f", path)
    assert applied.status == 0, applied.err
    waited = await azure.kubectl("wait", "--for=condition=Ready", f"{node_api}/{name}", "--timeout=50s")
    assert waited.status == 0, waited.err + (await azure.kubectl("get", node_api, name, "-o", "yaml")).out

    claim = await azure.kaito.client.get(NODE_REQUESTS[node_api], name)
    (node,) = await azure.kaito.client.list(Node)
    assert (claim.status.node_name, claim.status.provider_id) == (node.name, node.spec.provider_id)
    assert wanted["metadata"]["labels"].items() <= node.metadata.labels.items()
    assert ("sku", "gpu", "NoSchedule") in [(each.key, each.value, each.effect) for each in node.spec.taints]
    assert node.status.allocatable["nvidia.com/gpu"] != "0"
    (instance,) = await azure.kaito.provider.list()
    assert (instance.name, instance.claim_uid) == (name, claim.uid)

    again = await azure.kubectl("apply", "-f", path)
    assert again.out.strip().endswith(f"{name} unchanged"), again.out + again.err
    deleted = await azure.kubectl("delete", "-f", path)
    assert deleted.status == 0, deleted.err
    assert not await azure.kaito.provider.list()
    assert await azure.names(Node, NODE_REQUESTS[node_api]) == []


async def test_a_claim_of_somebody_else_is_left_alone(azure: Parts) -> None:
    await azure.provision("nodeclaim")
    path = "examples/provisioner/nodeclaim.yaml"
    theirs = yaml.safe_load((ROOT / path).read_text())
    theirs["metadata"] = {"name": "theirs", "labels": {"karpenter.sh/nodepool": "default"}}
    applied = await azure.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(theirs))
    assert applied.status == 0, applied.err
    before = await azure.kaito.client.get(NodeClaim, "theirs")
    # What is asked for later is served: so theirs was passed over, and is not merely late.
    await azure.kubectl("apply", "-f", path)
    waited = await azure.kubectl("wait", "--for=condition=Ready", "nodeclaim/gpulinux", "--timeout=50s")
    assert waited.status == 0, waited.err
    assert await azure.kaito.client.get(NodeClaim, "theirs") == before
    assert [each.name for each in await azure.kaito.provider.list()] == ["gpulinux"]
    await azure.kaito.client.delete(NodeClaim, ObjectKey("", "theirs"))
    assert "NodeClaim theirs" not in await azure.names(NodeClaim)
