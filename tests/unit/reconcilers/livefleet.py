"""Claims and their nodes on an API server, as the machine controller and kubelets would leave them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

from kaito_api.core import Node
from kaito_api.crd import all_crds
from kaito_api.karpenter import Machine, NodeClaim, NodeRequest
from kaito_api.meta import Resource, rfc3339
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import NotFound

__all__ = ["LiveFleet", "served"]

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@asynccontextmanager
async def served(clock: Clock, seed: int = 5) -> AsyncIterator[ApiServer]:
    """An API server that knows our kinds."""
    server = ApiServer(clock=clock, rng=Random(seed))
    user = Client(server.transport())
    for crd in all_crds():
        await user.request("POST", _CRDS, body=crd)
    yield server
    await server.aclose()


@dataclass(kw_only=True)
class LiveFleet:
    """What a test puts on the server. *clock* is the one that is right."""

    user: Client
    clock: Clock
    kind: type[NodeRequest] = Machine

    async def claim(self, name: str, *, labels: dict[str, str] | None = None, **metadata: Any) -> str:
        """A claim of KAITO's; its uid."""
        labels = {"kaito.sh/workspace": "ws"} if labels is None else labels
        requirement = {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["small"]}
        spec: dict[str, Any] = {"requirements": [requirement]}
        if self.kind is NodeClaim:
            spec["nodeClassRef"] = {"group": "karpenter.azure.com", "kind": "AKSNodeClass", "name": "default"}
        body = {"metadata": {"name": name, "labels": labels, **metadata}, "spec": spec}
        return (await self.user.create(self.kind.model_validate(body))).uid

    async def joined(self, name: str, provider_id: str = "", *, initialized: bool = True) -> None:
        """The claim's node has registered, and can be used."""
        done = [self.kind.registered, *([self.kind.initialized] if initialized else [])]
        stamp = rfc3339(self.clock.now())
        conditions = [{"type": each, "status": "True", "reason": "x", "lastTransitionTime": stamp} for each in done]
        status = {"providerID": provider_id or f"sim:///{name}", "nodeName": name, "conditions": conditions}
        await self.user.patch(self.kind, ObjectKey("", name), {"status": status}, subresource="status")

    async def node(self, name: str, uid: str, provider_id: str = "", *, mark: str = "kaito.sh/workspace") -> None:
        """The node of the claim of that name and uid; of none, if there is no uid."""
        metadata: dict[str, Any] = {"name": name}
        if uid:
            owner = {"apiVersion": self.kind.api_version(), "kind": self.kind.kind, "name": name, "uid": uid}
            finalizers = ["karpenter.sh/termination"]
            metadata |= {"labels": {mark: "ws"}, "finalizers": finalizers, "ownerReferences": [owner]}
        spec = {"providerID": provider_id or f"sim:///{name}"}
        await self.user.create(Node.model_validate({"metadata": metadata, "spec": spec}))

    async def report(
        self, name: str, ready: str, *, since: datetime | None = None, others: dict[str, str] | None = None
    ) -> None:
        """The node says how it is, and *since* when (by default since now)."""
        stamp = rfc3339(since or self.clock.now())
        told = [
            {"type": kind, "status": status, "lastTransitionTime": stamp}
            for kind, status in {"Ready": ready, **(others or {})}.items()
        ]
        await self.user.patch(Node, ObjectKey("", name), {"status": {"conditions": told}}, subresource="status")

    async def strip(self, name: str) -> None:
        """The claim goes, and nobody has cleaned up after it."""
        key = ObjectKey("", name)
        with suppress(NotFound):
            await self.user.delete(self.kind, key)
            await self.user.patch(self.kind, key, {"metadata": {"finalizers": None}})

    async def names(self, kind: type[Resource]) -> list[str]:
        return sorted(each.name for each in await self.user.list(kind))
