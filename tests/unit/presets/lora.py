"""LoRA adapters for the tiny models, made and saved by peft itself. Importing this imports torch and peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from kaito_presets import Architecture, Catalogue

__all__ = ["architecture_of", "peft", "save_adapter", "tiny_model", "torch"]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these libraries deprecate in each other is not ours to fix
    import peft
    import torch

    from kaito_presets.inference.tiny import build_model, build_tokenizer

# What a fresh adapter has in its down projections as well as in its up ones: no update of the model is zero.
RANDOM = {"init_lora_weights": False, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def architecture_of(preset: str) -> Architecture:
    found = Catalogue.builtin().get(preset)
    assert found is not None
    assert found.architecture is not None
    return found.architecture


def tiny_model(architecture: Architecture | None) -> Any:
    return build_model(architecture, build_tokenizer())


def save_adapter(path: Path, architecture: Architecture | None, *, seed: int = 1, **settings: Any) -> Path:
    """A random adapter for the tiny model of *architecture*; *settings* are those of peft's ``LoraConfig``."""
    model = tiny_model(architecture)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{**RANDOM, "r": 4, "lora_alpha": 8, **settings}))
        wrapped.save_pretrained(path)
    return path


if __name__ == "__main__":
    import sys

    save_adapter(Path(sys.argv[1]), architecture_of(sys.argv[2]))
