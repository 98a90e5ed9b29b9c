"""Keeps the registry in step with the CustomResourceDefinitions in the store.

Runs inside the commit: once the answer to a create is on its way, the new kind is served.
"""

from __future__ import annotations

from collections.abc import Mapping

from kaito_ctrl.devcluster.apiserver.backend import Backend
from kaito_ctrl.devcluster.apiserver.conversion import Conversion
from kaito_ctrl.devcluster.apiserver.crd import CLEANUP, CustomVersion, build_resources, compile_versions
from kaito_ctrl.devcluster.apiserver.decode import copy_json
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Obj, Stored, encode

__all__ = ["CrdServing"]

_CRDS = ("apiextensions.k8s.io", "customresourcedefinitions")


class CrdServing:
    """Serves definitions, and takes them and their objects away again."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._leaving: set[tuple[str, str]] = set()

    def start(self) -> None:
        self._backend.store.listen(self._changed)

    def _changed(self, bucket: Bucket, change: Change) -> None:
        if (bucket.group, bucket.plural) == _CRDS:
            self._definition(change)
        elif change.type == "DELETED" and (bucket.group, bucket.plural) in self._leaving:
            self._finish(bucket)

    def _definition(self, change: Change) -> None:
        spec, status = change.now.obj["spec"], change.now.obj.get("status") or {}
        group, plural = spec["group"], spec["names"]["plural"]
        registry = self._backend.registry
        established = any(c["type"] == "Established" and c["status"] == "True" for c in status.get("conditions") or ())
        if change.type == "DELETED":
            self._leaving.discard((group, plural))
            registry.remove(group, plural)
            self._backend.store.bucket(group, plural).wake()
            return
        if change.now.obj["metadata"].get("deletionTimestamp"):
            if (group, plural) not in self._leaving and CLEANUP in (change.now.obj["metadata"].get("finalizers") or ()):
                self._leaving.add((group, plural))
                self._remove_instances(self._backend.store.bucket(group, plural))
            return
        before = change.before.obj if change.before is not None else {}
        if established and (before.get("spec") != spec or before.get("status") != status):
            registry.remove(group, plural)
            versions = compile_versions(spec)
            conversion = Conversion(spec, versions, self._backend.webhooks, self._backend.env.uids)
            for resource in build_resources(change.now.obj, versions, conversion):
                registry.add(resource)
            bucket = self._backend.store.bucket(group, plural)
            self._default(bucket, versions)
            bucket.wake()

    def _default(self, bucket: Bucket, versions: Mapping[str, CustomVersion]) -> None:
        """What is stored is shown with the defaults of now, those of the version it is in, and is not written anew."""
        for key, stored in list(bucket.items.items()):
            stored.views.clear()
            obj = copy_json(stored.obj)
            versions[obj["apiVersion"].rpartition("/")[2]].default(obj)
            if obj != stored.obj:
                bucket.items[key] = Stored(key, obj, stored.rv, encode(obj))

    def _remove_instances(self, bucket: Bucket) -> None:
        """Delete every object; those with finalizers only get their deletionTimestamp."""
        store = self._backend.store
        for key in list(bucket.keys()):
            stored = bucket.items.get(key)
            if stored is None:
                continue
            metadata: Obj = stored.obj["metadata"]
            if not metadata.get("finalizers"):
                store.remove(bucket, key)
            elif not metadata.get("deletionTimestamp"):
                marked: Obj = copy_json(stored.obj)
                marked["metadata"]["deletionTimestamp"] = self._backend.now()
                marked["metadata"]["deletionGracePeriodSeconds"] = 0
                marked["metadata"]["generation"] = marked["metadata"].get("generation", 0) + 1
                store.put(bucket, key, marked)
        self._finish(bucket)

    def _finish(self, bucket: Bucket) -> None:
        """Once no object is left the definition loses its finalizer, and goes if that was the last."""
        if bucket.items:
            return
        store = self._backend.store
        definitions = store.bucket(*_CRDS)
        key = ("", f"{bucket.plural}.{bucket.group}")
        stored = definitions.items.get(key)
        if stored is None:
            return
        finalizers = [name for name in stored.obj["metadata"].get("finalizers") or () if name != CLEANUP]
        obj = {**stored.obj, "metadata": {**stored.obj["metadata"], "finalizers": finalizers}}
        if finalizers:
            store.put(definitions, key, obj)
        else:
            del obj["metadata"]["finalizers"]
            store.remove(definitions, key, obj)
