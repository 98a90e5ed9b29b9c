"""Asking one pod to leave, whatever the API server makes of it: every answer becomes "on its way", or why not."""

from __future__ import annotations

from kaito_api.core import Pod
from kaito_ctrl.reconcilers.machine.metrics import ClaimMetrics
from kaito_ctrl.runtime import Context, ObjectKey, key_of
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import ApiError, BadRequest, Conflict, DecodeError, NotFound, TransportError
from kaito_ctrl.runtime.meta import object_path

__all__ = ["Evictions"]

# Servers before 1.22 know the older version alone, and no server since 1.25 does.
_VERSIONS = ("policy/v1", "policy/v1beta1")
_MESSAGE = 300


class Evictions:
    """Evicts and deletes pods, each only if it is still the one that was seen (by uid).

    Both methods return why the pod stays, in words for an event; or nothing, if it is on its way or gone. They raise
    nothing but ``LeaseLost``: one pod that cannot be asked must not keep the others on a node that goes.
    """

    def __init__(self, metrics: ClaimMetrics | None = None) -> None:
        self._metrics = metrics

    async def evict(self, pod: Pod, ctx: Context) -> str:
        """Ask for its eviction, so that disruption budgets decide."""
        unknown: ApiError | None = None
        for version in _VERSIONS:
            try:
                await self._post(version, pod, ctx)
            except (NotFound, BadRequest) as error:
                if isinstance(error, NotFound) and error.of_object:
                    return ""
                unknown = unknown or error  # of the version that current servers have
            except Conflict:
                return ""  # another pod of that name has taken its place
            except (ApiError, TransportError) as error:
                return _held(pod, error)
            else:
                return ""
        assert unknown is not None
        if await self._is_served(ctx):
            return _held(pod, unknown)
        # As kubectl drain does: without evictions there are no disruption budgets either.
        return await self.delete(pod, None, ctx)

    async def delete(self, pod: Pod, seconds: int | None, ctx: Context) -> str:
        """Delete it, with that much grace; without a number, with its own."""
        try:
            await ctx.client.delete(Pod, key_of(pod), uid=pod.uid, grace_period=seconds)
        except (NotFound, Conflict):
            return ""
        except (ApiError, TransportError, DecodeError) as error:
            return _held(pod, error)
        return ""

    async def _post(self, version: str, pod: Pod, ctx: Context) -> None:
        key = key_of(pod)
        body = {
            "apiVersion": version,
            "kind": "Eviction",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        try:
            await ctx.client.request("POST", object_path(Pod, ObjectKey(*key), "eviction"), body=body)
        except ApiError as error:
            self._count(error.code)
            raise
        self._count(201)

    def _count(self, code: int) -> None:
        if self._metrics is not None:
            self._metrics.evicted(code)

    @staticmethod
    async def _is_served(ctx: Context) -> bool:
        """Whether the server has evictions at all. Taken for granted unless it says otherwise."""
        try:
            answer = decode_json(await ctx.client.request("GET", "/api/v1"))
        except (ApiError, TransportError, ValueError):
            return True
        resources = answer.get("resources") if isinstance(answer, dict) else None
        if not isinstance(resources, list) or not resources:
            return True
        return any(isinstance(each, dict) and each.get("name") == "pods/eviction" for each in resources)


def _held(pod: Pod, error: Exception) -> str:
    causes = error.details.get("causes") if isinstance(error, ApiError) else None
    found = [each for each in causes if isinstance(each, dict)] if isinstance(causes, list) else []
    budget = any(each.get("reason") == "DisruptionBudget" for each in found)
    details = " ".join(str(each.get("message") or "") for each in found)
    text = " ".join(f"{error} {details}".split())[:_MESSAGE]
    who = f"pod {pod.namespace}/{pod.name}"
    return f"evicting {who} violates a PDB: {text}" if budget else f"{who} cannot be evicted: {text}"
