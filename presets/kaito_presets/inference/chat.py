"""``POST /chat``: KAITO's own interface. One JSON object in, ``{"Result": text}`` out.

The field names, defaults and 400 messages are those of KAITO's server. In contrast to it, an option that would be
ignored or would fail inside the model is refused with its name.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from kaito_presets.inference.engine import Engine, Generation, Sampling
from kaito_presets.inference.errors import BadRequest
from kaito_presets.inference.responses import unless_gone
from kaito_presets.inference.scheduler import Scheduler
from kaito_presets.inference.service import Service
from kaito_presets.nearest import nearest

__all__ = ["ChatRequest", "GenerateKwargs", "router"]

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class Message(_Body):
    """One turn of a conversation."""

    role: str
    content: str


class GenerateKwargs(_Body):
    """How to generate. ``max_length`` counts the prompt; ``max_new_tokens`` does not, and wins."""

    model_config = ConfigDict(extra="allow")

    max_length: int = Field(200, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    min_length: int = Field(0, ge=0)
    min_new_tokens: int | None = Field(None, ge=0)
    do_sample: bool = True
    early_stopping: bool = False
    num_beams: int = Field(1, ge=1, le=16)
    num_return_sequences: int = Field(1, ge=1, le=16)
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    top_k: int = Field(10, ge=0)
    top_p: _Share = 1.0
    typical_p: _Share = 1.0
    repetition_penalty: _Positive = 1.0
    length_penalty: float = Field(1.0, allow_inf_nan=False)
    no_repeat_ngram_size: int = Field(0, ge=0)
    max_time: _Positive | None = None
    seed: int | None = None
    stop_strings: str | list[str] | None = None
    pad_token_id: int | None = Field(None, ge=0)
    eos_token_id: int | None = Field(None, ge=0)
    use_cache: bool = True


class ChatRequest(_Body):
    """The body. ``prompt`` for the text-generation pipeline, ``messages`` for the conversational one."""

    prompt: str | None = None
    return_full_text: bool | None = True
    clean_up_tokenization_spaces: bool | None = False
    prefix: str | None = None
    handle_long_generation: str | None = None
    generate_kwargs: GenerateKwargs | None = None
    messages: list[Message] | None = None


def router(service: Service) -> APIRouter:
    """The route, on *service*."""
    routes = APIRouter()

    @routes.post("/chat")
    async def chat(body: ChatRequest, request: Request) -> JSONResponse:
        engine, scheduler, _ = service.ready()
        shown, generation = _generation(body, service.config.pipeline, engine)
        texts = await unless_gone(request.receive, _generate(scheduler, generation))
        return JSONResponse({"Result": "".join(shown + text for text in texts)})

    return routes


async def _generate(scheduler: Scheduler, generation: Generation) -> tuple[str, ...]:
    async with scheduler.turn() as turn:
        return (await turn.generate(generation)).texts


def _generation(body: ChatRequest, pipeline: str, engine: Engine) -> tuple[str, Generation]:
    """The text to show before each continuation, and what to generate."""
    options = body.generate_kwargs or GenerateKwargs()
    _refuse_extras(options)
    if body.handle_long_generation not in (None, "hole"):
        raise BadRequest("handle_long_generation must be null or 'hole'", param="handle_long_generation")
    if pipeline == "conversational":
        if not body.messages:
            raise BadRequest("Conversational parameter messages required", param="messages")
        prompt, shown, special = engine.render_chat([m.model_dump() for m in body.messages]), "", False
    else:
        if not body.prompt:
            raise BadRequest("Text generation parameter prompt required", param="prompt")
        prompt, special = (body.prefix or "") + body.prompt, True
        shown = body.prompt if body.return_full_text else ""
    if options.num_return_sequences > 1 and not options.do_sample and options.num_beams < options.num_return_sequences:
        raise BadRequest("num_return_sequences needs do_sample, or at least as many num_beams", param="generate_kwargs")
    stop = options.stop_strings or []
    return shown, Generation(
        prompt=prompt,
        sampling=_sampling(options),
        max_new_tokens=options.max_new_tokens,
        max_length=options.max_length,
        min_length=options.min_length,
        min_new_tokens=options.min_new_tokens or 0,
        sequences=options.num_return_sequences,
        stop=tuple([stop] if isinstance(stop, str) else stop),
        special_tokens=special,
        truncate=body.handle_long_generation == "hole",
        clean_up_spaces=bool(body.clean_up_tokenization_spaces),
        pad_token_id=options.pad_token_id,
        eos_token_id=options.eos_token_id,
        max_time=options.max_time,
    )


def _sampling(options: GenerateKwargs) -> Sampling:
    return Sampling(
        do_sample=options.do_sample and options.temperature > 0,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        typical_p=options.typical_p,
        repetition_penalty=options.repetition_penalty,
        num_beams=options.num_beams,
        early_stopping=options.early_stopping,
        length_penalty=options.length_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        seed=options.seed,
    )


def _refuse_extras(options: GenerateKwargs) -> None:
    extras: dict[str, Any] = options.model_extra or {}
    for name in sorted(extras):
        if extras[name] is None:
            continue
        near = nearest(name, GenerateKwargs.model_fields, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadRequest(f"generate_kwargs: {name[:64]} is not supported{hint}", param="generate_kwargs")
