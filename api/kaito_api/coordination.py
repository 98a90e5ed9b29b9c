"""``coordination.k8s.io/v1``: the Lease, by which candidates agree on who leads."""

from __future__ import annotations

from kaito_api.meta import MicroTime, Model, Resource

__all__ = ["Lease", "LeaseSpec"]


class LeaseSpec(Model):
    """``coordinationv1.LeaseSpec``. An empty or absent holder means that nobody holds it.

    The times are the holder's own wall clock, and for people to read: candidates measure a lease's validity by their
    own clocks, from when they last saw it change.
    """

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: MicroTime | None = None
    renew_time: MicroTime | None = None
    lease_transitions: int | None = None


class Lease(Resource):
    """``coordination.k8s.io/v1 Lease``."""

    group, version, kind, plural = "coordination.k8s.io", "v1", "Lease", "leases"

    spec: LeaseSpec = LeaseSpec()
