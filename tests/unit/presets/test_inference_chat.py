"""``POST /chat``, health and metrics, against the real server."""

from __future__ import annotations

import asyncio
import json
import string
from typing import Any

import httpx
import pytest
from inference_process import TinyServer, metric

GREEDY = {"do_sample": False}


def chat(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/chat", json=body)


def test_health_tells_the_truth_while_the_model_is_loading(tiny: TinyServer) -> None:
    assert (tiny.early_health.status_code, tiny.early_health.json()) == (500, {"detail": "Model not initialized"})
    assert (tiny.early_chat.status_code, tiny.early_chat.json()) == (503, {"detail": "Model not initialized"})
    assert tiny.early_chat.headers["retry-after"] == "5"
    assert "x-kaito-weights" not in tiny.early_chat.headers


@pytest.mark.parametrize("path", ["/healthz", "/health"])
def test_health_is_healthy_once_the_model_is_loaded(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "Healthy"})


def test_home(client: httpx.Client) -> None:
    assert client.get("/").json() == {"message": "Server is running"}


def test_a_prompt_is_answered_with_itself_and_its_continuation(client: httpx.Client) -> None:
    answer = chat(client, prompt="YOUR QUESTION HERE")
    assert answer.status_code == 200
    assert list(answer.json()) == ["Result"]
    result = answer.json()["Result"]
    assert result.startswith("YOUR QUESTION HERE")
    continuation = result.removeprefix("YOUR QUESTION HERE")
    assert continuation.strip()
    assert set(continuation) <= set(string.printable) - set("\t\n\r\x0b\x0c")


def test_random_weights_are_marked_on_every_answer(client: httpx.Client) -> None:
    assert chat(client, prompt="x").headers["x-kaito-weights"] == "random"
    assert client.post("/v1/completions", json={"prompt": "x"}).headers["x-kaito-weights"] == "random"
    assert "x-kaito-weights" not in client.get("/healthz").headers


def test_any_text_is_a_prompt(client: httpx.Client) -> None:
    prompt = "日本語 é \U0001f600 \x00 \n<s></s><pad>"
    assert chat(client, prompt=prompt, generate_kwargs={"max_new_tokens": 4}).json()["Result"].startswith(prompt)


def test_only_the_continuation_on_request(client: httpx.Client) -> None:
    kwargs = {**GREEDY, "max_new_tokens": 8}
    full = chat(client, prompt="The cat", generate_kwargs=kwargs).json()["Result"]
    bare = chat(client, prompt="The cat", generate_kwargs=kwargs, return_full_text=False).json()["Result"]
    assert full == "The cat" + bare


def test_greedy_and_seeded_answers_repeat_and_others_do_not(client: httpx.Client) -> None:
    def ask(**kwargs: Any) -> str:
        return str(chat(client, prompt="What is it?", generate_kwargs=kwargs).json()["Result"])

    assert ask(**GREEDY) == ask(**GREEDY)
    assert ask(seed=7) == ask(seed=7) != ask(seed=8)
    assert ask() != ask()


def test_max_length_counts_the_prompt_and_max_new_tokens_does_not(client: httpx.Client) -> None:
    def tokens(**kwargs: Any) -> int:
        before = metric(client.get("/metrics").text, "kaito_inference_generated_tokens_total")
        assert chat(client, prompt="The cat walks", generate_kwargs=kwargs).status_code == 200
        return int(metric(client.get("/metrics").text, "kaito_inference_generated_tokens_total") - before)

    prompt = client.post("/v1/completions", json={"prompt": "The cat walks", "max_tokens": 1}).json()["usage"]
    assert tokens() == 200 - prompt["prompt_tokens"]
    assert tokens(max_length=20) == 20 - prompt["prompt_tokens"]
    assert tokens(max_length=20, max_new_tokens=30) == 30


def test_several_sequences_are_concatenated_each_with_its_prompt(client: httpx.Client) -> None:
    kwargs = {"num_return_sequences": 3, "max_new_tokens": 5, "seed": 1}
    assert chat(client, prompt="Birds!", generate_kwargs=kwargs).json()["Result"].count("Birds!") == 3


def test_beam_search(client: httpx.Client) -> None:
    kwargs = {**GREEDY, "num_beams": 3, "early_stopping": True, "max_new_tokens": 5, "length_penalty": 0.5}
    assert chat(client, prompt="Birds", generate_kwargs=kwargs).status_code == 200


def test_stop_strings_end_the_text_and_are_not_part_of_it(client: httpx.Client) -> None:
    kwargs: dict[str, Any] = {"seed": 3, "max_new_tokens": 60}
    whole = chat(client, prompt="x", generate_kwargs=kwargs, return_full_text=False).json()["Result"]
    stop = whole[20:23]
    cut = chat(client, prompt="x", generate_kwargs={**kwargs, "stop_strings": stop}, return_full_text=False)
    assert cut.json()["Result"] == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "Text generation parameter prompt required"),
        ({"prompt": ""}, "Text generation parameter prompt required"),
        ({"prompt": None}, "Text generation parameter prompt required"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "Text generation parameter prompt required"),
        (
            {"prompt": "x", "generate_kwargs": {"max_tokens": 5}},
            "generate_kwargs: max_tokens is not supported (did you mean max_new_tokens?)",
        ),
        ({"prompt": "x", "generate_kwargs": {"zzzz": 5}}, "generate_kwargs: zzzz is not supported"),
        ({"prompt": "x", "handle_long_generation": "x"}, "handle_long_generation must be null or 'hole'"),
        (
            {"prompt": "x " * 300},
            "the prompt has 601 tokens and max_length is 200, prompt included: raise max_length, or set max_new_tokens",
        ),
        (
            {"prompt": "x " * 3000},
            "This model's maximum context length is 2048 tokens, and the prompt has 6001",
        ),
    ],
)
def test_requests_that_cannot_be_served_are_refused_with_the_reason(
    client: httpx.Client, body: dict[str, Any], detail: str
) -> None:
    answer = client.post("/chat", json=body)
    assert (answer.status_code, answer.json()) == (400, {"detail": detail})


@pytest.mark.parametrize(
    ("content", "loc"),
    [
        (b'{"prompt": ', ["body", 11]),
        (b"", ["body"]),
        (b'["prompt"]', ["body"]),
        (b'{"prompt": 5}', ["body", "prompt"]),
        (b'{"prompt": "x", "generate_kwargs": {"temperature": NaN}}', ["body", "generate_kwargs", "temperature"]),
        (b'{"prompt": "x", "generate_kwargs": {"max_length": 0}}', ["body", "generate_kwargs", "max_length"]),
        (b'{"prompt": "x", "generate_kwargs": {"top_p": 2}}', ["body", "generate_kwargs", "top_p"]),
        (b'{"prompt": "x", "generate_kwargs": {"num_beams": 1000}}', ["body", "generate_kwargs", "num_beams"]),
    ],
)
def test_malformed_bodies_are_unprocessable_and_not_echoed(
    client: httpx.Client, content: bytes, loc: list[Any]
) -> None:
    answer = client.post("/chat", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == loc
    assert set(answer.json()["detail"][0]) == {"type", "loc", "msg"}


def test_a_long_prompt_may_lose_its_beginning_on_request(client: httpx.Client) -> None:
    kwargs = {"max_new_tokens": 3}
    answer = chat(client, prompt="x " * 3000, handle_long_generation="hole", generate_kwargs=kwargs)
    assert answer.status_code == 200


def test_too_large_a_body_is_refused_whether_it_declares_its_length_or_not(client: httpx.Client) -> None:
    body = json.dumps({"prompt": "x" * 300_000}).encode()
    answers = []
    for _ in range(20):  # a refusal that raced with the rest of the body used to be lost, now and then
        answers.append(client.post("/chat", content=body))
        answers.append(client.post("/chat", content=(body[at : at + 50_000] for at in range(0, len(body), 50_000))))
    for answer in answers:
        assert (answer.status_code, answer.json()) == (413, {"detail": "the request is larger than 200000 bytes"})


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert (client.get("/nothing").status_code, client.get("/nothing").json()) == (404, {"detail": "Not Found"})
    assert client.get("/chat").status_code == 405
    assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"


async def test_beyond_the_bound_requests_are_refused_at_once(tiny: TinyServer) -> None:
    body = {"prompt": "x", "generate_kwargs": {"max_new_tokens": 700}}
    async with httpx.AsyncClient(base_url=str(tiny.client.base_url), timeout=60) as many:
        answers = await asyncio.gather(*(many.post("/chat", json=body) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json() == {"detail": "2 requests are waiting already: try again later"}
    assert metric(tiny.client.get("/metrics").text, "kaito_inference_requests_rejected_total") >= 3


async def test_a_client_that_leaves_stops_its_generation(tiny: TinyServer) -> None:
    def sample(name: str) -> float:
        return metric(tiny.client.get("/metrics").text, f"kaito_inference_{name}")

    cancelled, generated = sample("requests_cancelled_total"), sample("generated_tokens_total")
    async with httpx.AsyncClient(base_url=str(tiny.client.base_url)) as hasty:
        long = {"prompt": "x", "generate_kwargs": {"max_new_tokens": 2000}}
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                await hasty.post("/chat", json=long, timeout=0.15)
    # The model is free only after the abandoned generations have ended, so this answer comes after them.
    assert chat(tiny.client, prompt="x", generate_kwargs={"max_new_tokens": 1}).status_code == 200
    assert sample("requests_cancelled_total") == cancelled + 3
    assert sample("generated_tokens_total") == generated + 1
    assert sample("requests_waiting") == 0


def test_metrics_are_prometheus(client: httpx.Client) -> None:
    chat(client, prompt="x", generate_kwargs={"max_new_tokens": 1})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert metric(answer.text, 'kaito_inference_requests_total{code="200",route="/chat"}') >= 1
    assert metric(answer.text, 'kaito_inference_request_duration_seconds_count{route="/chat"}') >= 1
    assert metric(answer.text, "kaito_inference_prompt_tokens_total") > 0
    assert metric(answer.text, "kaito_inference_requests_in_flight") == 1
    assert metric(answer.text, "kaito_inference_requests_running") == 0
    assert metric(answer.text, "kaito_inference_model_load_seconds") > 0
    info = 'architecture="Phi3ForCausalLM",device="cpu",dtype="float32",model="phi-3-mini-4k-instruct",weights="random"'
    assert metric(answer.text, f"kaito_inference_model_info{{{info}}}") == 1


def test_prompts_and_answers_never_reach_the_log(tiny: TinyServer) -> None:
    secret = "xyzzy-plugh-4711"
    chat(tiny.client, prompt=secret)
    tiny.client.post("/chat", json={"prompt": {"secret": secret}})
    tiny.client.post("/v1/completions", json={"prompt": secret, "temperature": 9})
    tiny.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": secret}], "max_tokens": 2})
    assert any('"path": "/v1/chat/completions"' in line for line in tiny.process.lines)
    assert not any(secret in line for line in tiny.process.lines)


def test_random_weights_are_announced_loudly(tiny: TinyServer) -> None:
    event = "THE WEIGHTS ARE RANDOM: every answer is meaningless. For tests and demonstrations only"
    assert tiny.process.event(event)["level"] == "warning"
