"""The OpenAI routes: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions``, streaming included.

Requests with several prompts or ``n`` above one keep their turn and generate one text after the other, so that they can
be streamed as well. With a seed, text number *i* uses ``seed + i``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kaito_presets.inference.engine import Completion, Generation, ModelInfo, Sampling
from kaito_presets.inference.errors import ModelNotFound
from kaito_presets.inference.openai_schema import ChatCompletionRequest, CompletionRequest
from kaito_presets.inference.responses import EventStream, unless_gone
from kaito_presets.inference.scheduler import Scheduler
from kaito_presets.inference.service import Service

__all__ = ["router"]

DEFAULT_CHAT_TOKENS = 256
"""Without ``max_tokens`` a chat would run to the end of the context, and hold up everybody behind it."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A parsed request: the texts to generate, *n* for each prompt, each with what to show before it; and a frame."""

    kind: Literal["text", "chat"]
    id: str
    created: int
    model: str
    texts: tuple[tuple[str, Generation], ...]
    n: int
    include_usage: bool

    @property
    def object(self) -> str:
        return "chat.completion" if self.kind == "chat" else "text_completion"

    def envelope(self, choices: list[dict[str, Any]], *, chunk: bool = False) -> dict[str, Any]:
        suffix = ".chunk" if chunk and self.kind == "chat" else ""
        return {
            "id": self.id,
            "object": self.object + suffix,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def router(service: Service) -> APIRouter:
    """The routes, on *service*."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        _, _, info = service.ready()
        return {"object": "list", "data": [_card(service, info)]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _, _, info = service.ready()
        _check_model(name, info)
        return _card(service, info)

    @routes.post("/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        _, scheduler, info = service.ready()
        _check_model(body.model, info)
        texts = tuple(_completion_texts(body))
        return await _answer(service, scheduler, _job(service, "text", body, texts), body.stream, request)

    @routes.post("/chat/completions")
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        engine, scheduler, info = service.ready()
        _check_model(body.model, info)
        limit = body.max_completion_tokens or body.max_tokens or DEFAULT_CHAT_TOKENS
        one = Generation(
            prompt=engine.render_chat([message.plain() for message in body.messages]),
            sampling=_sampling(body),
            max_new_tokens=limit,
            min_new_tokens=body.min_tokens,
            stop=body.stops,
            special_tokens=False,
        )
        texts = tuple(("", _reseeded(one, i)) for i in range(body.n))
        return await _answer(service, scheduler, _job(service, "chat", body, texts), body.stream, request)

    return routes


async def _answer(service: Service, scheduler: Scheduler, job: _Job, stream: bool, request: Request) -> Response:
    if stream:
        return EventStream(lambda: _events(service, scheduler, job), request.url.path)
    return JSONResponse(await unless_gone(request.receive, _whole(scheduler, job)))


async def _whole(scheduler: Scheduler, job: _Job) -> dict[str, Any]:
    completions = []
    async with scheduler.turn() as turn:
        for _, generation in job.texts:
            completions.append(await turn.generate(generation))
    choices = []
    for index, ((shown, _), done) in enumerate(zip(job.texts, completions, strict=True)):
        text = shown + done.texts[0]
        said = {"message": {"role": "assistant", "content": text}} if job.kind == "chat" else {"text": text}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": done.finish_reason})
    return {**job.envelope(choices), "usage": _usage(job, completions)}


async def _events(service: Service, scheduler: Scheduler, job: _Job) -> AsyncGenerator[str, None]:
    arrived, waiting_for_first = service.clock.monotonic(), True
    completions: list[Completion] = []
    async with scheduler.turn() as turn:
        for index, (shown, generation) in enumerate(job.texts):
            for opening in _opening(job, shown):
                yield _chunk(job, index, opening)
            async with aclosing(turn.stream(generation)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Completion):
                        completions.append(piece)
                        yield _chunk(job, index, _empty(job), piece.finish_reason)
                        continue
                    if waiting_for_first:
                        service.metrics.first_token.observe(service.clock.monotonic() - arrived)
                        waiting_for_first = False
                    yield _chunk(job, index, _delta(job, piece))
    if job.include_usage:
        yield _json({**job.envelope([], chunk=True), "usage": _usage(job, completions)})


def _opening(job: _Job, shown: str) -> Iterator[dict[str, Any]]:
    if job.kind == "chat":
        yield {"delta": {"role": "assistant", "content": ""}}
    elif shown:
        yield {"text": shown}


def _delta(job: _Job, text: str) -> dict[str, Any]:
    return {"delta": {"content": text}} if job.kind == "chat" else {"text": text}


def _empty(job: _Job) -> dict[str, Any]:
    return {"delta": {}} if job.kind == "chat" else {"text": ""}


def _chunk(job: _Job, index: int, said: dict[str, Any], reason: str | None = None) -> str:
    choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
    return _json(job.envelope([choice], chunk=True))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _usage(job: _Job, completions: list[Completion]) -> dict[str, int]:
    prompt = sum(done.prompt_tokens for done in completions[:: job.n])  # each prompt counts once
    generated = sum(done.completion_tokens for done in completions)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _job(
    service: Service,
    kind: Literal["text", "chat"],
    body: CompletionRequest | ChatCompletionRequest,
    texts: tuple[tuple[str, Generation], ...],
) -> _Job:
    return _Job(
        kind=kind,
        id=("chatcmpl-" if kind == "chat" else "cmpl-") + service.uid().replace("-", ""),
        created=int(service.clock.now().timestamp()),
        model=body.model or service.config.served_model_name,
        texts=texts,
        n=body.n,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def _completion_texts(body: CompletionRequest) -> Iterator[tuple[str, Generation]]:
    for prompt in body.prompts:
        one = Generation(
            prompt=prompt,
            sampling=_sampling(body),
            max_new_tokens=body.max_tokens or 16,
            min_new_tokens=body.min_tokens,
            stop=body.stops,
        )
        for i in range(body.n):
            yield (prompt if body.echo and isinstance(prompt, str) else ""), _reseeded(one, i)


def _sampling(body: CompletionRequest | ChatCompletionRequest) -> Sampling:
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        do_sample=temperature > 0,
        temperature=temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        seed=body.seed,
    )


def _reseeded(generation: Generation, index: int) -> Generation:
    seed = generation.sampling.seed
    if seed is None or not index:
        return generation
    return replace(generation, sampling=replace(generation.sampling, seed=seed + index))


def _check_model(name: str | None, info: ModelInfo) -> None:
    if name is not None and name != info.name:
        said = name if len(name) <= 128 else name[:128] + "..."
        message = f"The model `{said}` does not exist: this server serves `{info.name}`"
        raise ModelNotFound(message, param="model", code="model_not_found")


def _card(service: Service, info: ModelInfo) -> dict[str, Any]:
    source = service.config.preset.source if service.config.preset else None
    return {
        "id": info.name,
        "object": "model",
        "created": service.started,
        "owned_by": "kaito",
        "root": source.repository if source else info.name,
        "max_model_len": info.context,
        "weights": info.weights,
        "adapters": [{"name": name, "strength": strength} for name, strength in info.adapters],
    }
