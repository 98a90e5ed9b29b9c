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
from kaito_api.karpenter import Machine
from kaito_api.meta import Condition, find_condition, is_true
from kaito_api.workspace import StageName, Workspace
from kaito_ctrl.reconcilers.names import GPU_RESOURCE
from kaito_ctrl.reconcilers.workspace.nodes import required_labels

__all__ = [
    "SETTLING",
    "UNDER_WAY",
    "UNNOTICED",
    "Finding",
    "near_misses",
    "of_machine",
    "of_node",
    "of_pod",
    "of_workload",
]

UNDER_WAY = frozenset({"", "AwaitingReconciliation", "Launching"})
"""Why a machine may not be launched yet without anything being wrong."""
UNNOTICED = 60.0
"""Seconds after which a machine that nobody has written a condition to has no provisioner."""
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


def of_machine(machine: Machine, now: datetime) -> Finding | None:
    """Why *machine* has no usable node."""
    conditions, source = machine.status.conditions, str(machine)
    if machine.deleting:
        return Finding(
            "MachineLaunched", "MachineDeleting", source, "is being deleted", "wait: another one is asked for after it"
        )
    if not conditions:
        since = machine.metadata.creation_timestamp
        if since is None or (now - since).total_seconds() < UNNOTICED:
            return None
        return Finding(
            "CapacityReserved",
            "NoProvisioner",
            source,
            "no controller has looked at it",
            "run a provisioner for Machines: kaito-ctrl run --provisioner, gpu-provisioner or Karpenter",
        )
    launched = find_condition(conditions, "MachineLaunched")
    if launched is not None and launched.status != "True":
        if launched.status == "Unknown" and launched.reason in UNDER_WAY:
            return None
        code, fix = _launch_fix(launched)
        return Finding("CapacityReserved", code, source, launched.message or launched.reason, fix)
    registered = find_condition(conditions, "MachineRegistered")
    if registered is not None and registered.status == "False":
        return Finding("NodeRegistered", registered.reason, source, registered.message, "delete the nodes but one")
    initialized = find_condition(conditions, "MachineInitialized")
    if initialized is None or initialized.status == "True" or initialized.reason == "NodeNotFound":
        return None
    joined = registered.last_transition_time if registered is not None else None
    if joined is not None and (now - joined).total_seconds() < SETTLING:
        return None
    fix = _INITIALIZATION_FIXES.get(initialized.reason, "")
    node = machine.status.node_name
    return Finding("NodeInitialized", initialized.reason, f"Node {node}", initialized.message, fix.format(node=node))


_LAUNCH_FIXES = {
    "QuotaExceeded": "ask the cloud for more quota of this family, or use another instance type or region",
    "InsufficientCapacity": "wait, or use another instance type, zone or region: the request is repeated",
    "UnknownInstanceType": "use an instance type that this region offers",
    "Throttled": "nothing: the request is repeated as the cloud asks",
    "Unauthorized": "give the provisioner's identity the right to create machines",
    "LaunchFailed": "see the provisioner's log",
}
_LAUNCH_TEXTS = (
    ("all requested instance types were unavailable", "InsufficientCapacity"),
    ("quota", "QuotaExceeded"),
    ("sku", "UnknownInstanceType"),
    ("authorization", "Unauthorized"),
)


def _launch_fix(launched: Condition) -> tuple[str, str]:
    """By the reason where it says enough; other provisioners say it in the message."""
    if launched.reason in _LAUNCH_FIXES and launched.reason != "LaunchFailed":
        return launched.reason, _LAUNCH_FIXES[launched.reason]
    text = launched.message.lower()
    code = next((code for part, code in _LAUNCH_TEXTS if part in text), "LaunchFailed")
    return code if code != "LaunchFailed" else launched.reason or code, _LAUNCH_FIXES[code]


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
