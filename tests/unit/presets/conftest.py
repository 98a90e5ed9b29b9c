from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from inference_process import InferenceProcess


@dataclass(frozen=True)
class TinyServer:
    """One server in tiny mode, and what its health said before it was ready."""

    process: InferenceProcess
    client: httpx.Client
    early_health: httpx.Response
    early_chat: httpx.Response


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
