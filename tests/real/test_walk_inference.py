"""The first quick start on a real kube-apiserver and kube-controller-manager, with a stock kubectl."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod, Service
from kaito_api.karpenter import Machine
from kaito_api.workspace import Workspace
from kaito_ctrl.testing.controlplane import ControlPlane
from tests.e2e.conftest import Kubectl
from tests.real.joined import SYSTEM_NODE, Joined, kaito_on

pytestmark = pytest.mark.timeout(180)

FILE = "examples/inference/kaito_workspace_phi_3.yaml"
NAME = "workspace-phi-3-mini"
QUESTION = "What is Kubernetes?"


async def left_over(it: Joined) -> list[str]:
    found: list[str] = [f"instance {each.name}" for each in await it.cloud.list()]
    for kind in (Workspace, Machine, Node, Deployment, Pod):
        found += [str(each) for each in await it.client.list(kind) if each.name != SYSTEM_NODE]
    found += [str(each) for each in await it.client.list(Service, "default") if each.name != "kubernetes"]
    return found


async def test_the_walk_as_users_type_it(working: ControlPlane, tmp_path: Path) -> None:
    if shutil.which(os.environ.get("KUBECTL", "kubectl")) is None:
        pytest.fail("kubectl is needed: install kubernetes-client, or name one in KUBECTL")
    kubectl = Kubectl(working.kubeconfig)
    # An old server knows no CEL in a CRD, and drops it: the webhook checks the same.
    installed = await kubectl("apply", "--validate=false", "-f", "manifests/crds")
    assert installed.status == 0, installed.err
    async with kaito_on(working, tmp_path / "pods", boot=1.0) as it:
        applied = await kubectl("apply", "-f", FILE)
        assert applied.out == f"workspace.kaito.sh/{NAME} created\n", applied.err

        waited = await kubectl("wait", "--for=condition=WorkspaceReady", f"workspace/{NAME}", "--timeout=55s")
        shown = await kubectl("get", "workspace,machine,node,deployment,pod,events", "-o", "wide")
        assert waited.out == f"workspace.kaito.sh/{NAME} condition met\n", waited.err + shown.out

        shown = await kubectl("get", "workspace", NAME)
        heading, line = shown.out.splitlines()
        assert heading.split() == ["NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY", "AGE"]
        assert re.fullmatch(rf"{NAME}\s+Standard_NC6s_v3\s+True\s+True\s+True\s+\d+s", line.strip()), line

        service = (await kubectl("get", "svc", NAME)).out.splitlines()[1].split()
        assert service[:2] == [NAME, "ClusterIP"]
        assert service[3:5] == ["<none>", "80/TCP,29500/TCP"]
        address = (await kubectl("get", "svc", NAME, "-o", "jsonpath={.spec.clusterIPs[0]}")).out
        assert address.startswith("127.96.")

        body = json.dumps({"prompt": QUESTION})
        asked = await kubectl(
            *("run", "-it", "--rm", "--restart=Never", "curl", "--image=curlimages/curl", "--"),
            *("curl", "-sS", "-X", "POST", f"http://{address}/chat"),
            *("-H", "accept: application/json", "-H", "Content-Type: application/json", "-d", body),
            stdin="",
        )
        assert asked.status == 0, asked.err
        answer = re.search(r"\{.*\}", asked.out)
        assert answer is not None, asked
        assert json.loads(answer[0])["Result"].startswith(QUESTION)

        logs = await kubectl("logs", f"deployment/{NAME}")
        assert "THE WEIGHTS ARE RANDOM" in logs.out, logs.out + logs.err
        described = await kubectl("describe", "workspace", NAME)
        assert "workspace is ready" in described.out, described.err

        again = await kubectl("apply", "-f", FILE)
        assert again.out == f"workspace.kaito.sh/{NAME} unchanged\n", again.err

        deleted = await kubectl("delete", "workspace", NAME)
        assert f'workspace.kaito.sh "{NAME}" deleted' in deleted.out, deleted.err
        async with asyncio.timeout(60):
            while await left_over(it):
                await asyncio.sleep(0.2)
