"""A container of a manifest as a process of this machine, with the arguments and probes that it has there."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from tests.deployed import NAMESPACE, World, free_port, token
from tests.e2e.conftest import until

__all__ = ["PodProcess", "environment", "pod_process"]

KAITO = Path(sys.executable).parent / "kaito-ctrl"


@dataclass(frozen=True)
class PodProcess:
    """The running process. ``ports`` are those of the container, by name, where they are on this machine."""

    container: Mapping[str, Any]
    ports: Mapping[str, int]
    session: aiohttp.ClientSession
    _process: Process
    _ending: asyncio.Task[tuple[bytes, bytes]]

    async def get(self, port: str, path: str) -> str | None:
        """What it answers there; ``None`` if it does not, or not with 200."""
        try:
            async with self.session.get(f"http://127.0.0.1:{self.ports[port]}{path}") as response:
                return await response.text() if response.status == 200 else None
        except aiohttp.ClientError:
            assert self._process.returncode is None, await self._ending
            return None

    async def passes_its_probes(self) -> None:
        """Until each of them has been answered, in the kubelet's order."""

        async def passes(probe: Mapping[str, Any]) -> bool:
            return await self.get(probe["port"], probe["path"]) is not None

        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            await until(partial(passes, self.container[name]["httpGet"]))

    async def ends(self, within: float) -> list[dict[str, Any]]:
        """Asked to stop, it ends in good order in *within* seconds; its log."""
        self._process.terminate()
        async with asyncio.timeout(within):
            _, log = await self._ending
        assert self._process.returncode == 0, log.decode()
        assert "forbidden" not in log.decode().lower()
        return [json.loads(line) for line in log.decode().splitlines()]


@asynccontextmanager
async def pod_process(container: Mapping[str, Any], env: Mapping[str, str]) -> AsyncIterator[PodProcess]:
    """Runs inside the block. The container's own ports may be somebody else's on this machine: they are moved."""
    ports = {each["name"]: free_port() for each in container["ports"]}
    moved = [f"--{name}-port={port}" for name, port in ports.items()]
    process = await asyncio.create_subprocess_exec(KAITO, *container["args"], *moved, env=env, stdout=PIPE, stderr=PIPE)
    ending = asyncio.create_task(process.communicate())
    try:
        async with aiohttp.ClientSession() as session:
            yield PodProcess(container, ports, session, process, ending)
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait((ending,))


async def environment(world: World, account: str, variables: list[Mapping[str, Any]]) -> dict[str, str]:
    """What the kubelet would set of *variables*, which are fields of the pod, and what stands for its credentials."""
    kubeconfig = world.folder / "account.kubeconfig"
    kubeconfig.write_text(json.dumps(world.kubeconfig_of(await token(world.admin, account))))
    fields = {"metadata.namespace": NAMESPACE}
    told = {each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]] for each in variables}
    return {"PATH": os.environ["PATH"], "HOME": str(world.folder), "KUBECONFIG": str(kubeconfig), **told}
