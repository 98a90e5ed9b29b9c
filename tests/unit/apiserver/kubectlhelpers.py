"""Stock kubectl as tests run it: every kubectl found, from the oldest we promise to the newest.

``KUBECTL`` names binaries, separated by colons; without it the one on the PATH is used.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_ctrl.devcluster.apiserver import ApiServer, serve
from kaito_ctrl.devcluster.apiserver.gc import GarbageCollector
from kaito_ctrl.devcluster.apiserver.namespaces import NamespaceController

BINARIES = [found for name in os.environ.get("KUBECTL", "kubectl").split(":") if (found := shutil.which(name))]
WITH_KUBECTL = [
    pytest.mark.e2e,
    pytest.mark.skipif(not BINARIES, reason="no kubectl here"),
]

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "nginx:1", "ports": [{"containerPort": 80}]}]},
        },
    },
}


class Kubectl:
    """One kubectl with its own kubeconfig and cache."""

    def __init__(self, binary: str, home: Path, server: ApiServer) -> None:
        self.binary = binary
        self.home = home
        self.server = server
        self.err = ""

    async def __call__(self, *args: str, stdin: Any = None, code: int = 0) -> str:
        text = stdin if isinstance(stdin, str) else yaml.safe_dump(stdin) if stdin is not None else ""
        process = await asyncio.create_subprocess_exec(
            self.binary,
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": str(self.home), "KUBECONFIG": str(self.home / "config")},
        )
        out, err = await asyncio.wait_for(process.communicate(text.encode()), 60)
        self.err = err.decode()
        assert process.returncode == code, f"kubectl {' '.join(args)}: {process.returncode}\n{out.decode()}{self.err}"
        return out.decode()

    @asynccontextmanager
    async def running(self, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """One that goes on until the block ends."""
        env = {**os.environ, "HOME": str(self.home), "KUBECONFIG": str(self.home / "config")}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(self.binary, *args, stdout=pipe, stderr=pipe, env=env)
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()

    async def minor(self) -> int:
        """The y of its version 1.y."""
        found = re.search(r'"minor": "(\d+)', await self("version", "--client", "-o", "json"))
        assert found is not None
        return int(found[1])

    async def json(self, *args: str) -> Any:
        return json.loads(await self(*args, "-o", "json"))


@asynccontextmanager
async def kubectl_against(binary: str, home: Path, *, rbac: bool = False) -> AsyncIterator[Kubectl]:
    """A server of its own, and *binary* as its administrator."""
    server = ApiServer(rng=random.Random(3), rbac=rbac)
    async with asyncio.TaskGroup() as tasks, serve(server, token="t0ken") as endpoint:
        workers = [tasks.create_task(w(server).run()) for w in (GarbageCollector, NamespaceController)]
        (home / "config").write_text(yaml.safe_dump(endpoint.kubeconfig()))
        yield Kubectl(binary, home, server)
        await server.aclose()
        for worker in workers:
            worker.cancel()
