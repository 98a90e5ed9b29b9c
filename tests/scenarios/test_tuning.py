"""Tuning workspaces: what is wrong is said, and what this release does not do yet, before a node is paid for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_api.workspace import Workspace
from kaito_ctrl.runtime.errors import Invalid
from tests.scenarios.kubelet import GRACE
from tests.scenarios.world import World, manifest, scenario

CONFIG = """
training_config:
  ModelConfig: {torch_dtype: bfloat16}
  LoraConfig: {r: 8}
  TrainingArguments: {output_dir: /mnt/results}
"""


def _tuning(**changes: Any) -> dict[str, Any]:
    raw = manifest()
    del raw["inference"]
    raw["tuning"] = {
        "preset": {"name": "falcon-7b"},
        "method": "lora",
        "input": {"name": "poems", "urls": ["https://example.com/poems.parquet"]},
        "output": {"image": "registry.example/poet:1", "imagePushSecret": "push"},
        **changes,
    }
    return raw


async def _refused(world: World, code: str) -> str:
    async def shown() -> bool:
        return await world.cause() == ("Planned", "Failed", code)

    await world.until(shown, 2.0, f"it is refused with {code}")
    await asyncio.sleep(3600)
    assert world.machines == {}
    assert await world.cloud.list() == ()
    columns = await world.columns()
    assert (columns["RESOURCEREADY"], columns["WORKSPACEREADY"]) == ("False", "False")
    return (await world.said("WorkspaceReady"))[2]


@scenario()
async def test_tuning_is_refused_in_words_before_a_node_is_paid_for(world: World) -> None:
    await world.apply(_tuning())
    assert "does not tune them yet" in await _refused(world, "NotSupported")
    await world.delete(Workspace, "ws")
    await world.until_gone(GRACE + 5.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"preset": {"name": "no-such-model"}}, "no-such-model"), ({"config": "missing"}, "missing")],
)
@scenario()
async def test_what_is_wrong_with_it_is_named(world: World, changes: dict[str, Any], words: str) -> None:
    await world.apply(_tuning(**changes))
    assert words in await _refused(world, "InvalidWorkspace")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "magic"}, "method must be lora or qlora"),
        ({"input": {"name": "poems"}}, "exactly one of urls, volumeSource or image"),
    ],
)
@scenario()
async def test_what_no_cluster_should_hold_is_refused_without_a_webhook(
    world: World, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        await world.apply(_tuning(**changes))


@scenario()
async def test_a_config_that_is_made_later_is_found(world: World) -> None:
    await world.apply(_tuning(config="mine"))
    assert "mine" in (await _refused(world, "InvalidWorkspace"))
    await world.user.create(
        ConfigMap(metadata=ObjectMeta(name="mine", namespace="default"), data={"training_config.yaml": CONFIG})
    )

    async def found() -> bool:
        return (await world.cause())[2] != "InvalidWorkspace"

    await world.until(found, 65.0, "the ConfigMap is found")
