"""Adapters in real models, tiny ones: what the model computes with them, compared with peft and with arithmetic."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lora import architecture_of, peft, save_adapter, tiny_model, torch

from kaito_presets import Architecture, Catalogue
from kaito_presets.inference.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, find_adapters
from kaito_presets.inference.config import CombinationType, parse
from kaito_presets.inference.engine import Generation, LoadError, Sampling
from kaito_presets.inference.weights import RandomWeights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from safetensors.torch import load_file, save_file

    from kaito_presets.inference.merge import apply_adapters
    from kaito_presets.inference.transformers_engine import TransformersEngine

PHI3 = architecture_of("phi-3-mini-128k-instruct")
SHAPES = {
    architecture.name + ("-grouped" if architecture.key_value_heads != architecture.heads else ""): architecture
    for architecture in (preset.architecture for preset in Catalogue.builtin())
    if architecture
}
IDS = [[5, 6, 7, 8, 9]]


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def found(root: Path, **strengths: float) -> tuple[Adapter, ...]:
    return find_adapters(str(root), {name: str(strength) for name, strength in strengths.items()})


def with_adapters(
    architecture: Architecture | None, adapters: tuple[Adapter, ...], combination: CombinationType = "svd"
) -> Any:
    """The logits of the tiny model of *architecture* with them applied."""
    model = tiny_model(architecture)
    apply_adapters(model, adapters, combination)
    return logits(model)


def by_hand(architecture: Architecture | None, adapters: tuple[Adapter, ...]) -> Any:
    """The same by definition: each layer's weight plus the sum of strength x scaling x up x down."""
    model = tiny_model(architecture)
    for adapter in adapters:
        settings = peft.LoraConfig.from_pretrained(str(adapter.path))
        tensors = load_file(adapter.path / WEIGHTS_FILE)
        for name in tensors:
            if ".lora_A" in name:
                layer = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                down, up = tensors[name], tensors[name.replace("lora_A", "lora_B")]
                scaling = settings.lora_alpha / (down.shape[0] ** (0.5 if settings.use_rslora else 1.0))
                layer.weight.data += adapter.strength * scaling * (up @ down)
    return logits(model)


@pytest.mark.parametrize("architecture", SHAPES.values(), ids=SHAPES)
def test_every_architecture_computes_with_its_adapter_as_peft_does(architecture: Architecture, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", architecture)
    base = logits(tiny_model(architecture))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_alone = logits(peft.PeftModel.from_pretrained(tiny_model(architecture), str(tmp_path / "a")))
    full = with_adapters(architecture, found(tmp_path))
    torch.testing.assert_close(full, peft_alone)
    assert (full - base).abs().max() > 0.1
    torch.testing.assert_close(
        with_adapters(architecture, found(tmp_path, a=0.3)), by_hand(architecture, found(tmp_path, a=0.3))
    )
    assert torch.equal(with_adapters(architecture, found(tmp_path, a=0.0)), base)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="alike"),
        pytest.param({"r": 6, "lora_alpha": 3}, id="another rank"),
        pytest.param({"use_rslora": True}, id="rank-stabilised"),
        pytest.param({"target_modules": ["o_proj", "down_proj"]}, id="other modules"),
        pytest.param({"target_modules": r".*\.o_proj"}, id="a pattern"),
        pytest.param({"layers_to_transform": [1], "target_modules": ["o_proj"]}, id="one layer"),
    ],
)
@pytest.mark.parametrize("first", ["a", "z"])
def test_the_weighted_sum_of_two(tmp_path: Path, more: dict[str, Any], first: str) -> None:
    """By definition with `cat`, whichever of the two comes first."""
    save_adapter(tmp_path / "m", PHI3)
    save_adapter(tmp_path / first, PHI3, seed=2, **more)
    adapters = found(tmp_path, **{"m": 0.75, first: 0.5})
    torch.testing.assert_close(with_adapters(PHI3, adapters, "cat"), by_hand(PHI3, adapters), rtol=1e-4, atol=1e-5)


def test_strength_0_leaves_the_other_one_alone(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", PHI3)
    save_adapter(tmp_path / "b", PHI3, seed=2)
    both = found(tmp_path, a=0.5, b=0.0)
    torch.testing.assert_close(with_adapters(PHI3, both), by_hand(PHI3, both[:1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_adapters(PHI3, found(tmp_path, a=0, b=0)), logits(tiny_model(PHI3)))


@pytest.mark.parametrize("combination", ["svd", "linear", "cat"])
def test_every_combination_is_the_one_that_peft_calls_so(tmp_path: Path, combination: CombinationType) -> None:
    save_adapter(tmp_path / "a", PHI3)
    save_adapter(tmp_path / "b", PHI3, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny_model(PHI3), str(tmp_path / "a"), adapter_name="a")
        theirs.load_adapter(str(tmp_path / "b"), "b")
        theirs.add_weighted_adapter(["a", "b"], [0.75, 0.5], "both", combination)
        theirs.set_adapter("both")
    ours = with_adapters(PHI3, found(tmp_path, a=0.75, b=0.5), combination)
    torch.testing.assert_close(ours, logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("strengths", [{"a": 0.7}, {"a": 0.7, "b": 0.4}], ids=["one", "two"])
def test_models_in_half_precision_compute_the_same_less_precisely(
    tmp_path: Path, precision: Any, strengths: dict[str, float]
) -> None:
    for seed, name in enumerate(strengths, 1):
        save_adapter(tmp_path / name, PHI3, seed=seed)
    half = tiny_model(PHI3).to(precision)
    apply_adapters(half, found(tmp_path, **strengths), "svd")
    full = with_adapters(PHI3, found(tmp_path, **strengths))
    torch.testing.assert_close(logits(half).float(), full, rtol=0, atol=0.03)


def test_only_the_combination_stays_in_memory(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", PHI3, r=2)
    save_adapter(tmp_path / "b", PHI3, r=6)
    model = tiny_model(PHI3)
    apply_adapters(model, found(tmp_path), "svd")
    added = {name: tensor.shape for name, tensor in model.named_parameters() if "lora_" in name}
    assert all(".combined_adapter." in name for name in added)
    assert {shape[0] for name, shape in added.items() if "lora_A" in name} == {6}
    assert not any(tensor.requires_grad for tensor in model.parameters())


def test_names_that_python_uses_itself_are_names_of_adapters(tmp_path: Path) -> None:
    for name in ("pop", "keys", "training", "v1.0"):
        save_adapter(tmp_path / name, PHI3)
    adapters = found(tmp_path, pop=0.1, keys=0.1, training=0.1)
    torch.testing.assert_close(with_adapters(PHI3, adapters, "cat"), by_hand(PHI3, adapters), rtol=1e-4, atol=1e-5)


def test_different_ranks_cannot_be_combined_linearly(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", PHI3, r=2)
    save_adapter(tmp_path / "b", PHI3, r=6)
    with pytest.raises(LoadError, match=r"the adapters a, b cannot be combined by --combination_type=linear: All"):
        with_adapters(PHI3, found(tmp_path), "linear")


def grown(path: Path) -> None:
    """One more layer than the model has."""
    tensors = load_file(path / WEIGHTS_FILE)
    last = {name: tensor for name, tensor in tensors.items() if "layers.1." in name}
    more = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in last.items()}
    save_file({**tensors, **more}, path / WEIGHTS_FILE)


def shrunk(path: Path) -> None:
    tensors = load_file(path / WEIGHTS_FILE)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1." not in name}, path / WEIGHTS_FILE)


def narrowed(path: Path) -> None:
    tensors = load_file(path / WEIGHTS_FILE)
    save_file({name: tensor[..., :3].contiguous() for name, tensor in tensors.items()}, path / WEIGHTS_FILE)


def with_an_output_layer(path: Path) -> None:
    tensors = load_file(path / WEIGHTS_FILE)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(640, 64)}, path / WEIGHTS_FILE)


def cut_off(path: Path) -> None:
    file = path / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (grown, "the model has no place for model.layers.2.mlp.down_proj.lora_A.weight and 7 more"),
        (shrunk, "adapter_model.safetensors lacks model.layers.1.mlp.down_proj.lora_A.weight and 7 more"),
        (narrowed, "size mismatch for "),
        (with_an_output_layer, "holds lm_head.weight, which is no LoRA matrix"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    save_adapter(tmp_path / "good", PHI3)
    damage(save_adapter(tmp_path / "odd", PHI3))
    with pytest.raises(LoadError) as caught:
        with_adapters(PHI3, found(tmp_path))
    assert str(caught.value).startswith("adapter odd does not fit the model that is served: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_architecture_is_refused_with_what_it_was_made_for(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "a", architecture_of("falcon-7b"))
    config = path / CONFIG_FILE
    config.write_text(
        config.read_text().replace('"base_model_name_or_path": null', '"base_model_name_or_path": "org/falcon"')
    )
    with pytest.raises(LoadError) as caught:
        with_adapters(PHI3, found(tmp_path))
    said = str(caught.value)
    assert said.startswith("adapter a does not fit the model that is served (it says that it was made for org/falcon)")
    assert "Use the preset that it was trained on" in said


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    cut_off(save_adapter(tmp_path / "a", PHI3))
    with pytest.raises(LoadError, match=r"adapter a: adapter_model.safetensors cannot be read \(.*upload it again"):
        with_adapters(PHI3, found(tmp_path))


def test_the_engine_speaks_with_its_adapters_and_says_which(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", PHI3, lora_alpha=64)

    def said(adapters: tuple[Adapter, ...]) -> tuple[tuple[tuple[str, float], ...], str]:
        engine = TransformersEngine(
            parse(["--random_weights=tiny"], {}), RandomWeights(PHI3), random.Random(0), adapters
        )
        info = engine.load()
        assert info.architecture == "Phi3ForCausalLM"
        return info.adapters, engine.generate(
            Generation("What is it?", Sampling(do_sample=False), max_new_tokens=12)
        ).texts[0]

    base, full, silent = said(()), said(found(tmp_path)), said(found(tmp_path, a=0))
    assert (base[0], full[0], silent[0]) == ((), (("a", 1.0),), (("a", 0.0),))
    assert base[1] == silent[1] != full[1]
    shutil.rmtree(tmp_path / "a")  # nothing of it is needed any more
