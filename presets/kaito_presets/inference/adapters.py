"""Which adapters the server is to apply, and how strongly: found, and checked as far as a look at the disk can.

Each subdirectory of the adapters' directory is one adapter, as peft saves it: ``adapter_config.json`` and
``adapter_model.safetensors``. Its strength is the environment variable of the directory's name. Nothing is left out in
silence: what cannot be applied as it is, is an error that names the adapter and says what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kaito_presets.inference.config import ConfigError

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Adapter", "find_adapters"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Settings of a LoRA configuration that only say how big it is, where it sits or how it was trained. Every other one
# that is set makes it more than a weighted sum of low-rank updates, which is all that merging by strength can do.
_PLAIN = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# What peft may start from and leave the base model as it is. The others (pissa, olora, corda, loftq, ...) subtract
# something from the base model's weights, so that the saved matrices fit the changed model only.
_HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One LoRA adapter on disk. ``strength`` is what its update of the base model is multiplied by; 0 is legal.

    ``settings`` is its ``adapter_config.json``.
    """

    name: str
    path: Path
    strength: float
    settings: Mapping[str, Any]

    @property
    def made_for(self) -> str:
        """The model that it says it was trained on; may be empty, or a path of the machine that trained it."""
        return str(self.settings.get("base_model_name_or_path") or "")


def find_adapters(directory: str, env: Mapping[str, str]) -> tuple[Adapter, ...]:
    """The adapters in *directory*, by name; none if there is no such directory. *env* gives their strengths.

    Raises ``ConfigError`` that names the adapter and the fix.
    """
    root = Path(directory)
    try:
        if not root.is_dir():
            return ()
        # A volume's own bookkeeping is no adapter: `..data` of a projected volume, `lost+found` of a disk.
        folders = [
            entry
            for entry in sorted(root.iterdir())
            if entry.is_dir() and not entry.name.startswith(".") and entry.name != "lost+found"
        ]
    except OSError as error:
        raise ConfigError(f"the adapters in {root} cannot be read: {error.strerror}") from error
    if folders and find_spec("peft") is None:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigError(
            f"{root} holds adapters ({names}), and applying them needs the peft package: "
            "pip install 'kaito-ctrl[inference]'"
        )
    return tuple(_adapter(folder, env) for folder in folders)


def _adapter(folder: Path, env: Mapping[str, str]) -> Adapter:
    name = folder.name
    try:
        settings = _settings(folder)
        for problem in _problems(folder, settings):
            raise ConfigError(f"adapter {name}: {problem}")
    except OSError as error:
        raise ConfigError(f"adapter {name}: {error.filename} cannot be read: {error.strerror}") from error
    return Adapter(name, folder, _strength(name, env.get(name, "1.0")), settings)


def _settings(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        inside = sorted(str(entry.relative_to(folder).parent) for entry in folder.glob(f"*/**/{CONFIG_FILE}"))
        hint = f" itself, not in {inside[0]}" if inside else ""
        raise ConfigError(
            f"adapter {folder.name}: {folder} holds no {CONFIG_FILE}: "
            f"the adapter's image must have it, and {WEIGHTS_FILE}, in /data{hint}"
        )
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(
            f"adapter {folder.name}: {CONFIG_FILE} is not JSON ({error}): save the adapter again"
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(f"adapter {folder.name}: {CONFIG_FILE} is not a JSON object: save the adapter again")
    return settings


def _problems(folder: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    kind = settings.get("peft_type")
    if kind != "LORA":
        yield f"is of type {kind or '(none)'}, and only LORA can be applied by strength: train a LoRA adapter"
    start = settings.get("init_lora_weights", True)
    if start not in _HARMLESS_STARTS:
        yield (
            f"was initialised with {start}, which changes the base model as well: convert it to a plain LoRA "
            "(peft: save_pretrained with path_initial_model_for_weight_conversion)"
        )
    more = sorted(
        name for name in settings if name not in _PLAIN and settings[name] not in (None, False, "none", [], {})
    )
    if more:
        yield (
            f"{CONFIG_FILE} sets {', '.join(more)}: such an adapter is more than a LoRA update, and cannot be applied "
            "by strength. Train it without, or merge it into the model's weights"
        )
    if not (folder / WEIGHTS_FILE).is_file():
        others = sorted(entry.name for pattern in ("*.bin", "*.pt", "*.pth") for entry in folder.glob(pattern))
        why = f" (only {others[0]}, which can carry code)" if others else ""
        yield f"{folder} holds no {WEIGHTS_FILE}{why}: save the adapter with safe_serialization=True"


def _strength(name: str, text: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not math.isfinite(strength):
        raise ConfigError(
            f"adapter {name}: its strength is {text!r}, which is not a number: set the variable {name}, in a Workspace "
            'inference.adapters[].strength, to one from "0" to "1"'
        )
    return strength
