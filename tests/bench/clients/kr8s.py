"""kr8s: ``api.watch`` into a dictionary, then a handler. A watch from nothing begins with what there is."""

from __future__ import annotations

import asyncio
from typing import Any

import kr8s.asyncio  # type: ignore[import-not-found, unused-ignore]
from kr8s.asyncio.objects import Pod, new_class  # type: ignore[import-not-found, unused-ignore]

from tests.bench.clients.harness import Bench, main


async def _run(bench: Bench) -> None:
    api = await kr8s.asyncio.api(kubeconfig=bench.spec.kubeconfig)
    await bench.connected()
    async with asyncio.TaskGroup() as group:
        for each in bench.spec.resources:
            group.create_task(_one(bench, api, *each))


async def _one(bench: Bench, api: Any, group: str, version: str, kind: str, plural: str) -> None:
    held: dict[tuple[str, str], Any] = {}
    model = Pod if kind == "Pod" else new_class(kind, f"{group}/{version}", plural=plural)
    async for _, obj in api.watch(model, namespace=kr8s.ALL):
        held[obj.namespace, obj.name] = obj
        await bench.handle(obj.metadata.resourceVersion)


if __name__ == "__main__":
    main(_run)
