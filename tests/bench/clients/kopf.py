"""kopf, embedded as its documentation says: an operator without peering, with one handler.

Variants: ``event`` (``@kopf.on.event``, which is told of every object and change and keeps nothing) and ``index``
(``@kopf.index``, an in-memory index of whole objects).
"""

from __future__ import annotations

from typing import Any

import kopf  # type: ignore[import-not-found, unused-ignore]

from tests.bench.clients.harness import Bench, main


async def _run(bench: Bench) -> None:
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False

    @kopf.on.login(registry=registry)  # type: ignore[untyped-decorator, unused-ignore]
    async def login(**options: Any) -> Any:
        await bench.connected()
        return kopf.login_with_kubeconfig(**options)

    async def handle(meta: Any, **_: Any) -> None:
        await bench.handle(meta["resourceVersion"])

    async def index(namespace: str, name: str, body: Any, meta: Any, **_: Any) -> Any:
        await bench.handle(meta["resourceVersion"])
        return {(namespace, name): body}

    for group, version, _, plural in bench.spec.resources:
        if bench.spec.variant == "index":
            kopf.index(group, version, plural, registry=registry, id=plural)(index)
        else:
            kopf.on.event(group, version, plural, registry=registry, id=plural)(handle)
    await kopf.operator(registry=registry, settings=settings, standalone=True, clusterwide=True)


if __name__ == "__main__":
    main(_run)
