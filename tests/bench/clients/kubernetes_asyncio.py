"""kubernetes-asyncio with its generated models: into a dictionary, then a handler.

Variants: ``watch`` (``watch.Watch().stream``, as its examples have it: a watch from nothing begins with what there
is) and ``list`` (pages of 500, then a watch from there).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from kubernetes_asyncio import client, config, watch

from tests.bench.clients.harness import Bench, main


async def _run(bench: Bench) -> None:
    configuration = client.Configuration()
    await config.load_kube_config(bench.spec.kubeconfig, client_configuration=configuration, persist_config=False)
    async with client.ApiClient(configuration) as api, asyncio.TaskGroup() as group:
        await bench.connected()
        for each in bench.spec.resources:
            group.create_task(_one(bench, api, *each))


async def _one(bench: Bench, api: Any, group: str, version: str, kind: str, plural: str) -> None:
    held: dict[tuple[str, str], Any] = {}
    if kind != "Pod":
        custom = client.CustomObjectsApi(api)
        function = partial(custom.list_cluster_custom_object, group, version, plural)
        # Named for the watch, which looks into its documentation for the type that it returns.
        function.__doc__ = custom.list_cluster_custom_object.__doc__
        async with watch.Watch().stream(function) as stream:
            async for event in stream:
                metadata = event["object"]["metadata"]
                held[metadata["namespace"], metadata["name"]] = event["object"]
                await bench.handle(metadata["resourceVersion"])
        return
    core = client.CoreV1Api(api)
    options: dict[str, Any] = {}
    if bench.spec.variant == "list":
        token = None
        while token != "":
            page = await core.list_pod_for_all_namespaces(limit=500, **({"_continue": token} if token else {}))
            for pod in page.items:
                held[pod.metadata.namespace, pod.metadata.name] = pod
                await bench.handle(pod.metadata.resource_version)
            token = page.metadata._continue or ""
            options["resource_version"] = page.metadata.resource_version
    async with watch.Watch().stream(core.list_pod_for_all_namespaces, **options) as stream:
        async for event in stream:
            pod = event["object"]
            held[pod.metadata.namespace, pod.metadata.name] = pod
            await bench.handle(pod.metadata.resource_version)


if __name__ == "__main__":
    main(_run)
