"""The engine on Hugging Face transformers, on one CPU, one GPU or several GPUs of one node.

Importing this module imports torch: the server does it on its loading thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import structlog
import torch
import transformers

from kaito_presets.inference.adapters import Adapter
from kaito_presets.inference.config import Config
from kaito_presets.inference.engine import Completion, FinishReason, Generation, LoadError, ModelInfo, RequestError
from kaito_presets.inference.text import Detokenizer, StopMatcher
from kaito_presets.inference.weights import HubWeights, LocalWeights, RandomWeights, Weights

__all__ = ["TransformersEngine"]

log: Final = structlog.get_logger(__name__)

_PLACEMENTS = ("balanced", "balanced_low_0", "sequential")


class TransformersEngine:
    """Serves one causal language model, with all *adapters* applied. ``rng`` seeds the requests that bring no seed of
    their own."""

    def __init__(self, config: Config, weights: Weights, rng: random.Random, adapters: Sequence[Adapter] = ()) -> None:
        self._config = config
        self._weights = weights
        self._rng = rng
        self._adapters = tuple(adapters)
        self._model: Any = None
        self._tokenizer: Any = None
        self._context = 0

    def load(self) -> ModelInfo:
        try:
            if isinstance(self._weights, RandomWeights):
                self._build(self._weights)
            else:
                self._read(self._weights)
            if self._adapters:
                from kaito_presets.inference.merge import apply_adapters

                apply_adapters(self._model, self._adapters, self._config.combination_type)
            self._context = self._longest()
            info = self._describe()
            # The first forward pass finds what loading does not: missing kernels, a tokenizer of another model.
            self.generate(Generation("Hello", max_new_tokens=1))
        except LoadError:
            raise
        except Exception as error:
            raise LoadError(f"the model cannot be loaded: {type(error).__name__}: {error}") from error
        return info

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self._tokenizer.chat_template:
            raise RequestError("this model has no chat template: use /v1/completions, or start with --chat_template")
        try:
            rendered = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program of the model's author, and may raise anything
            raise RequestError(f"the model's chat template refuses these messages: {error}") from error
        return str(rendered)

    def generate(
        self,
        request: Generation,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        prompt, room = self._fit(request)
        seed = request.sampling.seed if request.sampling.seed is not None else self._rng.getrandbits(63)
        torch.manual_seed(seed % 2**63)
        single = request.sequences == 1 and request.sampling.num_beams == 1
        report = on_text if single else None
        watch = _Watch(self._decoder(request), request.stop, len(prompt), cancelled, report, single)
        ids = torch.tensor([prompt], device=self._model.device)
        options = self._options(request, room, len(prompt))
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=options,
            stopping_criteria=transformers.StoppingCriteriaList([watch]),
        )
        return self._complete(request, options, watch, output[:, len(prompt) :].tolist(), len(prompt), single)

    def _build(self, weights: RandomWeights) -> None:
        from kaito_presets.inference.tiny import build_model, build_tokenizer

        self._tokenizer = build_tokenizer()
        device = "cpu" if self._device() in _PLACEMENTS else self._device()
        self._model = build_model(weights.architecture, self._tokenizer).to(device)

    def _read(self, weights: LocalWeights | HubWeights) -> None:
        name = str(weights.path) if isinstance(weights, LocalWeights) else weights.repository
        common = {
            "local_files_only": isinstance(weights, LocalWeights),
            "revision": weights.revision if isinstance(weights, HubWeights) else None,
            "cache_dir": self._config.cache_dir,
            "trust_remote_code": self._config.trust_remote_code,
        }
        device = self._device()
        placed = {"device_map": "auto" if device == "auto" else device} if device in ("auto", *_PLACEMENTS) else {}
        # The argument was renamed in version 5; version 4 does not know the new name in all places.
        dtype_name = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(name, **common)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, use_safetensors=True, **{dtype_name: self._dtype(device)}, **placed, **common
        )
        self._model = (model if placed else model.to(device)).eval()
        if self._config.chat_template:
            self._tokenizer.chat_template = Path(self._config.chat_template).read_text(encoding="utf-8")

    def _device(self) -> str:
        """``cpu`` or ``cuda:N``, or a way of spreading the model over several GPUs."""
        asked = self._config.device
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if asked == "cpu" or (asked == "auto" and not gpus):
            return "cpu"
        if not gpus:
            raise LoadError(f"--device={asked}, but no CUDA device is visible")
        if asked.startswith("cuda"):
            return asked if ":" in asked else "cuda:0"
        if gpus == 1:
            return "cuda:0"
        if find_spec("accelerate") is None:
            log.warning("using one GPU only: spreading a model over several needs the accelerate package", gpus=gpus)
            return "cuda:0"
        return asked

    def _dtype(self, device: str) -> Any:
        asked = self._config.torch_dtype
        if device == "cpu":
            if asked in ("float16", "bfloat16"):
                log.info("using float32: half precision is slow on a CPU", asked=asked)
            return torch.float32
        return "auto" if asked == "auto" else getattr(torch, asked)

    def _longest(self) -> int:
        limits = [getattr(self._model.config, "max_position_embeddings", None), self._config.max_model_len]
        return min((limit for limit in limits if limit), default=2048)

    def _describe(self) -> ModelInfo:
        parameter = next(self._model.parameters())
        return ModelInfo(
            name=self._config.served_model_name,
            architecture=type(self._model).__name__,
            parameters=sum(p.numel() for p in self._model.parameters()),
            context=self._context,
            dtype=str(parameter.dtype).removeprefix("torch."),
            device=str(parameter.device),
            weights="random" if isinstance(self._weights, RandomWeights) else "pretrained",
            adapters=tuple((adapter.name, adapter.strength) for adapter in self._adapters),
        )

    def _fit(self, request: Generation) -> tuple[list[int], int]:
        """The prompt's tokens, and how many more may follow."""
        if isinstance(request.prompt, str):
            prompt = self._tokenizer(request.prompt, add_special_tokens=request.special_tokens).input_ids
        else:
            prompt = list(request.prompt)
            if any(not 0 <= token < self._model.config.vocab_size for token in prompt):
                raise RequestError(f"token ids must be between 0 and {self._model.config.vocab_size - 1}")
        if not prompt:
            raise RequestError("the prompt has no tokens")
        if request.truncate:
            room = request.max_new_tokens or max(1, (request.max_length or self._context) - len(prompt))
            prompt = prompt[-max(1, self._context - room) :]
        if len(prompt) >= self._context:
            raise RequestError(
                f"This model's maximum context length is {self._context} tokens, and the prompt has {len(prompt)}",
                "context_length_exceeded",
            )
        if request.max_new_tokens is not None:
            room = request.max_new_tokens
        elif request.max_length is not None:
            room = request.max_length - len(prompt)
        else:
            room = self._context
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and max_length is {request.max_length}, prompt included: "
                "raise max_length, or set max_new_tokens",
                "context_length_exceeded",
            )
        return prompt, min(room, self._context - len(prompt))

    def _options(self, request: Generation, room: int, prompt_tokens: int) -> Any:
        """The model's own generation config, overridden by the request."""
        sampling = request.sampling
        options = transformers.GenerationConfig.from_dict(self._model.generation_config.to_dict())
        tokenizer_eos = self._tokenizer.eos_token_id
        eos = request.eos_token_id if request.eos_token_id is not None else (options.eos_token_id or tokenizer_eos)
        pad = request.pad_token_id if request.pad_token_id is not None else self._tokenizer.pad_token_id
        first_eos = eos[0] if isinstance(eos, list) else eos
        options.update(
            max_length=None,
            max_new_tokens=room,
            min_length=0,
            min_new_tokens=min(room, max(request.min_new_tokens, request.min_length - prompt_tokens)) or None,
            max_time=request.max_time,
            num_return_sequences=request.sequences,
            num_beams=sampling.num_beams,
            early_stopping=sampling.early_stopping and sampling.num_beams > 1,
            length_penalty=sampling.length_penalty if sampling.num_beams > 1 else 1.0,
            no_repeat_ngram_size=sampling.no_repeat_ngram_size,
            repetition_penalty=sampling.repetition_penalty,
            do_sample=sampling.do_sample,
            # Left to the defaults when nothing is drawn: transformers warns about settings without effect.
            temperature=sampling.temperature if sampling.do_sample else 1.0,
            top_k=sampling.top_k if sampling.do_sample else 50,
            top_p=sampling.top_p if sampling.do_sample else 1.0,
            typical_p=sampling.typical_p if sampling.do_sample else 1.0,
            eos_token_id=eos,
            pad_token_id=pad if pad is not None else first_eos,
        )
        return options

    def _decoder(self, request: Generation) -> Callable[[Sequence[int]], str]:
        return lambda ids: str(
            self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=request.clean_up_spaces)
        )

    def _complete(
        self, request: Generation, options: Any, watch: _Watch, rows: list[list[int]], prompt_tokens: int, single: bool
    ) -> Completion:
        ends = set(options.eos_token_id if isinstance(options.eos_token_id, list) else [options.eos_token_id])
        lengths = [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in rows]
        if single:
            texts: tuple[str, ...] = (watch.finish(),)
        else:
            texts = tuple(self._cut(request, row[:length]) for row, length in zip(rows, lengths, strict=True))
        ended = all(length and row[length - 1] in ends for row, length in zip(rows, lengths, strict=True))
        reason: FinishReason = "cancelled" if watch.cancelled else "stop" if ended or watch.stopped else "length"
        return Completion(texts, prompt_tokens, sum(lengths), reason)

    def _cut(self, request: Generation, ids: Sequence[int]) -> str:
        matcher = StopMatcher(request.stop)
        return matcher.push(self._decoder(request)(ids)) + matcher.flush()


class _Watch:
    """Called after every token, as a stopping criterion: reports text, looks for stop strings and for cancellation."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str],
        seen: int,
        is_cancelled: Callable[[], bool],
        on_text: Callable[[str], None] | None,
        single: bool,
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._matcher = StopMatcher(stop)
        self._seen = seen
        self._is_cancelled = is_cancelled
        self._on_text = on_text
        self._single = single
        self._parts: list[str] = []
        self.cancelled = False

    @property
    def stopped(self) -> bool:
        return self._matcher.stopped

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        if self._single:
            for token in input_ids[0, self._seen :].tolist():
                self._report(self._matcher.push(self._detokenizer.push(token)))
            self._seen = input_ids.shape[1]
        self.cancelled = self.cancelled or self._is_cancelled()
        done = self.cancelled or self.stopped
        return torch.full((input_ids.shape[0],), done, device=input_ids.device, dtype=torch.bool)

    def finish(self) -> str:
        """The whole text; reports what was held back."""
        self._report(self._matcher.push(self._detokenizer.flush()))
        self._report(self._matcher.flush())
        return "".join(self._parts)

    def _report(self, text: str) -> None:
        if text:
            self._parts.append(text)
            if self._on_text is not None:
                self._on_text(text)
