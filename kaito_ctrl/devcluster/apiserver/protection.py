"""Claims and volumes in use outlive their deletion: a finalizer holds them until nobody uses them any more.

The finalizers come with the objects, as the admission plug-in StorageObjectInUseProtection has it. Runs inside the
commit, like everything else that a cluster's own controllers would do a moment later.
"""

from __future__ import annotations

from collections.abc import Callable

from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Key, Obj, Store

__all__ = ["CLAIM_PROTECTION", "VOLUME_PROTECTION", "protect", "protect_storage"]

CLAIM_PROTECTION = "kubernetes.io/pvc-protection"
VOLUME_PROTECTION = "kubernetes.io/pv-protection"


def protect(obj: Obj, finalizer: str) -> None:
    """Put *finalizer* on a new object."""
    metadata = obj["metadata"]
    if finalizer not in (metadata.get("finalizers") or ()):
        metadata["finalizers"] = [*(metadata.get("finalizers") or ()), finalizer]


def protect_storage(store: Store) -> None:
    """From now on release claims and volumes that are to go, once nobody uses them."""
    pods, claims = store.bucket("", "pods"), store.bucket("", "persistentvolumeclaims")
    volumes = store.bucket("", "persistentvolumes")

    def claim_used(key: Key) -> bool:
        return any(key[1] in _claims(pods.items[pod].obj) for pod in pods.keys(key[0]))

    def volume_used(key: Key) -> bool:
        return bool((volumes.items[key].obj.get("status") or {}).get("phase") == "Bound")

    def changed(bucket: Bucket, change: Change) -> None:
        key = change.now.key
        if bucket is claims and change.type != "DELETED":
            _release(store, claims, key, CLAIM_PROTECTION, claim_used)
        elif bucket is volumes and change.type != "DELETED":
            _release(store, volumes, key, VOLUME_PROTECTION, volume_used)
        elif bucket is pods and change.before is not None:
            for name in _claims(change.before.obj):
                if (key[0], name) in claims.items:
                    _release(store, claims, (key[0], name), CLAIM_PROTECTION, claim_used)

    store.listen(changed)


def _claims(pod: Obj) -> set[str]:
    """The claims that *pod* uses; one that is not placed, or has ended, uses none."""
    spec = pod["spec"]
    if not spec.get("nodeName") or (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
        return set()
    claims = (volume.get("persistentVolumeClaim") for volume in spec.get("volumes") or ())
    return {claim["claimName"] for claim in claims if claim is not None}


def _release(store: Store, bucket: Bucket, key: Key, finalizer: str, used: Callable[[Key], bool]) -> None:
    obj = bucket.items[key].obj
    metadata: Obj = obj["metadata"]
    if not metadata.get("deletionTimestamp") or finalizer not in (metadata.get("finalizers") or ()) or used(key):
        return
    left = [name for name in metadata["finalizers"] if name != finalizer]
    freed = {**obj, "metadata": {**metadata, "finalizers": left}}
    if left:
        store.put(bucket, key, freed)
    else:
        del freed["metadata"]["finalizers"]
        store.remove(bucket, key, freed)
