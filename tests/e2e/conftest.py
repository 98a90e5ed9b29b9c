"""A whole KAITO in this process, and a stock kubectl beside it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kaito_ctrl.cli.local import LocalKaito
from kaito_ctrl.devcluster.images import LocalImage

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Output:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Kubectl:
    """The kubectl on the PATH, against one cluster."""

    kubeconfig: Path

    async def __call__(self, *args: str, stdin: str | None = None) -> Output:
        process = await asyncio.create_subprocess_exec(
            os.environ.get("KUBECTL", "kubectl"),
            *args,
            cwd=ROOT,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.kubeconfig.parent)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin.encode() if stdin is not None else None)
        return Output(process.returncode or 0, out.decode(), err.decode())


@dataclass(frozen=True)
class Local:
    """The running system, and its kubectl."""

    kaito: LocalKaito
    kubectl: Kubectl


@asynccontextmanager
async def local(folder: Path, *, boot: float, images: Mapping[str, LocalImage]) -> AsyncIterator[Local]:
    async with LocalKaito.start(root=folder / "pods", boot=boot, rng=random.Random(7), images=images) as kaito:
        kubeconfig = folder / "kubeconfig"
        await kaito.dev.write_kubeconfig(kubeconfig)
        yield Local(kaito, Kubectl(kubeconfig))


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., object]:
    """Starts a system: ``async with start(boot=0.2) as it``; *images* are known to it besides KAITO's own."""
    if shutil.which(os.environ.get("KUBECTL", "kubectl")) is None:
        pytest.fail("kubectl is needed: install kubernetes-client, or name one in KUBECTL")
    return lambda boot=0.2, images=None: local(tmp_path, boot=boot, images=images or {})


async def until(check: Callable[[], object], *, seconds: float = 60) -> None:
    """Until the coroutine function *check* returns something true."""
    async with asyncio.timeout(seconds):
        while not await check():  # type: ignore[misc]
            await asyncio.sleep(0.02)
