"""The agent pool as a resource: what a request may say, what AKS fills in, what may change, and how it is shown.

Pure functions of JSON. They raise :class:`~kaito_provisioner.testing.errors.ArmError` for what AKS refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kaito_provisioner.testing.errors import ArmError, invalid, refused, size_not_allowed
from kaito_provisioner.testing.sizes import VmSize
from kaito_provisioner.testing.state import Cluster, Pool

__all__ = ["MAX_POOLS", "changed", "check_name", "completed", "shown", "versioned"]

Wire = dict[str, Any]

MAX_POOLS = 100
"""Per cluster: Azure's documentation, "Quotas and limits in AKS"."""
MAX_NODES = 1000
MAX_DISK = 2048
VERSION = "1.33.5"
_ETAGS_SINCE = "2024-09-01"
_STATUS_SINCE = "2025-01-01"

_LINUX_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
_WINDOWS_NAME = re.compile(r"[a-z][a-z0-9]{0,5}")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_TAINT = re.compile(r"([^=:]+)(?:=([^=:]*))?:(NoSchedule|PreferNoSchedule|NoExecute)")
# What Compute refuses in the name of a tag, and pools' tags end up on scale sets.
_TAG_RESERVED = frozenset("<>%&\\?/")
_ZONES = frozenset("123")
_SPOT_LABEL, _SPOT = "kubernetes.azure.com/scalesetpriority", "spot"
_ALLOWED_LABELS = frozenset({_SPOT_LABEL, "node.kubernetes.io/exclude-from-external-load-balancers"})

_CHOICES: Mapping[str, frozenset[str]] = {
    "type": frozenset({"VirtualMachineScaleSets", "VirtualMachines"}),
    "mode": frozenset({"System", "User"}),
    "osType": frozenset({"Linux", "Windows"}),
    "osSKU": frozenset({
        "Ubuntu", "Ubuntu2204", "Ubuntu2404", "AzureLinux", "AzureLinux3", "AzureContainerLinux", "CBLMariner",
        "Windows2019", "Windows2022", "Windows2025",
    }),
    "osDiskType": frozenset({"Managed", "Ephemeral"}),
    "scaleSetPriority": frozenset({"Regular", "Spot"}),
    "scaleSetEvictionPolicy": frozenset({"Delete", "Deallocate"}),
    "gpuInstanceProfile": frozenset({"MIG1g", "MIG2g", "MIG3g", "MIG4g", "MIG7g"}),
}  # fmt: skip
_READ_ONLY = frozenset(
    {"provisioningState", "eTag", "currentOrchestratorVersion", "status", "virtualMachineNodesStatus"}
)
_IMMUTABLE = (
    "vmSize", "osType", "osSKU", "osDiskSizeGB", "osDiskType", "kubeletDiskType", "type", "availabilityZones",
    "vnetSubnetID", "podSubnetID", "scaleSetPriority", "scaleSetEvictionPolicy", "spotMaxPrice", "maxPods",
    "gpuInstanceProfile", "gpuProfile", "kubeletConfig", "linuxOSConfig", "enableFIPS", "proximityPlacementGroupID",
    "capacityReservationGroupID", "hostGroupID",
)  # fmt: skip
_DEFAULTS: Wire = {
    "count": 1,
    "osDiskSizeGB": 128,
    "osDiskType": "Managed",
    "kubeletDiskType": "OS",
    "maxPods": 110,
    "type": "VirtualMachineScaleSets",
    "mode": "User",
    "osType": "Linux",
    "osSKU": "Ubuntu",
    "orchestratorVersion": VERSION,
    "enableAutoScaling": False,
    "scaleDownMode": "Delete",
    "enableFIPS": False,
    "upgradeSettings": {"maxSurge": "10%"},
}


def check_name(name: str, os_type: str = "Linux") -> None:
    """A pool's name is part of host names: twelve characters, six on Windows."""
    if not (_WINDOWS_NAME if os_type == "Windows" else _LINUX_NAME).fullmatch(name):
        raise invalid(
            f"The value of parameter agentPool.name is invalid. Error details: '{name}' has to be of at most "
            f"{6 if os_type == 'Windows' else 12} lower-case letters and digits, and to begin with a letter.",
            "agentPool.name",
        )


def completed(given: Any, before: Wire | None, sizes: Mapping[str, VmSize], location: str) -> Wire:
    """The properties of a pool that is asked for with the body *given*, where *before* are those that it has."""
    properties = given.get("properties") if isinstance(given, dict) else None
    if not isinstance(properties, dict):
        raise invalid("Required parameter properties is missing (null).", "properties", "InvalidParameter")
    asked = {key: value for key, value in properties.items() if key not in _READ_ONLY and value is not None}
    kept = {key: before[key] for key in _IMMUTABLE if key in before} if before is not None else {}
    wire = {**_DEFAULTS, **kept, **asked}
    if not wire["osDiskSizeGB"]:
        wire["osDiskSizeGB"] = kept.get("osDiskSizeGB", _DEFAULTS["osDiskSizeGB"])
    _check(wire, sizes, location)
    if wire.get("scaleSetPriority") == "Spot":
        wire = {"scaleSetEvictionPolicy": "Delete", "spotMaxPrice": -1, **wire}
        wire["nodeLabels"] = {**(wire.get("nodeLabels") or {}), _SPOT_LABEL: _SPOT}
        taint = f"{_SPOT_LABEL}={_SPOT}:NoSchedule"
        wire["nodeTaints"] = [*(each for each in wire.get("nodeTaints") or () if each != taint), taint]
    return wire


def changed(before: Wire, after: Wire) -> bool:
    """Whether anything is to be done. Raises for what cannot be changed."""
    for name in _IMMUTABLE:
        if before.get(name) != after.get(name):
            raise refused(
                400,
                "PropertyChangeNotAllowed",
                f"Changing property 'properties.{name}' is not allowed.",
                target=f"properties.{name}",
            )
    return before != after


def shown(pool: Pool, cluster: Cluster) -> Wire:
    """The resource, with all that the newest version of the API says of it."""
    image = "AKSAzureLinux-V3gen2" if "Linux" in str(pool.properties["osSKU"]) else "AKSUbuntu-2204gen2containerd"
    properties = {
        **pool.properties,
        "currentOrchestratorVersion": pool.properties["orchestratorVersion"],
        "nodeImageVersion": f"{image}-202511.01.0",
        "powerState": {"code": "Running"},
        "provisioningState": pool.state,
        "eTag": pool.etag,
    }
    if pool.failure is not None:
        properties["status"] = {"provisioningError": pool.failure.wire()}
    return {
        "id": f"{cluster.path}/agentPools/{pool.name}",
        "name": pool.name,
        "type": "Microsoft.ContainerService/managedClusters/agentPools",
        "properties": properties,
    }


def versioned(wire: Wire, api_version: str) -> Wire:
    """The resource as a client of that *api_version* sees it: newer properties are left out."""
    since = {"eTag": _ETAGS_SINCE, "status": _STATUS_SINCE}
    hidden = {name for name, version in since.items() if api_version < version}
    return {**wire, "properties": {key: value for key, value in wire["properties"].items() if key not in hidden}}


def _check(wire: Wire, sizes: Mapping[str, VmSize], location: str) -> None:
    for name, choices in _CHOICES.items():
        if name in wire and wire[name] not in choices:
            raise _wrong(name, f"{wire[name]!r} is none of {', '.join(sorted(choices))}")
    size = wire.get("vmSize")
    if not size:
        raise _wrong("vmSize", "it is missing")
    if size not in sizes:
        raise size_not_allowed(str(size), location)
    _within(wire, "count", 1 if wire["mode"] == "System" else 0, MAX_NODES)
    _within(wire, "osDiskSizeGB", 0, MAX_DISK)
    zones = wire.get("availabilityZones") or []
    if not set(zones) <= _ZONES:
        raise refused(
            400,
            "AvailabilityZoneNotSupported",
            f"The zone(s) '{','.join(map(str, zones))}' for resource 'agentpool' is not supported. The supported zones "
            f"for location '{location}' are '1,2,3'",
            target="properties.availabilityZones",
        )
    if wire.get("scaleSetPriority") == "Spot" and wire["mode"] == "System":
        raise _wrong("scaleSetPriority", "a system pool cannot be of spot machines")
    if "spotMaxPrice" in wire and wire.get("scaleSetPriority") != "Spot":
        raise _wrong("spotMaxPrice", "it is for spot machines only")
    for key, value in (wire.get("nodeLabels") or {}).items():
        _check_label(key, value)
    for taint in wire.get("nodeTaints") or ():
        if not _TAINT.fullmatch(str(taint)):
            raise _wrong("nodeTaints", f"{taint!r} is no key=value:effect", "InvalidTaint")
    for key in wire.get("tags") or {}:
        if _TAG_RESERVED & set(key):
            raise refused(
                400,
                "InvalidTagNameCharacters",
                f"The tag names '{key}' have reserved characters '<,>,%,&,\\,?,/' or control characters.",
                target="properties.tags",
            )


def _check_label(key: str, value: Any) -> None:
    prefix, _, name = key.rpartition("/")
    reserved = any(prefix == each or prefix.endswith("." + each) for each in ("kubernetes.io", "k8s.io"))
    if (reserved or prefix.startswith("kubernetes.azure.com")) and key not in _ALLOWED_LABELS:
        raise _wrong("nodeLabels", f"the prefix of {key!r} is reserved for Kubernetes and AKS", "InvalidLabelPrefix")
    if not _LABEL_NAME.fullmatch(name) or not isinstance(value, str):
        raise _wrong("nodeLabels", f"{key!r} is no label's key", "InvalidLabel")
    if value and not _LABEL_NAME.fullmatch(value):
        raise _wrong("nodeLabels", f"{value!r} is no label's value", "InvalidLabel")


def _within(wire: Wire, name: str, low: int, high: int) -> None:
    value = wire[name]
    if not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, f"{value!r} is not within {low} and {high}")


def _wrong(name: str, why: str, code: str = "InvalidParameter") -> ArmError:
    target = f"agentPoolProfile.{name}"
    return invalid(f"The value of parameter {target} is invalid. Error details: {why}.", target, code)
