"""``python -m kaito_provisioner.testing`` and ``kaito-ctrl run --provisioner aks``, as on a laptop."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kaito_api.core import Node
from kaito_api.crd import all_crds
from kaito_api.karpenter import NodeClaim
from kaito_api.meta import is_true
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.testing.controlplane import ControlPlane
from kaito_ctrl.testing.envtest import envtest
from tests.e2e.conftest import until

pytestmark = pytest.mark.timeout(120)

KAITO = str(Path(sys.executable).parent / "kaito-ctrl")
CLAIM = {
    "metadata": {"name": "wsone", "labels": {"kaito.sh/workspace": "phi"}},
    "spec": {
        "nodeClassRef": {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"},
        "requirements": [
            {
                "key": "node.kubernetes.io/instance-type",
                "operator": "In",
                "values": ["Standard_NC6s_v3", "Standard_NC24ads_A100_v4"],
            }
        ],
        "resources": {"requests": {"storage": "100Gi"}},
    },
}


@asynccontextmanager
async def program(*command: str, env: Mapping[str, str] | None = None) -> AsyncIterator[str]:
    """A program as a process; the first line that it says."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})},
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode()
    finally:
        if process.returncode is None:
            process.terminate()
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()


async def test_a_claim_gets_a_node_of_the_type_that_there_is(plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "azure"
    azure = (
        *(sys.executable, "-m", "kaito_provisioner.testing"),
        *("--kubeconfig", str(plane.kubeconfig), "--boot", "0.3", "--env-file", str(file)),
        *("--capacity", "Standard_NC6s_v3=0"),
    )
    daemon = (
        KAITO,
        *("run", "--provisioner", "aks", "--controllers", "provisioner", "--node-api", "nodeclaim"),
        *("--kubeconfig", str(plane.kubeconfig), "--metrics-port", "-1", "--health-port", "-1"),
    )
    async with envtest(plane, crds=all_crds()) as api, program(*azure):
        environment = dict(line.split("=", 1) for line in file.read_text().splitlines())
        async with program(*daemon, env=environment):
            await api.client.create(NodeClaim.model_validate(CLAIM))

            async def initialized() -> bool:
                claim = await api.client.get(NodeClaim, "wsone")
                return is_true(claim.status.conditions, "Initialized")

            await until(initialized)
            (node,) = await api.client.list(Node, labels={"agentpool": "wsone"})
            assert node.metadata.labels["node.kubernetes.io/instance-type"] == "Standard_NC24ads_A100_v4"
            assert node.metadata.labels["kaito.sh/workspace"] == "phi"
            await api.client.delete(NodeClaim, ObjectKey("", "wsone"))

            async def gone() -> bool:
                left = [*await api.client.list(NodeClaim), *await api.client.list(Node, labels={"agentpool": "wsone"})]
                return not left

            await until(gone)
