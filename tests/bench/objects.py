"""The objects that everybody lists and watches: pods of about 6 KB as a real API server would write them, and small
custom resources of ten kinds.

The same index always gives the same bytes. Field order, managed fields, default tolerations and the repeated status
blocks follow what a Kubernetes API server answers, because that is what decides the cost of reading them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

__all__ = ["FIRST_VERSION", "GROUP", "WIDGETS", "pods", "widgets"]

FIRST_VERSION = 1_000_000
"""The resourceVersion of object 0; that of object ``i`` is ``i`` more."""
GROUP = "bench.example.org"
WIDGETS = 10
_WORKLOADS = 40
_NAMESPACES = 25


def pods(count: int, first_version: int = FIRST_VERSION) -> Iterator[bytes]:
    """The metadata, spec and status of *count* pods: JSON objects without ``kind`` and ``apiVersion``, as the items
    of a list have them. Their resourceVersions count up from *first_version*."""
    templates = [_pod_template(workload) for workload in range(_WORKLOADS)]
    for index in range(count):
        yield templates[index % _WORKLOADS] % _pod_values(index, first_version + index)


def widgets(count: int, kind: int) -> Iterator[bytes]:
    """*count* objects of the custom kind number *kind*, like :func:`pods`."""
    for index in range(count):
        digest = _digest("widget", kind, index)
        yield _dump(
            {
                "metadata": {
                    "name": f"widget-{index:04d}",
                    "namespace": f"team-{index % _NAMESPACES:02d}",
                    "uid": _uid(digest),
                    "resourceVersion": str(FIRST_VERSION + index),
                    "generation": 1,
                    "creationTimestamp": "2025-03-01T08:00:00Z",
                    "labels": {"app.kubernetes.io/name": "widget", "shard": str(index % 7)},
                },
                "spec": {"size": index % 5, "colour": "blue", "token": digest},
                "status": {"phase": "Ready", "observedGeneration": 1},
            }
        )


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _uid(digest: str) -> str:
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-a{digest[17:20]}-{digest[20:32]}"


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _pod_values(index: int, version: int) -> dict[bytes, bytes]:
    digest = _digest("pod", index)
    node = int(digest[:4], 16) % 500
    text = {
        "suffix": digest[:5],
        "index": f"{index:06d}",
        "namespace": f"team-{index // _WORKLOADS % _NAMESPACES:02d}",
        "uid": _uid(digest),
        "version": str(version),
        "node": f"node-{node:03d}.eu-central.example.org",
        "host": f"10.1.{node // 250}.{node % 250}",
        "address": f"10.{64 + index // 62500}.{index // 250 % 250}.{index % 250}",
        "container0": digest,
        "container1": _digest("container", index),
        "minute": f"{index % 60:02d}",
    }
    return {name.encode(): value.encode() for name, value in text.items()}


def _pod_template(workload: int) -> bytes:
    """A pod of one workload, with ``%(...)s`` where its pods differ."""
    app = f"service-{workload:02d}"
    revision = _digest("revision", workload)[:9]
    # Every fifth workload has a second container, as one with a sidecar does.
    sidecar = workload % 5 == 0
    containers = [_container(app, workload)] + ([_container("proxy", workload, sidecar=True)] if sidecar else [])
    started = "2025-03-04T09:%(minute)s:07Z"
    return _dump(
        {
            "metadata": {
                "name": f"{app}-{revision}-%(suffix)s-%(index)s",
                "generateName": f"{app}-{revision}-",
                "namespace": "%(namespace)s",
                "uid": "%(uid)s",
                "resourceVersion": "%(version)s",
                "generation": 1,
                "creationTimestamp": "2025-03-04T09:%(minute)s:00Z",
                "labels": {
                    "app.kubernetes.io/name": app,
                    "app.kubernetes.io/instance": f"{app}-production",
                    "app.kubernetes.io/version": f"1.{workload}.3",
                    "app.kubernetes.io/managed-by": "helm",
                    "pod-template-hash": revision,
                },
                "annotations": {
                    "checksum/config": _digest("config", workload),
                    "kubectl.kubernetes.io/restartedAt": "2025-03-04T08:59:12Z",
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": "9102",
                },
                "ownerReferences": [
                    {
                        "apiVersion": "apps/v1",
                        "kind": "ReplicaSet",
                        "name": f"{app}-{revision}",
                        "uid": _uid(_digest("replicaset", workload)),
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
                "managedFields": _managed_fields(sidecar),
            },
            "spec": {
                "volumes": [
                    {"name": "config", "configMap": {"name": f"{app}-config", "defaultMode": 420}},
                    {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}},
                    _token_volume(),
                ],
                "containers": containers,
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "ClusterFirst",
                "serviceAccountName": app,
                "serviceAccount": app,
                "nodeName": "%(node)s",
                "securityContext": {"runAsUser": 10001, "runAsNonRoot": True, "fsGroup": 10001},
                "schedulerName": "default-scheduler",
                "tolerations": [
                    {
                        "key": f"node.kubernetes.io/{taint}",
                        "operator": "Exists",
                        "effect": "NoExecute",
                        "tolerationSeconds": 300,
                    }
                    for taint in ("not-ready", "unreachable")
                ],
                "priority": 0,
                "enableServiceLinks": True,
                "preemptionPolicy": "PreemptLowerPriority",
            },
            "status": {
                "observedGeneration": 1,
                "phase": "Running",
                "conditions": [
                    {
                        "type": condition,
                        "observedGeneration": 1,
                        "status": "True",
                        "lastProbeTime": None,
                        "lastTransitionTime": started,
                    }
                    for condition in (
                        "PodReadyToStartContainers",
                        "Initialized",
                        "Ready",
                        "ContainersReady",
                        "PodScheduled",
                    )
                ],
                "hostIP": "%(host)s",
                "hostIPs": [{"ip": "%(host)s"}],
                "podIP": "%(address)s",
                "podIPs": [{"ip": "%(address)s"}],
                "startTime": "2025-03-04T09:%(minute)s:01Z",
                "containerStatuses": [
                    {
                        "name": container["name"],
                        "state": {"running": {"startedAt": started}},
                        "lastState": {},
                        "ready": True,
                        "restartCount": 0,
                        "image": container["image"],
                        "imageID": f"{container['image'].rpartition(':')[0]}@sha256:{_digest(container['image'])}",
                        "containerID": f"containerd://%(container{number})s",
                        "started": True,
                    }
                    for number, container in enumerate(containers)
                ],
                "qosClass": "Burstable",
            },
        }
    )


def _container(name: str, workload: int, *, sidecar: bool = False) -> dict[str, Any]:
    port = 15090 if sidecar else 8080
    variables = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        {"name": "LOG_LEVEL", "value": "info"},
    ]
    if not sidecar:
        variables += [
            {"name": "DATABASE_URL", "value": f"postgres://db-{workload:02d}.data.svc.cluster.local:5432/main"},
            {
                "name": "DATABASE_PASSWORD",
                "valueFrom": {"secretKeyRef": {"name": f"service-{workload:02d}-database", "key": "password"}},
            },
        ]
    probe = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
    return {
        "name": name,
        "image": f"registry.example.org/platform/{name}:1.{workload}.3",
        "args": ["--listen=:8080", "--config=/etc/service/config.yaml"],
        "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}],
        "env": variables,
        "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "250m", "memory": "256Mi"}},
        "volumeMounts": [
            {"name": "config", "readOnly": True, "mountPath": "/etc/service"},
            {"name": "cache", "mountPath": "/var/cache/service"},
            {
                "name": "kube-api-access-x7k2p",
                "readOnly": True,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            },
        ],
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, **probe},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http", "scheme": "HTTP"}, **probe},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
        },
    }


def _token_volume() -> dict[str, Any]:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": "kube-api-access-x7k2p", "projected": {"sources": sources, "defaultMode": 420}}


def _managed_fields(sidecar: bool) -> list[dict[str, Any]]:
    container: dict[str, Any] = {
        f"f:{field}": {}
        for field in (
            ".",
            "args",
            "env",
            "image",
            "imagePullPolicy",
            "livenessProbe",
            "name",
            "ports",
            "readinessProbe",
            "resources",
            "securityContext",
            "terminationMessagePath",
            "terminationMessagePolicy",
            "volumeMounts",
        )
    }
    names = ["service", "proxy"] if sidecar else ["service"]
    conditions: dict[str, Any] = {
        f'k:{{"type":"{condition}"}}': {".": {}, "f:lastTransitionTime": {}, "f:status": {}, "f:type": {}}
        for condition in ("ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready")
    }
    return [
        {
            "manager": "kube-controller-manager",
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2025-03-04T09:%(minute)s:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:annotations": {}, "f:generateName": {}, "f:labels": {}, "f:ownerReferences": {}},
                "f:spec": {"f:containers": {f'k:{{"name":"{name}"}}': container for name in names}},
            },
        },
        {
            "manager": "kubelet",
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2025-03-04T09:%(minute)s:07Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:status": {"f:conditions": conditions, "f:containerStatuses": {}, "f:phase": {}}},
            "subresource": "status",
        },
    ]
