"""Claims for a bench: requests as a controller makes them, and what is true of their instances."""

from __future__ import annotations

from collections.abc import Sequence

from kaito_api.core import Taint
from kaito_provisioner.cloud import ClaimRef, Instance, LaunchRequest, Offering
from kaito_provisioner.conformance.bench import Bench, Existing
from kaito_provisioner.conformance.case import require

__all__ = ["claim", "exactly_one", "none_left", "of", "ref"]

GIB = 2**30


def claim(
    bench: Bench,
    number: int = 1,
    *,
    offerings: Sequence[Offering] = (),
    name: str = "",
    kind: str = "NodeClaim",
) -> LaunchRequest:
    """The *number*th claim: of the bench's offerings unless others are given. Names and uids differ by the number."""
    wanted = tuple(offerings or bench.offerings)
    return LaunchRequest(
        # As KAITO names its claims, which fits the narrowest rule that we know, that of AKS.
        name=name or f"ws{number:09x}",
        uid=f"{number:08x}-6b61-4974-8f00-000000000000",
        instance_types=tuple(dict.fromkeys(each.instance_type for each in wanted)),
        offerings=wanted,
        kind=kind,
        labels={"kaito.sh/workspace": "conformance", "kaito.sh/workspacenamespace": "default"},
        taints=(Taint(key="sku", value="gpu", effect="NoSchedule"),),
        disk=128 * GIB,
    )


def ref(request: LaunchRequest, seen: Instance | None = None) -> ClaimRef:
    """The claim, as one asks about it who remembers *seen*."""
    if seen is None:
        return ClaimRef(request.name, request.uid)
    return ClaimRef(request.name, request.uid, seen.provider_id, seen.operation)


def of(bench: Bench, uid: str) -> list[Existing]:
    """What really exists for a claim."""
    return [each for each in bench.truth() if each.uid == uid]


def exactly_one(bench: Bench, request: LaunchRequest, when: str) -> Existing:
    """Raises ``Violation`` unless one instance exists for the claim."""
    found = of(bench, request.uid)
    require(len(found) == 1, f"{when}, {len(found)} instances exist for claim {request.name}: {found}")
    return found[0]


def none_left(bench: Bench, request: LaunchRequest, when: str) -> None:
    """Raises ``Violation`` if anything exists for the claim."""
    found = of(bench, request.uid)
    require(not found, f"{when}, {len(found)} instances exist for claim {request.name}: {found}")
