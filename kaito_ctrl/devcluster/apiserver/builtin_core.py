"""The rules of the other built-in kinds: nodes, namespaces, secrets, volumes, policies."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kaito_ctrl.devcluster.apiserver.errors import FieldError
from kaito_ctrl.devcluster.apiserver.kinds import Environment, Strategy
from kaito_ctrl.devcluster.apiserver.meta import is_dns1123_label, qualified_name_errors
from kaito_ctrl.devcluster.apiserver.protection import CLAIM_PROTECTION, VOLUME_PROTECTION, protect
from kaito_ctrl.devcluster.apiserver.store import Obj

__all__ = [
    "ConfigMapStrategy",
    "CreatableOnUpdate",
    "EndpointsStrategy",
    "LeaseStrategy",
    "NamespaceStrategy",
    "NodeStrategy",
    "PdbStrategy",
    "PersistentVolumeStrategy",
    "Plain",
    "PriorityClassStrategy",
    "PvcStrategy",
    "SecretStrategy",
    "StorageClassStrategy",
    "WebhookStrategy",
    "namespace_fields",
    "node_fields",
    "secret_fields",
]


_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_DATA_KEY_TEXT = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)


class Plain(Strategy):
    """A kind without ``metadata.generation`` and without rules of its own."""

    generation = False


class CreatableOnUpdate(Plain):
    """A PUT to a name that does not exist creates it: Lease, Endpoints, LimitRange."""

    create_on_update = True


_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


_NOT_READY = "node.kubernetes.io/not-ready"


class NodeStrategy(Plain):
    """``v1 Node``."""

    keeps_status = True

    def default(self, obj: Obj) -> None:
        obj.setdefault("spec", {})
        status = obj.get("status")
        if status and status.get("capacity") and not status.get("allocatable"):
            status["allocatable"] = dict(status["capacity"])

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        """A new node takes no pods before somebody has seen it ready: the node lifecycle controller takes this away."""
        obj.setdefault("status", {})
        taints = obj["spec"].get("taints") or []
        if not any(taint.get("key") == _NOT_READY and taint.get("effect") == "NoSchedule" for taint in taints):
            obj["spec"]["taints"] = [*taints, {"key": _NOT_READY, "effect": "NoSchedule"}]

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        for index, taint in enumerate((obj.get("spec") or {}).get("taints") or ()):
            path, effect = f"metadata.taints[{index}]", taint.get("effect") or ""
            for text in qualified_name_errors(taint.get("key") or ""):
                yield FieldError.invalid(f"{path}.key", taint.get("key") or "", text)
            if not effect:
                yield FieldError.required(f"{path}.effect")
            elif effect not in _EFFECTS:
                yield FieldError.unsupported(f"{path}.effect", effect, _EFFECTS)

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


class LeaseStrategy(CreatableOnUpdate):
    """``coordination.k8s.io/v1 Lease``."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("spec", {})

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        spec = obj["spec"]
        duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
        if duration is not None and duration <= 0:
            yield FieldError.invalid("spec.leaseDurationSeconds", duration, "must be greater than 0")
        if transitions is not None and transitions < 0:
            yield FieldError.invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0")


def _key_errors(data: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Keys become file names."""
    for key in data:
        if key in {".", ".."}:
            yield FieldError.invalid(f"{path}[{key}]", key, f"must not be '{key}'")
        elif not _DATA_KEY.fullmatch(key):
            yield FieldError.invalid(f"{path}[{key}]", key, _DATA_KEY_TEXT)


class ConfigMapStrategy(Plain):
    """``v1 ConfigMap``."""

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
        yield from _key_errors(data, "data")
        for key in data:
            if key in binary:
                yield FieldError.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
        yield from _key_errors(binary, "binaryData")

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
        yield from _key_errors(data, "data")
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

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        """Loopback addresses are no mistake here: pods have no others."""
        for index, subset in enumerate(obj.get("subsets") or ()):
            for number, port in enumerate(subset.get("ports") or ()):
                if not 1 <= (port.get("port") or 0) <= 65535:
                    path = f"subsets[{index}].ports[{number}].port"
                    yield FieldError.invalid(path, port.get("port") or 0, "must be between 1 and 65535, inclusive")


class PvcStrategy(Plain):
    """``v1 PersistentVolumeClaim``."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        protect(obj, CLAIM_PROTECTION)
        obj["status"] = {"phase": "Pending"}
        if "storageClassName" not in obj["spec"]:
            marker = "storageclass.kubernetes.io/is-default-class"
            for stored in env.store.bucket("storage.k8s.io", "storageclasses").items.values():
                if (stored.obj["metadata"].get("annotations") or {}).get(marker) == "true":
                    obj["spec"]["storageClassName"] = stored.key[1]

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        spec = obj["spec"]
        if not spec.get("accessModes"):
            yield FieldError.required("spec.accessModes", "at least 1 access mode is required")
        if "storage" not in ((spec.get("resources") or {}).get("requests") or {}):
            yield FieldError.required("spec.resources[storage]")


class PersistentVolumeStrategy(Plain):
    """``v1 PersistentVolume``."""

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
        spec.setdefault("volumeMode", "Filesystem")

    def prepare_create(self, obj: Obj, env: Environment) -> None:
        protect(obj, VOLUME_PROTECTION)
        obj["status"] = {"phase": "Pending"}


class StorageClassStrategy(Plain):
    """``storage.k8s.io/v1 StorageClass``."""

    def default(self, obj: Obj) -> None:
        obj.setdefault("reclaimPolicy", "Delete")
        obj.setdefault("volumeBindingMode", "Immediate")

    def validate(self, obj: Obj) -> Iterator[FieldError]:
        if not obj.get("provisioner"):
            yield FieldError.required("provisioner")

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


_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")


def _client_errors(client: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    url, service = client.get("url"), client.get("service")
    if (url is None) == (service is None):
        yield FieldError.required(path, "exactly one of url or service is required")
        return
    if url is not None:
        scheme = url.partition("://")[0]
        form = "desired format: https://host[/path]"
        if scheme != "https":
            yield FieldError.invalid(f"{path}.url", scheme, f"'https' is the only allowed URL scheme; {form}")
        elif not url.partition("://")[2].partition("/")[0]:
            yield FieldError.invalid(f"{path}.url", "", f"host must be specified; {form}")
    else:
        for key in ("name", "namespace"):
            if not (service or {}).get(key):
                yield FieldError.required(f"{path}.service.{key}", f"service {key} is required")


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
            for key, allowed in (("failurePolicy", ["Fail", "Ignore"]), ("matchPolicy", ["Equivalent", "Exact"])):
                if webhook.get(key) not in allowed:
                    yield FieldError.unsupported(f"{path}.{key}", webhook.get(key), allowed)
            if not 1 <= webhook.get("timeoutSeconds", 0) <= 30:
                why = "the timeout value must be between 1 and 30 seconds"
                yield FieldError.invalid(f"{path}.timeoutSeconds", webhook.get("timeoutSeconds"), why)
            yield from _client_errors(webhook.get("clientConfig") or {}, f"{path}.clientConfig")
            for number, rule in enumerate(webhook.get("rules") or ()):
                for place, operation in enumerate(rule.get("operations") or ()):
                    if operation not in _OPERATIONS:
                        where = f"{path}.rules[{number}].operations[{place}]"
                        yield FieldError.unsupported(where, operation, _OPERATIONS)
            if len((webhook.get("name") or "").split(".")) < 3:
                yield FieldError.invalid(
                    f"{path}.name",
                    webhook.get("name"),
                    "should be a domain with at least three segments separated by dots",
                )

    def spec_changed(self, new: Obj, old: Obj) -> bool:
        return bool(new.get("webhooks") != old.get("webhooks"))
