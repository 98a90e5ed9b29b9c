"""``coordination.k8s.io/v1``: the Lease, by which candidates agree on who leads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import PlainSerializer

from kaito_api.meta import Model, Resource

__all__ = ["Lease", "LeaseSpec", "MicroTime", "rfc3339_micro"]


def rfc3339_micro(moment: datetime) -> str:
    """*moment* as Kubernetes writes ``metav1.MicroTime``: UTC, always six decimals, a ``Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


MicroTime = Annotated[datetime, PlainSerializer(rfc3339_micro, return_type=str)]
"""``metav1.MicroTime``: microseconds on the wire."""


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
