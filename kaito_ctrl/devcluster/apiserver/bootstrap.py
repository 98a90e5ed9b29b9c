"""What a cluster has from its first moment: namespaces, their default service accounts, and the API's own service."""

from __future__ import annotations

from kaito_ctrl.devcluster.apiserver.backend import Backend
from kaito_ctrl.devcluster.apiserver.protection import protect_storage
from kaito_ctrl.devcluster.apiserver.rbac import GROUP
from kaito_ctrl.devcluster.apiserver.rbac_roles import aggregate_roles, bootstrap_objects
from kaito_ctrl.devcluster.apiserver.store import Bucket, Change, Obj

__all__ = ["SYSTEM_NAMESPACES", "bootstrap"]

SYSTEM_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


def _metadata(backend: Backend, name: str, namespace: str = "") -> Obj:
    metadata: Obj = {"name": name, "uid": backend.env.uids(), "creationTimestamp": backend.now()}
    if namespace:
        metadata["namespace"] = namespace
    return metadata


def bootstrap(backend: Backend, *, rbac: bool) -> None:
    """Make them, and from now on a ``default`` service account for every new namespace. *rbac*: the roles, too."""
    store = backend.store
    aggregate_roles(store)
    protect_storage(store)
    if rbac:
        for plural, obj in bootstrap_objects():
            kind = "ClusterRole" if plural == "clusterroles" else "ClusterRoleBinding"
            made = {**_metadata(backend, obj["metadata"]["name"]), **obj["metadata"]}
            full = {"apiVersion": f"{GROUP}/v1", "kind": kind, **obj, "metadata": made}
            store.put(store.bucket(GROUP, plural), ("", made["name"]), full)
    accounts = store.bucket("", "serviceaccounts")

    def default_account(bucket: Bucket, change: Change) -> None:
        if bucket.plural != "namespaces" or bucket.group or change.type != "ADDED":
            return
        name = change.now.key[1]
        if (name, "default") not in accounts.items:
            obj: Obj = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(backend, "default", name)}
            store.put(accounts, (name, "default"), obj)

    store.listen(default_account)
    namespaces = store.bucket("", "namespaces")
    for name in SYSTEM_NAMESPACES:
        metadata = _metadata(backend, name)
        metadata["labels"] = {"kubernetes.io/metadata.name": name}
        namespace: Obj = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": metadata,
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        }
        store.put(namespaces, ("", name), namespace)
    for name, value, text in (
        (
            "system-node-critical",
            2000001000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        ("system-cluster-critical", 2000000000, "Used for system critical pods that must run in the cluster."),
    ):
        metadata = {**_metadata(backend, name), "generation": 1}
        level: Obj = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": metadata}
        level |= {"value": value, "description": text, "preemptionPolicy": "PreemptLowerPriority"}
        store.put(store.bucket("scheduling.k8s.io", "priorityclasses"), ("", name), level)
    _kubernetes_service(backend)


def _kubernetes_service(backend: Backend) -> None:
    address = backend.env.addresses.take()
    metadata = _metadata(backend, "kubernetes", "default")
    metadata["labels"] = {"component": "apiserver", "provider": "kubernetes"}
    service: Obj = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    }
    backend.store.put(backend.store.bucket("", "services"), ("default", "kubernetes"), service)
