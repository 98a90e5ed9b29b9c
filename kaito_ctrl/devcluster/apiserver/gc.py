"""The garbage collector: objects follow their owners.

An object whose owners are all gone is deleted. Foreground deletion keeps an owner until every dependent that blocks it
is gone; orphaning takes the owner's reference out of its dependents. Owners are known by uid: a namesake is somebody
else. Cluster-scoped objects cannot be owned by namespaced ones; such a reference is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kaito_ctrl.devcluster.apiserver.deleting import FOREGROUND, ORPHAN
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.server import ApiServer
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Key, Obj
from kaito_ctrl.devcluster.apiserver.workers import StoreWorker, object_path

__all__ = ["GarbageCollector"]

Place = tuple[str, str, Key]
"""Group, plural and key: where an object is."""
_MERGE = "application/merge-patch+json"


def _owners(obj: Mapping[str, Any]) -> list[Obj]:
    return list(obj["metadata"].get("ownerReferences") or ())


class GarbageCollector(StoreWorker[Place]):
    """Run one per server::

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(GarbageCollector(server).run())
    """

    def __init__(self, server: ApiServer) -> None:
        super().__init__(server, "system:serviceaccount:kube-system:generic-garbage-collector")
        self._dependents: dict[str, set[Place]] = {}

    def start(self) -> None:
        self._dependents.clear()
        for bucket in self._backend.store.buckets():
            for key, stored in bucket.items.items():
                self._index(stored.obj, (bucket.group, bucket.plural, key))

    def _index(self, obj: Obj, place: Place) -> None:
        for owner in _owners(obj):
            self._dependents.setdefault(owner.get("uid", ""), set()).add(place)
        metadata = obj["metadata"]
        if _owners(obj) or (metadata.get("deletionTimestamp") and metadata.get("finalizers")):
            self.enqueue(place)

    def changed(self, bucket: Bucket, change: Change) -> None:
        place = (bucket.group, bucket.plural, change.now.key)
        before = _owners(change.before.obj) if change.before is not None else []
        after = _owners(change.now.obj) if change.type != "DELETED" else []
        kept = {owner.get("uid") for owner in after}
        for owner in before:
            uid = owner.get("uid", "")
            if uid not in kept:
                self._dependents.get(uid, set()).discard(place)
                if not self._dependents.get(uid):
                    self._dependents.pop(uid, None)
        if change.type != "DELETED":
            self._index(change.now.obj, place)
        else:
            for dependent in sorted(self._dependents.get(change.now.uid, ())):
                self.enqueue(dependent)
        # An owner that waits for this one may go now: it is gone, or blocks no more.
        if before != after or change.type == "DELETED":
            for owner in before:
                found = self._find(owner, change.now.key[0])
                if isinstance(found, tuple):
                    self.enqueue(found[0])

    def _find(self, owner: Obj, namespace: str) -> tuple[Place, Obj] | Literal["absent", "unknown"]:
        """An owner that a dependent in *namespace* names; ``unknown`` when nobody can tell."""
        resource = self._backend.registry.of_kind(owner.get("apiVersion", ""), owner.get("kind", ""))
        if resource is None or (resource.namespaced and not namespace):
            return "unknown"
        key = resource.key(namespace, owner.get("name", ""))
        stored = self._backend.bucket(resource).items.get(key)
        if stored is None or stored.uid != owner.get("uid"):
            return "absent"
        return (*resource.storage, key), stored.obj

    def _resource(self, place: Place) -> Resource | None:
        return self._backend.registry.of_storage(place[0], place[1])

    async def handle(self, place: Place) -> None:
        resource = self._resource(place)
        if resource is None:
            return
        stored = self._backend.bucket(resource).items.get(place[2])
        if stored is None:
            return
        metadata = stored.obj["metadata"]
        finalizers = metadata.get("finalizers") or []
        if metadata.get("deletionTimestamp"):
            if ORPHAN in finalizers:
                await self._orphan(resource, place, stored.obj)
            elif FOREGROUND in finalizers:
                await self._foreground(resource, place, stored.obj)
            return
        await self._follow(resource, place, stored.obj)

    async def _follow(self, resource: Resource, place: Place, obj: Obj) -> None:
        """Delete an object that no owner holds any more; else drop its references to those that are gone."""
        solid, gone, waiting = [], [], []
        for owner in _owners(obj):
            found = self._find(owner, place[2][0])
            if found == "absent":
                gone.append(owner)
            elif isinstance(found, tuple) and _is_waiting(found[1]) and owner.get("blockOwnerDeletion"):
                waiting.append(owner)
            else:
                solid.append(owner)
        metadata = obj["metadata"]
        if solid:
            if gone or waiting:
                await self._patch(resource, place, obj, {"ownerReferences": solid})
            return
        if not gone and not waiting:
            return
        finalizers = metadata.get("finalizers") or []
        policy = "Orphan" if ORPHAN in finalizers else "Background"
        if FOREGROUND in finalizers or (waiting and self._dependents.get(metadata["uid"])):
            policy = "Foreground"
        preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        options = {"propagationPolicy": policy, "preconditions": preconditions}
        await self.call("DELETE", object_path(resource, place[2]), options)

    async def _foreground(self, resource: Resource, place: Place, obj: Obj) -> None:
        uid = obj["metadata"]["uid"]
        blocked = False
        for dependent in sorted(self._dependents.get(uid, ())):
            found = self._resource(dependent)
            stored = self._backend.bucket(found).items.get(dependent[2]) if found is not None else None
            if stored is None:
                continue
            if any(o.get("uid") == uid and o.get("blockOwnerDeletion") for o in _owners(stored.obj)):
                blocked = True
            if not stored.obj["metadata"].get("deletionTimestamp"):
                self.enqueue(dependent)
        if not blocked:
            await self._drop_finalizer(resource, place, obj, FOREGROUND)

    async def _orphan(self, resource: Resource, place: Place, obj: Obj) -> None:
        uid = obj["metadata"]["uid"]
        for dependent in sorted(self._dependents.get(uid, ())):
            found = self._resource(dependent)
            stored = self._backend.bucket(found).items.get(dependent[2]) if found is not None else None
            if found is not None and stored is not None:
                kept = [owner for owner in _owners(stored.obj) if owner.get("uid") != uid]
                await self._patch(found, dependent, stored.obj, {"ownerReferences": kept or None})
        await self._drop_finalizer(resource, place, obj, ORPHAN)

    async def _drop_finalizer(self, resource: Resource, place: Place, obj: Obj, name: str) -> None:
        left = [finalizer for finalizer in obj["metadata"].get("finalizers") or () if finalizer != name]
        await self._patch(resource, place, obj, {"finalizers": left or None})

    async def _patch(self, resource: Resource, place: Place, obj: Obj, metadata: Obj) -> None:
        metadata = {**metadata, "uid": obj["metadata"]["uid"], "resourceVersion": obj["metadata"]["resourceVersion"]}
        await self.call("PATCH", object_path(resource, place[2]), {"metadata": metadata}, _MERGE)


def _is_waiting(owner: Obj) -> bool:
    """Whether an owner only waits for its dependents to go."""
    metadata = owner["metadata"]
    return bool(metadata.get("deletionTimestamp")) and FOREGROUND in (metadata.get("finalizers") or ())
