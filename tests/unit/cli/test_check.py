"""What ``kaito-ctrl validate`` and ``kaito-ctrl plan`` say of a file, to people and to programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

KAITO = str(Path(sys.executable).parent / "kaito-ctrl")
EXAMPLE = "examples/inference/kaito_workspace_phi_3.yaml"


def kaito(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([KAITO, *args], capture_output=True, text=True, timeout=60, input=stdin)


def answer(*args: str, stdin: str = "") -> dict[str, Any]:
    done = kaito(*args, "-o", "json", stdin=stdin)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["valid"] else 1)
    return found


def workspace(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(Path(EXAMPLE).read_text())
    return {**raw, **changes}


def tuning(config: str | None = None) -> dict[str, Any]:
    raw = workspace()
    del raw["inference"]
    raw["tuning"] = {
        "preset": {"name": "phi-3-mini-128k-instruct"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/data.parquet"]},
        "output": {"image": "registry.example/team/adapter:0.0.1", "imagePushSecret": "push"},
        **({"config": config} if config else {}),
    }
    return raw


def config_map(text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "mine"},
        "data": {"training_config.yaml": text},
    }


GOOD = config_map("training_config: {QuantizationConfig: {load_in_4bit: true}}")
BAD = config_map("training_config: {}")


def test_a_valid_one_is_valid() -> None:
    assert answer("validate", "-f", EXAMPLE) == {"valid": True, "errors": [], "warnings": []}
    assert "valid" in kaito("validate", "-f", EXAMPLE).stdout


def test_every_problem_has_a_field_a_message_and_a_fix() -> None:
    raw = workspace(inference={"preset": {"name": "phi-3-mini-4k-instrukt"}})
    raw["resource"]["instancetype"] = "Standard_NC6s_v3"
    found = answer("validate", "-f", "-", stdin=yaml.safe_dump(raw))
    assert [each["field"] for each in found["errors"]] == ["inference.preset.name", "resource.instancetype"]
    assert "phi-3-mini-4k-instruct" in found["errors"][0]["fix"]
    assert found["errors"][1] == {
        "field": "resource.instancetype",
        "message": "unknown field",
        "fix": "did you mean instanceType?",
    }
    text = kaito("validate", "-f", "-", stdin=yaml.safe_dump(raw)).stdout
    assert "did you mean phi-3-mini-4k-instruct" in text


def test_with_what_is_there_now_it_checks_the_change(tmp_path: Path) -> None:
    new, old = workspace(), tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(workspace()))
    new["resource"] = {**new["resource"], "count": 2}
    found = answer("validate", "-f", "-", "--old", str(old), stdin=yaml.safe_dump(new))
    assert [(each["field"], each["message"]) for each in found["errors"]] == [("resource.count", "field is immutable")]
    assert answer("validate", "-f", "-", stdin=yaml.safe_dump(new))["valid"]


def test_a_config_map_is_read_from_the_file_itself_or_from_another(tmp_path: Path) -> None:
    ws, other = yaml.safe_dump(tuning("mine")), tmp_path / "other.yaml"
    unseen = answer("validate", "-f", "-", stdin=ws)
    assert unseen["valid"]
    assert "was not looked at" in unseen["warnings"][0]["message"]
    assert answer("validate", "-f", "-", stdin=f"{ws}---\n{yaml.safe_dump(GOOD)}")["warnings"] == []
    assert not answer("validate", "-f", "-", stdin=f"{ws}---\n{yaml.safe_dump(BAD)}")["valid"]
    other.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [GOOD]}))
    assert answer("validate", "-f", "-", "--with", str(other), stdin=ws)["valid"]
    other.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": []}))
    missing = answer("validate", "-f", "-", "--with", str(other), stdin=ws)
    assert "not found" in missing["errors"][0]["message"]


def test_several_workspaces_of_one_file_are_judged_one_by_one() -> None:
    second = workspace(metadata={"name": "second"}, inference={"preset": {"name": "none"}})
    found = answer("validate", "-f", "-", stdin=yaml.safe_dump_all([workspace(), second]))
    assert [(each["name"], each["valid"]) for each in found["workspaces"]] == [
        ("workspace-phi-3-mini", True),
        ("second", False),
    ]
    assert not found["valid"]


def test_the_plan_shows_its_working() -> None:
    sizing = answer("plan", "-f", EXAMPLE)["sizing"]
    assert (sizing["preset"], sizing["instanceType"], sizing["count"]) == (
        "phi-3-mini-4k-instruct",
        "Standard_NC6s_v3",
        1,
    )
    assert sizing["fits"]
    assert {check["rule"] for check in sizing["checks"]} == {"gpuCount", "perGPUMemory", "totalGPUMemory"}
    assert sizing["checks"][2]["provided"] == 16 * 2**30
    assert "Standard_NC6s_v3" in sizing["instanceTypes"]


def test_what_does_not_fit_says_what_would() -> None:
    raw = workspace(inference={"preset": {"name": "falcon-40b"}})
    found = answer("plan", "-f", "-", stdin=yaml.safe_dump(raw))
    assert not found["valid"]
    assert found["sizing"]["fits"] is False
    assert "Standard_NC96ads_A100_v4" in found["sizing"]["instanceTypes"]


def test_nodes_that_are_there_are_used(tmp_path: Path) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "mine", "labels": {"apps": "phi-3"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [node]}))
    assert answer("plan", "-f", EXAMPLE)["nodes"] == {"existing": [], "missing": 1}
    assert answer("plan", "-f", EXAMPLE, "--with", str(nodes))["nodes"] == {"existing": ["mine"], "missing": 0}


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_what_cannot_be_read_is_another_exit_code(command: str, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(GOOD))
    for path, text in ((tmp_path / "none", "No such file"), (other, "no Workspace")):
        done = kaito(command, "-f", str(path))
        assert done.returncode == 2
        assert text in done.stderr
        assert "Traceback" not in done.stderr
