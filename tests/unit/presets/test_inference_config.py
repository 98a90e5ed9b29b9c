from __future__ import annotations

from pathlib import Path

import pytest

from kaito_presets import Catalogue, serving_command
from kaito_presets.inference.config import Config, ConfigError, parse
from kaito_presets.inference.weights import HubWeights, LocalWeights, RandomWeights, locate


def config(*argv: str, **env: str) -> Config:
    return parse(argv, env)


def test_defaults() -> None:
    c = config()
    assert (c.host, c.port, c.weights, c.served_model_name) == ("0.0.0.0", 5000, "/workspace/tfs/weights", "model")
    assert (c.trust_remote_code, c.allow_remote_files, c.random_weights, c.max_waiting) == (False, False, None, 64)


def test_the_environment_and_who_wins() -> None:
    env = {"KAITO_HOST": "127.96.0.3", "LOCAL_RANK": "2", "KAITO_RANDOM_WEIGHTS": "tiny"}
    c = config(**env)
    assert (c.host, c.port, c.random_weights) == ("127.96.0.3", 5002, "tiny")
    c = config("--host=::1", "--port", "80", **env)
    assert (c.host, c.port) == ("::1", 80)


@pytest.mark.parametrize("argv", [("--max-waiting=3",), ("--max_waiting", "3"), ("--max_waiting=3",)])
def test_flags_in_every_spelling(argv: tuple[str, ...]) -> None:
    assert config(*argv).max_waiting == 3


@pytest.mark.parametrize(
    "argv", [("--allow_remote_files",), ("--allow_remote_files=true",), ("--allow-remote-files=1",)]
)
def test_switches_bare_or_with_a_value(argv: tuple[str, ...]) -> None:
    assert config(*argv).allow_remote_files
    assert not config("--allow_remote_files=False").allow_remote_files


def test_every_presets_own_command_is_understood() -> None:
    for preset in Catalogue.builtin():
        c = parse(serving_command(preset)[2:], {"KAITO_PRESET": preset.name})
        assert c.preset is preset
        assert c.served_model_name == preset.name


def test_kaitos_flags_are_accepted_and_those_without_effect_are_named() -> None:
    c = config("--pipeline=conversational", "--torch_dtype", "bfloat16", "--device_map=cpu", "--max_batch_size=4")
    assert (c.pipeline, c.torch_dtype, c.device, c.without_effect) == (
        "conversational",
        "bfloat16",
        "cpu",
        ("--max_batch_size",),
    )


def test_where_adapters_are_and_how_they_are_combined() -> None:
    c = config()
    assert (c.adapters_dir, c.combination_type) == ("/mnt/adapter", "svd")
    c = config("--combination-type=cat", KAITO_ADAPTERS_DIR="/elsewhere")
    assert (c.adapters_dir, c.combination_type) == ("/elsewhere", "cat")
    assert config("--adapters_dir=/here", KAITO_ADAPTERS_DIR="/elsewhere").adapters_dir == "/here"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--prest=phi-2",), "unknown flag --prest (did you mean --preset"),
        (("--torch-dtyp=auto", "--zzzz"), "did you mean --torch_dtype?); unknown flag --zzzz"),
        (("phi-2",), "unexpected argument 'phi-2'"),
        (("--preset=phi3-mini",), "unknown preset 'phi3-mini': did you mean phi-3-mini-4k-instruct"),
        (("--preset=zzzz",), "unknown preset 'zzzz': known are falcon-40b,"),
        (("--port=70000",), "70000 is not between 0 and 65535"),
        (("--port=http",), "port: 'http' is not a whole number"),
        (("--torch_dtype=int8",), "invalid choice: 'int8'"),
        (("--pipeline=summarization",), "invalid choice: 'summarization'"),
        (("--trust_remote_code=maybe",), "'maybe' is neither true nor false"),
        (("--device=tpu",), "'tpu' is not one of auto, cpu"),
        (("--combination_type=ties",), "invalid choice: 'ties'"),
        (("--load_in_4bit",), "does not quantise"),
        (("--port",), "expected one argument"),
    ],
)
def test_mistakes_are_refused_with_a_hint(argv: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*argv)
    assert says in str(caught.value)


def test_a_random_size_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tiny', not 'huge'"):
        config(KAITO_RANDOM_WEIGHTS="huge")


def test_the_catalogue_decides_about_remote_code_for_its_models() -> None:
    c = config("--preset=phi-2", "--trust_remote_code")
    assert not c.trust_remote_code
    assert c.without_effect == ("--trust_remote_code",)
    assert config("--trust_remote_code").trust_remote_code


def model_directory(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).touch()
    return path


def test_a_directory_with_a_model_wins(tmp_path: Path) -> None:
    here = model_directory(tmp_path, "config.json", "model-00001-of-00002.safetensors")
    c = config(f"--pretrained_model_name_or_path={here}", "--allow_remote_files", "--random_weights=tiny")
    assert locate(c) == LocalWeights(here)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["model.safetensors"], "holds no config.json"),
        (["config.json", "pytorch_model.bin"], "only pytorch_model.bin, which can carry code"),
        (["config.json"], "holds no \\*.safetensors:"),
    ],
)
def test_an_incomplete_directory_is_an_error_and_never_replaced(tmp_path: Path, names: list[str], says: str) -> None:
    here = model_directory(tmp_path, *names)
    with pytest.raises(ConfigError, match=says):
        locate(config(f"--pretrained_model_name_or_path={here}", "--random_weights=tiny"))


def test_an_empty_mount_counts_as_no_weights(tmp_path: Path) -> None:
    flag = f"--pretrained_model_name_or_path={tmp_path}"
    assert locate(config(flag, "--random_weights=tiny")) == RandomWeights(None)
    with pytest.raises(ConfigError, match="no model weights"):
        locate(config(flag))


def test_remote_weights_come_at_the_presets_pinned_commit() -> None:
    found = locate(config("--preset=phi-2", "--allow_remote_files"))
    assert found == HubWeights("microsoft/phi-2", "b10c3eba545ad279e7208ee3a5d644566f001670")
    named = config("--allow_remote_files", "--pretrained_model_name_or_path=org/name", "--revision=v1")
    assert locate(named) == HubWeights("org/name", "v1")


def test_remote_code_needs_a_commit() -> None:
    flags = ("--allow_remote_files", "--pretrained_model_name_or_path=org/name", "--trust_remote_code")
    with pytest.raises(ConfigError, match="40 hex digits"):
        locate(config(*flags, "--revision=main"))
    assert locate(config(*flags, f"--revision={'a' * 40}")) == HubWeights("org/name", "a" * 40)
