"""Which adapters are found and how strong they are, and what is said of those that cannot be applied."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kaito_presets.inference.adapters import CONFIG_FILE, WEIGHTS_FILE, find_adapters
from kaito_presets.inference.config import ConfigError

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["qkv_proj"], "bias": "none"}


def adapter(root: Path, name: str, **settings: Any) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps({**PLAIN, **settings}))
    (folder / WEIGHTS_FILE).touch()
    return folder


def refusal(root: Path, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        find_adapters(str(root), env)
    return str(caught.value)


def test_without_a_directory_there_are_none(tmp_path: Path) -> None:
    assert find_adapters(str(tmp_path / "none"), {}) == ()
    assert find_adapters(str(tmp_path), {}) == ()


def test_each_subdirectory_is_one_and_the_variable_of_its_name_is_its_strength(tmp_path: Path) -> None:
    for name in ("phi-3-adapter", "b", "silent"):
        adapter(tmp_path, name, base_model_name_or_path="microsoft/Phi-3-mini-128k-instruct")
    found = find_adapters(str(tmp_path), {"phi-3-adapter": "0.25", "silent": "0", "other": "7"})
    assert [(each.name, each.strength) for each in found] == [("b", 1.0), ("phi-3-adapter", 0.25), ("silent", 0.0)]
    assert found[0].path == tmp_path / "b"
    assert found[0].made_for == "microsoft/Phi-3-mini-128k-instruct"


def test_a_volumes_own_bookkeeping_is_no_adapter(tmp_path: Path) -> None:
    for name in ("..2026_11_20", "lost+found"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").touch()
    assert find_adapters(str(tmp_path), {}) == ()


@pytest.mark.parametrize("text", ["strong", "", "nan", "inf"])
def test_a_strength_that_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    adapter(tmp_path, "a")
    said = refusal(tmp_path, a=text)
    assert said.startswith(f"adapter a: its strength is {text!r}, which is not a number")
    assert "inference.adapters[].strength" in said


def test_a_missing_configuration_is_refused_and_found_where_it_should_not_be(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert f"adapter a: {tmp_path}/a holds no adapter_config.json: the adapter's image must" in refusal(tmp_path)
    adapter(tmp_path / "a", "deeper")
    assert "in /data itself, not in deeper" in refusal(tmp_path)


@pytest.mark.parametrize(("text", "says"), [("{", "is not JSON (Expecting"), ("[]", "is not a JSON object")])
def test_a_configuration_that_cannot_be_read_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (adapter(tmp_path, "a") / CONFIG_FILE).write_text(text)
    assert f"adapter a: adapter_config.json {says}" in refusal(tmp_path)


def test_missing_weights_are_refused_and_pickles_are_no_weights(tmp_path: Path) -> None:
    folder = adapter(tmp_path, "a")
    (folder / WEIGHTS_FILE).unlink()
    assert "adapter a: " in refusal(tmp_path)
    assert "holds no adapter_model.safetensors: save the adapter with safe_serialization=True" in refusal(tmp_path)
    (folder / "adapter_model.bin").touch()
    assert "(only adapter_model.bin, which can carry code)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "IA3"}, "is of type IA3, and only LORA"),
        ({"peft_type": None}, "is of type (none)"),
        ({"init_lora_weights": "pissa_niter_16"}, "initialised with pissa_niter_16, which changes the base model"),
        ({"use_dora": True}, "sets use_dora: such an adapter is more than a LoRA update"),
        ({"modules_to_save": ["lm_head"], "bias": "all"}, "sets bias, modules_to_save"),
        ({"something_new": {"x": 1}}, "sets something_new"),
    ],
)
def test_what_strength_has_no_meaning_for_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    adapter(tmp_path, "a", **settings)
    said = refusal(tmp_path)
    assert said.startswith("adapter a: ")
    assert says in said


def test_without_peft_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert find_adapters(str(tmp_path), {}) == ()
    adapter(tmp_path, "a")
    assert "holds adapters (a)" in refusal(tmp_path)
    assert "pip install 'kaito-ctrl[inference]'" in refusal(tmp_path)
