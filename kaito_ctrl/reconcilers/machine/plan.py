"""How far a machine is: a pure function of the claim, its instance and its node.

The stages are Karpenter's. Launched: the cloud has granted an instance. Registered: its node is there, found by the
exact provider id, and carries what the claim says. Initialized: the node is ready, startup taints are gone, and the
GPUs that were asked for are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_api.core import Node, Taint
from kaito_api.karpenter import (
    INITIALIZED_LABEL,
    REGISTERED_LABEL,
    TERMINATION_FINALIZER,
    Machine,
    MachineStatus,
)
from kaito_api.meta import Condition, find_condition, is_true
from kaito_api.quantity import parse_quantity
from kaito_ctrl.reconcilers.names import GPU_RESOURCE, MACHINE_TYPE_LABEL
from kaito_ctrl.runtime.conditions import merge
from kaito_provisioner import CloudError, Instance

__all__ = ["Observed", "Plan", "plan_machine"]

_EPHEMERAL_TAINTS = frozenset(
    {
        ("node.kubernetes.io/not-ready", "NoSchedule"),
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoSchedule"),
        ("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule"),
        ("karpenter.sh/unregistered", "NoExecute"),
    }
)
_DEPENDENTS = ("MachineLaunched", "MachineRegistered", "MachineInitialized")


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read for one pass. ``nodes`` are those with the instance's provider id."""

    instance: Instance | None = None
    error: CloudError | None = None
    nodes: Sequence[Node] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write: the node's metadata and taints as a merge patch (if it needs one), labels, and the status."""

    status: MachineStatus
    labels: Mapping[str, str]
    node_patch: Mapping[str, Any] | None = None


def plan_machine(machine: Machine, seen: Observed, now: datetime) -> Plan:
    """The next step for *machine*."""
    instance = seen.instance
    status, labels = machine.status, dict(machine.metadata.labels)
    if instance is not None and instance.provider_id:
        status = status.evolve(
            provider_id=instance.provider_id, capacity=instance.capacity, allocatable=instance.allocatable
        )
        labels = {**instance.labels, **labels}

    launched = _launched(machine, seen)
    node = seen.nodes[0] if len(seen.nodes) == 1 and launched.status == "True" else None
    registered = _registered(seen, node)
    node_patch = None
    if node is not None:
        status = status.evolve(node_name=node.name)
    initialized = (
        _initialized(machine, node)
        if node is not None
        else _waiting("MachineInitialized", "NodeNotFound", "Node not registered with cluster")
    )
    if node is not None:
        node_patch = _node_patch(machine, node, initialized=initialized.status == "True")
    dependents = (launched, registered, initialized)
    fresh = [
        each.evolve(last_transition_time=now.replace(microsecond=0)) for each in (*dependents, _summary(dependents))
    ]
    return Plan(status.evolve(conditions=merge(status.conditions, fresh)), labels, node_patch)


def _put(kind: str, status: Any, reason: str = "", message: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message)


def _waiting(kind: str, reason: str, message: str) -> Condition:
    return _put(kind, "Unknown", reason, message)


def _launched(machine: Machine, seen: Observed) -> Condition:
    kind = "MachineLaunched"
    if seen.error is not None:
        known = find_condition(machine.status.conditions, kind)
        if known is not None and known.status == "True" and seen.error.retryable:
            return known  # a cloud that does not answer has not taken the instance away
        text = seen.error.message + (f"; {seen.error.fix}" if seen.error.fix else "")
        return _waiting(kind, seen.error.reason, text[:800])
    instance = seen.instance
    if instance is None:
        return _waiting(kind, "AwaitingReconciliation", "object is awaiting reconciliation")
    if instance.state == "Failed":
        error = instance.error
        return _put(kind, "False", error.reason if error else "LaunchFailed", error.message if error else "")
    if not instance.provider_id:
        return _waiting(kind, "Launching", f"the cloud is making a {instance.instance_type}")
    return _put(kind, "True")


def _registered(seen: Observed, node: Node | None) -> Condition:
    kind = "MachineRegistered"
    if len(seen.nodes) > 1:
        names = ", ".join(sorted(each.name for each in seen.nodes))
        return _put(kind, "False", "MultipleNodesFound", f"several nodes have this provider id: {names}")
    if node is None:
        return _waiting(kind, "NodeNotFound", "Node not registered with cluster")
    return _put(kind, "True")


def _initialized(machine: Machine, node: Node) -> Condition:
    kind = "MachineInitialized"
    if not is_true(node.status.conditions, "Ready"):
        return _waiting(kind, "NodeNotReady", "Node status is NotReady")
    startup = {(each.key, each.effect) for each in machine.spec.startup_taints}
    for taint in node.spec.taints:
        if (taint.key, taint.effect) in startup:
            return _waiting(kind, "StartupTaintsExist", f"Startup taint {_say(taint)} still exists")
        if (taint.key, taint.effect) in _EPHEMERAL_TAINTS:
            return _waiting(kind, "KnownEphemeralTaintsExist", f"Taint {_say(taint)} still exists")
    for resource in _needed(machine):
        if parse_quantity(node.status.allocatable.get(resource, "0")) <= 0:
            return _waiting(
                kind, "ResourceNotRegistered", f"Resource {resource} was requested but is not registered by the node"
            )
    return _put(kind, "True")


def _needed(machine: Machine) -> tuple[str, ...]:
    # Machines as KAITO writes them ask for storage alone; that they are GPU nodes they say by a requirement.
    named = [
        name
        for name, amount in machine.spec.resources.requests.items()
        if name != "storage" and parse_quantity(amount) > 0
    ]
    if machine.spec.values(MACHINE_TYPE_LABEL) == ("gpu",) and GPU_RESOURCE not in named:
        named.append(GPU_RESOURCE)
    return tuple(sorted(named))


def _say(taint: Taint) -> str:
    return f"{taint.key}={taint.value}:{taint.effect}"


def _summary(dependents: Sequence[Condition]) -> Condition:
    """knative's rule: the first that is False decides, else the first that is Unknown, else all is well."""
    for word in ("False", "Unknown"):
        for each in dependents:
            if each.status == word:
                return _put("Ready", word, each.reason, each.message)
    return _put("Ready", "True")


def _node_patch(machine: Machine, node: Node, *, initialized: bool) -> Mapping[str, Any] | None:
    """What the node lacks of what the claim gives it. Lists are replaced whole, so the patch carries the version."""
    metadata: dict[str, Any] = {}
    labels = {**machine.metadata.labels, REGISTERED_LABEL: "true"}
    if initialized:
        labels[INITIALIZED_LABEL] = "true"
    lacking = {key: value for key, value in labels.items() if node.metadata.labels.get(key) != value}
    if lacking:
        metadata["labels"] = lacking
    if not node.deleting and TERMINATION_FINALIZER not in node.metadata.finalizers:
        metadata["finalizers"] = [*node.metadata.finalizers, TERMINATION_FINALIZER]
    if not any(ref.uid == machine.uid for ref in node.metadata.owner_references):
        own = machine.owner_reference(controller=False).evolve(controller=None, block_owner_deletion=True)
        metadata["ownerReferences"] = [*(each.to_wire() for each in node.metadata.owner_references), own.to_wire()]
    patch: dict[str, Any] = {}
    taints = list(node.spec.taints)
    if REGISTERED_LABEL not in node.metadata.labels:
        present = {(each.key, each.effect) for each in taints}
        wanted = (*machine.spec.taints, *machine.spec.startup_taints)
        taints += [each for each in wanted if (each.key, each.effect) not in present]
        taints = [each for each in taints if each.key != "karpenter.sh/unregistered"]
    if len(taints) != len(node.spec.taints) or any(a is not b for a, b in zip(taints, node.spec.taints, strict=False)):
        patch["spec"] = {"taints": [each.to_wire() for each in taints]}
    if not metadata and not patch:
        return None
    metadata["resourceVersion"] = node.metadata.resource_version
    return {"metadata": metadata, **patch}
