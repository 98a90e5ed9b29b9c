"""The commands, as a shell runs them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

KAITO = str(Path(sys.executable).parent / "kaito-ctrl")


def kaito(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [KAITO, *args], capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "120", **env}
    )


def test_without_arguments_it_explains_itself() -> None:
    done = kaito()
    for command in ("demo", "dev", "run", "crds", "validate", "plan", "why", "timeline"):
        assert command in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["demo", "dev", "run", "crds", "validate", "plan", "why", "timeline"])
def test_every_command_has_help(command: str) -> None:
    done = kaito(command, "--help")
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_kubectl_finds_it_as_a_plugin() -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["kubectl", "kaito", "crds", "--help"], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "CustomResourceDefinitions" in done.stdout


def test_crds_are_printed_for_kubectl_and_written_to_a_folder(tmp_path: Path) -> None:
    printed = list(yaml.safe_load_all(kaito("crds").stdout))
    names = ["workspaces.kaito.sh", "machines.karpenter.sh", "nodeclaims.karpenter.sh"]
    assert [each["metadata"]["name"] for each in printed] == names
    done = kaito("crds", "--output", str(tmp_path))
    assert done.returncode == 0
    written = [yaml.safe_load(path.read_text()) for path in sorted(tmp_path.iterdir(), reverse=False)]
    assert sorted(each["metadata"]["name"] for each in written) == sorted(each["metadata"]["name"] for each in printed)


def test_a_cluster_that_is_not_there_is_an_error_with_a_reason(tmp_path: Path) -> None:
    done = kaito("run", "--kubeconfig", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "cannot use kubeconfig" in done.stderr
    assert "Traceback" not in done.stderr


def kubeconfig(folder: Path, server: str) -> str:
    config = folder / "kubeconfig"
    cluster = {"name": "c", "cluster": {"server": server}}
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [cluster],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "current-context": "c",
            }
        )
    )
    return str(config)


def test_a_webhook_that_the_server_cannot_call_is_refused_before_it_locks_everybody_out(tmp_path: Path) -> None:
    done = kaito("run", "--kubeconfig", kubeconfig(tmp_path, "https://192.0.2.1:6443"), "--webhook-port", "9443")
    assert done.returncode == 1
    assert "--webhook" in done.stderr or "loopback" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_has_a_form(tmp_path: Path) -> None:
    done = kaito("run", "--kubeconfig", kubeconfig(tmp_path, "https://192.0.2.1:6443"), "--webhook-service", "oops")
    assert done.returncode == 2
    assert "NAMESPACE/NAME:PORT" in done.stderr


def test_a_taken_port_is_an_error_with_a_reason(tmp_path: Path) -> None:
    config = kubeconfig(tmp_path, "http://127.0.0.1:9")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = kaito("run", "--kubeconfig", config, "--health-port", port, "--metrics-port", "-1")
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["demo", "dev"])
def test_a_port_that_is_taken_is_named_without_a_traceback(command: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = kaito(command, "--port", str(taken.getsockname()[1]), TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_that_is_refused_ends_the_demo_with_every_problem(tmp_path: Path) -> None:
    manifest = tmp_path / "bad.yaml"
    body = {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": "bad"},
        "resource": {"instanceType": "Huge", "labelSelector": {"matchLabels": {"a": "b"}}},
        "inference": {"preset": {"name": "phi-33"}},
    }
    manifest.write_text(yaml.safe_dump(body))
    done = kaito("demo", "--exit", "-f", str(manifest))
    assert done.returncode == 1
    assert "phi-33" in done.stderr
    assert "Huge" in done.stderr
    assert "Traceback" not in done.stderr
