"""Volumes as folders.

A local process has the machine's own file system: nothing can be mounted at an absolute path without privileges. So
each volume is a folder below the pod's, and every mention of a ``mountPath`` in the container's command, arguments,
variables and working directory is replaced by that folder. A program that has a mount path compiled in does not find
it here; that is a limit of this development cluster.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kaito_ctrl.devcluster.environment import ConfigError, Sources, field_value
from kaito_ctrl.devcluster.kinds import Container, Pod, Volume

__all__ = ["Mounts", "mounts_of", "names_path", "prepare_volumes"]


@dataclass(frozen=True, slots=True)
class Mounts:
    """Mount paths of one container and the folders behind them."""

    folders: Mapping[str, Path]

    def rewrite(self, text: str) -> str:
        """*text* with each mount path, where a path begins, replaced by its folder."""
        if not self.folders:
            return text
        return _paths(self.folders).sub(lambda found: str(self.folders[found[1]]), text)


def names_path(text: str, path: str) -> bool:
    """Whether *text* has *path*, or a path below it."""
    return _paths((path,)).search(text) is not None


def _paths(paths: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(paths, key=len, reverse=True)
    names = "|".join(re.escape(path) for path in longest_first)
    # A path goes on with a slash and ends before anything that cannot be part of its last name.
    return re.compile(rf"(?<![\w./~-])({names})(?=/|[^\w./~-]|\.?$)")


def mounts_of(container: Container, volumes: Mapping[str, Path]) -> Mounts:
    """Raises :class:`ConfigError` for a mount of a volume that the pod does not have."""
    folders = {}
    for mount in container.volume_mounts:
        path = mount.mount_path.rstrip("/")
        if mount.name not in volumes:
            raise ConfigError(f'volume "{mount.name}" is not declared by the pod')
        if not path:
            continue  # a volume over the root of the file system can be neither mounted nor renamed
        folders[path] = volumes[mount.name] / (mount.sub_path or "")
        if mount.sub_path and not folders[path].exists():
            folders[path].mkdir(parents=True)
    return Mounts(folders)


async def prepare_volumes(pod: Pod, root: Path, sources: Sources, *, pod_ip: str, host_ip: str) -> dict[str, Path]:
    """Make the pod's volumes below *root*; what is there already is kept. Returns the folders by volume name.

    Raises :class:`ConfigError` with the kubelet's words for a ConfigMap or Secret that is missing.
    """
    found: dict[str, Path] = {}
    for volume in pod.spec.volumes:
        if volume.host_path is not None:
            found[volume.name] = Path(volume.host_path.get("path", "/"))
            continue
        folder = found[volume.name] = root / volume.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if volume.persistent_volume_claim is not None:
            raise ConfigError(
                f'volume "{volume.name}" is a PersistentVolumeClaim: this development cluster has no storage; '
                "use an emptyDir or a hostPath"
            )
        for source in _sources(volume):
            for path, content in await _files(pod, source, sources, pod_ip, host_ip):
                _write(folder, path, content)
    return found


def _sources(volume: Volume) -> Iterable[Mapping[str, Any]]:
    """The volume's contents in the form of a projected volume's sources, which is the most general one."""
    if volume.config_map is not None:
        return ({"configMap": volume.config_map},)
    if volume.secret is not None:
        return ({"secret": {**volume.secret, "name": volume.secret.get("secretName", "")}},)
    if volume.downward_api is not None:
        return ({"downwardAPI": volume.downward_api},)
    return (volume.projected or {}).get("sources") or ()


async def _files(
    pod: Pod, source: Mapping[str, Any], sources: Sources, pod_ip: str, host_ip: str
) -> list[tuple[str, bytes]]:
    if (downward := source.get("downwardAPI")) is not None:
        return [
            (item["path"], field_value(pod, item["fieldRef"]["fieldPath"], pod_ip, host_ip).encode())
            for item in downward.get("items") or ()
            if "fieldRef" in item
        ]
    content: dict[str, bytes] | None
    if (config := source.get("configMap")) is not None:
        kind, reference = "configmap", config
        data = await sources.config_map(reference.get("name", ""))
        content = {key: value.encode() for key, value in data.items()} if data is not None else None
    elif (secret := source.get("secret")) is not None:
        kind, reference = "secret", secret
        data = await sources.secret(reference.get("name", ""))
        content = {key: base64.b64decode(value) for key, value in data.items()} if data is not None else None
    else:
        return []  # a service account token: nothing here authenticates with one
    if content is None:
        if reference.get("optional"):
            return []
        raise ConfigError(f'{kind} "{reference.get("name", "")}" not found')
    items = reference.get("items")
    if not items:
        return list(content.items())
    missing = [item["key"] for item in items if item["key"] not in content]
    if missing and not reference.get("optional"):
        raise ConfigError(f"{kind} references non-existent config key: {missing[0]}")
    return [(item["path"], content[item["key"]]) for item in items if item["key"] in content]


def _write(folder: Path, path: str, content: bytes) -> None:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise ConfigError(f"invalid path {path!r} in a volume: it must stay inside")
    target = folder / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
