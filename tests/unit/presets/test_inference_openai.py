"""The OpenAI routes, against the real server."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from inference_process import TinyServer, metric, sse, texts

MODEL = "phi-3-mini-4k-instruct"
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def complete(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json=body)


def converse(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": HELLO, **body})


def test_the_model_is_listed_with_the_kind_of_its_weights(client: httpx.Client) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["owned_by"]) == (MODEL, "model", "kaito")
    assert (card["root"], card["max_model_len"]) == ("microsoft/Phi-3-mini-4k-instruct", 2048)
    assert card["weights"] == "random"
    assert client.get(f"/v1/models/{MODEL}").json() == card
    assert client.get("/v1/models/org/other").status_code == 404


def test_a_completion(client: httpx.Client) -> None:
    body = complete(client, model=MODEL, prompt="The garden", max_tokens=7).json()
    assert (body["object"], body["model"]) == ("text_completion", MODEL)
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert choice["text"].strip()
    usage = body["usage"]
    assert usage["completion_tokens"] == 7
    assert usage["total_tokens"] == usage["prompt_tokens"] + 7


def test_a_chat_completion(client: httpx.Client) -> None:
    body = converse(client, model=MODEL, max_tokens=5).json()
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].strip()
    assert body["usage"]["completion_tokens"] == 5
    assert converse(client, max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3
    assert converse(client).json()["usage"]["completion_tokens"] == 256


def test_content_may_come_in_parts(client: httpx.Client) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    whole = [{"role": "user", "content": "Hello"}]
    said = [
        converse(client, messages=messages, seed=5, max_tokens=8).json()["choices"][0]["message"]["content"]
        for messages in (parts, whole)
    ]
    assert said[0] == said[1]


def test_several_choices_differ_and_repeat_with_the_seed(client: httpx.Client) -> None:
    def ask() -> dict[str, Any]:
        body: dict[str, Any] = complete(client, prompt="One two", n=3, seed=11, max_tokens=8).json()
        return body

    first, second = ask(), ask()
    said = [choice["text"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(said)) == 3
    assert said == [choice["text"] for choice in second["choices"]]
    assert first["usage"]["completion_tokens"] == 24
    single = complete(client, prompt="One two", max_tokens=1).json()["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens"] == single


def test_several_prompts_as_text_or_as_tokens(client: httpx.Client) -> None:
    body = complete(client, prompt=["one", "two"], max_tokens=2, n=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert len(complete(client, prompt=[[5, 6, 7], [8, 9]], max_tokens=2).json()["choices"]) == 2
    assert complete(client, prompt=[5, 6, 7], max_tokens=2).json()["usage"]["prompt_tokens"] == 3


def test_temperature_zero_is_greedy(client: httpx.Client) -> None:
    said = {complete(client, prompt="Why", temperature=0, max_tokens=20).json()["choices"][0]["text"] for _ in range(3)}
    assert len(said) == 1


def test_echo_puts_the_prompt_first(client: httpx.Client) -> None:
    assert complete(client, prompt="Beans", echo=True, max_tokens=2).json()["choices"][0]["text"].startswith("Beans")


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client: httpx.Client, stream: bool) -> None:
    whole = complete(client, prompt="x", seed=4, max_tokens=60).json()["choices"][0]["text"]
    stop = whole[30:34]
    answer = complete(client, prompt="x", seed=4, max_tokens=60, stop=["\u0001", stop], stream=stream)
    if stream:
        events = sse(answer)
        said, reason = texts(events), events[-1]["choices"][0]["finish_reason"]
    else:
        (choice,) = answer.json()["choices"]
        said, reason = choice["text"], choice["finish_reason"]
    assert (said, reason) == (whole[: whole.index(stop)], "stop")


def test_a_streamed_completion_adds_up_to_the_whole(client: httpx.Client) -> None:
    request: dict[str, Any] = {"prompt": "The rain", "seed": 9, "max_tokens": 40, "n": 2, "echo": True}
    whole = complete(client, **request).json()["choices"]
    answer = complete(client, **request, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-kaito-weights"] == "random"
    events = sse(answer)
    assert len(events) > 20
    assert {event["object"] for event in events} == {"text_completion"}
    assert len({event["id"] for event in events}) == 1
    assert [texts(events, i) for i in range(2)] == [choice["text"] for choice in whole]


def test_a_streamed_chat_begins_with_the_role_and_ends_with_reason_and_usage(client: httpx.Client) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = sse(converse(client, seed=2, max_tokens=6, **options))
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["finish_reason"] for e in events[:-1]] == [None] * (len(events) - 2) + ["length"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 6
    whole = converse(client, seed=2, max_tokens=6).json()["choices"][0]["message"]["content"]
    assert texts(events) == whole


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("completions", {"prompt": "x", "model": "gpt-4"}, 404, {"code": "model_not_found", "param": "model"}),
        ("completions", {"prompt": "x", "stream": True, "model": "y"}, 404, {"code": "model_not_found"}),
        ("completions", {}, 400, {"param": "prompt", "message": "prompt: Field required"}),
        ("completions", {"prompt": "x", "n": 17}, 400, {"param": "n"}),
        ("completions", {"prompt": "x", "max_tokens": 0}, 400, {"param": "max_tokens"}),
        ("completions", {"prompt": "x", "temperature": 2.5}, 400, {"param": "temperature"}),
        ("completions", {"prompt": "x", "top_p": 0}, 400, {"param": "top_p"}),
        ("completions", {"prompt": "x", "logprobs": 3}, 400, {"type": "invalid_request_error"}),
        ("completions", {"prompt": "x", "suffix": "y"}, 400, {"type": "invalid_request_error"}),
        ("completions", {"prompt": [999999]}, 400, {"type": "invalid_request_error"}),
        ("completions", {"prompt": "x " * 3000}, 400, {"code": "context_length_exceeded"}),
        ("completions", {"prompt": "x " * 3000, "stream": True}, 400, {"code": "context_length_exceeded"}),
        ("chat/completions", {"messages": []}, 400, {"param": "messages"}),
        ("chat/completions", {"messages": HELLO, "tools": [{}]}, 400, {"type": "invalid_request_error"}),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            {"type": "invalid_request_error"},
        ),
    ],
)
def test_errors_have_openais_shape(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, error: dict[str, str]
) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status
    said = answer.json()["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert {key: said[key] for key in error} == error


def test_a_reader_that_leaves_a_stream_frees_the_model(tiny: TinyServer) -> None:
    client = tiny.client
    before = metric(client.get("/metrics").text, "kaito_inference_generated_tokens_total")
    body = {"prompt": "x", "max_tokens": 2000, "stream": True}
    for _ in range(3):
        with client.stream("POST", "/v1/completions", json=body) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
    assert complete(client, prompt="x", max_tokens=1).status_code == 200
    after = metric(client.get("/metrics").text, "kaito_inference_generated_tokens_total")
    assert after - before < 2000
    assert metric(client.get("/metrics").text, "kaito_inference_time_to_first_token_seconds_count") >= 3
