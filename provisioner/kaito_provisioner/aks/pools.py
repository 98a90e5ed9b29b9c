"""Requests as agent pools, and agent pools as instances: pure functions of JSON.

One claim is one pool of one machine, and the pool has the claim's name. Whose it is, it says itself: in its tags, which
its scale set and its bill carry too, and once more in its node labels. Those decide: policies rewrite tags.

Wire shapes: ``Microsoft.ContainerService``'s ``agentPools`` (learn.microsoft.com/rest/api/aks/agent-pools).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kaito_api.core import Taint
from kaito_api.karpenter import CAPACITY_TYPE_LABEL, NODEPOOL_LABEL, PROVISIONER_NAME_LABEL
from kaito_provisioner.cloud import InvalidRequest, LaunchRequest, Offering, UnknownInstanceType
from kaito_provisioner.requirements import Requirements

__all__ = ["CLAIM_UID_LABEL", "Pool", "pool_body", "pool_of_provider_id"]

Wire = Mapping[str, Any]

CLAIM_UID_LABEL = "kaito.sh/claim-uid"
CREATION_LABEL = "kaito.sh/creation-timestamp"
MACHINE_TYPE_LABEL = "kaito.sh/machine-type"
IMAGE_FAMILY_ANNOTATION = "kaito.sh/node-image-family"
OS_SKU_LABEL = "kubernetes.azure.com/os-sku"

# Compute refuses <>%&\?/ in the names of tags.
_TAG_CLUSTER = "kaito.sh_cluster"
_TAG_UID = "kaito.sh_claim-uid"
_TAG_NAME = "kaito.sh_claim-name"
_TAG_KIND = "kaito.sh_claim-kind"
_TAG_CREATED = "kaito.sh_created"

_KINDS = ("Machine", "NodeClaim")
_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
_RESERVED = ("kubernetes.io", "k8s.io", "kubernetes.azure.com")
_OS_SKUS = ("Ubuntu", "AzureLinux", "Ubuntu2204", "Ubuntu2404", "AzureLinux3", "AzureContainerLinux", "CBLMariner")
_LARGEST_DISK = 2048
_GIB = 2**30
_STAMP = "%Y-%m-%dT%H-%M-%SZ"
"""RFC 3339 but for the colons, which a label's value cannot have; gpu-provisioner's."""

_SCALE_SET = re.compile(r"/virtualMachineScaleSets/aks-([a-z0-9]+)-[^/]+/virtualMachines/[^/]+$", re.IGNORECASE)
_VM = re.compile(r"/virtualMachines/aks-([a-z0-9]+)-[^/]+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pool:
    """An agent pool as the service shows it."""

    name: str
    properties: Wire = field(repr=False)

    @classmethod
    def of(cls, wire: Wire) -> Pool:
        """From a response's JSON. Raises ``ValueError`` if it is no agent pool."""
        name, properties = wire.get("name"), wire.get("properties")
        if not isinstance(name, str) or not isinstance(properties, Mapping):
            raise ValueError("this is no agent pool: it lacks a name or properties")
        return cls(name, properties)

    def tag(self, name: str) -> str:
        """A tag's value. Azure keeps the case of names as somebody wrote them, and compares without it."""
        tags = self.properties.get("tags") or {}
        return next((str(value) for key, value in tags.items() if key.lower() == name.lower()), "")

    @property
    def labels(self) -> Mapping[str, str]:
        return self.properties.get("nodeLabels") or {}

    @property
    def claim_uid(self) -> str:
        """The claim that it was made for; empty if it is none of ours."""
        # Which cluster its tags name says nothing: only our own cluster's pools are ever seen.
        return self.labels.get(CLAIM_UID_LABEL, "") or self.tag(_TAG_UID)

    @property
    def claim_kind(self) -> str:
        told = self.tag(_TAG_KIND)
        return told if told in _KINDS else ("NodeClaim" if NODEPOOL_LABEL in self.labels else "Machine")

    @property
    def provisioning_state(self) -> str:
        return str(self.properties.get("provisioningState") or "")

    @property
    def etag(self) -> str:
        return str(self.properties.get("eTag") or "")

    @property
    def provisioning_error(self) -> object:
        """Why it is ``Failed``, as JSON; ``None`` where the API's version does not tell."""
        status = self.properties.get("status")
        return status.get("provisioningError") if isinstance(status, Mapping) else None

    @property
    def created(self) -> datetime | None:
        for text in (self.tag(_TAG_CREATED), self.labels.get(CREATION_LABEL, "")):
            try:
                return datetime.strptime(text, _STAMP).replace(tzinfo=UTC)
            except ValueError:
                continue
        return None

    def offering(self, location: str) -> Offering:
        """What it is made of."""
        zones = tuple(str(zone) for zone in self.properties.get("availabilityZones") or ())
        return Offering(
            str(self.properties.get("vmSize") or ""),
            "spot" if self.properties.get("scaleSetPriority") == "Spot" else "on-demand",
            tuple(f"{location}-{zone}" if location else zone for zone in zones),
        )


def pool_body(
    request: LaunchRequest,
    offering: Offering,
    *,
    cluster: str,
    location: str,
    subnet: str,
    gpu: bool | None,
    now: datetime,
) -> dict[str, Any]:
    """The agent pool to ask for. *gpu* says whether the instance type has GPUs, if that is known; *now* stands for the
    claim's creation where its labels do not tell it.

    Raises ``InvalidRequest`` for what AKS can never give, and ``UnknownInstanceType`` for a capacity type that it has
    not.
    """
    if _NAME.fullmatch(request.name) is None:
        raise InvalidRequest(
            f"a claim's name becomes its agent pool's, and {request.name!r} cannot be one",
            fix="name the claim with at most 12 lower-case letters and digits, beginning with a letter",
        )
    if offering.capacity_type == "reserved":
        raise UnknownInstanceType(
            "reserved capacity is not asked for on AKS",
            fix="allow karpenter.sh/capacity-type on-demand or spot",
            offering=offering,
        )
    requirements = Requirements(request.requirements)
    if "linux" not in requirements.on("kubernetes.io/os"):
        raise InvalidRequest(
            f"only Linux nodes are made, and the claim wants kubernetes.io/os {requirements.on('kubernetes.io/os')}",
            fix="ask for kubernetes.io/os In [linux]",
        )
    created = request.labels.get(CREATION_LABEL) or now.strftime(_STAMP)
    properties: dict[str, Any] = {
        "count": 1,
        "mode": "User",
        "type": "VirtualMachineScaleSets",
        "vmSize": offering.instance_type,
        "osType": "Linux",
        "osSKU": _os_sku(request, requirements),
        "nodeLabels": _labels(request, offering, gpu, created),
        "nodeTaints": list(dict.fromkeys(map(_taint, (*request.taints, *request.startup_taints)))),
        "tags": {
            _TAG_CLUSTER: cluster,
            _TAG_UID: request.uid,
            _TAG_NAME: request.name,
            _TAG_KIND: request.kind,
            _TAG_CREATED: created,
        },
    }
    disk = _disk(request.disk)
    if disk:
        properties["osDiskSizeGB"] = disk
    zones = _zones(offering.zones, location)
    if zones:
        properties["availabilityZones"] = zones
    if offering.capacity_type == "spot":
        # -1: never evicted for the price, and never dearer than on-demand.
        properties |= {"scaleSetPriority": "Spot", "scaleSetEvictionPolicy": "Delete", "spotMaxPrice": -1}
    if subnet:
        properties["vnetSubnetID"] = subnet
    return {"properties": properties}


def pool_of_provider_id(provider_id: str) -> str | None:
    """The pool whose machine that is: of a scale set, or of a pool of single machines; ``None`` if it is no AKS node's.

    Azure writes the same id in different cases.
    """
    if not provider_id.lower().startswith("azure://"):
        return None
    found = _SCALE_SET.search(provider_id) or _VM.search(provider_id)
    return found.group(1).lower() if found else None


def _labels(request: LaunchRequest, offering: Offering, gpu: bool | None, created: str) -> dict[str, str]:
    # As gpu-provisioner labels its pools, so that what reads those reads ours.
    labels = {NODEPOOL_LABEL: "kaito"} if request.kind == "NodeClaim" else {PROVISIONER_NAME_LABEL: "default"}
    labels |= {key: value for key, value in request.labels.items() if not _reserved(key)}
    if gpu is None:
        # The N families have accelerators; NP's are no GPUs.
        gpu = offering.instance_type.startswith("Standard_N") and not offering.instance_type.startswith("Standard_NP")
    return labels | {
        MACHINE_TYPE_LABEL: "gpu" if gpu else "cpu",
        CREATION_LABEL: created,
        CAPACITY_TYPE_LABEL: offering.capacity_type,
        CLAIM_UID_LABEL: request.uid,
    }


def _reserved(key: str) -> bool:
    """Whether AKS refuses it as a node label: those prefixes are Kubernetes' and its own."""
    prefix, slash, _ = key.rpartition("/")
    reserved = any(prefix == each or prefix.endswith(f".{each}") for each in _RESERVED)
    return key == "agentpool" or (bool(slash) and reserved)


def _taint(taint: Taint) -> str:
    return f"{taint.key}={taint.value or ''}:{taint.effect}"


def _disk(size: int) -> int:
    """GiB, rounded up; 0 for the size that comes with the machine."""
    gib = -(-size // _GIB)
    if not 0 <= gib <= _LARGEST_DISK:
        raise InvalidRequest(
            f"an OS disk has at most {_LARGEST_DISK} GiB, and the claim asks for {gib}",
            fix=f"ask for at most {_LARGEST_DISK}Gi of storage",
        )
    return gib


def _zones(zones: Iterable[str], location: str) -> list[str]:
    """``eastus-1`` is zone 1. Zone 0 is what a machine without a zone is labelled with."""
    numbers = []
    for zone in zones:
        region, dash, number = zone.rpartition("-")
        if not number.isdecimal() or (dash and location and region.lower() != location):
            raise InvalidRequest(
                f"{zone!r} is no zone of {location or 'an Azure region'}",
                fix=f"use {location or 'REGION'}-1, -2 or -3 for topology.kubernetes.io/zone",
            )
        numbers.append(number)
    return [number for number in dict.fromkeys(numbers) if number != "0"]


def _os_sku(request: LaunchRequest, requirements: Requirements) -> str:
    allowed = requirements.on(OS_SKU_LABEL)
    family = request.annotations.get(IMAGE_FAMILY_ANNOTATION, "")
    if family:
        chosen = next((each for each in _OS_SKUS if each.lower() == family.lower()), None)
        if chosen is None or (chosen not in allowed and family not in allowed):
            raise InvalidRequest(
                f"the annotation {IMAGE_FAMILY_ANNOTATION} says {family!r}, which is none of "
                f"{', '.join(each for each in _OS_SKUS if each in allowed)}",
                fix="use Ubuntu or AzureLinux, or take the annotation off",
            )
        return chosen
    wanted = allowed.named or _OS_SKUS
    for value in wanted:
        for each in _OS_SKUS:
            if each.lower() == value.lower() and value in allowed:
                return each
    raise InvalidRequest(
        f"the requirement on {OS_SKU_LABEL} is {allowed}, which AKS has none of",
        fix="use In [Ubuntu] or In [AzureLinux]",
    )
