"""Whose a pool is.

A pool that we have made says so: in its tags, and in its node labels. One that gpu-provisioner has made says only that
it was made for some claim; its name is the claim's. Where we take over a cluster from it, the claims that live on must
not lose their nodes, nor leave them behind when they go: so the first claim of that name that asks after such a pool
has it. What nobody asks after stays nobody's: it is neither listed nor collected.
"""

from __future__ import annotations

from kaito_api.karpenter import NODEPOOL_LABEL, PROVISIONER_NAME_LABEL
from kaito_provisioner.aks.pools import Pool

__all__ = ["Ownership"]

# By which gpu-provisioner itself tells its pools: both of these, one of each pair.
_FOR_A_WORKLOAD = ("kaito.sh/workspace", "kaito.sh/ragengine")
_FROM_A_CLAIM = (NODEPOOL_LABEL, PROVISIONER_NAME_LABEL)


class Ownership:
    """The claims of the pools of one cluster."""

    def __init__(self) -> None:
        self._inherited: dict[str, str] = {}
        """The uids of the claims that have pools of gpu-provisioner's, by name."""

    def uid(self, pool: Pool) -> str:
        """Of its claim; empty if it was made for none, or for one that has not asked yet."""
        if pool.claim_uid:
            return pool.claim_uid
        return self._inherited.get(pool.name, "") if _is_gpu_provisioners(pool) else ""

    def is_of(self, pool: Pool, uid: str) -> bool:
        """Whether it is that of the claim of its name that has that *uid*."""
        if pool.claim_uid or not _is_gpu_provisioners(pool):
            return bool(uid) and self.uid(pool) == uid
        return bool(uid) and self._inherited.setdefault(pool.name, uid) == uid

    def gone(self, name: str) -> None:
        """There is no such pool any more."""
        self._inherited.pop(name, None)

    def owner(self, pool: Pool) -> str:
        """In a message."""
        if pool.claim_uid:
            return f"the {pool.claim_kind} of uid {pool.claim_uid}"
        if self.uid(pool):
            return f"the claim of uid {self.uid(pool)}, which had it from gpu-provisioner"
        return "somebody else: no claim's uid is in its tags or node labels"


def _is_gpu_provisioners(pool: Pool) -> bool:
    return any(each in pool.labels for each in _FOR_A_WORKLOAD) and any(each in pool.labels for each in _FROM_A_CLAIM)
