from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from inference_process import InferenceProcess, TinyServer


@pytest.fixture(scope="session")
def tiny() -> Iterator[TinyServer]:
    flags = ("--preset=phi-3-mini-4k-instruct", "--max_waiting=2", "--max_body_bytes=200000", "--log_level=debug")
    with (
        InferenceProcess(*flags, env={"KAITO_RANDOM_WEIGHTS": "tiny"}) as process,
        httpx.Client(base_url=process.url, timeout=30) as client,
    ):
        early_health, early_chat = client.get("/healthz"), client.post("/chat", json={"prompt": "x"})
        process.event("model loaded")
        yield TinyServer(process, client, early_health, early_chat)


@pytest.fixture
def client(tiny: TinyServer) -> httpx.Client:
    return tiny.client
