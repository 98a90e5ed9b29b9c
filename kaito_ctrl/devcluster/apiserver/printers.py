"""The columns ``kubectl get`` shows for the built-in kinds, and what is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kaito_ctrl.devcluster.apiserver.kinds import Column
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.table import AGE, NAME, age, human_duration
from kaito_ctrl.runtime.clock import Clock

__all__ = ["PRINTERS", "Cells", "RowPrinter"]

Cells = Callable[[Obj, Clock], list[Any]]


@dataclass(frozen=True, slots=True)
class RowPrinter:
    """NAME, the kind's own columns, and AGE (unless it places it itself)."""

    columns: tuple[Column, ...]
    row: Cells

    def cells(self, obj: Obj, clock: Clock) -> list[Any]:
        return self.row(obj, clock)


def _columns(text: str) -> tuple[Column, ...]:
    """``Name Ready Age IP*``: a star marks those for ``-o wide``; ``#`` an integer."""
    columns = []
    for word in text.split():
        title = word.rstrip("*#").replace("_", " ")
        if title == "Name":
            columns.append(NAME)
        elif title == "Age":
            columns.append(AGE)
        else:
            columns.append(Column(title, "integer" if "#" in word else "string", priority=1 if "*" in word else 0))
    return tuple(columns)


def _created(obj: Obj, clock: Clock) -> str:
    return age(obj["metadata"].get("creationTimestamp"), clock)


def _name(obj: Obj) -> str:
    name: str = obj["metadata"]["name"]
    return name


def _labels(labels: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or "<none>"


def _selector(selector: Mapping[str, Any] | None) -> str:
    if not selector:
        return "<none>"
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for term in selector.get("matchExpressions") or ():
        values = ",".join(term.get("values") or ())
        match term["operator"]:
            case "In":
                parts.append(f"{term['key']} in ({values})")
            case "NotIn":
                parts.append(f"{term['key']} notin ({values})")
            case "Exists":
                parts.append(term["key"])
            case _:
                parts.append("!" + term["key"])
    return ",".join(parts) or "<none>"


def _containers(template: Mapping[str, Any]) -> tuple[str, str]:
    found = (template.get("spec") or {}).get("containers") or []
    return ",".join(c["name"] for c in found), ",".join(c.get("image", "") for c in found)


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


def _pod(obj: Obj, clock: Clock) -> list[Any]:
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
        _name(obj),
        f"{ready}/{total}",
        reason,
        restarts_text,
        _created(obj, clock),
        ip,
        spec.get("nodeName") or "<none>",
        status.get("nominatedNodeName") or "<none>",
        gate_text,
    ]


def _node(obj: Obj, clock: Clock) -> list[Any]:
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
        _name(obj),
        ",".join(words),
        ",".join(role for role in roles if role) or "<none>",
        _created(obj, clock),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def _service(obj: Obj, clock: Clock) -> list[Any]:
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
        _name(obj),
        spec.get("type", "ClusterIP"),
        spec.get("clusterIP") or "<none>",
        external_text,
        ports or "<none>",
        _created(obj, clock),
        _labels(spec.get("selector")),
    ]


def _deployment(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = _containers(spec.get("template") or {})
    return [
        _name(obj),
        f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}",
        status.get("updatedReplicas", 0),
        status.get("availableReplicas", 0),
        _created(obj, clock),
        names,
        images,
        _selector(spec.get("selector")),
    ]


def _replicaset(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = _containers(spec.get("template") or {})
    return [
        _name(obj),
        spec.get("replicas", 0),
        status.get("replicas", 0),
        status.get("readyReplicas", 0),
        _created(obj, clock),
        names,
        images,
        _selector(spec.get("selector")),
    ]


def _statefulset(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = _containers(spec.get("template") or {})
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 0)}"
    return [_name(obj), ready, _created(obj, clock), names, images]


def _daemonset(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = _containers(spec.get("template") or {})
    counts = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady")
    return [
        _name(obj),
        *(status.get(key, 0) for key in counts),
        status.get("updatedNumberScheduled", 0),
        status.get("numberAvailable", 0),
        _labels((((spec.get("template") or {}).get("spec")) or {}).get("nodeSelector")),
        _created(obj, clock),
        names,
        images,
        _selector(spec.get("selector")),
    ]


def _job(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    names, images = _containers(spec.get("template") or {})
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
        _name(obj),
        state,
        completions,
        duration,
        _created(obj, clock),
        names,
        images,
        _selector(spec.get("selector")),
    ]


def _event(obj: Obj, clock: Clock) -> list[Any]:
    core = "involvedObject" in obj
    about = obj.get("involvedObject" if core else "regarding") or {}
    series = obj.get("series") or {}
    first = obj.get("firstTimestamp" if core else "deprecatedFirstTimestamp") or obj.get("eventTime")
    last = series.get("lastObservedTime") or obj.get("lastTimestamp" if core else "deprecatedLastTimestamp") or first
    source = obj.get("source" if core else "deprecatedSource") or {}
    where = source.get("component") or obj.get("reportingComponent" if core else "reportingController") or ""
    if source.get("host"):
        where += f", {source['host']}"
    target = f"{about.get('kind', '').lower()}/{about['name']}" if about.get("name") else about.get("kind", "").lower()
    message = obj.get("message" if core else "note") or ""
    count = series.get("count") or obj.get("count" if core else "deprecatedCount") or 1
    created = obj["metadata"].get("creationTimestamp")
    return [
        age(last or created, clock),
        obj.get("type", ""),
        obj.get("reason", ""),
        target,
        about.get("fieldPath", ""),
        where,
        message.strip(),
        age(first or created, clock),
        count,
        _name(obj),
    ]


def _namespace(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), (obj.get("status") or {}).get("phase", ""), _created(obj, clock)]


def _configmap(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), len(obj.get("data") or {}) + len(obj.get("binaryData") or {}), _created(obj, clock)]


def _secret(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), obj.get("type", ""), len(obj.get("data") or {}), _created(obj, clock)]


def _serviceaccount(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), len(obj.get("secrets") or ()), _created(obj, clock)]


def _lease(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), (obj.get("spec") or {}).get("holderIdentity") or "", _created(obj, clock)]


def _endpoints(obj: Obj, clock: Clock) -> list[Any]:
    found: list[str] = []
    for subset in obj.get("subsets") or ():
        ports = subset.get("ports") or []
        for address in subset.get("addresses") or ():
            found += [f"{address['ip']}:{port['port']}" for port in ports] if ports else [address["ip"]]
    text = ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "")
    return [_name(obj), text or "<none>", _created(obj, clock)]


def _endpointslice(obj: Obj, clock: Clock) -> list[Any]:
    ports = [str(port.get("port", "*")) for port in obj.get("ports") or ()]
    found = [a for endpoint in obj.get("endpoints") or () for a in endpoint.get("addresses") or ()]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    addresses = (",".join(found[:3]) + more) or "<unset>"
    return [_name(obj), obj.get("addressType", ""), ",".join(ports) or "<unset>", addresses, _created(obj, clock)]


def _pvc(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    bound = bool(spec.get("volumeName"))
    return [
        _name(obj),
        phase,
        spec.get("volumeName", ""),
        (status.get("capacity") or {}).get("storage", "") if bound else "",
        _modes(status.get("accessModes") if bound else ()),
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        _created(obj, clock),
        spec.get("volumeMode") or "<unset>",
    ]


def _modes(modes: Any) -> str:
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    return ",".join(short.get(mode, mode) for mode in modes or ())


def _pv(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    claim = spec.get("claimRef") or {}
    return [
        _name(obj),
        (spec.get("capacity") or {}).get("storage", ""),
        _modes(spec.get("accessModes")),
        spec.get("persistentVolumeReclaimPolicy", ""),
        "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", ""),
        f"{claim.get('namespace', '')}/{claim['name']}" if claim.get("name") else "",
        spec.get("storageClassName", ""),
        spec.get("volumeAttributesClassName") or "<unset>",
        status.get("reason", ""),
        _created(obj, clock),
        spec.get("volumeMode") or "<unset>",
    ]


def _storageclass(obj: Obj, clock: Clock) -> list[Any]:
    notes = obj["metadata"].get("annotations") or {}
    default = notes.get("storageclass.kubernetes.io/is-default-class") == "true"
    return [
        _name(obj) + (" (default)" if default else ""),
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy", "Delete"),
        obj.get("volumeBindingMode", "Immediate"),
        bool(obj.get("allowVolumeExpansion")),
        _created(obj, clock),
    ]


def _priorityclass(obj: Obj, clock: Clock) -> list[Any]:
    return [
        _name(obj),
        obj.get("value", 0),
        bool(obj.get("globalDefault")),
        _created(obj, clock),
        obj.get("preemptionPolicy", ""),
    ]


def _pdb(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    least, most = spec.get("minAvailable", "N/A"), spec.get("maxUnavailable", "N/A")
    return [_name(obj), str(least), str(most), status.get("disruptionsAllowed", 0), _created(obj, clock)]


def _webhooks(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), len(obj.get("webhooks") or ()), _created(obj, clock)]


def _role(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), obj["metadata"].get("creationTimestamp", "")]


def _binding(obj: Obj, clock: Clock) -> list[Any]:
    ref = obj.get("roleRef") or {}
    subjects: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in obj.get("subjects") or ():
        name = (
            f"{subject.get('namespace')}/{subject['name']}" if subject["kind"] == "ServiceAccount" else subject["name"]
        )
        subjects.setdefault(subject["kind"], []).append(name)
    shown = [", ".join(subjects[kind]) for kind in ("User", "Group", "ServiceAccount")]
    return [_name(obj), f"{ref.get('kind', '')}/{ref.get('name', '')}", _created(obj, clock), *shown]


def _crd(obj: Obj, clock: Clock) -> list[Any]:
    return [_name(obj), obj["metadata"].get("creationTimestamp", "")]


def _controllerrevision(obj: Obj, clock: Clock) -> list[Any]:
    owner = next((o for o in obj["metadata"].get("ownerReferences") or () if o.get("controller")), None)
    who = "<none>"
    if owner is not None:
        group = owner["apiVersion"].partition("/")[0] if "/" in owner["apiVersion"] else ""
        kind = owner["kind"].lower() + (f".{group}" if group else "")
        who = f"{kind}/{owner['name']}"
    return [_name(obj), who, obj.get("revision", 0), _created(obj, clock)]


def _p(columns: str, row: Cells) -> RowPrinter:
    return RowPrinter(_columns(columns), row)


PRINTERS: Mapping[str, RowPrinter] = {
    "Pod": _p("Name Ready Status Restarts Age IP* Node* Nominated_Node* Readiness_Gates*", _pod),
    "Node": _p(
        "Name Status Roles Age Version Internal-IP* External-IP* OS-Image* Kernel-Version* Container-Runtime*", _node
    ),
    "Service": _p("Name Type Cluster-IP External-IP Port(s) Age Selector*", _service),
    "Deployment": _p("Name Ready Up-to-date# Available# Age Containers* Images* Selector*", _deployment),
    "ReplicaSet": _p("Name Desired# Current# Ready# Age Containers* Images* Selector*", _replicaset),
    "StatefulSet": _p("Name Ready Age Containers* Images*", _statefulset),
    "DaemonSet": _p(
        "Name Desired# Current# Ready# Up-to-date# Available# Node_Selector Age Containers* Images* Selector*",
        _daemonset,
    ),
    "Job": _p("Name Status Completions Duration Age Containers* Images* Selector*", _job),
    "Event": _p("Last_Seen Type Reason Object Subobject* Source* Message First_Seen* Count*# Name*", _event),
    "Namespace": _p("Name Status Age", _namespace),
    "ConfigMap": _p("Name Data# Age", _configmap),
    "Secret": _p("Name Type Data# Age", _secret),
    "ServiceAccount": _p("Name Secrets# Age", _serviceaccount),
    "Lease": _p("Name Holder Age", _lease),
    "Endpoints": _p("Name Endpoints Age", _endpoints),
    "EndpointSlice": _p("Name AddressType Ports Endpoints Age", _endpointslice),
    "PersistentVolumeClaim": _p(
        "Name Status Volume Capacity Access_Modes StorageClass VolumeAttributesClass Age VolumeMode*", _pvc
    ),
    "PersistentVolume": _p(
        "Name Capacity Access_Modes Reclaim_Policy Status Claim StorageClass VolumeAttributesClass Reason Age "
        "VolumeMode*",
        _pv,
    ),
    "StorageClass": _p("Name Provisioner ReclaimPolicy VolumeBindingMode AllowVolumeExpansion Age", _storageclass),
    "PriorityClass": _p("Name Value# Global-Default Age PreemptionPolicy", _priorityclass),
    "PodDisruptionBudget": _p("Name Min_Available Max_Unavailable Allowed_Disruptions# Age", _pdb),
    "ValidatingWebhookConfiguration": _p("Name Webhooks# Age", _webhooks),
    "MutatingWebhookConfiguration": _p("Name Webhooks# Age", _webhooks),
    "Role": _p("Name Created_At", _role),
    "ClusterRole": _p("Name Created_At", _role),
    "RoleBinding": _p("Name Role Age Users* Groups* ServiceAccounts*", _binding),
    "ClusterRoleBinding": _p("Name Role Age Users* Groups* ServiceAccounts*", _binding),
    "CustomResourceDefinition": _p("Name Created_At", _crd),
    "ControllerRevision": _p("Name Controller Revision# Age", _controllerrevision),
}
