"""How far a claim is: a pure function of the claim, its instance and its node, for Machine and NodeClaim alike.

The stages are Karpenter's. Launched: the cloud has granted an instance. Registered: its node is there, found by the
exact provider id, and carries what the claim says. Initialized: the node is ready, startup taints are gone, and the
GPUs that were asked for are there. What has been registered, or initialized, once stays so: from then on it is the
node's own conditions that speak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_api.core import Node, Taint
from kaito_api.karpenter import (
    INITIALIZED_LABEL,
    LAUNCHING_ANNOTATION,
    OPERATION_ANNOTATION,
    REGISTERED_LABEL,
    TERMINATION_FINALIZER,
    TERMINATION_TIMESTAMP_ANNOTATION,
    Machine,
    NodeClaimStatus,
    NodeRequest,
    NodeRequestStatus,
)
from kaito_api.meta import find_condition, is_true, rfc3339
from kaito_api.quantity import parse_quantity
from kaito_ctrl.reconcilers.machine.absence import moment
from kaito_ctrl.reconcilers.machine.conditions import Verdict, conclude
from kaito_ctrl.reconcilers.machine.deadlines import LAUNCHING
from kaito_ctrl.reconcilers.machine.launch import DELETING, FACTS, implied_labels
from kaito_ctrl.reconcilers.machine.nodes import with_owner
from kaito_ctrl.reconcilers.names import GPU_RESOURCE, MACHINE_TYPE_LABEL
from kaito_ctrl.runtime.codec import LAST_APPLIED
from kaito_provisioner import CloudError, Instance

__all__ = ["PRIVATE", "Observed", "Plan", "plan_claim"]

_EPHEMERAL_TAINTS = frozenset(
    {
        ("node.kubernetes.io/not-ready", "NoSchedule"),
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoSchedule"),
        ("node.cloudprovider.kubernetes.io/uninitialized", "NoSchedule"),
        ("karpenter.sh/unregistered", "NoExecute"),
    }
)
_READINESS_TAINTS = "readiness.k8s.io/"
_UNREGISTERED_TAINT = "karpenter.sh/unregistered"
_DO_NOT_SYNC_TAINTS = "karpenter.sh/do-not-sync-taints"
PRIVATE = (LAUNCHING_ANNOTATION, OPERATION_ANNOTATION, TERMINATION_TIMESTAMP_ANNOTATION, LAST_APPLIED)
"""Annotations that are about the claim, and not about its node."""
_LATE = 5.0
"""Seconds after which an answer of the cloud is late."""
_MESSAGE = 800
_NOT_THERE = "Node not registered with cluster"


@dataclass(frozen=True, slots=True)
class Observed:
    """What was read for one pass."""

    instance: Instance | None = None
    error: CloudError | None = None
    nodes: Sequence[Node] = ()
    """Those of the instance."""
    definite: bool = False
    """Whether it is known what the cloud has done for the claim: it shows the instance, or has refused one."""
    absent: bool = False
    """Whether the cloud has said that there is no instance, and so no operation on one."""
    silent: bool = False
    """Whether the cloud has not said if there is an instance: ``error`` is why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write: the claim's status, its labels, its annotations (``None`` takes one off), and the node's metadata
    and taints as a merge patch, if it needs one."""

    status: NodeRequestStatus
    labels: Mapping[str, str]
    annotations: Mapping[str, str | None]
    node_patch: Mapping[str, Any] | None = None


def plan_claim(claim: NodeRequest, seen: Observed, now: datetime) -> Plan:
    """The next step for *claim*, which is not being deleted."""
    instance, node = seen.instance, seen.nodes[0] if len(seen.nodes) == 1 else None
    status = _status(claim, instance, node)
    labels = _labels(claim, instance) if seen.definite else claim.metadata.labels

    verdicts = []
    launched = is_true(claim.status.conditions, claim.launched)
    if not is_true(claim.status.conditions, claim.registered):
        verdict = _launched(claim, seen, status.provider_id)
        if verdict is not None:
            launched = verdict.word == "True"
            verdicts.append(verdict)
        verdicts.append(_registered(claim, seen.nodes, launched=launched))
        registered = verdicts[-1].word == "True"
    else:
        registered = True
    known = claim.evolve(status=status, metadata=claim.metadata.evolve(labels=labels))
    initialized = is_true(claim.status.conditions, claim.initialized)
    if not initialized:
        verdict = _initialized(known, node if registered else None, launched=launched, registered=registered)
        if verdict is not None:
            initialized = verdict.word == "True"
            verdicts.append(verdict)
    if node is not None and registered:
        status = status.evolve(node_name=node.name)
    conditions = conclude(claim, verdicts, now)
    patch = _node_patch(known, node, initialized=initialized) if node is not None and registered else None
    return Plan(status.evolve(conditions=conditions), labels, _annotations(claim, seen, now), patch)


# -- what is known of the instance ---------------------------------------------------------------------------------


def _status(claim: NodeRequest, instance: Instance | None, node: Node | None) -> NodeRequestStatus:
    status = claim.status
    if instance is not None:
        status = status.evolve(
            provider_id=instance.provider_id or status.provider_id,
            capacity=instance.capacity or status.capacity,
            allocatable=instance.allocatable or status.allocatable,
        )
        if isinstance(status, NodeClaimStatus) and instance.image_id:
            status = status.evolve(image_id=instance.image_id)
    if node is not None and not is_true(claim.status.conditions, claim.initialized):
        # What the cloud does not tell the node does, once its kubelet and its plugins have started.
        status = status.evolve(
            provider_id=node.spec.provider_id,
            capacity={**node.status.capacity, **status.capacity},
            allocatable={**node.status.allocatable, **status.allocatable},
        )
    return status


def _labels(claim: NodeRequest, instance: Instance | None) -> Mapping[str, str]:
    if instance is None or instance.state not in ("Creating", "Running"):
        return claim.metadata.labels
    facts = {key: instance.labels[key] for key in FACTS if key in instance.labels}
    return {**instance.labels, **implied_labels(claim), **claim.metadata.labels, **facts}


def _annotations(claim: NodeRequest, seen: Observed, now: datetime) -> Mapping[str, str | None]:
    """What has to change of what we have noted."""
    have, wanted = claim.metadata.annotations, dict[str, str | None]()
    if seen.definite and LAUNCHING_ANNOTATION in have:
        wanted[LAUNCHING_ANNOTATION] = None
    asked = moment(have.get(LAUNCHING_ANNOTATION, ""))
    if seen.instance is not None and not seen.definite and asked and (now - asked).total_seconds() >= _LATE:
        # Its request has been under way for long: when the instance has to show counts from the answer.
        wanted[LAUNCHING_ANNOTATION] = rfc3339(now)
    if seen.definite or seen.absent or seen.instance is not None:
        operation = seen.instance.operation if seen.instance is not None else ""
        if operation != have.get(OPERATION_ANNOTATION, ""):
            wanted[OPERATION_ANNOTATION] = operation or None
    return wanted


# -- the stages ----------------------------------------------------------------------------------------------------


def _launched(claim: NodeRequest, seen: Observed, provider_id: str) -> Verdict | None:
    """``None``: what was said before stands."""
    kind, instance, error = claim.launched, seen.instance, seen.error
    known = find_condition(claim.status.conditions, kind)
    if error is not None:
        # A cloud that does not answer has not taken the instance away, nor stopped making it.
        making = known is not None and (known.status == "True" or (known.reason == LAUNCHING and error.retryable))
        if seen.silent and making:
            return None
        text = error.message + (f"; {error.fix}" if error.fix else "")
        return Verdict(kind, "Waiting", error.reason, text if len(text) <= _MESSAGE else text[:_MESSAGE] + "...")
    if instance is None:
        return None
    if instance.state == "Running" or (provider_id and instance.state == "Creating"):
        return Verdict(kind, "True")
    if instance.state == "Creating":
        return Verdict(kind, "Waiting", LAUNCHING, f"the cloud is making a {instance.instance_type}")
    if known is not None and (known.status == "True" or known.reason != LAUNCHING):
        return None  # it goes because it could not be made, and why has been said
    return Verdict(kind, "Waiting", DELETING, "the instance is being deleted; after that another is made")


def _registered(claim: NodeRequest, nodes: Sequence[Node], *, launched: bool) -> Verdict:
    kind = claim.registered
    if not launched and isinstance(claim, Machine):
        return Verdict(kind, "Waiting", "MachineNotLaunched", "Machine not launched")
    if not launched or not nodes:
        return Verdict(kind, "Waiting", "NodeNotFound", _NOT_THERE)
    if len(nodes) > 1:
        names = ", ".join(sorted(each.name for each in nodes))
        return Verdict(kind, "False", "MultipleNodesFound", f"several nodes are of this instance: {names}")
    return Verdict(kind, "True")


def _initialized(claim: NodeRequest, node: Node | None, *, launched: bool, registered: bool) -> Verdict | None:
    kind = claim.initialized
    if not registered and not isinstance(claim, Machine):
        return None  # a NodeClaim says nothing of it before
    if not launched:
        return Verdict(kind, "Waiting", "MachineNotLaunched", "Machine not launched")
    if node is None:
        return Verdict(kind, "Waiting", "NodeNotFound", _NOT_THERE)
    if not is_true(node.status.conditions, "Ready"):
        return Verdict(kind, "Waiting", "NodeNotReady", "Node status is NotReady")
    startup = {(each.key, each.effect) for each in claim.spec.startup_taints}
    for taint in node.spec.taints:
        if (taint.key, taint.effect) in startup:
            return Verdict(kind, "Waiting", "StartupTaintsExist", f"Startup taint {_say(taint)} still exists")
    for taint in node.spec.taints:
        if (taint.key, taint.effect) in _EPHEMERAL_TAINTS or taint.key.startswith(_READINESS_TAINTS):
            return Verdict(kind, "Waiting", "KnownEphemeralTaintsExist", f"Taint {_say(taint)} still exists")
    for resource in _needed(claim):
        if parse_quantity(node.status.allocatable.get(resource, "0")) <= 0:
            text = f"Resource {resource} was requested but is not registered by the node"
            return Verdict(kind, "Waiting", "ResourceNotRegistered", text)
    return Verdict(kind, "True")


def _needed(claim: NodeRequest) -> tuple[str, ...]:
    """What the node has to show before it can be used."""
    named = {
        name
        for name, amount in claim.spec.resources.requests.items()
        if name != "storage" and parse_quantity(amount) > 0
    }
    # Claims as KAITO writes them ask for storage alone; that it is a GPU node says a requirement, or the cloud.
    if claim.spec.values(MACHINE_TYPE_LABEL) == ("gpu",) or parse_quantity(
        claim.status.capacity.get(GPU_RESOURCE, "0")
    ):
        named.add(GPU_RESOURCE)
    return tuple(sorted(named))


def _say(taint: Taint) -> str:
    return f"{taint.key}={taint.value}:{taint.effect}"


# -- the node ------------------------------------------------------------------------------------------------------


def _node_patch(claim: NodeRequest, node: Node, *, initialized: bool) -> Mapping[str, Any] | None:
    """What the node lacks of what the claim gives it. Lists are replaced whole, so the patch carries the version.

    Labels are put back whenever somebody takes them off, for by them workloads find their nodes; annotations and taints
    are given once, when the node registers: then they are the node's, to be changed by others.
    """
    metadata: dict[str, Any] = {}
    patch: dict[str, Any] = {}
    joining = not is_true(claim.status.conditions, claim.registered)
    labels = {**claim.metadata.labels, REGISTERED_LABEL: "true"}
    if initialized:
        labels[INITIALIZED_LABEL] = "true"
    if lacking := {key: value for key, value in labels.items() if node.metadata.labels.get(key) != value}:
        metadata["labels"] = lacking
    if joining:
        notes = {key: value for key, value in claim.metadata.annotations.items() if key not in PRIVATE}
        if lacking := {key: value for key, value in notes.items() if node.metadata.annotations.get(key) != value}:
            metadata["annotations"] = lacking
    if not node.deleting and TERMINATION_FINALIZER not in node.metadata.finalizers:
        metadata["finalizers"] = [*node.metadata.finalizers, TERMINATION_FINALIZER]
    if (owners := with_owner(node, claim)) is not None:
        metadata["ownerReferences"] = owners
    taints = _taints(claim, node)
    if taints != node.spec.taints:
        patch["spec"] = {"taints": [each.to_wire() for each in taints]}
    if not metadata and not patch:
        return None
    metadata["resourceVersion"] = node.metadata.resource_version
    return {"metadata": metadata, **patch}


def _taints(claim: NodeRequest, node: Node) -> tuple[Taint, ...]:
    """Startup taints are put on once: a node that has the label of those that are registered has had them."""
    if REGISTERED_LABEL in node.metadata.labels:
        return node.spec.taints
    taints = [each for each in node.spec.taints if each.key != _UNREGISTERED_TAINT]
    if node.metadata.labels.get(_DO_NOT_SYNC_TAINTS) != "true":
        for each in (*claim.spec.taints, *claim.spec.startup_taints):
            if all((each.key, each.effect) != (other.key, other.effect) for other in taints):
                taints.append(each)
    return tuple(taints)
