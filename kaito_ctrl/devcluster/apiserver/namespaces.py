"""Namespaces that are going away: their contents first, then they."""

from __future__ import annotations

from kaito_ctrl.devcluster.apiserver.server import ApiServer
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Obj
from kaito_ctrl.devcluster.apiserver.workers import StoreWorker, object_path

__all__ = ["NamespaceController"]

_FINALIZER = "kubernetes"


class NamespaceController(StoreWorker[str]):
    """Empties every namespace that is being deleted, and finalizes it once nothing is left in it."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(server, "system:serviceaccount:kube-system:namespace-controller")
        self._namespaces = self._backend.store.bucket("", "namespaces")

    def start(self) -> None:
        for _, name in list(self._namespaces.items):
            self.enqueue(name)

    def changed(self, bucket: Bucket, change: Change) -> None:
        if bucket is self._namespaces:
            if change.type != "DELETED" and change.now.obj["metadata"].get("deletionTimestamp"):
                self.enqueue(change.now.key[1])
        elif change.type == "DELETED" and change.now.key[0]:
            namespace = self._namespaces.items.get(("", change.now.key[0]))
            if namespace is not None and namespace.obj["metadata"].get("deletionTimestamp"):
                self.enqueue(change.now.key[0])

    async def handle(self, key: str) -> None:
        stored = self._namespaces.items.get(("", key))
        if stored is None or not stored.obj["metadata"].get("deletionTimestamp"):
            return
        finalizers = (stored.obj.get("spec") or {}).get("finalizers") or []
        if _FINALIZER not in finalizers:
            return
        left = 0
        for resource in sorted(self._backend.registry.stored(), key=lambda r: r.storage):
            if not resource.namespaced:
                continue
            bucket = self._backend.bucket(resource)
            for place in list(bucket.keys(key)):
                found = bucket.items.get(place)
                if found is not None and not found.obj["metadata"].get("deletionTimestamp"):
                    options = {"propagationPolicy": "Background", "preconditions": {"uid": found.uid}}
                    await self.call("DELETE", object_path(resource, place), options)
            left += len(bucket.keys(key))
        if left:
            return  # the last one to go enqueues the namespace again
        body: Obj = {
            **stored.obj,
            "metadata": {"name": key, "uid": stored.uid},
            "spec": {"finalizers": [name for name in finalizers if name != _FINALIZER]},
        }
        namespaces = self._backend.registry.find("", "v1", "namespaces")
        assert namespaces is not None
        await self.call("PUT", object_path(namespaces, ("", key), "finalize"), body)
