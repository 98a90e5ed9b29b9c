"""What a model engine is: load once, then generate one request at a time, on a thread of the caller's.

An engine knows neither HTTP nor asyncio. It blocks, it looks at ``cancelled`` at least once per token, and it reports
text as it comes. Several threads may not be in ``generate`` at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = [
    "Completion",
    "Engine",
    "FinishReason",
    "Generation",
    "LoadError",
    "ModelInfo",
    "RequestError",
    "Sampling",
]

FinishReason = Literal["stop", "length", "cancelled"]


class LoadError(Exception):
    """The model cannot be loaded; the message is for the operator, and final."""


class RequestError(Exception):
    """This request can never be served as it is; the message is for the client. ``code`` is OpenAI's word for it."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model. ``context`` is in tokens; ``weights`` says whether its words mean anything; ``adapters`` are
    the names and strengths of those that are active."""

    name: str
    architecture: str
    parameters: int
    context: int
    dtype: str
    device: str
    weights: Literal["pretrained", "random"]
    adapters: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. A ``top_k`` of 0 is no limit; without ``seed`` every request is different."""

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    early_stopping: bool = False
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One request. The prompt is text, or token ids.

    ``max_length`` counts the prompt, ``max_new_tokens`` does not and wins; with neither the context is the limit.
    ``stop`` strings end the text and are not part of it. ``special_tokens`` is off for text that has them already.
    ``truncate`` drops the beginning of a prompt that leaves no room. ``max_time`` is in seconds.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling = Sampling()
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    min_new_tokens: int = 0
    sequences: int = 1
    stop: tuple[str, ...] = ()
    special_tokens: bool = True
    truncate: bool = False
    clean_up_spaces: bool = False
    pad_token_id: int | None = None
    eos_token_id: int | None = None
    max_time: float | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of it: one text per sequence, without the prompt. Token counts are of all sequences together."""

    texts: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason


class Engine(Protocol):
    """A model that can be loaded and asked."""

    def load(self) -> ModelInfo:
        """Load the model and run it once. Blocks, possibly for minutes. Raises :class:`LoadError`."""
        ...

    def generate(
        self,
        request: Generation,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Generate until done, or until *cancelled* says so. Blocks. Raises :class:`RequestError`.

        *on_text* gets the text in pieces as it is certain; they add up to the completion's. Only for one sequence.
        """
        ...

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for *messages*, special tokens included. Raises :class:`RequestError` without a chat template."""
        ...
