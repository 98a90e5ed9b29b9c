"""Container images, as far as a cluster without a container runtime can have them: a table of what to run instead.

An image that is in the table stands for a command on this machine; one that is not can still be run when the
container names a command that exists here. Anything else cannot be pulled, and the error says what can be done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from kaito_ctrl.devcluster.kinds import Container
from kaito_ctrl.devcluster.volumes import names_path

__all__ = ["ImageError", "ImageTable", "Launch", "LocalImage"]


@dataclass(frozen=True, slots=True)
class LocalImage:
    """What an image stands for: its ENTRYPOINT (``None``: the container must give a command), its ENV, and folders of
    this machine in place of folders in it (``{"/workspace/tfs": Path(...)}``)."""

    entrypoint: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """What to execute, before variables are expanded."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    paths: Mapping[str, Path] = field(default_factory=dict)


class ImageError(Exception):
    """The container cannot be started from its image. ``reason`` is the kubelet's word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def repository(image: str) -> str:
    """The image without tag and digest: ``registry:5000/a/b:1.2@sha256:...`` is ``registry:5000/a/b``."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


class ImageTable:
    """Image name patterns (shell wildcards, without tag) and what they stand for; the first that matches counts.

    *inside* are folders that a command finds only in its image. A command that names one, with no volume mounted there,
    is not run for an unknown image: this machine's own folder of that name is something else.
    """

    def __init__(self, images: Mapping[str, LocalImage] | None = None, *, inside: Iterable[str] = ()) -> None:
        self._images = dict(images or {})
        self._inside = tuple(inside)

    def find(self, image: str) -> LocalImage | None:
        """The entry for *image*, if there is one."""
        name = repository(image)
        return next((entry for pattern, entry in self._images.items() if fnmatchcase(name, pattern)), None)

    def resolve(self, container: Container, path: str) -> Launch:
        """What to execute for *container*; *path* is the PATH on which its command must be found.

        Raises :class:`ImageError`.
        """
        known = self.find(container.image)
        if known is not None:
            argv = container.command or known.entrypoint or ()
            if not argv:
                raise ImageError("CreateContainerError", f'no command specified for image "{container.image}"')
            return Launch((*argv, *container.args), known.env, known.paths)
        needed = self._needed(container)
        if not needed and container.command and shutil.which(container.command[0], path=path) is not None:
            return Launch((*container.command, *container.args), {})
        patterns = ", ".join(self._images) or "none"
        if needed:
            given = f"its command reads {needed}, which only the image has"
        elif container.command:
            given = f'its command "{container.command[0]}" is not on the PATH'
        else:
            given = "it has no command"
        raise ImageError(
            "ErrImagePull",
            f'failed to pull image "{container.image}": this development cluster runs local processes, not container '
            f"images. The image is none of those it knows ({patterns}), and {given}. Give the container a command that "
            "exists on this machine, or register the image in the cluster's image table.",
        )

    def _needed(self, container: Container) -> str:
        """The folder of its image that the command names, if there is one."""
        mounted = {mount.mount_path.rstrip("/") for mount in container.volume_mounts}
        text = " ".join((*container.command, *container.args))
        return next((each for each in self._inside if each not in mounted and names_path(text, each)), "")
