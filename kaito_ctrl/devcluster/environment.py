"""What a container finds in its environment, and what ``$(VAR)`` and a field reference stand for."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Protocol

from kaito_ctrl.devcluster.kinds import Container, Pod

__all__ = ["ConfigError", "Sources", "container_env", "expand", "field_value"]


class ConfigError(Exception):
    """Something that the pod refers to is not there. The message is the kubelet's."""


class Sources(Protocol):
    """Where references lead, in the pod's namespace; ``None``: there is no such object."""

    async def config_map(self, name: str) -> Mapping[str, str] | None: ...

    async def secret(self, name: str) -> Mapping[str, str] | None:
        """Values in base64."""
        ...


_VARIABLE = re.compile(r"\$\$|\$\(([^)]*)\)")
_INDEXED = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


def expand(text: str, env: Mapping[str, str]) -> str:
    """*text* with each ``$(NAME)`` replaced; unknown names stay as they are, and ``$$`` is a dollar."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return env.get(found[1], found[0])

    return _VARIABLE.sub(value, text)


def field_value(pod: Pod, path: str, pod_ip: str, host_ip: str) -> str:
    """What a downward API ``fieldPath`` stands for. Raises :class:`ConfigError` for one that there is not."""
    metadata = pod.metadata
    if found := _INDEXED.fullmatch(path):
        return (metadata.labels if found[1] == "labels" else metadata.annotations).get(found[2], "")
    values = {
        "metadata.name": metadata.name,
        "metadata.namespace": metadata.namespace or "",
        "metadata.uid": metadata.uid,
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name or "default",
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": host_ip,
        "status.hostIPs": host_ip,
        "metadata.labels": "\n".join(f'{key}="{value}"' for key, value in sorted(metadata.labels.items())),
        "metadata.annotations": "\n".join(f'{key}="{value}"' for key, value in sorted(metadata.annotations.items())),
    }
    if path not in values:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return values[path]


async def container_env(
    pod: Pod, container: Container, sources: Sources, *, pod_ip: str, host_ip: str
) -> dict[str, str]:
    """The variables that the container declares, in order; a later one may use ``$(EARLIER)``.

    Raises :class:`ConfigError`. Values that only a real node could know (resource fields) are left out.
    """
    env: dict[str, str] = {}
    for source in container.env_from:
        reference, data = await _whole(pod, source, sources)
        if data is not None:
            env.update({(source.get("prefix") or "") + key: value for key, value in data.items()})
        elif not reference.get("optional"):
            raise ConfigError(f'{_word(source)} "{reference.get("name")}" not found')
    for variable in container.env:
        value_from = variable.value_from or {}
        if "fieldRef" in value_from:
            env[variable.name] = field_value(pod, value_from["fieldRef"].get("fieldPath", ""), pod_ip, host_ip)
        elif "configMapKeyRef" in value_from or "secretKeyRef" in value_from:
            found = await _key(pod, value_from, sources)
            if found is not None:
                env[variable.name] = found
        elif not value_from:
            env[variable.name] = expand(variable.value or "", env)
    return env


def _word(source: Mapping[str, Any]) -> str:
    return "secret" if "secretRef" in source or "secretKeyRef" in source else "configmap"


async def _data(kind: str, name: str, sources: Sources) -> Mapping[str, str] | None:
    if kind == "configmap":
        return await sources.config_map(name)
    data = await sources.secret(name)
    if data is None:
        return None
    return {key: base64.b64decode(value).decode("utf-8", "replace") for key, value in data.items()}


async def _whole(
    pod: Pod, source: Mapping[str, Any], sources: Sources
) -> tuple[Mapping[str, Any], Mapping[str, str] | None]:
    reference = source.get("configMapRef") or source.get("secretRef") or {}
    return reference, await _data(_word(source), reference.get("name", ""), sources)


async def _key(pod: Pod, value_from: Mapping[str, Any], sources: Sources) -> str | None:
    reference = value_from.get("configMapKeyRef") or value_from.get("secretKeyRef") or {}
    kind, name, key = _word(value_from), reference.get("name", ""), reference.get("key", "")
    data = await _data(kind, name, sources)
    if data is None:
        if reference.get("optional"):
            return None
        raise ConfigError(f'{kind} "{name}" not found')
    if key not in data:
        if reference.get("optional"):
            return None
        shown = "Secret" if kind == "secret" else "ConfigMap"
        raise ConfigError(f"couldn't find key {key} in {shown} {pod.namespace}/{name}")
    return data[key]
