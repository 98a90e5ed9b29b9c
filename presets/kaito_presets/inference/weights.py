"""Where the weights come from: decided, and checked as far as a look at the disk can, before anything heavy loads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kaito_presets.inference.config import DEFAULT_WEIGHTS, Config, ConfigError
from kaito_presets.preset import Architecture

__all__ = ["HubWeights", "LocalWeights", "RandomWeights", "Weights", "locate"]


@dataclass(frozen=True, slots=True)
class LocalWeights:
    """A directory with ``config.json``, a tokenizer and ``*.safetensors``."""

    path: Path


@dataclass(frozen=True, slots=True)
class HubWeights:
    """A repository on the hub; ``revision`` is a branch, a tag or a commit."""

    repository: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """No weights at all: a tiny model of *architecture*, or of any if that is ``None``."""

    architecture: Architecture | None


Weights = LocalWeights | HubWeights | RandomWeights


def locate(config: Config) -> Weights:
    """Which weights *config* asks for. Random ones only stand in for weights that are not there.

    Raises ``ConfigError`` that says what to mount.
    """
    path = Path(config.weights)
    if path.is_dir() and any(path.iterdir()):
        _check(path)
        return LocalWeights(path)
    if config.allow_remote_files:
        return _remote(config)
    if config.random_weights:
        return RandomWeights(config.preset.architecture if config.preset else None)
    raise ConfigError(
        f"no model weights at {path}: mount a volume there that holds config.json, the tokenizer's files and "
        "*.safetensors, or name another directory with --pretrained_model_name_or_path. To download them instead pass "
        "--allow_remote_files; to try the server without a model set KAITO_RANDOM_WEIGHTS=tiny"
    )


def _check(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} holds no config.json: is the volume mounted one directory too high or too low?")
    if not any(path.glob("*.safetensors")):
        others = sorted(entry.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for entry in path.glob(pattern))
        why = f" (only {', '.join(others[:3])}, which can carry code)" if others else ""
        raise ConfigError(f"{path} holds no *.safetensors{why}: convert the weights, or mount the complete model")


def _remote(config: Config) -> HubWeights:
    source = config.preset.source if config.preset else None
    if config.weights == DEFAULT_WEIGHTS and source is not None:
        repository, revision = source.repository, config.revision or source.revision
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", config.weights):
        repository, revision = config.weights, config.revision
    else:
        raise ConfigError(
            f"{config.weights} is neither a directory with weights nor a repository (org/name): "
            "pass --pretrained_model_name_or_path=org/name, or --preset"
        )
    if config.trust_remote_code and re.fullmatch(r"[0-9a-f]{40}", revision or "") is None:
        raise ConfigError("--trust_remote_code with a remote repository needs --revision=<commit, 40 hex digits>")
    return HubWeights(repository, revision)
