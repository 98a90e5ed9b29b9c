"""A real model with made-up weights: the preset's own architecture, shrunk, with a tokenizer trained on the spot.

It needs no download and is ready in a blink, so that everything around a model can be run and tested without one. What
it says is printable and means nothing.
"""

from __future__ import annotations

import string
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from kaito_presets.preset import Architecture

__all__ = ["build_model", "build_tokenizer"]

_LAYERS, _HIDDEN, _HEADS, _CONTEXT, _VOCABULARY = 2, 64, 4, 2048, 640
_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"

# Any text will do; the tokenizer only has to learn some frequent words from it.
_TEXT = """
The garden behind the house is small, but in the morning the light comes over the wall and all of it is awake.
A cat walks along the path. It knows where the birds are, and the birds know where it is, and so nothing happens.
When it rains the water runs down from the roof into the old barrel, and when that is full it runs on to the beans.
Somebody has to carry the water from the well when there is no rain. In a dry year that is an hour of work a day.
We grow beans, peas, onions, potatoes, carrots and a few tomatoes that never get quite enough of the sun.
What do we do with all the apples? We eat some, we dry some, we give some away, and the rest is for the deer.
Is it worth the trouble? I think so. There is a quiet in working with your hands that you will not find at a desk.
My neighbour keeps bees. He says that they are good company, that they ask for little, and that they are never late.
In winter there is little to do: mend the fence, sharpen the tools, read, make a plan for the next year.
One two three four five six seven eight nine ten. First, second, third. Yes and no, more and less, before and after.
"""
_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def build_tokenizer() -> Any:
    """A byte-level BPE tokenizer: it takes any text, and it is the same in every process."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _TEXT.strip().splitlines(),
        trainers.BpeTrainer(
            vocab_size=_VOCABULARY,
            special_tokens=[_PAD, _BOS, _EOS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bos = tokenizer.token_to_id(_BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", pair=f"{_BOS} $A $B", special_tokens=[(_BOS, bos)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        chat_template=_TEMPLATE,
        model_max_length=_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(architecture: Architecture | None, tokenizer: Any, seed: int = 0) -> Any:
    """A model of *architecture*'s class with tiny dimensions; the same seed gives the same weights.

    It keeps what makes the class what it is (grouped or multi-query attention); its generation config suppresses every
    token that is not printable. Raises ``ValueError`` for a class that transformers does not have.
    """
    name = architecture.name if architecture else "LlamaForCausalLM"
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise ValueError(f"transformers {transformers.__version__} has no {name}")
    config = model_class.config_class(**_dimensions(architecture), **_ids(tokenizer), vocab_size=len(tokenizer))
    torch.manual_seed(seed)
    model = model_class(config).eval()
    model.generation_config = transformers.GenerationConfig(
        **_ids(tokenizer), suppress_tokens=_unprintable(tokenizer), max_length=None
    )
    return model


def _dimensions(architecture: Architecture | None) -> dict[str, Any]:
    heads, kv = (architecture.heads, architecture.key_value_heads) if architecture else (_HEADS, _HEADS)
    kv_heads = _HEADS if kv == heads else 1 if kv == 1 else 2
    sizes: dict[str, Any] = {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "max_position_embeddings": _CONTEXT,
        "tie_word_embeddings": False,
    }
    if architecture is not None and architecture.name == "FalconForCausalLM":
        # Falcon says the same in other words: multi-query in the first generation, groups in the second.
        grouped = kv_heads > 1
        return {**sizes, "multi_query": not grouped, "new_decoder_architecture": grouped, "num_kv_heads": kv_heads}
    return {**sizes, "intermediate_size": 2 * _HIDDEN, "num_key_value_heads": kv_heads}


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _unprintable(tokenizer: Any) -> list[int]:
    printable = set(string.printable) - set(string.whitespace) | {" "}
    return [
        token
        for token in range(len(tokenizer))
        if not (text := tokenizer.decode([token], skip_special_tokens=True)).strip() or not set(text) <= printable
    ]
