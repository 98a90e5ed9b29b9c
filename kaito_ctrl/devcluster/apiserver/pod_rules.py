"""What is wrong with parts of a pod's spec: resources, probes, tolerations; worded as the real server words it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kaito_api.quantity import parse_quantity
from kaito_ctrl.devcluster.apiserver.errors import FieldError

__all__ = ["probe_errors", "resource_errors", "toleration_errors"]

PORT_TEXT = "must be between 1 and 65535, inclusive"
_NATIVE = ("cpu", "memory", "ephemeral-storage")
_ACTIONS = ("exec", "httpGet", "tcpSocket", "grpc")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def resource_errors(resources: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Requests and limits of a container."""
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            here = f"{path}.{kind}[{name}]"
            if "/" not in name and name not in _NATIVE and not name.startswith("hugepages-"):
                yield FieldError.invalid(here, name, "must be a standard resource type or fully qualified")
                yield FieldError.invalid(here, name, "must be a standard resource for containers")
                continue
            value = parse_quantity(amount)
            if value < 0:
                yield FieldError.invalid(here, amount, "must be greater than or equal to 0")
            elif _extended(name) and value != value.to_integral_value():
                yield FieldError.invalid(here, amount, "must be an integer")
    for name, amount in requests.items():
        limit = limits.get(name)
        if limit is None:
            if _extended(name):
                yield FieldError.required(f"{path}.limits", "Limit must be set for non overcommitable resources")
        elif _extended(name) and parse_quantity(amount) != parse_quantity(limit):
            yield FieldError.invalid(f"{path}.requests", amount, f"must be equal to {name} limit of {limit}")
        elif parse_quantity(amount) > parse_quantity(limit):
            yield FieldError.invalid(f"{path}.requests", amount, f"must be less than or equal to {name} limit")


def _extended(name: str) -> bool:
    """Whether it is counted in whole devices, of which nobody gets more than asked for."""
    return "/" in name and not name.partition("/")[0].endswith("kubernetes.io")


def probe_errors(container: Mapping[str, Any], path: str) -> Iterator[FieldError]:
    """Every probe of a container does exactly one thing."""
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(key)
        if probe is None:
            continue
        here = f"{path}.{key}"
        actions = [action for action in _ACTIONS if probe.get(action) is not None]
        if not actions:
            yield FieldError.required(here, "must specify a handler type")
        for extra in actions[1:]:
            yield FieldError.forbidden(f"{here}.{extra}", "may not specify more than 1 handler type")
        for action in ("httpGet", "tcpSocket"):
            port = (probe.get(action) or {}).get("port")
            if isinstance(port, int) and not 0 < port < 65536:
                yield FieldError.invalid(f"{here}.{action}.port", port, PORT_TEXT)


def toleration_errors(tolerations: Any, path: str) -> Iterator[FieldError]:
    """The tolerations of a pod."""
    for index, toleration in enumerate(tolerations):
        here = f"{path}[{index}]"
        key, operator = toleration.get("key") or "", toleration.get("operator") or ""
        effect = toleration.get("effect") or ""
        if not key and operator != "Exists":
            why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            yield FieldError.invalid(f"{here}.operator", operator, why)
        if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
            why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            yield FieldError.invalid(f"{here}.effect", effect, why)
        if operator == "Exists" and toleration.get("value"):
            yield FieldError.invalid(f"{here}.operator", toleration, "value must be empty when `operator` is 'Exists'")
        elif operator not in {"", "Equal", "Exists"}:
            yield FieldError.unsupported(f"{here}.operator", operator, ["Equal", "Exists"])
        if effect and effect not in _EFFECTS:
            yield FieldError.unsupported(f"{here}.effect", effect, _EFFECTS)
