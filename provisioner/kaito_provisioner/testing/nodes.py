"""Machines as Node objects of a cluster, through its API alone: what a kubelet, the cloud node manager, a device
plug-in and the cloud controller write there.

Nobody's work is undone: a Node that somebody has deleted is not made again, one that waits for finalizers is left to
them, and of a Node's taints and labels only its own are touched. The Node's heartbeat is a Lease, as a kubelet's is.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime
from typing import Any

from kaito_api.coordination import Lease, LeaseSpec
from kaito_api.core import Node
from kaito_api.meta import ObjectMeta
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.clock import Clock
from kaito_ctrl.runtime.errors import AlreadyExists, Conflict, KubeError, NotFound
from kaito_provisioner.testing.state import Vm

__all__ = ["NodeJoiner"]

Wire = dict[str, Any]
LEASE_NAMESPACE = "kube-node-lease"
_UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
_NOT_READY = "node.kubernetes.io/not-ready"
_VERSION = "v1.33.5"
_LEASE_SECONDS = 40
_QUIET = {
    "MemoryPressure": ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    "DiskPressure": ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    "PIDPressure": ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
}


class NodeJoiner:
    """Implements :class:`~kaito_provisioner.testing.vms.Joiner`. :meth:`run` keeps the nodes' heartbeats going.

    *heartbeat* is in seconds; *client* is one that may write nodes and leases.
    """

    def __init__(self, client: Client, clock: Clock, *, heartbeat: float = 10.0) -> None:
        self._client = client.named("kubelet")
        self._clock = clock
        self._heartbeat = heartbeat
        self._beating: set[str] = set()

    async def run(self) -> None:
        """Renew every node's lease, until cancelled."""
        while True:
            await asyncio.sleep(self._heartbeat)
            for name in sorted(self._beating):
                # Whoever is not there is not heard of: that is all that a heartbeat means.
                with suppress(KubeError):
                    await self._beat(name)

    async def register(self, vm: Vm) -> None:
        await self._beat(vm.node_name)
        taints = [_taint(each) for each in vm.taints]
        taints.append({"key": _UNINITIALIZED, "value": "true", "effect": "NoSchedule"})
        wire = {
            "metadata": {"name": vm.node_name, "labels": _kubelet_labels(vm)},
            "spec": {"taints": [*taints, {"key": _NOT_READY, "effect": "NoSchedule"}]},
        }
        with suppress(AlreadyExists):
            await self._client.create(Node.model_validate(wire))
        self._beating.add(vm.node_name)
        with suppress(NotFound):
            await self._patch_status(vm, _status(vm, self._clock.now()))
            await self._untaint(vm, _NOT_READY)

    async def adopt(self, vm: Vm) -> None:
        zone = f"{vm.location}-{vm.zone}" if vm.zone else "0"
        labels = {
            "node.kubernetes.io/instance-type": vm.size.name,
            "beta.kubernetes.io/instance-type": vm.size.name,
            "topology.kubernetes.io/region": vm.location,
            "failure-domain.beta.kubernetes.io/region": vm.location,
            "topology.kubernetes.io/zone": zone,
            "failure-domain.beta.kubernetes.io/zone": zone,
        }
        patch = {"metadata": {"labels": labels}, "spec": {"providerID": vm.provider_id}}
        with suppress(NotFound):
            await self._client.patch(Node, ObjectKey("", vm.node_name), patch)
            await self._untaint(vm, _UNINITIALIZED)

    async def plug(self, vm: Vm) -> None:
        with suppress(NotFound):
            amount = {vm.size.resource: str(vm.size.gpus)}
            await self._patch_status(vm, {"capacity": amount, "allocatable": amount})

    async def silence(self, vm: Vm) -> None:
        self._beating.discard(vm.node_name)
        now = _time(self._clock.now())
        silent = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        with suppress(NotFound):
            await self._patch_status(vm, {"conditions": [silent]})

    async def remove(self, vm: Vm) -> None:
        self._beating.discard(vm.node_name)
        with suppress(NotFound):
            node = await self._client.get(Node, vm.node_name)
            if node.spec.provider_id in ("", vm.provider_id) and node.metadata.deletion_timestamp is None:
                await self._client.delete(Node, ObjectKey("", vm.node_name), uid=node.metadata.uid)
        with suppress(NotFound):
            await self._client.delete(Lease, ObjectKey(LEASE_NAMESPACE, vm.node_name))

    # -- inside --------------------------------------------------------------------------------------------------

    async def _beat(self, name: str) -> None:
        now = self._clock.now()
        try:
            await self._client.patch(
                Lease,
                ObjectKey(LEASE_NAMESPACE, name),
                {"spec": LeaseSpec(renew_time=now).to_wire()},
            )
        except NotFound:
            spec = LeaseSpec(holder_identity=name, lease_duration_seconds=_LEASE_SECONDS, renew_time=now)
            with suppress(AlreadyExists):
                await self._client.create(Lease(metadata=ObjectMeta(name=name, namespace=LEASE_NAMESPACE), spec=spec))

    async def _patch_status(self, vm: Vm, status: Wire) -> None:
        await self._client.patch(
            Node, ObjectKey("", vm.node_name), {"status": status}, type="strategic", subresource="status"
        )

    async def _untaint(self, vm: Vm, key: str) -> None:
        """Take a taint off the node as it is now, whoever else changes them at the same time."""
        while True:
            node = await self._client.get(Node, vm.node_name)
            left = [each.to_wire() for each in node.spec.taints if each.key != key]
            if len(left) == len(node.spec.taints):
                return
            version = {"resourceVersion": node.metadata.resource_version}
            with suppress(Conflict):
                await self._client.patch(
                    Node, ObjectKey("", vm.node_name), {"metadata": version, "spec": {"taints": left}}
                )
                return


def _kubelet_labels(vm: Vm) -> dict[str, str]:
    return {
        "kubernetes.io/hostname": vm.node_name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": "amd64",
        **vm.labels,
    }


def _status(vm: Vm, now: datetime) -> Wire:
    amounts = {
        "cpu": str(vm.size.cores),
        "memory": f"{vm.size.memory}Gi",
        "pods": str(vm.max_pods),
        "ephemeral-storage": f"{vm.disk}Gi",
    }
    moment = _time(now)
    ready = ("Ready", "True", "KubeletReady", "kubelet is posting ready status")
    conditions = [(kind, "False", *said) for kind, said in _QUIET.items()]
    return {
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": moment,
                "lastTransitionTime": moment,
            }
            for kind, status, reason, message in (*conditions, ready)
        ],
        "addresses": [{"type": "Hostname", "address": vm.node_name}],
        "nodeInfo": {
            "kubeletVersion": _VERSION,
            "kubeProxyVersion": _VERSION,
            "containerRuntimeVersion": "containerd://1.7.28-1",
            "operatingSystem": "linux",
            "osImage": "Ubuntu 22.04.5 LTS",
            "kernelVersion": "5.15.0-1092-azure",
            "architecture": "amd64",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
        },
    }


def _taint(text: str) -> Wire:
    """``key=value:Effect``."""
    rest, _, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    return {"key": key, **({"value": value} if value else {}), "effect": effect}


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
