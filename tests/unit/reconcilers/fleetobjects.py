"""Nodes, claims and instances that belong together by their names, for tests of what looks at many of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kaito_api.core import Node
from kaito_api.karpenter import Machine, NodeRequest
from kaito_provisioner import Instance, InstanceState

__all__ = ["claim", "fleet", "instance", "node"]

_MOMENT = "2026-01-01T00:00:00Z"


def node(name: str, ready: str = "True", *, labels: dict[str, str] | None = None, **conditions: str) -> Node:
    told = [{"type": kind, "status": status} for kind, status in {"Ready": ready, **conditions}.items()]
    metadata = {"name": name, "labels": labels or {}}
    return Node.model_validate(
        {"metadata": metadata, "spec": {"providerID": f"sim:///{name}"}, "status": {"conditions": told}}
    )


def claim(
    name: str,
    *,
    kind: type[NodeRequest] = Machine,
    registered: str = "True",
    deleting: bool = False,
    replaced: bool = False,
) -> NodeRequest:
    metadata: dict[str, Any] = {"name": name, "uid": f"uid-{name}"}
    if deleting:
        metadata["deletionTimestamp"] = _MOMENT
    if replaced:
        metadata["annotations"] = {"karpenter.sh/nodeclaim-termination-timestamp": _MOMENT}
    status = {
        "providerID": f"sim:///{name}",
        "conditions": [{"type": kind.registered, "status": registered}],
    }
    return kind.model_validate({"metadata": metadata, "status": status})


def instance(name: str, state: InstanceState = "Running", **fields: Any) -> Instance:
    made = {"provider_id": f"sim:///{name}", "created": datetime(2026, 1, 1, tzinfo=UTC), **fields}
    return Instance(name=name, claim_uid=f"uid-{name}", state=state, instance_type="small", **made)


def fleet(size: int, dead: int) -> tuple[list[Node], list[NodeRequest]]:
    """*size* claims with their nodes, the first *dead* of them silent, beside a node of the cluster's own."""
    names = [f"n{each}" for each in range(size)]
    nodes = [node(name, "Unknown" if at < dead else "True") for at, name in enumerate(names)]
    return [node("system"), *nodes], [claim(name) for name in names]
