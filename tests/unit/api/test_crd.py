"""The CRDs: generated from the models, structural, and the ones in manifests/ are these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_api.crd import all_crds, crd
from kaito_api.workspace import Workspace

MANIFESTS = Path(__file__).parents[3] / "manifests" / "crds"


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, each in schema.get("properties", {}).items():
        yield from nodes(each, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")


@pytest.mark.parametrize("made", all_crds(), ids=lambda each: each["metadata"]["name"])
def test_schemas_are_structural(made: dict[str, Any]) -> None:
    schema = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in nodes(schema):
        assert "$ref" not in node, path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not {"title", "anyOf"} & set(node) or node.get("x-kubernetes-int-or-string"), path


@pytest.mark.parametrize("made", all_crds(), ids=lambda each: each["metadata"]["name"])
def test_the_manifests_are_up_to_date(made: dict[str, Any]) -> None:
    name = f"{made['spec']['group']}_{made['spec']['names']['plural']}.yaml"
    assert yaml.safe_load((MANIFESTS / name).read_text()) == made, "run `make manifests`"


def test_the_workspace_is_spelled_as_in_kaito() -> None:
    made = crd(Workspace)
    assert made["metadata"]["name"] == "workspaces.kaito.sh"
    assert made["spec"]["names"]["shortNames"] == ["wk", "wks"]
    version = made["spec"]["versions"][0]
    columns = [each["name"] for each in version["additionalPrinterColumns"] if not each.get("priority")]
    assert columns == ["Instance", "ResourceReady", "InferenceReady", "WorkspaceReady", "Age"]
    schema = version["schema"]["openAPIV3Schema"]
    assert "spec" not in schema["properties"]
    assert schema["properties"]["resource"]["required"] == ["labelSelector"]
    assert schema["properties"]["resource"]["properties"]["count"]["default"] == 1
    assert schema["properties"]["tuning"]["required"] == ["input", "output"]
