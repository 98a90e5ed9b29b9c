"""What to run for a preset: the image reference and the argument vector. Pure, deterministic, without a shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kaito_presets.preset import Preset

__all__ = ["DEFAULT_REGISTRY", "LLAMA_FOLDER", "SERVER", "image_for", "serving_command", "torchrun_command"]

DEFAULT_REGISTRY: Final = "mcr.microsoft.com/aks/kaito"

SERVER: Final = "/workspace/tfs/inference_api.py"
"""Where every preset image has its server: KAITO's published ones theirs, and those built from our Dockerfile ours."""

LLAMA_FOLDER: Final = "/workspace/llama/llama-2"
"""Where KAITO's images of the Llama 2 family, which users build themselves, have their server and their weights."""


def image_for(preset: Preset, registry: str = DEFAULT_REGISTRY, private_image: str | None = None) -> str:
    """The reference of the image that serves *preset*: *private_image* if given, else the public one in *registry*.

    Raises ``ValueError`` for a private preset without *private_image*.
    """
    if private_image:
        return private_image
    if preset.access_mode == "private" or preset.image is None:
        raise ValueError("When AccessMode is private, an image must be provided in PresetOptions")
    return f"{registry.rstrip('/')}/{preset.image.repository}:{preset.image.tag}"


def serving_command(preset: Preset, *, extra: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The argument vector that serves *preset* in its image; the same arguments give the same vector.

    The flags are KAITO's own, so that its published images and ours are started alike. *extra* adds flags, or replaces
    those of the preset; an empty value stands for a bare flag.
    """
    flags = {**preset.run_parameters, **(extra or {})}
    if preset.trust_remote_code:
        flags.setdefault("trust_remote_code", "")
    return ("python3", SERVER, *_flags(flags))


def torchrun_command(preset: Preset, *, nodes: int = 1, rendezvous: str = "localhost:29500") -> tuple[str, ...]:
    """The argument vector that serves a Llama 2 preset in :data:`LLAMA_FOLDER`: one process per GPU on each of *nodes*,
    which find one another at *rendezvous* (``HOST:PORT`` of the first of them).

    Raises ``ValueError`` when the preset's processes cannot be spread evenly over that many nodes.
    """
    world = preset.world_size or 1
    processes, rest = divmod(world, nodes)
    if rest or not processes:
        raise ValueError(f"the {world} processes of {preset.name} cannot be spread evenly over {nodes} nodes")
    launcher = {
        "nnodes": str(nodes),
        "nproc_per_node": str(processes),
        "max_restarts": "3",
        "rdzv_backend": "c10d",
        "rdzv_endpoint": rendezvous,
        "rdzv_id": "job",
    }
    return ("torchrun", *_flags(launcher), "inference_api.py", *_flags(preset.run_parameters))


def _flags(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"--{key}={value}" if value else f"--{key}" for key, value in sorted(values.items()))
