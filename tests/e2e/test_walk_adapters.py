"""The second quick start: a model with an adapter, whose strength changes while it is served; adapters that fail."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Pod
from kaito_api.karpenter import Machine
from kaito_api.meta import is_true
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.ask import ask
from kaito_ctrl.devcluster.images import LocalImage
from kaito_ctrl.reconcilers.names import REVISION_ANNOTATION
from tests.e2e.conftest import ROOT, Local, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FILE = "examples/inference/kaito_workspace_phi_3_with_adapters.yaml"
NAME = "workspace-phi-3-mini-adapter"
PLACEHOLDER = "ACR_REPO_HERE.azurecr.io/ADAPTER_HERE:0.0.1"
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an adapter's image has in ``/data``: made by peft for the model that the walk serves."""
    folder = tmp_path_factory.mktemp("adapter")
    command = [sys.executable, str(ROOT / "tests/unit/presets/lora.py"), str(folder), "phi-3-mini-128k-instruct"]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return folder


def manifest(image: str) -> str:
    text = (ROOT / FILE).read_text()
    assert PLACEHOLDER in text
    return text.replace(PLACEHOLDER, image)


def url(it: Local) -> str:
    """Where the workspace's Service answers."""
    address = it.kaito.dev.proxy.address("default", NAME, 80)
    assert address is not None
    return f"http://{address[0]}:{address[1]}"


async def served_with(it: Local) -> list[dict[str, Any]]:
    """The adapters that the server itself says are active; none while nothing answers."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(f"{url(it)}/v1/models") as response,
        ):
            if response.status != 200:
                return []
            adapters: list[dict[str, Any]] = (await response.json())["data"][0]["adapters"]
            return adapters
    except (aiohttp.ClientError, TimeoutError):
        return []


async def why(it: Local) -> str:
    """What ``kaito-ctrl why`` says."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "kaito-ctrl"),
        "why",
        NAME,
        env={**os.environ, "KUBECONFIG": str(it.kubectl.kubeconfig), "COLUMNS": "400"},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    return out.decode()


async def fails_at(it: Local, stage: str, *words: str) -> bool:
    ws = await it.kaito.client.get(Workspace, NAME, "default")
    failed = next((each for each in ws.status.stages if each.state == "Failed"), None)
    return failed is not None and failed.name == stage and all(word in (failed.message or "") for word in words)


async def test_the_walk_as_users_type_it_and_a_change_of_strength(start: Start, adapter: Path) -> None:
    images = {"registry.example/phi-3-lora": LocalImage(paths={"/data": adapter})}
    async with start(images=images) as it:
        applied = await it.kubectl("apply", "-f", "-", stdin=manifest("registry.example/phi-3-lora:0.0.1"))
        assert applied.out == f"workspace.kaito.sh/{NAME} created\n", applied.err

        async def ready_with(strength: float) -> bool:
            ws = await it.kaito.client.get(Workspace, NAME, "default")
            active = [{"name": "phi-3-adapter", "strength": strength}]
            return is_true(ws.status.conditions, "WorkspaceReady") and await served_with(it) == active

        await until(lambda: ready_with(1.0), seconds=120)
        answer = await ask(f"{url(it)}/chat", "What is Kubernetes?")
        assert answer.text.startswith("What is Kubernetes?")
        logs = await it.kubectl("logs", f"deployment/{NAME}", "-c", NAME)
        assert '"adapters": {"phi-3-adapter": 1.0}' in logs.out, logs.out + logs.err

        [before] = await it.kaito.client.list(Pod, "default")
        patch = '[{"op": "replace", "path": "/inference/adapters/0/strength", "value": "0.25"}]'
        patched = await it.kubectl("patch", "workspace", NAME, "--type=json", "-p", patch)
        assert patched.status == 0, patched.err
        await until(lambda: ready_with(0.25), seconds=120)
        answer = await ask(f"{url(it)}/chat", "What is Kubernetes?")
        assert answer.text.startswith("What is Kubernetes?")

        async def rolled() -> bool:
            pods = await it.kaito.client.list(Pod, "default")
            return len(pods) == 1 and pods[0].metadata.uid != before.metadata.uid

        await until(rolled)
        deployment = await it.kaito.client.get(Deployment, NAME, "default")
        assert deployment.metadata.annotations[REVISION_ANNOTATION] == "2"
        assert len(await it.kaito.client.list(Machine)) == 1, "the same node serves it"


async def test_an_image_that_does_not_exist_is_named_in_the_status(start: Start) -> None:
    async with start() as it:
        await it.kubectl("apply", "-f", "-", stdin=manifest("registry.example/no-such-adapter:7"))
        await until(lambda: fails_at(it, "ArtifactsReady", "registry.example/no-such-adapter:7", "phi-3-adapter"))
        said = await why(it)
        assert "Stage  ArtifactsReady" in said
        assert 'failed to pull image "registry.example/no-such-adapter:7"' in said
        assert "container phi-3-adapter" in said


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_off(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


BROKEN = [
    (shutil.rmtree, "ArtifactsReady", "container phi-3-adapter: it ended"),
    (without_weights, "EngineStarted", "adapter phi-3-adapter: "),
    (cut_off, "EngineStarted", "adapter phi-3-adapter: adapter_model.safetensors cannot be read"),
]


@pytest.mark.parametrize(("damage", "stage", "cause"), BROKEN, ids=["no data", "no weights", "cut off"])
async def test_an_adapter_with_broken_files_is_named_in_the_status(
    start: Start, adapter: Path, tmp_path: Path, damage: Callable[[Path], None], stage: str, cause: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    damage(broken)
    images = {"registry.example/broken": LocalImage(paths={"/data": broken})}
    async with start(images=images) as it:
        await it.kubectl("apply", "-f", "-", stdin=manifest("registry.example/broken:1"))
        await until(lambda: fails_at(it, stage, cause), seconds=90)
        said = await why(it)
        assert f"Stage  {stage}" in said
        assert cause in said
        assert "kubectl logs" in said


async def test_the_example_with_its_placeholders_is_refused_with_the_fix(start: Start) -> None:
    async with start() as it:
        refused = await it.kubectl("apply", "-f", FILE)
        assert refused.status == 1
        assert "inference.adapters[0].source.image" in refused.err
        assert "ADAPTER_HERE" in refused.err
        assert "lower-case" in refused.err or "lower case" in refused.err, refused.err
        assert await it.kaito.client.list(Workspace, "default") == []
        assert await it.kaito.client.list(Machine) == []
