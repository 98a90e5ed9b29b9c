"""What to run for a preset: the image reference and the argument vector. Pure, deterministic, without a shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kaito_presets.preset import Preset

__all__ = ["DEFAULT_REGISTRY", "image_for", "inference_command", "upstream_command"]

DEFAULT_REGISTRY: Final = "mcr.microsoft.com/aks/kaito"

_ACCELERATE: Final = ("--gpu_ids=all", "--machine_rank=0", "--num_machines=1", "--num_processes=1")


def image_for(preset: Preset, registry: str = DEFAULT_REGISTRY, private_image: str | None = None) -> str:
    """The reference of the image that serves *preset*: *private_image* if given, else the public one in *registry*.

    Raises ``ValueError`` for a private preset without *private_image*.
    """
    if private_image:
        return private_image
    if preset.access_mode == "private" or preset.image is None:
        raise ValueError("When AccessMode is private, an image must be provided in PresetOptions")
    return f"{registry.rstrip('/')}/{preset.image.repository}:{preset.image.tag}"


def inference_command(
    preset: Preset, *, python: str = "python3", extra: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The argument vector of our server for *preset*; the same arguments give the same vector.

    *extra* adds flags, or replaces those of the preset; an empty value stands for a bare flag.
    """
    flags = {**preset.run_parameters, **(extra or {})}
    if preset.trust_remote_code:
        flags.setdefault("trust_remote_code", "")
    return (python, "-m", "kaito_presets.inference", f"--preset={preset.name}", *_flags(flags))


def upstream_command(preset: Preset) -> tuple[str, ...]:
    """The argument vector for KAITO's own published image of *preset*, which holds another server than ours.

    Raises ``ValueError`` for presets whose images users build themselves: their layout is not known.
    """
    if preset.runtime != "transformers":
        raise ValueError(f"preset {preset.name} has no published image: its {preset.runtime} image is the user's own")
    return ("accelerate", "launch", *_ACCELERATE, "inference_api.py", *_flags(preset.run_parameters))


def _flags(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"--{key}={value}" if value else f"--{key}" for key, value in sorted(values.items()))
