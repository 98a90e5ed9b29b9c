"""The ConfigMap that a tuning workspace names: its sections, and what of them must agree with the method.

The file is KAITO's: key ``training_config.yaml``, one mapping ``training_config``, and in it a section for each part of
the training program.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from kaito_ctrl.reconcilers.workspace.validation.problem import Problem

__all__ = ["CONFIG_KEY", "SECTIONS", "tuning_config"]

CONFIG_KEY = "training_config.yaml"
SECTIONS = ("ModelConfig", "QuantizationConfig", "LoraConfig", "TrainingArguments", "DatasetConfig", "DataCollator")
_FIELD = "tuning.config"
_OUTPUT_ROOT = "/mnt"


def tuning_config(name: str, data: Mapping[str, Any], method: str) -> Iterator[Problem]:
    """What is wrong with the *data* of ConfigMap *name* for *method* (``lora`` or ``qlora``, in any case)."""
    where = f"ConfigMap {name}"
    text = data.get(CONFIG_KEY)
    if not isinstance(text, str):
        yield Problem(_FIELD, f"{where} has no key {CONFIG_KEY}", "see the examples for one to start from")
        return
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        yield Problem(_FIELD, f"{CONFIG_KEY} of {where} is not valid YAML: {line}", "correct it there")
        return
    config = content.get("training_config") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        yield Problem(
            _FIELD,
            f"{CONFIG_KEY} of {where}: expected a key training_config that contains a map",
            "see the examples for one to start from",
        )
        return
    for section, values in config.items():
        if section not in SECTIONS:
            yield Problem(_FIELD, f"{where}: unrecognized section {section}", f"known: {', '.join(SECTIONS)}")
        elif values is not None and not isinstance(values, dict):
            yield Problem(_FIELD, f"{where}: section {section} is not a map", "write its fields, or leave it out")
    yield from _quantization(where, _section(config, "QuantizationConfig"), method.lower())
    yield from _output(where, _section(config, "TrainingArguments"))


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = config.get(name)
    return values if isinstance(values, dict) else {}


def _quantization(where: str, section: Mapping[str, Any], method: str) -> Iterator[Problem]:
    flags: dict[str, bool] = {}
    for flag in ("load_in_4bit", "load_in_8bit"):
        value = section.get(flag)
        if value is not None and not isinstance(value, bool):
            yield Problem(
                _FIELD, f"{where}: QuantizationConfig.{flag} is {value!r}, not true or false", "write true or false"
            )
        flags[flag] = value is True
    chosen = [flag for flag, on in flags.items() if on]
    if len(chosen) == 2:
        yield Problem(_FIELD, f"{where}: load_in_4bit and load_in_8bit cannot both be true", "choose one")
    elif method == "lora" and chosen:
        yield Problem(_FIELD, f"{where}: method lora does not quantize, but {chosen[0]} is true", "use method: qlora")
    elif method == "qlora" and not chosen:
        yield Problem(
            _FIELD,
            f"{where}: method qlora needs exactly one of load_in_4bit and load_in_8bit",
            "set QuantizationConfig.load_in_4bit: true",
        )


def _output(where: str, section: Mapping[str, Any]) -> Iterator[Problem]:
    if "output_dir" not in section:
        return
    folder = section["output_dir"]
    below = isinstance(folder, str) and posixpath.normpath(posixpath.join(_OUTPUT_ROOT, folder)).startswith(
        f"{_OUTPUT_ROOT}/"
    )
    if not below:
        yield Problem(
            _FIELD,
            f"{where}: invalid output_dir {folder!r}",
            f"name a directory below {_OUTPUT_ROOT}, for example {_OUTPUT_ROOT}/results",
        )
