"""Pods: defaults, quality of service, what may be changed, and how they are deleted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import FieldError, forbidden
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Strategy
from kaito_ctrl.devcluster.apiserver.meta import is_dns1123_label, validate_labels
from kaito_ctrl.devcluster.apiserver.pod_rules import probe_errors, resource_errors, toleration_errors
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = ["PodStrategy", "default_pod_spec", "pod_fields", "validate_pod_spec", "validate_template"]

_MUTABLE_TEXT = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_HOLD_SECONDS = 300
_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")


def default_pod_spec(spec: Obj) -> None:
    """The defaults of a pod's spec, also inside of templates."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]
    for key in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(key) or ():
            _default_container(container)
    for volume in spec.get("volumes") or ():
        _default_volume(volume)


def _default_container(container: Obj) -> None:
    image = container.get("image", "")
    latest = "@" not in image and (":" not in image.rpartition("/")[2] or image.endswith(":latest"))
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container.setdefault("resources", {})
    if resources.get("limits"):
        resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(key)
        if probe is not None:
            for field, value in (
                ("timeoutSeconds", 1),
                ("periodSeconds", 10),
                ("successThreshold", 1),
                ("failureThreshold", 3),
            ):
                probe[field] = probe.get(field) or value
            if probe.get("httpGet") is not None:
                _default_http(probe["httpGet"])
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict) and hook.get("httpGet") is not None:
            _default_http(hook["httpGet"])
    for variable in container.get("env") or ():
        reference = (variable.get("valueFrom") or {}).get("fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")


def _default_http(action: Obj) -> None:
    action.setdefault("path", "/")
    action.setdefault("scheme", "HTTP")


def _default_volume(volume: Obj) -> None:
    if volume.keys() == {"name"}:
        volume["emptyDir"] = {}
    for key in ("configMap", "secret", "projected", "downwardAPI"):
        if volume.get(key) is not None:
            volume[key].setdefault("defaultMode", 0o644)
    if volume.get("hostPath") is not None:
        volume["hostPath"].setdefault("type", "")
    for source in (volume.get("projected") or {}).get("sources") or ():
        if source.get("serviceAccountToken") is not None:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)


def _quality(spec: Mapping[str, Any]) -> str:
    """The quality of service class: it follows from requests and limits of cpu and memory alone."""
    every = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    guaranteed, asked = bool(every), False
    for container in every:
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in ("cpu", "memory"):
            asked = asked or name in requests or name in limits
            guaranteed = guaranteed and name in limits and requests.get(name) == limits[name]
    return "Guaranteed" if guaranteed else "Burstable" if asked else "BestEffort"


def validate_pod_spec(spec: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """What makes a pod impossible to run, as far as a development cluster needs to know."""
    containers = spec.get("containers") or []
    if not containers:
        yield FieldError.required(f"{path}.containers")
    volumes = {volume.get("name") for volume in spec.get("volumes") or ()}
    seen_volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        here = f"{path}.volumes[{index}]"
        name = volume.get("name") or ""
        if not name:
            yield FieldError.required(f"{here}.name")
        for text in is_dns1123_label(name) if name else ():
            yield FieldError.invalid(f"{here}.name", name, text)
        if name in seen_volumes:
            yield FieldError.duplicate(f"{here}.name", name)
        seen_volumes.add(name)
        if len(volume) > 2:
            extra = sorted(volume.keys() - {"name"})[1]
            yield FieldError.forbidden(f"{here}.{extra}", "may not specify more than 1 volume type")
    names: set[str] = set()
    for key in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(key) or ()):
            yield from _validate_container(container, f"{path}.{key}[{index}]", names, volumes)
    if spec.get("restartPolicy") not in {"Always", "OnFailure", "Never"}:
        yield FieldError.unsupported(
            f"{path}.restartPolicy", spec.get("restartPolicy"), ["Always", "Never", "OnFailure"]
        )
    if spec.get("dnsPolicy") not in _DNS_POLICIES:
        yield FieldError.unsupported(f"{path}.dnsPolicy", spec.get("dnsPolicy"), _DNS_POLICIES)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 0 < deadline < 2**31:
        why = "must be between 1 and 2147483647, inclusive"
        yield FieldError.invalid(f"{path}.activeDeadlineSeconds", deadline, why)
    yield from toleration_errors(spec.get("tolerations") or (), f"{path}.tolerations")
    yield from validate_labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")


def _validate_container(
    container: Mapping[str, Any], path: str, names: set[str], volumes: set[Any]
) -> Iterator[FieldError]:
    name = container.get("name") or ""
    if not name:
        yield FieldError.required(f"{path}.name")
    else:
        for text in is_dns1123_label(name):
            yield FieldError.invalid(f"{path}.name", name, text)
        if name in names:
            yield FieldError.duplicate(f"{path}.name", name)
        names.add(name)
    if not container.get("image"):
        yield FieldError.required(f"{path}.image")
    if container.get("imagePullPolicy") not in {"Always", "IfNotPresent", "Never"}:
        yield FieldError.unsupported(
            f"{path}.imagePullPolicy", container.get("imagePullPolicy"), ["Always", "IfNotPresent", "Never"]
        )
    yield from resource_errors(container.get("resources") or {}, f"{path}.resources")
    yield from probe_errors(container, path)
    for index, variable in enumerate(container.get("env") or ()):
        if not variable.get("name"):
            yield FieldError.required(f"{path}.env[{index}].name")
        if variable.get("value") and variable.get("valueFrom"):
            yield FieldError.invalid(
                f"{path}.env[{index}].valueFrom", "", "may not be specified when `value` is not empty"
            )
    for index, port in enumerate(container.get("ports") or ()):
        number = port.get("containerPort", 0)
        if not 0 < number < 65536:
            yield FieldError.invalid(
                f"{path}.ports[{index}].containerPort", number, "must be between 1 and 65535, inclusive"
            )
    mounts: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        here = f"{path}.volumeMounts[{index}]"
        if mount.get("name") not in volumes:
            yield FieldError("FieldValueNotFound", f"{here}.name", mount.get("name"))
        where = mount.get("mountPath") or ""
        if not where:
            yield FieldError.required(f"{here}.mountPath")
        elif where in mounts:
            yield FieldError.invalid(f"{here}.mountPath", where, "must be unique")
        mounts.add(where)


def validate_template(template: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """A pod template inside of a workload."""
    metadata = template.get("metadata") or {}
    yield from validate_labels(metadata.get("labels") or {}, f"{path}.metadata.labels")
    yield from validate_pod_spec(template.get("spec") or {}, f"{path}.spec")


def pod_fields(obj: Mapping[str, Any]) -> dict[str, str]:
    """The field selectors of pods."""
    metadata, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
    return {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata.get("namespace", ""),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.restartPolicy": spec.get("restartPolicy", ""),
        "spec.schedulerName": spec.get("schedulerName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "spec.hostNetwork": "true" if spec.get("hostNetwork") else "false",
        "status.phase": status.get("phase", ""),
        "status.podIP": status.get("podIP", ""),
        "status.nominatedNodeName": status.get("nominatedNodeName", ""),
    }


class PodStrategy(Strategy):
    """``v1 Pod``."""

    generation = False
    graceful = True

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        default_pod_spec(spec)
        spec.setdefault("enableServiceLinks", True)

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        spec = obj["spec"]
        spec.setdefault("serviceAccountName", "default")
        spec["serviceAccount"] = spec["serviceAccountName"]
        _use_account(obj, env)
        priority, policy = _priority(obj, env)
        spec.setdefault("priority", priority)
        spec.setdefault("preemptionPolicy", policy)
        tolerations = spec.setdefault("tolerations", [])
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
            if not any(_tolerates(t, key) for t in tolerations):
                tolerations.append(
                    {
                        "key": key,
                        "operator": "Exists",
                        "effect": "NoExecute",
                        "tolerationSeconds": _HOLD_SECONDS,
                    }
                )
        obj["status"] = {"phase": "Pending", "qosClass": _quality(spec)}

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        yield from validate_pod_spec(obj.get("spec") or {}, "spec")

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        before, after = old.get("spec") or {}, new.get("spec") or {}
        kept, now = before.get("tolerations") or [], after.get("tolerations") or []
        if any(toleration not in now for toleration in kept):
            yield FieldError.forbidden(
                "spec.tolerations", "existing toleration can not be modified except its tolerationSeconds"
            )
        if _frozen(before) != _frozen(after):
            yield FieldError.forbidden("spec", _MUTABLE_TEXT)

    def grace(self, obj: Obj, asked: int | None) -> int:
        spec = obj.get("spec") or {}
        period = asked if asked is not None else spec.get("terminationGracePeriodSeconds", 30)
        if not spec.get("nodeName") or (obj.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return 0
        return 1 if period < 0 else int(period)


def _tolerates(toleration: Mapping[str, Any], key: str) -> bool:
    same = toleration.get("key", "") in {key, ""} and toleration.get("effect", "") in {"NoExecute", ""}
    return same and (bool(toleration.get("key")) or toleration.get("operator") == "Exists")


def _frozen(spec: Mapping[str, Any]) -> Obj:
    """*spec* without what an update may change."""
    kept = {k: v for k, v in spec.items() if k not in {"tolerations", "activeDeadlineSeconds"}}
    for key in ("containers", "initContainers"):
        if key in kept:
            kept[key] = [{k: v for k, v in c.items() if k != "image"} for c in kept[key]]
    if kept.get("schedulingGates") is not None:
        del kept["schedulingGates"]
    return kept


def _use_account(obj: Obj, env: Environment) -> None:
    """Give a pod the pull secrets of its service account. Raises a 403 when that is not there."""
    metadata, account = obj["metadata"], obj["spec"]["serviceAccountName"]
    namespace = metadata.get("namespace", "")
    if (namespace, account) not in env.store.bucket("", "serviceaccounts").items:
        why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
        raise forbidden("", "pods", metadata.get("name") or "", why)
    secrets = env.store.bucket("", "serviceaccounts").items[namespace, account].obj.get("imagePullSecrets")
    if secrets and not obj["spec"].get("imagePullSecrets"):
        obj["spec"]["imagePullSecrets"] = [dict(secret) for secret in secrets]


def _priority(obj: Obj, env: Environment) -> tuple[int, str]:
    """Value and preemption policy of a pod's priority class. Raises a 403 for one that is not there."""
    name = obj["spec"].get("priorityClassName")
    classes = env.store.bucket("scheduling.k8s.io", "priorityclasses").items
    if name:
        found = classes.get(("", name))
        if found is not None:
            return int(found.obj.get("value", 0)), found.obj.get("preemptionPolicy", "PreemptLowerPriority")
        why = f"no PriorityClass with name {name} was found"
        raise forbidden("", "pods", obj["metadata"].get("name") or "", why)
    for stored in classes.values():
        if stored.obj.get("globalDefault"):
            return int(stored.obj.get("value", 0)), stored.obj.get("preemptionPolicy", "PreemptLowerPriority")
    return 0, "PreemptLowerPriority"
