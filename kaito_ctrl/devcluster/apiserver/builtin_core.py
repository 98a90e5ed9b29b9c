"""The rules of the other built-in kinds: services, nodes, namespaces, secrets, volumes, events, policies."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Strategy
from kaito_ctrl.devcluster.apiserver.meta import is_dns1035, is_dns1123_label, path_segment_errors
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = [
    "BindingStrategy",
    "ConfigMapStrategy",
    "CreatableOnUpdate",
    "EndpointsStrategy",
    "EventStrategy",
    "NamespaceStrategy",
    "NodeStrategy",
    "PdbStrategy",
    "PersistentVolumeStrategy",
    "Plain",
    "PriorityClassStrategy",
    "PvcStrategy",
    "RbacStrategy",
    "SecretStrategy",
    "ServiceStrategy",
    "StorageClassStrategy",
    "WebhookStrategy",
    "event_fields",
    "events_v1_from_core",
    "events_v1_to_core",
    "namespace_fields",
    "node_fields",
    "secret_fields",
]


class Plain(Strategy):
    """A kind without ``metadata.generation`` and without rules of its own."""

    generation = False


class CreatableOnUpdate(Plain):
    """A PUT to a name that does not exist creates it: Lease, Endpoints, LimitRange."""

    create_on_update = True


class EventStrategy(CreatableOnUpdate):
    """``v1 Event``."""

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        namespace = obj["metadata"].get("namespace")
        about = (obj.get("involvedObject") or {}).get("namespace") or ""
        if about and about != namespace:
            yield FieldError.invalid("involvedObject.namespace", about, "does not match event.namespace")


class ServiceStrategy(Plain):
    """``v1 Service``: ports, families, and the cluster IP."""

    def name_errors(self, name: str) -> list[str]:
        return is_dns1035(name)

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("sessionAffinity", "None")
        if spec["sessionAffinity"] == "ClientIP":
            client = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
            client.setdefault("timeoutSeconds", 10800)
        kind = spec.setdefault("type", "ClusterIP")
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in (None, 0, ""):
                port["targetPort"] = port.get("port", 0)
        if kind != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
        if kind in {"NodePort", "LoadBalancer"}:
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if kind == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
        if spec.get("clusterIPs") and not spec.get("clusterIP"):
            spec["clusterIP"] = spec["clusterIPs"][0]
        elif spec.get("clusterIP") and not spec.get("clusterIPs"):
            spec["clusterIPs"] = [spec["clusterIP"]]
        for key in ("clusterIP",):
            if spec.get(key) == "":
                del spec[key]

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"loadBalancer": {}}

    def allocate(self, obj: Obj, env: Environment, old: Obj | None = None) -> Iterator[FieldError]:
        """Give the service its addresses and node ports; runs once everything else is known to be right."""
        spec = obj["spec"]
        if spec["type"] == "ExternalName":
            spec.pop("clusterIPs", None)
            return
        spec.setdefault("ipFamilies", [getattr(env.addresses, "family", "IPv4")])
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        if spec.get("clusterIP") != "None" and (old is None or not old["spec"].get("clusterIP")):
            wanted = spec.get("clusterIP") or ""
            try:
                spec["clusterIP"] = env.addresses.take(wanted)
            except ValueError as error:
                yield FieldError.invalid("spec.clusterIPs", [wanted], str(error))
                return
        spec["clusterIPs"] = [spec["clusterIP"]]
        if spec["type"] in {"NodePort", "LoadBalancer"}:
            self._node_ports(spec, env)

    def _node_ports(self, spec: Obj, env: Environment) -> None:
        taken = {
            port.get("nodePort")
            for stored in env.store.bucket("", "services").items.values()
            for port in stored.obj["spec"].get("ports") or ()
        }
        for port in spec.get("ports") or ():
            while not port.get("nodePort"):
                candidate = 30000 + env.rng.randrange(2768)
                if candidate not in taken:
                    port["nodePort"] = candidate
                    taken.add(candidate)

    def prepare_update(self, new: Obj, old: Obj, env: Environment) -> None:
        after, before = new["spec"], old["spec"]
        if after["type"] == "ExternalName" or before.get("type") == "ExternalName":
            return
        # Callers that replace a service without these keep them.
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if not after.get(key) and before.get(key):
                after[key] = before[key]
        if after["type"] in {"NodePort", "LoadBalancer"}:
            known = {(p.get("name", ""), p["port"]): p.get("nodePort") for p in before.get("ports") or ()}
            for port in after.get("ports") or ():
                kept = known.get((port.get("name", ""), port.get("port")))
                if kept and not port.get("nodePort"):
                    port["nodePort"] = kept

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        spec = obj["spec"]
        kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]
        if spec["type"] not in kinds:
            yield FieldError.unsupported("spec.type", spec["type"], kinds)
        headless = spec.get("clusterIP") == "None"
        ports = spec.get("ports") or []
        if spec["type"] == "ExternalName":
            if not spec.get("externalName"):
                yield FieldError.required("spec.externalName")
            return
        if not ports and not headless:
            yield FieldError.required("spec.ports")
        names: set[str] = set()
        seen: set[tuple[Any, Any]] = set()
        for index, port in enumerate(ports):
            path = f"spec.ports[{index}]"
            name = port.get("name") or ""
            if len(ports) > 1 and not name:
                yield FieldError.required(f"{path}.name")
            if name:
                for text in is_dns1123_label(name):
                    yield FieldError.invalid(f"{path}.name", name, text)
                if name in names:
                    yield FieldError.duplicate(f"{path}.name", name)
                names.add(name)
            number = port.get("port", 0)
            if not 0 < number < 65536:
                yield FieldError.invalid(f"{path}.port", number, "must be between 1 and 65535, inclusive")
            if (number, port["protocol"]) in seen:
                yield FieldError.duplicate(path, {"port": number, "protocol": port["protocol"]})
            seen.add((number, port["protocol"]))
            if port["protocol"] not in {"TCP", "UDP", "SCTP"}:
                yield FieldError.unsupported(f"{path}.protocol", port["protocol"], ["SCTP", "TCP", "UDP"])

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        after, before = new["spec"], old["spec"]
        fixed = before.get("clusterIP")
        external = "ExternalName" in {before.get("type"), after["type"]}
        if fixed and not external and after.get("clusterIP") != fixed:
            yield FieldError.invalid("spec.clusterIPs[0]", [after.get("clusterIP")], "may not change once set")

    def released(self, obj: Obj, env: Environment) -> None:
        address = obj["spec"].get("clusterIP")
        if address and address != "None":
            env.addresses.release(address)


class NodeStrategy(Plain):
    """``v1 Node``."""

    keeps_status = True

    def default(self, obj: Obj) -> None:
        obj.setdefault("spec", {})
        status = obj.get("status")
        if status and status.get("capacity") and not status.get("allocatable"):
            status["allocatable"] = dict(status["capacity"])

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj.setdefault("status", {})

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        before = (old.get("spec") or {}).get("providerID")
        after = (new.get("spec") or {}).get("providerID")
        if before and before != after:
            yield FieldError.forbidden(
                "spec.providerID", 'node updates may not change providerID except from "" to valid'
            )


def node_fields(obj: Mapping[str, Any]) -> dict[str, str]:
    return {
        "metadata.name": obj["metadata"]["name"],
        "spec.unschedulable": "true" if (obj.get("spec") or {}).get("unschedulable") else "false",
    }


class NamespaceStrategy(Plain):
    """``v1 Namespace``: the ``kubernetes`` finalizer in its spec holds it until its contents are gone."""

    def name_errors(self, name: str) -> list[str]:
        return is_dns1123_label(name)

    def default(self, obj: Obj) -> None:
        metadata = obj["metadata"]
        if metadata.get("name"):
            metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        finalizers = (obj.get("spec") or {}).get("finalizers") or []
        obj["spec"] = {"finalizers": [*(f for f in finalizers if f != "kubernetes"), "kubernetes"]}
        obj["status"] = {"phase": "Active"}

    def prepare_update(self, new: Obj, old: Obj, env: Environment) -> None:
        # Only the finalize subresource takes these away.
        new["spec"] = {**(new.get("spec") or {}), "finalizers": (old.get("spec") or {}).get("finalizers") or []}


def namespace_fields(obj: Mapping[str, Any]) -> dict[str, str]:
    return {"metadata.name": obj["metadata"]["name"], "status.phase": (obj.get("status") or {}).get("phase", "")}


class ConfigMapStrategy(Plain):
    """``v1 ConfigMap``."""

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        if not old.get("immutable"):
            return
        if not new.get("immutable"):
            yield FieldError.forbidden("immutable", "field is immutable when `immutable` is set")
        for key in ("data", "binaryData"):
            if new.get(key) != old.get(key):
                yield FieldError.forbidden(key, "field is immutable when `immutable` is set")


class SecretStrategy(Plain):
    """``v1 Secret``: ``stringData`` is written into ``data``."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("type", "Opaque")
        text = obj.pop("stringData", None)
        if text:
            data = dict(obj.get("data") or {})
            data.update({key: base64.b64encode(value.encode()).decode() for key, value in text.items()})
            obj["data"] = data

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        data = obj.get("data") or {}
        for key, value in data.items():
            try:
                base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                yield FieldError.invalid(f"data[{key}]", "<secret contents redacted>", "must be base64")
        needed = {
            "kubernetes.io/dockerconfigjson": [".dockerconfigjson"],
            "kubernetes.io/tls": ["tls.crt", "tls.key"],
        }
        for key in needed.get(obj["type"], ()):
            if key not in data:
                yield FieldError.required(f"data[{key}]")

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        if new.get("type") != old.get("type"):
            yield FieldError.invalid("type", new.get("type"), "field is immutable")
        if old.get("immutable"):
            if not new.get("immutable"):
                yield FieldError.forbidden("immutable", "field is immutable when `immutable` is set")
            if new.get("data") != old.get("data"):
                yield FieldError.forbidden("data", "field is immutable when `immutable` is set")


def secret_fields(obj: Mapping[str, Any]) -> dict[str, str]:
    metadata = obj["metadata"]
    return {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata.get("namespace", ""),
        "type": obj.get("type", ""),
    }


class EndpointsStrategy(CreatableOnUpdate):
    """``v1 Endpoints``."""

    def default(self, obj: Obj) -> None:
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                port.setdefault("protocol", "TCP")


class PvcStrategy(Plain):
    """``v1 PersistentVolumeClaim``."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"phase": "Pending"}
        if "storageClassName" not in obj["spec"]:
            marker = "storageclass.kubernetes.io/is-default-class"
            for stored in env.store.bucket("storage.k8s.io", "storageclasses").items.values():
                if (stored.obj["metadata"].get("annotations") or {}).get(marker) == "true":
                    obj["spec"]["storageClassName"] = stored.key[1]


class PersistentVolumeStrategy(Plain):
    """``v1 PersistentVolume``."""

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
        spec.setdefault("volumeMode", "Filesystem")

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"phase": "Pending"}


class StorageClassStrategy(Plain):
    """``storage.k8s.io/v1 StorageClass``."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("reclaimPolicy", "Delete")
        obj.setdefault("volumeBindingMode", "Immediate")

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        for key in ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"):
            if new.get(key) != old.get(key):
                yield FieldError.forbidden(key, f"updates to {key} are forbidden.")


class PriorityClassStrategy(Strategy):
    """``scheduling.k8s.io/v1 PriorityClass``."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("preemptionPolicy", "PreemptLowerPriority")

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        if new.get("value") != old.get("value"):
            yield FieldError.forbidden("value", "may not be changed in an update.")


class PdbStrategy(Strategy):
    """``policy/v1 PodDisruptionBudget``."""

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        obj["status"] = {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}


class RbacStrategy(Plain):
    """Roles: their names may hold colons and capitals."""

    create_on_update = True

    def name_errors(self, name: str) -> list[str]:
        return path_segment_errors(name)


class BindingStrategy(RbacStrategy):
    """Role bindings: what they bind never changes."""

    def default(self, obj: Obj) -> None:
        for subject in obj.get("subjects") or ():
            if not subject.get("apiGroup"):
                if subject.get("kind") == "ServiceAccount":
                    subject.pop("apiGroup", None)
                else:
                    subject["apiGroup"] = "rbac.authorization.k8s.io"
        if obj.get("roleRef"):
            obj["roleRef"].setdefault("apiGroup", "rbac.authorization.k8s.io")

    def validate_update(self, new: Obj, old: Obj) -> Iterator[FieldError]:
        if new.get("roleRef") != old.get("roleRef"):
            yield FieldError.invalid("roleRef", new.get("roleRef"), "cannot change roleRef")


class WebhookStrategy(Strategy):
    """Validating and mutating webhook configurations."""

    def __init__(self, *, mutating: bool) -> None:
        self._mutating = mutating

    def default(self, obj: Obj) -> None:
        for webhook in obj.get("webhooks") or ():
            webhook.setdefault("failurePolicy", "Fail")
            webhook.setdefault("matchPolicy", "Equivalent")
            webhook.setdefault("namespaceSelector", {})
            webhook.setdefault("objectSelector", {})
            webhook.setdefault("timeoutSeconds", 10)
            if self._mutating:
                webhook.setdefault("reinvocationPolicy", "Never")
            service = (webhook.get("clientConfig") or {}).get("service")
            if service is not None:
                service.setdefault("port", 443)
            for rule in webhook.get("rules") or ():
                rule.setdefault("scope", "*")

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        for index, webhook in enumerate(obj.get("webhooks") or ()):
            path = f"webhooks[{index}]"
            if webhook.get("sideEffects") not in {"None", "NoneOnDryRun"}:
                yield FieldError.unsupported(
                    f"{path}.sideEffects", webhook.get("sideEffects", ""), ["None", "NoneOnDryRun"]
                )
            if "v1" not in (webhook.get("admissionReviewVersions") or ()):
                yield FieldError.invalid(
                    f"{path}.admissionReviewVersions",
                    webhook.get("admissionReviewVersions") or [],
                    "must include at least one of v1, v1beta1",
                )
            if len((webhook.get("name") or "").split(".")) < 3:
                yield FieldError.invalid(
                    f"{path}.name",
                    webhook.get("name"),
                    "should be a domain with at least three segments separated by dots",
                )

    def spec_changed(self, new: Obj, old: Obj) -> bool:
        return bool(new.get("webhooks") != old.get("webhooks"))


_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}
_EVENT_NAMES_BACK = {new: old for old, new in _EVENT_NAMES.items()}


def events_v1_from_core(obj: Obj) -> Obj:
    """``v1 Event`` as ``events.k8s.io/v1`` shows it."""
    return {**{_EVENT_NAMES.get(key, key): value for key, value in obj.items()}, "apiVersion": "events.k8s.io/v1"}


def events_v1_to_core(obj: Obj) -> Obj:
    """The other way."""
    return {**{_EVENT_NAMES_BACK.get(key, key): value for key, value in obj.items()}, "apiVersion": "v1"}


def event_fields(obj: Mapping[str, Any]) -> dict[str, str]:
    """The field selectors of events, under the names of both groups."""
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    metadata = obj["metadata"]
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    fields = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata.get("namespace", ""),
        "reason": obj.get("reason", ""),
        "type": obj.get("type", ""),
        "source": source.get("component", "") or obj.get("reportingComponent", ""),
        "reportingComponent": obj.get("reportingComponent") or obj.get("reportingController") or "",
    }
    for key in ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"):
        fields[f"involvedObject.{key}"] = fields[f"regarding.{key}"] = about.get(key, "")
    return fields
