"""What a Workspace's CRD refuses by itself, on a cluster that has no webhook."""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito_api.crd import all_crds
from kaito_api.meta import Condition
from kaito_api.workspace import Workspace
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import Invalid
from kaito_ctrl.runtime.meta import collection_path

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WORKSPACES = collection_path(Workspace, "default")
Json = dict[str, Any]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    server = ApiServer(clock=SystemClock(), rng=random.Random(5))
    client = Client(server.transport())
    for crd in all_crds():
        await client.request("POST", CRDS, body=crd)
    yield client
    await server.aclose()


def workspace(**sections: Any) -> Json:
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "ws"},
        "resource": {"labelSelector": {"matchLabels": {"apps": "phi-3"}}},
        **(sections or {"inference": inference()}),
    }


def inference(**changes: Any) -> Json:
    return {"preset": {"name": "phi-3-mini-4k-instruct"}, **changes}


def tuning(**changes: Any) -> Json:
    base = {
        "preset": {"name": "phi-3-mini-128k-instruct"},
        "method": "QLoRA",
        "input": {"urls": ["https://example.com/a"]},
        "output": {"image": "registry.example/a:1", "imagePushSecret": "push"},
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def adapter(name: str | None = "a", image: str | None = "registry.example/a:1", **more: Any) -> Json:
    source = {key: value for key, value in (("name", name), ("image", image)) if value}
    return {"source": source, **more}


WRONG: list[tuple[str, Json]] = [
    ("exactly one of inference and tuning", workspace(resource={"labelSelector": {"matchLabels": {"a": "b"}}})),
    ("exactly one of inference and tuning", workspace(inference=inference(), tuning=tuning())),
    ("labelSelector", {**workspace(), "resource": {}}),
    ("at least one label", {**workspace(), "resource": {"labelSelector": {}}}),
    ("greater than or equal to 1", {**workspace(), "resource": {**workspace()["resource"], "count": 0}}),
    ("preset or template must be specified", workspace(inference={})),
    ("cannot be set at the same time", workspace(inference=inference(template={"spec": {}}))),
    ("an image must be provided", workspace(inference={"preset": {"name": "llama-2-7b", "accessMode": "private"}})),
    ("Unsupported value", workspace(inference={"preset": {"name": "llama-2-7b", "accessMode": "secret"}})),
    ("must have at most 10 items", workspace(inference=inference(adapters=[adapter(f"a{n}") for n in range(11)]))),
    ("different names", workspace(inference=inference(adapters=[adapter(), adapter()]))),
    ("an adapter needs", workspace(inference=inference(adapters=[adapter(name=None)]))),
    ("an adapter needs", workspace(inference=inference(adapters=[adapter(image=None)]))),
    ("an adapter needs", workspace(inference=inference(adapters=[{"strength": "1"}]))),
    ("strength", workspace(inference=inference(adapters=[adapter(strength="1.5")]))),
    ("strength", workspace(inference=inference(adapters=[adapter(strength="nan")]))),
    ("a preset must be specified", workspace(tuning=tuning(preset=None))),
    ("lora or qlora", workspace(tuning=tuning(method="full"))),
    ("lora or qlora", workspace(tuning=tuning(method=None))),
    ("exactly one of urls", workspace(tuning=tuning(input={}))),
    ("exactly one of urls", workspace(tuning=tuning(input={"urls": ["https://a.example/b"], "image": "a"}))),
    ("a destination must be specified", workspace(tuning=tuning(output={}))),
    ("imagePushSecret must be specified", workspace(tuning=tuning(output={"image": "registry.example/a:1"}))),
    (
        "more than one node",
        {**workspace(tuning=tuning()), "resource": {"count": 2, "labelSelector": {"matchLabels": {"a": "b"}}}},
    ),
]


@pytest.mark.parametrize(("text", "raw"), WRONG, ids=[f"{number}: {row[0]}" for number, row in enumerate(WRONG)])
async def test_what_makes_no_sense_is_refused(client: Client, text: str, raw: Json) -> None:
    with pytest.raises(Invalid, match=text):
        await client.request("POST", WORKSPACES, body=raw)


@pytest.mark.parametrize(
    "raw",
    [
        workspace(),
        workspace(tuning=tuning()),
        workspace(inference=inference(adapters=[adapter("a", strength="0.5"), adapter("b", strength="1.0")])),
        workspace(inference={"template": {"spec": {"containers": [{"name": "a", "image": "b"}]}}}),
    ],
    ids=["inference", "tuning", "adapters", "template"],
)
async def test_what_makes_sense_is_taken_and_may_be_written_again(client: Client, raw: Json) -> None:
    await client.request("POST", WORKSPACES, body=raw)
    live = await client.get(Workspace, "ws", "default")
    ready = Condition(type="ResourceReady", status="True", last_transition_time=SystemClock().now())
    patch = {"status": {"workerNodes": ["n1"], "conditions": [ready.to_wire()]}}
    await client.request(
        "PATCH",
        f"{WORKSPACES}/ws/status",
        body=patch,
        headers={"content-type": "application/merge-patch+json"},
    )
    await client.request(
        "PATCH",
        f"{WORKSPACES}/ws",
        body={"metadata": {"labels": {"team": "a"}}, "resource": {"preferredNodes": ["n1"]}},
        headers={"content-type": "application/merge-patch+json"},
    )
    assert (await client.get(Workspace, "ws", "default")).uid == live.uid


CHANGES: list[tuple[str, Json, Json]] = [
    ("count is immutable", workspace(), {"resource": {"count": 2}}),
    ("instanceType is immutable", workspace(), {"resource": {"instanceType": "Standard_NC6s_v3"}}),
    ("labelSelector is immutable", workspace(), {"resource": {"labelSelector": {"matchLabels": {"apps": "other"}}}}),
    ("preset is immutable", workspace(), {"inference": {"preset": {"name": "falcon-7b"}}}),
    (
        "preset cannot be set or unset",
        workspace(),
        {"inference": {"preset": None, "template": {"spec": {"containers": []}}}},
    ),
    ("inference cannot be added or removed", workspace(), {"inference": None, "tuning": tuning()}),
    ("preset is immutable", workspace(tuning=tuning()), {"tuning": {"preset": {"name": "falcon-7b"}}}),
    ("output is immutable", workspace(tuning=tuning()), {"tuning": {"output": {"image": "registry.example/b:1"}}}),
]


@pytest.mark.parametrize(("text", "raw", "change"), CHANGES, ids=[f"{n}: {row[0]}" for n, row in enumerate(CHANGES)])
async def test_what_is_immutable_cannot_be_changed(client: Client, text: str, raw: Json, change: Json) -> None:
    await client.request("POST", WORKSPACES, body=copy.deepcopy(raw))
    with pytest.raises(Invalid, match=text):
        await client.request(
            "PATCH", f"{WORKSPACES}/ws", body=change, headers={"content-type": "application/merge-patch+json"}
        )
