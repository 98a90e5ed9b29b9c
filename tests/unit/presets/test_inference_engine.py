"""The transformers engine on tiny models of every architecture in the catalogue; the published shapes checked."""

from __future__ import annotations

import random
import warnings

import pytest

from kaito_presets import Architecture, Catalogue
from kaito_presets.inference.config import parse
from kaito_presets.inference.engine import Engine, Generation, RequestError, Sampling
from kaito_presets.inference.weights import RandomWeights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what torch and transformers deprecate in each other is not ours to fix
    import torch
    import transformers

    from kaito_presets.inference.transformers_engine import TransformersEngine

SHAPES = {
    architecture.name + ("-grouped" if architecture.key_value_heads != architecture.heads else ""): architecture
    for architecture in (preset.architecture for preset in Catalogue.builtin())
    if architecture
}


def engine_for(architecture: Architecture | None, seed: int = 0) -> TransformersEngine:
    return TransformersEngine(parse(["--random_weights=tiny"], {}), RandomWeights(architecture), random.Random(seed))


@pytest.fixture(scope="module")
def engine() -> Engine:
    made = engine_for(None)
    made.load()
    return made


@pytest.mark.parametrize("architecture", SHAPES.values(), ids=SHAPES)
def test_every_architecture_speaks_and_is_the_same_in_every_instance(architecture: Architecture) -> None:
    first, second = engine_for(architecture), engine_for(architecture, seed=1)
    assert first.load() == second.load()
    assert first.load().architecture == architecture.name
    request = Generation("What is it?", Sampling(seed=5), max_new_tokens=12)
    said = first.generate(request)
    assert said == second.generate(request)
    assert said.completion_tokens == 12
    assert said.texts[0].isprintable()
    assert said.texts[0].strip()


def test_requests_without_a_seed_draw_it_from_the_engines_randomness() -> None:
    def two(seed: int) -> list[str]:
        engine = engine_for(None, seed)
        engine.load()
        return [engine.generate(Generation("x", max_new_tokens=10)).texts[0] for _ in range(2)]

    first, again, other = two(1), two(1), two(2)
    assert first == again != other
    assert first[0] != first[1]


def test_text_is_reported_as_it_comes(engine: Engine) -> None:
    pieces: list[str] = []
    done = engine.generate(Generation("The", max_new_tokens=20), on_text=pieces.append)
    assert "".join(pieces) == done.texts[0]
    assert len(pieces) == 20


def test_cancellation_is_noticed_at_the_next_token(engine: Engine) -> None:
    pieces: list[str] = []
    done = engine.generate(Generation("x"), cancelled=lambda: len(pieces) >= 3, on_text=pieces.append)
    assert (done.finish_reason, done.completion_tokens) == ("cancelled", 3)


def test_without_limits_the_context_is_the_limit(engine: Engine) -> None:
    done = engine.generate(Generation(tuple([5] * 2040)))
    assert (done.completion_tokens, done.finish_reason) == (8, "length")


def test_an_end_of_sequence_token_ends_it() -> None:
    engine = engine_for(None)
    engine.load()
    greedy = Sampling(do_sample=False)
    pieces: list[str] = []
    engine.generate(Generation("x", greedy, max_new_tokens=30), on_text=pieces.append)
    (token,) = engine._tokenizer(pieces[4], add_special_tokens=False).input_ids
    done = engine.generate(Generation("x", greedy, max_new_tokens=30, eos_token_id=token))
    assert (done.finish_reason, done.completion_tokens) == ("stop", pieces.index(pieces[4]) + 1)


def test_a_model_without_a_chat_template_says_so(engine: Engine) -> None:
    bare = engine_for(None)
    bare.load()
    bare._tokenizer.chat_template = None
    with pytest.raises(RequestError, match="use /v1/completions"):
        bare.render_chat([{"role": "user", "content": "x"}])
    assert engine.render_chat([{"role": "user", "content": "x"}]) == "<|user|>\nx\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("phi-3-mini-4k-instruct", 7.12),
        ("phi-3-medium-4k-instruct", 26.00),
        ("mistral-7b", 13.50),
        ("qwen2.5-coder-7b-instruct", 14.19),
    ],
)
def test_the_catalogues_shapes_give_the_published_size_of_the_weights(name: str, gib: float) -> None:
    preset = Catalogue.builtin().get(name)
    assert preset is not None
    shape = preset.architecture
    assert shape is not None
    model_class = getattr(transformers, shape.name)
    config = model_class.config_class(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary,
        pad_token_id=0,
    )
    with torch.device("meta"):
        parameters = sum(p.numel() for p in model_class(config).parameters())
    assert parameters * 2 / 2**30 == pytest.approx(gib, abs=0.005)
