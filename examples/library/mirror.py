"""Keeps a copy of every ConfigMap that is labelled ``mirror-to: NAMESPACE`` in that namespace.

Try it::

    kubectl create namespace copies
    kubectl create configmap settings --from-literal=color=blue
    kubectl label configmap settings mirror-to=copies
    kubectl get configmap settings -n copies -o yaml

Owner references cannot cross namespaces, so the copies carry a label that leads back to their original. A copy whose
original does not exist wakes the controller too, also at its start, so none is left behind while it is not running.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl import Cluster, Context, Controller, Manager, ObjectKey, Result
from kaito_ctrl.runtime import Reader, key_of, watches

TARGET = "mirror-to"
ORIGIN = "mirrored-from"


def origin_of(copy: ConfigMap, cache: Reader) -> Iterable[ObjectKey]:
    """The key of the original that *copy* is a copy of."""
    if ORIGIN in copy.metadata.labels:
        yield ObjectKey(copy.metadata.labels[ORIGIN], copy.name)


class MirrorController(Controller[ConfigMap]):
    """Brings the copy of one ConfigMap where it should be."""

    name = "mirror"
    kind = ConfigMap
    sources = (watches(ConfigMap, origin_of),)

    async def reconcile(self, original: ConfigMap, ctx: Context) -> Result:
        target = original.metadata.labels.get(TARGET)
        copies = ctx.cache.list(ConfigMap, labels={ORIGIN: original.namespace or ""})
        for stray in copies:
            if stray.name == original.name and stray.namespace != target:
                await ctx.client.delete(ConfigMap, key_of(stray), uid=stray.uid)
        if target is None or target == original.namespace:
            return Result.done()
        present = ctx.cache.get(ConfigMap, original.name, target)
        if present is None or present.data != original.data:
            await ctx.client.apply(
                ConfigMap(
                    metadata=ObjectMeta(
                        name=original.name, namespace=target, labels={ORIGIN: original.namespace or ""}
                    ),
                    data=original.data,
                )
            )
        return Result.done()

    async def gone(self, key: ObjectKey, ctx: Context) -> None:
        """The original is gone: so are its copies."""
        for copy in ctx.cache.list(ConfigMap, labels={ORIGIN: key.namespace}):
            if copy.name == key.name:
                await ctx.client.delete(ConfigMap, key_of(copy), uid=copy.uid)


async def main(kubeconfig: str | None = None) -> None:
    async with Cluster.connect(kubeconfig=kubeconfig) as cluster:
        manager = Manager(cluster)
        manager.add(MirrorController())
        await manager.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
