"""``kaito-ctrl run``: which controllers run in a process, for which cloud, and what is said when they cannot."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from kaito_api.coordination import Lease
from kaito_ctrl.cli.daemon import DaemonOptions, NodeApi, build_manager
from kaito_ctrl.cli.local import install_crds
from kaito_ctrl.cli.runcommand import PROVISIONER_LEASE_NAME, WORKSPACE_LEASE_NAME, node_class_of
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.runtime import Client, Cluster
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import NotFound
from kaito_provisioner import CloudProvider
from kaito_provisioner.sim import SimCloud
from kaito_provisioner.testing import Identity, LocalArm
from tests.unit.cli.test_commands import KAITO, kubeconfig

HIDE = "import sys; sys.modules.update({%r: None}); from kaito_ctrl.cli import main; main()"
NOBODY = "http://127.0.0.1:9"
ALL = {
    "ARM_SUBSCRIPTION_ID": "00000000-0000-0000-0000-000000000000",
    "ARM_RESOURCE_GROUP": "kaito",
    "AZURE_CLUSTER_NAME": "kaito",
}
CLAIM = {
    "apiVersion": "karpenter.sh/v1",
    "kind": "NodeClaim",
    "metadata": {"name": "one", "labels": {"kaito.sh/workspace": "none"}},
    "spec": {
        "nodeClassRef": {"group": "kaito.sh", "kind": "KaitoNodeClass", "name": "default"},
        "requirements": [{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["Standard_NC6s_v3"]}],
    },
}


def run(*args: str, hidden: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """``kaito-ctrl run`` in an environment that says no more of Azure than *env*; without the module *hidden*."""
    command = [sys.executable, "-c", HIDE % hidden] if hidden else [KAITO]
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [*command, "run", *args], capture_output=True, text=True, timeout=60, env={**plain, "COLUMNS": "200", **env}
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What was said before it ended as one that was asked for the wrong thing."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split())


# -- what does not fit together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--controllers", "workspaces"], "there is no controller 'workspaces': write workspace, provisioner, or both"),
        (["--controllers", ""], "write workspace, provisioner, or both"),
        (["--controllers", "provisioner"], "the provisioner needs a cloud: add --provisioner aks"),
        (["--controllers", "workspace", "--provisioner", "aks"], "write --controllers workspace,provisioner"),
        (
            ["--controllers", "provisioner", "--provisioner", "aks", "--webhook-port", "9443"],
            "the webhook is the workspace controller's",
        ),
        (["--node-api", "nodepool"], "'machine', 'nodeclaim'"),
        (["--node-api", "nodeclaim", "--node-class", "default"], "is no node class: write KIND.GROUP/NAME"),
        (["--node-class", "AKSNodeClass.karpenter.azure.com/default"], "add --node-api nodeclaim"),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_what_to_write(args: list[str], expected: str) -> None:
    assert expected in said(run(*args))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("KaitoNodeClass.kaito.sh/default", ("kaito.sh", "KaitoNodeClass", "default")),
        ("AKSNodeClass.karpenter.azure.com/gpu-1", ("karpenter.azure.com", "AKSNodeClass", "gpu-1")),
    ],
)
def test_a_node_class_is_written_by_kind_group_and_name(text: str, parts: tuple[str, str, str]) -> None:
    found = node_class_of(text)
    assert (found.group, found.kind, found.name) == parts


def test_everything_that_is_missing_is_named_at_once() -> None:
    text = said(run("--provisioner", "aks", hidden="azure.identity", ARM_SUBSCRIPTION_ID="mine"))
    for expected in (
        "pip install 'kaito-ctrl[aks]'",
        "ARM_SUBSCRIPTION_ID is 'mine'",
        "ARM_RESOURCE_GROUP is not set",
        "AZURE_CLUSTER_NAME is not set",
        "kaito-ctrl run --help",
    ):
        assert expected in text


def test_an_option_goes_before_its_variable() -> None:
    text = said(run("--provisioner", "aks", "--azure-subscription", "mine", **ALL))
    assert "ARM_SUBSCRIPTION_ID is 'mine'" in text
    assert "ARM_RESOURCE_GROUP" not in text


def test_a_token_that_is_not_there_is_told_before_azure_is_asked() -> None:
    text = said(run("--provisioner", "aks", **ALL, AZURE_FEDERATED_TOKEN_FILE="/nowhere/token"))
    assert "AZURE_FEDERATED_TOKEN_FILE is '/nowhere/token', which is no file" in text
    assert "AZURE_CLIENT_ID is not set" in text


async def test_an_identity_that_azure_refuses_is_told_with_what_to_check(tmp_path: Path) -> None:
    async with LocalArm(identity=Identity(), serve=True) as arm:
        assert arm.token_file is not None
        arm.token_file.write_text(arm.issuer.assertion(subject="system:serviceaccount:elsewhere:somebody"))
        args = ("--provisioner", "aks", "--kubeconfig", kubeconfig(tmp_path, NOBODY), "--health-port", "-1")
        done = await asyncio.to_thread(run, *args, "--metrics-port", "-1", **arm.environment())
    text = said(done)
    assert "AADSTS" in text
    assert "federated credential" in text


# -- what runs ---------------------------------------------------------------------------------------------------------


def kinds(cloud: CloudProvider | None, *, workspaces: bool, node_api: NodeApi) -> tuple[set[str], set[str]]:
    """The names of the controllers, and the kinds that the process watches."""
    cluster = Cluster(ApiServer().transport())
    options = DaemonOptions(workspaces=workspaces, node_api=node_api, metrics_port=None, health_port=None)
    manager = build_manager(cluster, cloud, options)
    return {each.controller.name for each in manager.workers}, set(cluster.cache.unsynced())


@pytest.mark.parametrize(("node_api", "plural"), [("machine", "machines"), ("nodeclaim", "nodeclaims")])
def test_the_provisioner_alone_watches_claims_and_nodes_and_the_workspace_controller_alone_needs_no_cloud(
    node_api: NodeApi, plural: str
) -> None:
    controllers, watched = kinds(SimCloud([], now=SystemClock().now), workspaces=False, node_api=node_api)
    assert controllers == {node_api, "node.health"}
    assert watched == {plural, "nodes"}
    controllers, watched = kinds(None, workspaces=True, node_api=node_api)
    assert controllers == {"workspace"}
    assert {"workspaces", plural} <= watched
    controllers, _ = kinds(SimCloud([], now=SystemClock().now), workspaces=True, node_api=node_api)
    assert controllers == {"workspace", node_api, "node.health"}


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@asynccontextmanager
async def process(config: Path, *args: str, **env: str) -> AsyncIterator[Process]:
    plain = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    started = await asyncio.create_subprocess_exec(
        *(KAITO, "run", "--kubeconfig", str(config), "--leader-elect", "--leader-elect-namespace", "default", *args),
        env={**plain, **env}, stdout=DEVNULL, stderr=PIPE,
    )  # fmt: skip
    talking = asyncio.create_task(started.communicate())
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await talking


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(40):
        while not await check():
            await asyncio.sleep(0.1)


async def test_both_roles_lead_side_by_side_and_the_provisioner_lives_on_while_azure_is_away(tmp_path: Path) -> None:
    async with DevCluster.start() as dev, aiohttp.ClientSession() as session:
        client, config = Client(dev.transport()), tmp_path / "kubeconfig"
        await install_crds(client)
        await dev.write_kubeconfig(config)

        async def held(name: str) -> bool:
            try:
                return bool((await client.get(Lease, name, "default")).spec.holder_identity)
            except NotFound:
                return False

        port = free_port()

        async def well() -> bool:
            try:
                for path in ("healthz", "readyz"):
                    async with session.get(f"http://127.0.0.1:{port}/{path}") as response:
                        if response.status != 200:
                            return False
            except aiohttp.ClientError:
                return False
            return True

        async def told() -> bool:
            raw = await client.request("GET", "/apis/karpenter.sh/v1/nodeclaims/one")
            conditions = json.loads(raw).get("status", {}).get("conditions", [])
            return any(each["reason"] == "CloudUnavailable" for each in conditions)

        off = ("--metrics-port", "-1")
        roles = ("--controllers", "provisioner", "--provisioner", "aks", "--node-api", "nodeclaim")
        azure = AsyncExitStack()
        env = (await azure.enter_async_context(LocalArm(serve=True))).environment()
        # Both files go with the local Azure, and are read again.
        for name in ("AZURE_CA_BUNDLE", "AZURE_FEDERATED_TOKEN_FILE"):
            (tmp_path / name).write_bytes(Path(env[name]).read_bytes())
            env[name] = str(tmp_path / name)
        async with (
            azure,
            process(config, "--health-port", "-1", "--node-api", "nodeclaim", *off),
            process(config, *roles, "--health-port", port, *off, **env) as provisioner,
        ):
            await until(well)
            await until(lambda: held(PROVISIONER_LEASE_NAME))
            await until(lambda: held(WORKSPACE_LEASE_NAME))
            await azure.aclose()
            await client.request("POST", "/apis/karpenter.sh/v1/nodeclaims", body=CLAIM)
            await until(told)
            assert await well()
            provisioner.terminate()
            assert await provisioner.wait() == 0
