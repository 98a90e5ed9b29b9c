"""The life of the server process: real weights, refusals to start, and the end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from inference_process import InferenceProcess, environment, metric, run_to_end, sse

SAVE = """
import sys
from kaito_presets import Catalogue
from kaito_presets.inference.tiny import build_model, build_tokenizer
tokenizer = build_tokenizer()
model = build_model(Catalogue.builtin().get("mistral-7b").architecture, tokenizer)
model.save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model on disk, as a volume would hold it."""
    directory = tmp_path_factory.mktemp("weights")
    subprocess.run([sys.executable, "-c", SAVE, str(directory)], check=True, env=environment({"HF_HUB_OFFLINE": "1"}))
    return directory


def test_mounted_weights_are_served_and_sigterm_ends_a_running_generation(weights: Path) -> None:
    flags = (f"--pretrained-model-name-or-path={weights}", "--torch_dtype=bfloat16", "--shutdown-grace=0.2")
    # Random weights are asked for as well: they only stand in for weights that are not there.
    with InferenceProcess(*flags, "--preset=mistral-7b", env={"KAITO_RANDOM_WEIGHTS": "tiny"}) as server:
        loaded = server.event("model loaded")
        assert (loaded["architecture"], loaded["dtype"]) == ("MistralForCausalLM", "float32")
        with httpx.Client(base_url=server.url, timeout=20) as client:
            answer = client.post("/chat", json={"prompt": "Hello", "generate_kwargs": {"max_new_tokens": 5}})
            assert answer.json()["Result"].startswith("Hello")
            assert "x-kaito-weights" not in answer.headers
            assert client.get("/v1/models").json()["data"][0]["weights"] == "pretrained"
            with client.stream(
                "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 2000, "stream": True}
            ) as run:
                lines = run.iter_lines()
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert "the server is shutting down" in rest[-4]
        assert server.wait(5) == 0


def test_a_generation_that_fits_into_the_grace_is_finished(weights: Path) -> None:
    with InferenceProcess(f"--pretrained_model_name_or_path={weights}", "--shutdown_grace=20") as server:
        server.event("model loaded")
        body = {"prompt": "x", "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=20) as run:
            lines = run.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            server.event("shutting down")
            rest = "\n".join(lines)
        assert sse(httpx.Response(200, text=rest))[-1]["choices"][0]["finish_reason"] == "length"
        assert server.wait(5) == 0


def test_sigterm_while_the_model_is_loading_ends_the_process_at_once() -> None:
    with InferenceProcess("--random_weights=tiny") as server:
        server.event("listening")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(5) == 0
        assert server.event("stopped while the model was being loaded")


def test_without_weights_it_says_what_to_mount(tmp_path: Path) -> None:
    done = run_to_end(f"--pretrained_model_name_or_path={tmp_path / 'none'}")
    assert done.returncode == 2
    assert f"error: no model weights at {tmp_path / 'none'}: mount a volume there" in done.stderr
    assert "KAITO_RANDOM_WEIGHTS=tiny" in done.stderr


def test_weights_that_cannot_be_loaded_end_the_process_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    done = run_to_end(f"--pretrained_model_name_or_path={tmp_path}")
    assert done.returncode == 1
    assert "the model cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one adapter, as the pod of a Workspace has it."""
    directory = tmp_path_factory.mktemp("adapters")
    command = [sys.executable, str(Path(__file__).parent / "lora.py"), str(directory / "my-adapter"), "mistral-7b"]
    subprocess.run(command, check=True, env=environment({"HF_HUB_OFFLINE": "1"}))
    return directory


def test_a_model_is_served_with_its_adapters_and_everything_says_so(weights: Path, adapters: Path) -> None:
    said: dict[str, str] = {}
    for strength in ("0", "0.5"):
        flags = (f"--pretrained_model_name_or_path={weights}", f"--adapters_dir={adapters}", "--preset=mistral-7b")
        with InferenceProcess(*flags, env={"my-adapter": strength}) as server:
            active = server.event("adapters active")
            assert (active["adapters"], active["combination"]) == ({"my-adapter": float(strength)}, "svd")
            assert server.event("model loaded")["architecture"] == "MistralForCausalLM"
            with httpx.Client(base_url=server.url, timeout=20) as client:
                card = client.get("/v1/models").json()["data"][0]
                assert card["adapters"] == [{"name": "my-adapter", "strength": float(strength)}]
                sample = 'kaito_inference_adapter_strength{adapter="my-adapter"}'
                assert metric(client.get("/metrics").text, sample) == float(strength)
                greedy = {"prompt": "Hello", "generate_kwargs": {"max_new_tokens": 12, "do_sample": False}}
                said[strength] = client.post("/chat", json=greedy).json()["Result"]
    with (
        InferenceProcess(f"--pretrained_model_name_or_path={weights}") as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        server.event("model loaded")
        assert client.get("/v1/models").json()["data"][0]["adapters"] == []
        assert said["0"] == client.post("/chat", json=greedy).json()["Result"] != said["0.5"]


def test_an_adapter_that_is_not_complete_ends_the_process_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    done = run_to_end("--random_weights=tiny", f"--adapters_dir={tmp_path}")
    assert done.returncode == 2
    missing = f"adapter mine: {tmp_path}/mine holds no adapter_model.safetensors"
    assert done.stderr == f"error: {missing}: save the adapter with safe_serialization=True\n"


def test_an_adapter_of_another_model_ends_the_process_with_that_as_its_last_words(adapters: Path) -> None:
    flags = ("--random_weights=tiny", "--preset=falcon-7b", f"--adapters_dir={adapters}")
    done = run_to_end(*flags)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: adapter my-adapter does not fit the model that is served: ")
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_to_end("--random_weights=tiny", f"--port={port}")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr
