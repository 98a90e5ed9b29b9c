"""What is wrong with one object, in words that lead on: a cause, whose it is, and the next step. Pure.

Each function looks at one object, and says the first thing that keeps it from its end, or nothing. It goes by what
Kubernetes, Karpenter and container runtimes write into conditions and container states.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_api.apps import Deployment, StatefulSet
from kaito_api.core import ContainerStatus, Node, Pod
from kaito_api.karpenter import NodeRequest
from kaito_api.meta import Condition, find_condition, is_true
from kaito_api.workspace import StageName, Workspace
from kaito_ctrl.reconcilers.names import GPU_RESOURCE
from kaito_ctrl.reconcilers.workspace.nodes import required_labels

__all__ = [
    "SETTLING",
    "UNNOTICED",
    "Finding",
    "is_wrong",
    "near_misses",
    "of_claim",
    "of_node",
    "of_pod",
    "of_workload",
    "place_in_queue",
    "strays",
    "why_not_launched",
    "words",
]

_UNDER_WAY = frozenset(
    {
        *("", "AwaitingReconciliation", "Launching", "InstanceDeleting", "Throttled"),
        *("NotLaunched", "MachineNotLaunched", "NodeNotFound", "NotRegistered", "RegistrationHookPending"),
    }
)
"""Why a condition of a claim is not True yet without anything being wrong. By the reason alone: while it waits,
Karpenter writes ``Unknown`` into a NodeClaim and ``False`` into a Machine. A cloud that is asked no more often than it
allows is busy, and not refusing."""
UNNOTICED = 60.0
"""Seconds after which a claim that nobody has written a condition to has no provisioner."""
SETTLING = 180.0
"""Seconds for which a node that has just joined may be unready, tainted, or without its GPUs: every one is, until its
network and its device plug-in have started."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause. ``source`` is the object that it was read from; ``fix`` what a person does next."""

    stage: StageName
    code: str
    source: str
    message: str
    fix: str = ""


def of_claim(claim: NodeRequest, now: datetime) -> Finding | None:
    """Why *claim* has no usable node."""
    conditions, source = claim.status.conditions, str(claim)
    if claim.deleting:
        code, text = f"{claim.kind}Deleting", "is being deleted"
        return Finding("MachineLaunched", code, source, text, "wait: another one is asked for after it")
    if not conditions:
        since = claim.metadata.creation_timestamp
        if since is None or (now - since).total_seconds() < UNNOTICED:
            return None
        return Finding(
            "CapacityReserved",
            "NoProvisioner",
            source,
            "no controller has looked at it",
            f"run a provisioner for {claim.kind}s: kaito-ctrl run --provisioner aks --node-api {claim.kind.lower()}, "
            "gpu-provisioner or Karpenter",
        )
    if (refused := why_not_launched(claim)) is not None:
        return refused
    registered = _lacking(claim, claim.registered)
    if registered is not None:
        fix = _REGISTRATION_FIXES.get(registered.reason, _describe(claim))
        return Finding("NodeRegistered", registered.reason, source, registered.message or registered.reason, fix)
    initialized = _lacking(claim, claim.initialized)
    joined = find_condition(conditions, claim.registered)
    since = joined.last_transition_time if joined is not None and joined.status == "True" else None
    if initialized is None or (since is not None and (now - since).total_seconds() < SETTLING):
        return None
    node = claim.status.node_name
    fix = _INITIALIZATION_FIXES.get(initialized.reason, "kubectl describe node {node}").format(node=node)
    text = initialized.message or initialized.reason
    return Finding("NodeInitialized", initialized.reason, f"Node {node}" if node else source, text, fix)


def _lacking(claim: NodeRequest, kind: str) -> Condition | None:
    """The condition of that type, if it says that something is wrong."""
    found = find_condition(claim.status.conditions, kind)
    return found if found is not None and found.status != "True" and found.reason not in _UNDER_WAY else None


def is_wrong(claim: NodeRequest, condition: Condition) -> bool:
    """Whether *condition* of *claim* says that something has gone wrong, and not only that it is not done yet."""
    if condition.type not in (claim.launched, claim.registered, claim.initialized):
        return False
    return condition.status != "True" and condition.reason not in (_UNDER_WAY | _INITIALIZATION_FIXES.keys())


def _describe(claim: NodeRequest) -> str:
    return f"kubectl describe {claim.kind.lower()} {claim.name}"


def words(claim: NodeRequest) -> str:
    """What *claim* waits for, as its provisioner says it; empty if it says nothing that is worth repeating."""
    for kind in (claim.launched, claim.registered, claim.initialized):
        found = find_condition(claim.status.conditions, kind)
        if found is not None and found.status != "True":
            return "" if found.reason in _SAYS_NOTHING else found.message or found.reason
    return ""


_SAYS_NOTHING = frozenset({"AwaitingReconciliation", "NodeNotFound"})
"""What follows from the stage itself."""


def place_in_queue(claim: NodeRequest) -> str:
    """When the cloud will be asked for *claim*, if that has to wait for others; empty if it does not."""
    launched = find_condition(claim.status.conditions, claim.launched)
    return launched.message if launched is not None and launched.reason == "Throttled" else ""


def why_not_launched(claim: NodeRequest) -> Finding | None:
    """Why the cloud grants *claim* no instance."""
    launched = _lacking(claim, claim.launched)
    if launched is None:
        return None
    text = launched.message or launched.reason
    if launched.reason in _LAUNCH_FIXES:
        return Finding("CapacityReserved", launched.reason, str(claim), text, _LAUNCH_FIXES[launched.reason])
    # Other provisioners call it all LaunchFailed, and say what it was in the message.
    lower = text.lower()
    code = next((code for part, code in _LAUNCH_TEXTS if part in lower), launched.reason)
    return Finding("CapacityReserved", code, str(claim), text, _LAUNCH_FIXES.get(code, "see the provisioner's log"))


_LAUNCH_FIXES = {
    "CloudUnavailable": "nothing: the request is repeated; see the cloud's status page if it stays",
    "Conflict": "wait: the request is repeated once what is in its way has ended; the message names it",
    "InsufficientCapacity": "wait, or use another instance type, zone or region: the request is repeated",
    "InvalidRequest": "correct what the message names, or use another instance type",
    "NodeClassNotReady": "see what its node class lacks: kubectl describe the object that spec.nodeClassRef names",
    "QuotaExceeded": "ask the cloud for more quota of this family, or use another instance type or region",
    "Throttled": "nothing: the request is repeated as the cloud asks",
    "Unauthorized": "give the provisioner's identity the right to create instances",
    "UnknownInstanceType": "use an instance type that this region offers",
}
_LAUNCH_TEXTS = (
    ("all requested instance types were unavailable", "InsufficientCapacity"),
    ("insufficientinstancecapacity", "InsufficientCapacity"),
    ("allocationfailed", "InsufficientCapacity"),
    ("allocation failed", "InsufficientCapacity"),
    ("quota", "QuotaExceeded"),
    ("too many requests", "Throttled"),
    ("toomanyrequests", "Throttled"),
    ("not allowed in your subscription", "UnknownInstanceType"),
    ("sku", "UnknownInstanceType"),
    ("authorization", "Unauthorized"),
    ("nodeclass", "NodeClassNotReady"),
)
_REGISTRATION_FIXES = {"MultipleNodesFound": "delete the nodes but one"}
_INITIALIZATION_FIXES = {
    "NodeNotReady": "kubectl describe node {node}",
    "StartupTaintsExist": "see what should take the taint off: kubectl describe node {node}",
    "KnownEphemeralTaintsExist": "wait; if it stays: kubectl describe node {node}",
    "ResourceNotRegistered": "install NVIDIA's device plug-in (it runs on nodes labelled accelerator=nvidia), and see "
    "its log: the driver may be missing",
}


def of_node(node: Node) -> Finding | None:
    """Why *node*, which is one for the workspace, does not carry it."""
    ready = find_condition(node.status.conditions, "Ready")
    source, look = str(node), f"kubectl describe node {node.name}"
    if node.deleting:
        return Finding("NodeInitialized", "NodeDeleting", source, "is being deleted", "wait: another one is asked for")
    if ready is None or ready.status != "True":
        text = (ready.message if ready is not None else "") or "the kubelet does not report"
        return Finding("NodeInitialized", "NodeNotReady", source, f"is not ready: {text}", look)
    if node.spec.unschedulable:
        return Finding("PodScheduled", "NodeCordoned", source, "is cordoned", f"kubectl uncordon {node.name}")
    if GPU_RESOURCE in node.status.capacity and node.status.allocatable.get(GPU_RESOURCE, "0") == "0":
        return Finding("NodeInitialized", "GPUMissing", source, f"has no usable {GPU_RESOURCE}", look)
    return None


def strays(ws: Workspace, claims: Iterable[NodeRequest], nodes: Iterable[Node]) -> tuple[Finding, ...]:
    """Nodes that were made for *ws*, and that it does not select any more: somebody has changed their labels."""
    ours = {
        each.status.node_name
        for each in claims
        if not each.deleting and is_true(each.status.conditions, each.initialized)
    }
    found = []
    for node in sorted((each for each in nodes if each.name in ours and not each.deleting), key=lambda each: each.name):
        lacking = {
            f"{key}={value}"
            for key, value in required_labels(ws.resource).items()
            if node.metadata.labels.get(key) != value
        }
        if lacking:
            labels = " ".join(sorted(lacking))
            text = f"does not carry {labels}, by which {ws} selects it"
            fix = f"kubectl label node {node.name} {labels} --overwrite"
            found.append(Finding("NodeInitialized", "NodeRelabelled", str(node), text, fix))
    return tuple(found)


def near_misses(ws: Workspace, nodes: Iterable[Node]) -> Finding | None:
    """Whether there is a node whose labels look as if the selector was meant for it."""
    wanted = required_labels(ws.resource)
    for node in sorted(nodes, key=lambda each: each.name):
        labels = node.metadata.labels
        for key, value in sorted(wanted.items()):
            has = labels.get(key)
            if has is not None and has != value and _alike(has, value):
                return _typo(ws, node, f"{key}={has}", f"{key}={value}")
            for other, found in sorted(labels.items()):
                if found == value and other != key and key not in labels and _alike(other, key):
                    return _typo(ws, node, f"{other}={found}", f"{key}={value}")
    return None


def _alike(one: str, other: str) -> bool:
    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower()).rstrip("s")

    return plain(one) == plain(other)


def _typo(ws: Workspace, node: Node, has: str, wants: str) -> Finding:
    return Finding(
        "Planned",
        "SelectorMatchesNoNode",
        str(node),
        f"has the label {has}, and {ws} selects {wants}",
        f"kubectl label node {node.name} {wants}, or create the workspace with the other selector",
    )


def of_workload(workload: Deployment | StatefulSet) -> Finding | None:
    """Why *workload* has no pods, or does not go on."""
    conditions, source = workload.status.conditions, str(workload)
    failure = find_condition(conditions, "ReplicaFailure")
    if failure is not None and failure.status == "True":
        code, fix = next(
            ((code, fix) for part, code, fix in _REPLICA_FIXES if part in failure.message.lower()),
            (failure.reason or "FailedCreate", f"kubectl describe {workload.kind.lower()} {workload.name}"),
        )
        return Finding("PodScheduled", code, source, failure.message, fix)
    return None


_REPLICA_FIXES = (
    ("exceeded quota", "ResourceQuota", "raise the namespace's ResourceQuota, or free what it counts"),
    ("podsecurity", "PodSecurity", "label the namespace for the baseline Pod Security Standard"),
    ("admission webhook", "PodRefused", "ask who runs that webhook"),
    ("forbidden", "PodForbidden", "see what forbids it: the message names it"),
)


def of_pod(pod: Pod) -> Finding | None:
    """Why *pod* does not serve. ``None`` also while it is only busy: pulling, copying, loading."""
    source = str(pod)
    if pod.status.phase == "Failed":
        code = pod.status.reason or "PodFailed"
        text = pod.status.message or "the pod has failed"
        return Finding("PodScheduled", code, source, text, _POD_FIXES.get(code, f"kubectl describe pod {pod.name}"))
    scheduled = find_condition(pod.status.conditions, "PodScheduled")
    if scheduled is not None and scheduled.status != "True":
        code, fix = _scheduling_fix(scheduled.message)
        return Finding("PodScheduled", code, source, scheduled.message or scheduled.reason, fix)
    for status in pod.status.init_container_statuses:
        ended = status.state.terminated
        if ended is None or ended.get("exitCode"):
            found = _of_container(pod, status, "ArtifactsReady")
            if found is not None:
                return found
    for status in pod.status.container_statuses:
        found = _of_container(pod, status, "EngineStarted")
        if found is not None:
            return found
    if pod.deleting:
        text = "is being deleted"
        return Finding("PodScheduled", "PodDeleting", source, text, "wait for the grace period to end")
    return None


_POD_FIXES = {
    "Evicted": "free what the node ran out of, or use a node with more of it: the message names it",
    "UnexpectedAdmissionError": "see the node's device plug-in: kubectl describe pod shows what it refused",
    "NodeLost": "wait: the pod is made anew on another node",
    "NodeShutdown": "wait: the pod is made anew on another node",
}


def _scheduling_fix(message: str) -> tuple[str, str]:
    text = message.lower()
    if f"insufficient {GPU_RESOURCE}" in text:
        return "InsufficientGPU", "see who uses the GPUs: kubectl describe node; or wait until they are free"
    if "insufficient" in text:
        return "InsufficientResources", "see what the node lacks: the message names it"
    if "node affinity" in text or "node selector" in text:
        return "NoMatchingNode", "see that the workspace's nodes are there and carry its labels: kubectl get nodes -L"
    if "taint" in text:
        return "NodeTainted", "take the taint off the node, or let it be tolerated"
    if "volume" in text or "persistentvolumeclaim" in text:
        return "VolumeNotReady", "kubectl describe pvc"
    return "Unschedulable", "the message says what no node could offer"


def _of_container(pod: Pod, status: ContainerStatus, stage: StageName) -> Finding | None:
    source = f"{pod}, container {status.name}"
    waiting, ended = status.state.waiting, status.state.terminated or status.last_state.terminated
    reason = str((waiting or {}).get("reason") or "")
    text = str((waiting or {}).get("message") or reason)
    if reason in ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ErrInspectImage"):
        code, fix = _image_fix(reason, text)
        return Finding("ArtifactsReady", code, source, text, fix)
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        fix = "create what it refers to: the message names it" if "not found" in text else f"describe {pod}"
        return Finding(stage, reason, source, text, fix)
    if ended is not None and not status.ready and (ended.get("exitCode") or waiting is not None):
        return _of_end(pod, status, ended, stage)
    if status.started and not status.ready and is_true(pod.status.conditions, "Initialized"):
        return Finding(
            "Serving",
            "NotReady",
            source,
            "runs, and its readiness probe fails",
            f"kubectl describe pod {pod.name} -n {pod.namespace} shows what the probe was answered",
        )
    return None


def _of_end(pod: Pod, status: ContainerStatus, ended: Mapping[str, Any], stage: StageName) -> Finding:
    source = f"{pod}, container {status.name}"
    exit_code, reason = ended.get("exitCode"), str(ended.get("reason") or "")
    count = status.restart_count + (1 if status.state.terminated else 0)
    times = "once" if count == 1 else f"{count} times"
    logs = f"kubectl logs {pod.name} -n {pod.namespace} -c {status.name} --previous"
    # The end of its log, where the pod asks for that: a program's last line says why it ended.
    said = str(ended.get("message") or "").strip().rpartition("\n")[2]
    text = f"it ended {times}, last with exit code {exit_code}" + (f" ({reason})" if reason else "")
    text += f": {said}" if said else ""
    if reason == "OOMKilled":
        return Finding(stage, "OutOfMemory", source, text, "use an instance type with more main memory")
    if stage == "ArtifactsReady":
        return Finding(stage, "AdapterFailed", source, text, f"see that the image has a shell and /data; {logs}")
    if exit_code in (126, 127):
        return Finding(stage, "CommandNotFound", source, text, f"see that the image holds the command; {logs}")
    if exit_code in (137, 143) and status.started is False:
        return Finding(
            stage,
            "StartupProbeFailed",
            source,
            f"{text}: it did not answer its startup probe in time",
            f"see how far loading came: {logs}",
        )
    return Finding(stage, "CrashLoop", source, text, logs)


_IMAGE_TEXTS = (
    (("429", "toomanyrequests", "rate limit"), "RegistryRateLimit", "wait, or pull through a registry of your own"),
    (
        ("unauthorized", "authentication required", "denied", "401", "403", "forbidden"),
        "ImageUnauthorized",
        "name a Secret that may pull it in imagePullSecrets, and see that it is in this namespace",
    ),
    (
        ("not found", "manifest unknown", "notfound", "does not exist"),
        "ImageNotFound",
        "correct the image's name and tag",
    ),
    (
        ("no such host", "timeout", "connection refused", "tls", "x509"),
        "RegistryUnreachable",
        "see that the node reaches the registry",
    ),
)


def _image_fix(reason: str, text: str) -> tuple[str, str]:
    if reason == "InvalidImageName":
        return reason, "correct the image's name"
    lower = text.lower()
    for parts, code, fix in _IMAGE_TEXTS:
        if any(part in lower for part in parts):
            return code, fix
    return reason, "kubectl describe pod shows why the image cannot be pulled"
