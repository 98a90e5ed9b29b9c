"""The columns ``kubectl get`` shows for the built-in kinds, and what is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito_ctrl.devcluster.apiserver import printers_workloads as workloads
from kaito_ctrl.devcluster.apiserver.cells import created, name_of
from kaito_ctrl.devcluster.apiserver.kinds import Column
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.devcluster.apiserver.table import AGE, NAME, age
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
        name_of(obj),
    ]


def _namespace(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), (obj.get("status") or {}).get("phase", ""), created(obj, clock)]


def _configmap(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), len(obj.get("data") or {}) + len(obj.get("binaryData") or {}), created(obj, clock)]


def _secret(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), obj.get("type", ""), len(obj.get("data") or {}), created(obj, clock)]


def _serviceaccount(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), len(obj.get("secrets") or ()), created(obj, clock)]


def _lease(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), (obj.get("spec") or {}).get("holderIdentity") or "", created(obj, clock)]


def _endpoints(obj: Obj, clock: Clock) -> list[Any]:
    found: list[str] = []
    for subset in obj.get("subsets") or ():
        ports = subset.get("ports") or []
        for address in subset.get("addresses") or ():
            found += [f"{address['ip']}:{port['port']}" for port in ports] if ports else [address["ip"]]
    text = ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "")
    return [name_of(obj), text or "<none>", created(obj, clock)]


def _endpointslice(obj: Obj, clock: Clock) -> list[Any]:
    ports = [str(port.get("port", "*")) for port in obj.get("ports") or ()]
    found = [a for endpoint in obj.get("endpoints") or () for a in endpoint.get("addresses") or ()]
    more = f" + {len(found) - 3} more..." if len(found) > 3 else ""
    addresses = (",".join(found[:3]) + more) or "<unset>"
    return [name_of(obj), obj.get("addressType", ""), ",".join(ports) or "<unset>", addresses, created(obj, clock)]


def _pvc(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    bound = bool(spec.get("volumeName"))
    return [
        name_of(obj),
        phase,
        spec.get("volumeName", ""),
        (status.get("capacity") or {}).get("storage", "") if bound else "",
        _modes(status.get("accessModes") if bound else ()),
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or "<unset>",
        created(obj, clock),
        spec.get("volumeMode") or "<unset>",
    ]


def _modes(modes: Any) -> str:
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    return ",".join(short.get(mode, mode) for mode in modes or ())


def _pv(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    claim = spec.get("claimRef") or {}
    return [
        name_of(obj),
        (spec.get("capacity") or {}).get("storage", ""),
        _modes(spec.get("accessModes")),
        spec.get("persistentVolumeReclaimPolicy", ""),
        "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", ""),
        f"{claim.get('namespace', '')}/{claim['name']}" if claim.get("name") else "",
        spec.get("storageClassName", ""),
        spec.get("volumeAttributesClassName") or "<unset>",
        status.get("reason", ""),
        created(obj, clock),
        spec.get("volumeMode") or "<unset>",
    ]


def _storageclass(obj: Obj, clock: Clock) -> list[Any]:
    notes = obj["metadata"].get("annotations") or {}
    default = notes.get("storageclass.kubernetes.io/is-default-class") == "true"
    return [
        name_of(obj) + (" (default)" if default else ""),
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy", "Delete"),
        obj.get("volumeBindingMode", "Immediate"),
        bool(obj.get("allowVolumeExpansion")),
        created(obj, clock),
    ]


def _priorityclass(obj: Obj, clock: Clock) -> list[Any]:
    return [
        name_of(obj),
        obj.get("value", 0),
        bool(obj.get("globalDefault")),
        created(obj, clock),
        obj.get("preemptionPolicy", ""),
    ]


def _pdb(obj: Obj, clock: Clock) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    least, most = spec.get("minAvailable", "N/A"), spec.get("maxUnavailable", "N/A")
    return [name_of(obj), str(least), str(most), status.get("disruptionsAllowed", 0), created(obj, clock)]


def _webhooks(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), len(obj.get("webhooks") or ()), created(obj, clock)]


def _role(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), obj["metadata"].get("creationTimestamp", "")]


def _binding(obj: Obj, clock: Clock) -> list[Any]:
    ref = obj.get("roleRef") or {}
    subjects: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in obj.get("subjects") or ():
        name = (
            f"{subject.get('namespace')}/{subject['name']}" if subject["kind"] == "ServiceAccount" else subject["name"]
        )
        subjects.setdefault(subject["kind"], []).append(name)
    shown = [", ".join(subjects[kind]) for kind in ("User", "Group", "ServiceAccount")]
    return [name_of(obj), f"{ref.get('kind', '')}/{ref.get('name', '')}", created(obj, clock), *shown]


def _crd(obj: Obj, clock: Clock) -> list[Any]:
    return [name_of(obj), obj["metadata"].get("creationTimestamp", "")]


def _controllerrevision(obj: Obj, clock: Clock) -> list[Any]:
    owner = next((o for o in obj["metadata"].get("ownerReferences") or () if o.get("controller")), None)
    who = "<none>"
    if owner is not None:
        group = owner["apiVersion"].partition("/")[0] if "/" in owner["apiVersion"] else ""
        kind = owner["kind"].lower() + (f".{group}" if group else "")
        who = f"{kind}/{owner['name']}"
    return [name_of(obj), who, obj.get("revision", 0), created(obj, clock)]


def _p(columns: str, row: Cells) -> RowPrinter:
    return RowPrinter(_columns(columns), row)


PRINTERS: Mapping[str, RowPrinter] = {
    "Pod": _p("Name Ready Status Restarts Age IP* Node* Nominated_Node* Readiness_Gates*", workloads.pod_row),
    "Node": _p(
        "Name Status Roles Age Version Internal-IP* External-IP* OS-Image* Kernel-Version* Container-Runtime*",
        workloads.node_row,
    ),
    "Service": _p("Name Type Cluster-IP External-IP Port(s) Age Selector*", workloads.service_row),
    "Deployment": _p("Name Ready Up-to-date# Available# Age Containers* Images* Selector*", workloads.deployment_row),
    "ReplicaSet": _p("Name Desired# Current# Ready# Age Containers* Images* Selector*", workloads.replicaset_row),
    "StatefulSet": _p("Name Ready Age Containers* Images*", workloads.statefulset_row),
    "DaemonSet": _p(
        "Name Desired# Current# Ready# Up-to-date# Available# Node_Selector Age Containers* Images* Selector*",
        workloads.daemonset_row,
    ),
    "Job": _p("Name Status Completions Duration Age Containers* Images* Selector*", workloads.job_row),
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
