"""Rows of what runs: pods, nodes, services, and the kinds that make pods."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kaito_ctrl.devcluster.apiserver.cells import containers_text, created, labels_text, name_of, selector_text
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.table import age, human_duration
from kaito_ctrl.runtime.clock import Clock

__all__ = [
    "daemonset_row",
    "deployment_row",
    "job_row",
    "node_row",
    "pod_row",
    "replicaset_row",
    "service_row",
    "statefulset_row",
]


def _init_reason(status: Mapping[str, Any], count: int, index: int) -> str:
    state = status.get("state") or {}
    ended, waiting = state.get("terminated"), state.get("waiting")
    if ended is not None:
        if ended.get("reason"):
            return "Init:" + str(ended["reason"])
        return f"Init:Signal:{ended['signal']}" if ended.get("signal") else f"Init:ExitCode:{ended.get('exitCode', 0)}"
    if waiting is not None and waiting.get("reason") not in {None, "", "PodInitializing"}:
        return "Init:" + str(waiting["reason"])
    return f"Init:{index}/{count}"


def _pod_reason(obj: Obj) -> tuple[str, int, int, str]:
    """STATUS, ready containers, restarts and when the last one was, as ``kubectl`` has always derived them."""
    status = obj.get("status") or {}
    spec = obj.get("spec") or {}
    reason = status.get("reason") or status.get("phase") or "Unknown"
    if any(c.get("reason") == "SchedulingGated" for c in status.get("conditions") or ()):
        reason = "SchedulingGated"
    restarts, ready, last = 0, 0, ""
    inits = spec.get("initContainers") or []
    always = {c["name"] for c in inits if c.get("restartPolicy") == "Always"}
    initializing = False
    for index, container in enumerate(status.get("initContainerStatuses") or ()):
        restarts += container.get("restartCount", 0)
        ended = (container.get("state") or {}).get("terminated")
        if ended is not None and ended.get("exitCode", 0) == 0:
            continue
        if container["name"] in always and container.get("started"):
            ready += 1 if container.get("ready") else 0
            continue
        reason, initializing = _init_reason(container, len(inits), index), True
        break
    if not initializing or _initialized(status):
        running = False
        for container in reversed(status.get("containerStatuses") or []):
            restarts += container.get("restartCount", 0)
            finished = ((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt") or ""
            last = max(last, finished)
            state = container.get("state") or {}
            waiting, ended = state.get("waiting"), state.get("terminated")
            if waiting is not None and waiting.get("reason"):
                reason = waiting["reason"]
            elif ended is not None:
                reason = ended.get("reason") or (
                    f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"
                )
            elif container.get("ready") and state.get("running") is not None:
                running = True
                ready += 1
        if reason == "Completed" and running:
            conditions = status.get("conditions") or ()
            is_ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
            reason = "Running" if is_ready else "NotReady"
    if obj["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            reason = "Unknown"
        elif status.get("phase") not in {"Succeeded", "Failed"}:
            reason = "Terminating"
    return reason, ready, restarts, last


def _initialized(status: Mapping[str, Any]) -> bool:
    return any(c.get("type") == "Initialized" and c.get("status") == "True" for c in status.get("conditions") or ())


def pod_row(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    reason, ready, restarts, last = _pod_reason(obj)
    inits = spec.get("initContainers") or []
    total = len(spec.get("containers") or []) + sum(c.get("restartPolicy") == "Always" for c in inits)
    gates = spec.get("readinessGates") or []
    conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    gate_text = (
        f"{sum(conditions.get(g['conditionType']) == 'True' for g in gates)}/{len(gates)}" if gates else "<none>"
    )
    ip = status.get("podIP") or next((i["ip"] for i in status.get("podIPs") or ()), "") or "<none>"
    restarts_text = f"{restarts} ({age(last, clock)} ago)" if restarts and last else str(restarts)
    return [
        name_of(obj),
        f"{ready}/{total}",
        reason,
        restarts_text,
        created(obj, clock),
        ip,
        spec.get("nodeName") or "<none>",
        status.get("nominatedNodeName") or "<none>",
        gate_text,
    ]


def node_row(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    ready = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), None)
    words = ["Unknown" if ready is None else ("Ready" if ready.get("status") == "True" else "NotReady")]
    if spec.get("unschedulable"):
        words.append("SchedulingDisabled")
    roles = sorted(
        key.removeprefix("node-role.kubernetes.io/") if key.startswith("node-role.") else value
        for key, value in (obj["metadata"].get("labels") or {}).items()
        if key.startswith("node-role.kubernetes.io/") or (key == "kubernetes.io/role" and value)
    )
    addresses = {a["type"]: a["address"] for a in reversed(status.get("addresses") or [])}
    info = status.get("nodeInfo") or {}
    return [
        name_of(obj),
        ",".join(words),
        ",".join(role for role in roles if role) or "<none>",
        created(obj, clock),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def service_row(obj: Obj, clock: Clock) -> list[Any]:
    spec = obj.get("spec") or {}
    ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    external = spec.get("externalIPs") or []
    match spec.get("type"):
        case "LoadBalancer":
            shown = [i.get("ip") or i.get("hostname", "") for i in ingress] + external
            external_text = ",".join(shown) or "<pending>"
        case "ExternalName":
            external_text = spec.get("externalName", "")
        case _:
            external_text = ",".join(external) or "<none>"
    ports = ",".join(
        f"{p['port']}:{p['nodePort']}/{p.get('protocol', 'TCP')}"
        if p.get("nodePort")
        else f"{p['port']}/{p.get('protocol', 'TCP')}"
        for p in spec.get("ports") or ()
    )
    return [
        name_of(obj),
        spec.get("type", "ClusterIP"),
        spec.get("clusterIP") or "<none>",
        external_text,
        ports or "<none>",
        created(obj, clock),
        labels_text(spec.get("selector")),
    ]


def deployment_row(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = containers_text(spec.get("template") or {})
    return [
        name_of(obj),
        f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        created(obj, clock),
        names,
        images,
        selector_text(spec.get("selector")),
    ]


def replicaset_row(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = containers_text(spec.get("template") or {})
    return [
        name_of(obj),
        spec.get("replicas", 0),
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        created(obj, clock),
        names,
        images,
        selector_text(spec.get("selector")),
    ]


def statefulset_row(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = containers_text(spec.get("template") or {})
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}"
    return [name_of(obj), ready, created(obj, clock), names, images]


def daemonset_row(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = containers_text(spec.get("template") or {})
    counts = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady")
    return [
        name_of(obj),
        *(status.get(key, 0) for key in counts),
        status.get("updatedNumberScheduled", 0),
        status.get("numberAvailable", 0),
        labels_text((((spec.get("template") or {}).get("spec")) or {}).get("nodeSelector")),
        created(obj, clock),
        names,
        images,
        selector_text(spec.get("selector")),
    ]


def job_row(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = containers_text(spec.get("template") or {})
    done, wanted, parallel = status.get("succeeded", 0), spec.get("completions"), spec.get("parallelism") or 0
    if wanted is not None:
        completions = f"{done}/{wanted}"
    else:
        completions = f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"
    state = "Running"
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True":
            found = {
                "Complete": "Complete",
                "Failed": "Failed",
                "Suspended": "Suspended",
                "FailureTarget": "FailureTarget",
            }
            state = found.get(condition.get("type"), state)
    if obj["metadata"].get("deletionTimestamp"):
        state = "Terminating"
    duration = ""
    if status.get("startTime"):
        start = datetime.fromisoformat(status["startTime"])
        end = datetime.fromisoformat(status["completionTime"]) if status.get("completionTime") else clock.now()
        duration = human_duration((end - start).total_seconds())
    return [
        name_of(obj),
        state,
        completions,
        duration,
        created(obj, clock),
        names,
        images,
        selector_text(spec.get("selector")),
    ]
