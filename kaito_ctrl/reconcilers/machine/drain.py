"""Moving pods off nodes that are going: eviction, so that disruption budgets are heard, and patience with grace
periods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from kaito_api.core import Node, Pod
from kaito_api.karpenter import DISRUPTED_TAINT
from kaito_api.meta import is_true
from kaito_ctrl.runtime import Context, ObjectKey, key_of
from kaito_ctrl.runtime.codec import decode_header
from kaito_ctrl.runtime.errors import ApiError, BadRequest, DecodeError, NotFound, TooManyRequests
from kaito_ctrl.runtime.meta import object_path

__all__ = ["draining", "in_the_way"]

_STUCK = 60.0
"""Seconds past its deletion time after which a pod is taken to be stuck, and no longer waited for."""


def in_the_way(pods: Iterable[Pod], now: datetime) -> tuple[Pod, ...]:
    """The pods that a drain has to wait for: not finished, not static, not tolerating the end, not stuck."""
    return tuple(
        pod
        for pod in pods
        if pod.status.phase not in ("Succeeded", "Failed")
        and not any(ref.kind == "Node" for ref in pod.metadata.owner_references)
        and not any(each.tolerates(DISRUPTED_TAINT) for each in pod.spec.tolerations)
        and not (
            pod.metadata.deletion_timestamp is not None
            and (now - pod.metadata.deletion_timestamp).total_seconds() > _STUCK
        )
    )


async def draining(nodes: Sequence[Node], ctx: Context) -> float | None:
    """Evict what is left on *nodes*; seconds until the next look while something is, ``None`` once nothing is.

    A node that is not ready is not waited for: nobody there would end the pods.
    """
    waiting = False
    for node in nodes:
        if not is_true(node.status.conditions, "Ready"):
            continue
        # Read live: a pod that the cache has not seen yet must not lose its node.
        misfits: list[DecodeError] = []
        pods = await ctx.client.list(Pod, fields=f"spec.nodeName={node.name}", misfits=misfits)
        for pod in in_the_way(pods, ctx.now()):
            waiting = True
            if not pod.deleting:
                await _evict(key_of(pod), pod.uid, ctx)
        for header in (decode_header(each.raw) for each in misfits):
            # What it tolerates nobody can tell: it is asked to go like any other, and not waited for.
            if header.deletion_timestamp is None:
                await _evict(ObjectKey(header.namespace or "", header.name), header.uid, ctx)
    return 1.0 if waiting else None


async def _evict(pod: ObjectKey, uid: str, ctx: Context) -> None:
    # Servers before 1.22 know the older version alone, and no server since 1.25 does.
    for version in ("policy/v1", "policy/v1beta1"):
        eviction = {
            "apiVersion": version,
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        try:
            await ctx.client.request("POST", object_path(Pod, pod, "eviction"), body=eviction)
        except TooManyRequests as error:
            ctx.log.info("a disruption budget holds a pod", pod=str(pod), reason=error.message)
        except NotFound as error:
            if not error.of_object:
                continue
        except BadRequest:
            continue
        except ApiError as error:
            ctx.log.warning("eviction refused", pod=str(pod), error=str(error))
        return
    ctx.log.warning("eviction refused: the API server knows no version of it", pod=str(pod))
