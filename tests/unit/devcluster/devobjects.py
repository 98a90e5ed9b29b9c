"""Objects for the planners' tests, as short as they can be said."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kaito_api.meta import Condition, ObjectMeta, OwnerReference, Resource
from kaito_ctrl.devcluster.kinds import Deployment, Node, Pod, ReplicaSet

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def template(image: str = "app:1", **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "web", **labels}},
        "spec": {"containers": [{"name": "main", "image": image, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]},
    }


def deployment(replicas: int = 3, image: str = "app:1", *, generation: int = 1, **spec: Any) -> Deployment:
    return Deployment.model_validate(
        {
            "metadata": {"name": "web", "namespace": "default", "uid": "d-1", "generation": generation},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": template(image),
                **spec,
            },
        }
    )


def replica_set(name: str = "web-a", replicas: int = 3, *, image: str = "app:1", age: float = 100) -> ReplicaSet:
    return ReplicaSet.model_validate(
        {
            "metadata": {
                "name": name,
                "namespace": "default",
                "uid": f"uid-{name}",
                "generation": 1,
                "creationTimestamp": ago(age).isoformat(),
            },
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template(image)},
        }
    )


def pod(
    name: str,
    owner: Resource | None = None,
    *,
    phase: str = "Running",
    ready: bool = True,
    node: str = "n1",
    labels: Mapping[str, str] | None = None,
    age: float = 60,
    deleting: bool = False,
    **spec: Any,
) -> Pod:
    references: tuple[OwnerReference, ...] = (owner.owner_reference(),) if owner is not None else ()
    made = Pod.model_validate(
        {
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
            "spec": {"nodeName": node, "containers": [{"name": "main"}], **spec},
            "status": {"phase": phase, "podIP": "127.97.0.9"},
        }
    )
    metadata = ObjectMeta(
        name=name,
        namespace="default",
        uid=f"uid-{name}",
        labels={"app": "web"} if labels is None else labels,
        owner_references=references,
        creation_timestamp=ago(age),
        deletion_timestamp=NOW if deleting else None,
    )
    condition = Condition(type="Ready", status="True" if ready else "False", last_transition_time=ago(age))
    return made.evolve(metadata=metadata, status=made.status.evolve(conditions=(condition,)))


def node(name: str = "n1", *, ready: str = "True", labels: Mapping[str, str] | None = None, **spec: Any) -> Node:
    capacity = spec.pop("capacity", {"cpu": "4", "memory": "8Gi", "pods": "10"})
    return Node.model_validate(
        {
            "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels or {}},
            "spec": spec,
            "status": {
                "allocatable": capacity,
                "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": NOW.isoformat()}],
            },
        }
    )
