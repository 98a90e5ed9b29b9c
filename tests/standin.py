"""A provisioner that is not ours: it knows Karpenter's API and a kubelet, and nothing of this project's provisioner.

It does to a claim what Karpenter-core does, in the same order and each step by a write of its own: a finalizer, the
conditions as *not known yet*, the instance, the node, the node's readiness; and at the end the node and the instance
before the finalizer. Times are short, and there is no cloud: an instance is a node of the process kubelet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from kaito_api.core import Node, Taint
from kaito_api.meta import Resource, rfc3339
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.runtime import Context, Controller, ObjectKey, Result, key_of
from kaito_ctrl.runtime.errors import NotFound

__all__ = ["StandIn"]

SOON = Result.retry_in(0.05)


class _Claim(Resource):
    namespaced = False

    spec: Mapping[str, Any] = {}
    status: Mapping[str, Any] = {}


class MachineClaim(_Claim):
    group, version, kind, plural = "karpenter.sh", "v1alpha5", "Machine", "machines"


class NodeClaim(_Claim):
    group, version, kind, plural = "karpenter.sh", "v1", "NodeClaim", "nodeclaims"


class Dialect(NamedTuple):
    """How one generation of Karpenter says where a claim is."""

    kind: type[_Claim]
    launched: str
    registered: str
    initialized: str

    def refused(self, claim: _Claim, why: str, now: datetime) -> list[dict[str, Any]]:
        """All of them when the cloud has refused."""
        first, *others = self.conditions(claim, (), now)
        told = {"reason": "LaunchFailed", "message": why}
        if self.kind is MachineClaim:
            return [{**first, "status": "False", **told}, *others[:-1], {**others[-1], "status": "False", **told}]
        return [{**first, **told}, *others]

    def conditions(self, claim: _Claim, true: Iterable[str], now: datetime) -> list[dict[str, Any]]:
        """All of them, of which those of *true* are True."""
        old = {each["type"]: each for each in claim.status.get("conditions", ())}
        living, held = (self.launched, self.registered, self.initialized), set(true)
        waiting = [each for each in living if each not in held]
        said = [self._condition(each, each in held, old, claim, now) for each in living]
        return [*said, self._condition("Ready", not waiting, old, claim, now, waiting)]

    def _condition(
        self, kind: str, holds: bool, old: Mapping[str, Any], claim: _Claim, now: datetime, waiting: Iterable[str] = ()
    ) -> dict[str, Any]:
        status = "True" if holds else "Unknown"
        same = kind in old and old[kind]["status"] == status
        made = {"type": kind, "status": status, "lastTransitionTime": rfc3339(now)}
        if same:
            made["lastTransitionTime"] = old[kind]["lastTransitionTime"]
        if self.kind is MachineClaim:
            return made  # knative's conditions carry a reason only when something is wrong
        reason, message = (kind, "") if holds else ("AwaitingReconciliation", "object is awaiting reconciliation")
        if kind == "Ready" and not holds:
            reason, message = "ReconcilingDependents", ", ".join(f"{each}=Unknown" for each in waiting)
        return {**made, "reason": reason, "message": message, "observedGeneration": claim.metadata.generation}


DIALECTS = {
    "machine": Dialect(MachineClaim, "MachineLaunched", "MachineRegistered", "MachineInitialized"),
    "nodeclaim": Dialect(NodeClaim, "Launched", "Registered", "Initialized"),
}


class StandIn(Controller[_Claim]):
    """See the module's docstring. Serves every claim that there is; ``launched`` are the names of those it has."""

    name = "stand-in"
    finalizer = "karpenter.sh/termination"

    def __init__(self, node_api: Literal["machine", "nodeclaim"], kubelet: ProcessKubelet) -> None:
        self._dialect = DIALECTS[node_api]
        self.kind = self._dialect.kind
        self._kubelet = kubelet
        self.launched: list[str] = []
        self.refusal = ""
        """What the cloud says instead of launching anything, for as long as it does."""

    async def reconcile(self, claim: _Claim, ctx: Context) -> Result:
        said, dialect = claim.status, self._dialect
        if not said.get("conditions"):
            await self._say(claim, (), {}, ctx)
            return SOON
        if self.refusal:
            conditions = dialect.refused(claim, self.refusal, ctx.now())
            if [each.get("message") for each in conditions] != [each.get("message") for each in said["conditions"]]:
                await ctx.client.patch(self.kind, ctx.key, {"status": {"conditions": conditions}}, subresource="status")
            return SOON
        if "providerID" not in said:
            self.launched.append(claim.name)
            granted = {"providerID": f"elsewhere:///{claim.name}", "capacity": _capacity(), "allocatable": _capacity()}
            await ctx.client.patch(self.kind, ctx.key, {"metadata": {"labels": _facts(claim)}})
            await self._say(claim, (dialect.launched,), granted, ctx)
            return SOON
        if "nodeName" not in said:
            await self._boot(claim)
            node = f"{claim.name}-vm"
            await ctx.client.patch(Node, _cluster(node), {"metadata": {"labels": {"karpenter.sh/registered": "true"}}})
            await self._say(claim, (dialect.launched, dialect.registered), {"nodeName": node}, ctx)
            return SOON
        node = await ctx.client.get(Node, said["nodeName"])
        if not any((each.type, each.status) == ("Ready", "True") for each in node.status.conditions):
            return SOON
        await ctx.client.patch(Node, key_of(node), {"metadata": {"labels": {"karpenter.sh/initialized": "true"}}})
        await self._say(claim, (dialect.launched, dialect.registered, dialect.initialized), {}, ctx)
        return Result.done()

    async def cleanup(self, claim: _Claim, ctx: Context) -> Result:
        if not (name := claim.status.get("nodeName")):
            return Result.done()
        await self._kubelet.deregister(name)
        try:
            await ctx.client.delete(Node, _cluster(name))
        except NotFound:
            return Result.done()
        return SOON

    async def _say(self, claim: _Claim, true: Iterable[str], more: Mapping[str, Any], ctx: Context) -> None:
        conditions = self._dialect.conditions(claim, true, ctx.now())
        if conditions != claim.status.get("conditions") or more:
            status = {**more, "conditions": conditions}
            await ctx.client.patch(self.kind, ctx.key, {"status": status}, subresource="status")

    async def _boot(self, claim: _Claim) -> None:
        await self._kubelet.register(
            f"{claim.name}-vm",
            labels=_facts(claim),
            capacity=_capacity(),
            taints=[Taint.model_validate(each) for each in claim.spec.get("taints", ())],
            provider_id=f"elsewhere:///{claim.name}",
        )


def _capacity() -> dict[str, str]:
    return {"cpu": "6", "memory": "112Gi", "nvidia.com/gpu": "1"}


def _facts(claim: _Claim) -> dict[str, str]:
    """The claim's labels, and what its requirements leave no choice about: what Karpenter puts on the node."""
    single = {
        each["key"]: each["values"][0]
        for each in claim.spec.get("requirements", ())
        if each["operator"] == "In" and len(each["values"]) == 1
    }
    return {**single, **claim.metadata.labels, "karpenter.sh/capacity-type": "on-demand"}


def _cluster(name: str) -> ObjectKey:
    return ObjectKey("", name)
