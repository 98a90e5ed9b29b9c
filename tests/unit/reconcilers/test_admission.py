"""What the workspace's webhooks answer, with a cluster to look things up in."""

from __future__ import annotations

import inspect
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.reconcilers.workspace.admission import workspace_webhooks
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.admission import AdmissionRequest, AdmissionResponse
from kaito_ctrl.runtime.clock import SystemClock
from kaito_presets import Catalogue, SkuTable
from tests.unit.reconcilers.conftest import manifest

RULES = Rules(Catalogue.builtin(), SkuTable.builtin("azure"))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    server = ApiServer(clock=SystemClock(), rng=random.Random(5))
    yield Client(server.transport())
    await server.aclose()


async def ask(client: Client, raw: dict[str, Any]) -> AdmissionResponse:
    handler = workspace_webhooks(RULES, client)[1].handler
    answer = handler(AdmissionRequest("CREATE", "default", raw["metadata"]["name"], raw, None, "me", False))
    return await answer if inspect.isawaitable(answer) else answer


def tuning() -> dict[str, Any]:
    raw = manifest()
    del raw["inference"]
    raw["tuning"] = {
        "preset": {"name": "phi-3-mini-128k-instruct"},
        "method": "lora",
        "config": "mine",
        "input": {"urls": ["https://example.com/a"]},
        "output": {"image": "registry.example/a:1", "imagePushSecret": "push"},
    }
    return raw


async def test_the_config_map_of_a_tuning_job_is_looked_up(client: Client) -> None:
    refused = await ask(client, tuning())
    assert not refused.allowed
    assert "ConfigMap mine was not found" in refused.message
    config = ConfigMap(
        metadata=ObjectMeta(name="mine", namespace="default"),
        data={"training_config.yaml": "training_config: {Nonsense: {}}"},
    )
    await client.create(config)
    assert "unrecognized section Nonsense" in (await ask(client, tuning())).message
    await client.apply(config.evolve(data={"training_config.yaml": "training_config: {LoraConfig: {r: 8}}"}))
    assert (await ask(client, tuning())).allowed


async def test_what_is_hardly_meant_is_a_warning(client: Client) -> None:
    raw = manifest(instanceType="Standard_ND_new_v9")
    answer = await ask(client, raw)
    assert answer.allowed
    assert "was not checked" in answer.warnings[0]


async def test_a_deletion_is_never_held_up(client: Client) -> None:
    handler = workspace_webhooks(RULES, client)[1].handler
    answer = handler(AdmissionRequest("DELETE", "default", "ws", None, {}, "me", False))
    assert (await answer if inspect.isawaitable(answer) else answer).allowed
