"""The bodies of the OpenAI routes: what is understood, within which bounds, and what is refused rather than ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ChatCompletionRequest", "CompletionRequest", "StreamOptions"]

_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Tokens = Annotated[list[int], Field(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StreamOptions(_Body):
    """``include_usage``: one more event, with the token counts, at the end."""

    include_usage: bool = False


class _Request(_Body):
    """What both routes take. ``top_k``, ``repetition_penalty`` and ``min_tokens`` are the usual extensions."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=16)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = None
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    min_tokens: int = Field(0, ge=0)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | int | None = None

    @model_validator(mode="after")
    def _supported(self) -> Self:
        for name in ("presence_penalty", "frequency_penalty", "logit_bias", "logprobs"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported by this server")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(_Request):
    """``POST /v1/completions``: one prompt or several, as text or as tokens."""

    prompt: str | _Tokens | Annotated[list[str] | list[_Tokens], Field(min_length=1, max_length=16)]
    max_tokens: int | None = Field(16, ge=1)
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _completion_supported(self) -> Self:
        if self.suffix:
            raise ValueError("suffix is not supported by this server")
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of other than n is not supported by this server")
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError("echo needs prompts that are text")
        return self

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(self.prompt, str):
            return (self.prompt,)
        tokens = tuple(item for item in self.prompt if isinstance(item, int))
        texts = tuple(item for item in self.prompt if isinstance(item, str))
        return (tokens,) if tokens else texts or tuple(tuple(item) for item in self.prompt if isinstance(item, list))


class ContentPart(_Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One message. Content in parts is joined."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[ContentPart] | None = None

    def plain(self) -> dict[str, str]:
        content = self.content or ""
        return {
            "role": self.role,
            "content": content if isinstance(content, str) else "".join(part.text for part in content),
        }


class ChatCompletionRequest(_Request):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[Any] | None = None

    @model_validator(mode="after")
    def _chat_supported(self) -> Self:
        if self.tools:
            raise ValueError("tools is not supported by this server")
        return self
