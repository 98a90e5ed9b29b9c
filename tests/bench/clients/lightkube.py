"""lightkube: ``AsyncClient.watch`` into a dictionary, then a handler. A watch from nothing begins with what there
is."""

from __future__ import annotations

import asyncio
from typing import Any

import lightkube  # type: ignore[import-not-found, unused-ignore]
from lightkube.generic_resource import create_namespaced_resource  # type: ignore[import-not-found, unused-ignore]
from lightkube.resources.core_v1 import Pod  # type: ignore[import-not-found, unused-ignore]

from tests.bench.clients.harness import Bench, main


async def _run(bench: Bench) -> None:
    client = lightkube.AsyncClient(config=lightkube.KubeConfig.from_file(bench.spec.kubeconfig))
    await bench.connected()
    async with asyncio.TaskGroup() as group:
        for each in bench.spec.resources:
            group.create_task(_one(bench, client, *each))


async def _one(bench: Bench, client: Any, group: str, version: str, kind: str, plural: str) -> None:
    held: dict[tuple[str, str], Any] = {}
    model = Pod if kind == "Pod" else create_namespaced_resource(group, version, kind, plural)
    async for _, obj in client.watch(model, namespace="*"):
        held[obj.metadata.namespace, obj.metadata.name] = obj
        await bench.handle(obj.metadata.resourceVersion)


if __name__ == "__main__":
    main(_run)
