"""A life of the controllers as `manifests/` deploys them: as their ServiceAccount, two replicas behind a Service.

It goes through everything that they ask an API server for, and is the same on the embedded server and on a real one.
The machine controller plays the other provisioner, and has rights of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaito_api.apps import ControllerRevision, Deployment, StatefulSet
from kaito_api.core import Node, Pod
from kaito_api.events import Event
from kaito_api.karpenter import Machine
from kaito_api.meta import ObjectMeta, Resource, owned_by
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.daemon import DaemonOptions, build_manager
from kaito_ctrl.cli.runcommand import WORKSPACE_LEASE_NAME
from kaito_ctrl.reconcilers.machine.controller import MachineController
from kaito_ctrl.reconcilers.names import REVISION_OWNER_LABEL
from kaito_ctrl.reconcilers.workspace.revisions import HISTORY
from kaito_ctrl.runtime import Client, Cluster, Lease, Manager, key_of
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.connect import connect
from kaito_ctrl.runtime.errors import NotFound
from kaito_provisioner import CloudProvider
from tests.e2e.conftest import ROOT, Kubectl, until
from tests.permissions import Forgetful, Permission, Recorder
from tests.rendered import render

__all__ = [
    "ACCOUNT",
    "NAMESPACE",
    "SERVICE",
    "Traffic",
    "World",
    "as_account",
    "deploy",
    "free_port",
    "kustomization",
    "live",
    "remove",
    "running",
    "token",
]

NAMESPACE, ACCOUNT = "kaito-workspace", "kaito-ctrl"
SERVICE = (NAMESPACE, "kaito-ctrl-webhook", 443)
HOOK = "validation.workspace.kaito.sh"
PHI = "workspace-phi-3-mini"
CONFIG = {"training_config.yaml": "training_config:\n  ModelConfig: {torch_dtype: bfloat16}\n  LoraConfig: {r: 8}\n"}
LIST = {"apiVersion": "v1", "kind": "List"}
SELDOM = ("controllerrevisions", "machines", "services")
"""What is read live only when the answer to a write is lost, or hardly ever."""


def workspace(name: str, instance_type: str, count: int = 1, **section: Any) -> dict[str, Any]:
    resource = {"instanceType": instance_type, "count": count, "labelSelector": {"matchLabels": {"apps": name}}}
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name},
        "resource": resource,
        **section,
    }


DISTRIBUTED = workspace(
    "llama",
    "Standard_NC6s_v3",
    2,
    inference={
        "preset": {
            "name": "llama-2-13b-chat",
            "accessMode": "private",
            "presetOptions": {"image": "registry.example/llama:1"},
        }
    },
)
ADAPTED = workspace(
    "adapted",
    "Standard_NC6s_v3",
    inference={
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "adapters": [{"source": {"name": "style", "image": "registry.example/style:1"}, "strength": "0.5"}],
    },
)
TUNING = workspace(
    "tuned",
    "Standard_NC24ads_A100_v4",
    tuning={
        "preset": {"name": "phi-3-mini-4k-instruct"},
        "method": "lora",
        "config": "tuning",
        "input": {"urls": ["https://example.com/data.parquet"]},
        "output": {"image": "registry.example/out:1", "imagePushSecret": "push"},
    },
)
BAD = workspace("bad", "Standard_NC6s_v3", inference={"preset": {"name": "phi-33"}})


@dataclass(frozen=True, slots=True)
class World:
    """A cluster with RBAC and nodes of a *cloud* that is not real; ``admin`` and ``kubectl`` are an administrator's."""

    admin: Client
    kubectl: Kubectl
    cloud: CloudProvider
    kubeconfig_of: Callable[[str], Mapping[str, Any]]
    """The kubeconfig of whoever has that token."""
    lead_webhook_to: Callable[[Sequence[int]], Awaitable[None]]
    """Have the Service of the webhook lead to these ports of this machine."""
    folder: Path
    version: tuple[int, int]


@dataclass(slots=True)
class Traffic:
    """What the controllers asked for, and what they were refused."""

    used: set[Permission] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of the Deployment, but for being a process."""

    manager: Manager
    port: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@asynccontextmanager
async def running(manager: Manager) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.run(), name="manager")
        await manager.wait_ready()
        try:
            yield
        finally:
            manager.stop()


async def token(admin: Client, account: str = ACCOUNT) -> str:
    """What the kubelet asks for, for a pod of the Deployment."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
    issued = decode_json(await admin.request("POST", path, body=body))
    text: str = issued["status"]["token"]
    return text


@asynccontextmanager
async def as_account(
    world: World, account: str, name: str, traffic: Traffic, *, streaming: bool, seldom: Sequence[str] = SELDOM
) -> AsyncIterator[Cluster]:
    """The cluster as a pod of that service account meets it; without *streaming* it is listed as on a server that
    knows no better. The answer to the first creation of each of *seldom* is lost."""
    kubeconfig = world.folder / f"{name}.kubeconfig"
    kubeconfig.write_text(json.dumps(world.kubeconfig_of(await token(world.admin, account))))

    async def dial() -> Recorder:
        transport = await connect(kubeconfig=str(kubeconfig))
        # Our own names and namespace are known when a role is written; those of users are not.
        return Recorder(
            transport,
            traffic.used,
            traffic.refusals,
            named=("admissionregistration.k8s.io", "coordination.k8s.io"),
            placed=("coordination.k8s.io",),
        )

    transport = await dial()
    try:
        yield Cluster(
            Forgetful(transport, seldom), rng=random.Random(name), streaming=streaming, sync_timeout=20.0, dial=dial
        )
    finally:
        await transport.aclose()


@asynccontextmanager
async def replica(world: World, name: str, traffic: Traffic, *, streaming: bool) -> AsyncIterator[Replica]:
    """A replica that is ready."""
    async with as_account(world, ACCOUNT, name, traffic, streaming=streaming) as cluster:
        options = DaemonOptions(
            metrics_port=None,
            health_port=None,
            webhook_host="0.0.0.0",
            webhook_port=free_port(),
            webhook_service=SERVICE,
            leader=Lease(WORKSPACE_LEASE_NAME, namespace=NAMESPACE),
            instance=name,
            drain=2.0,
        )
        assert options.webhook_port is not None
        manager = build_manager(cluster, None, options)
        async with running(manager):
            yield Replica(manager, options.webhook_port)


@asynccontextmanager
async def another_provisioner(world: World) -> AsyncIterator[None]:
    manager = Manager(Cluster(world.admin.transport), drain=2.0)
    manager.add(MachineController(world.cloud))
    async with running(manager):
        yield


async def live(world: World) -> Traffic:
    """Deploy; run two replicas; serve and delete workspaces; hand over; end."""
    traffic = Traffic()
    try:
        await _live(world, traffic)
    except BaseException as error:
        for each in traffic.refusals[:10]:
            error.add_note(f"before that: {each}")
        raise
    return traffic


async def _live(world: World, traffic: Traffic) -> None:
    await deploy(world)
    async with another_provisioner(world), replica(world, "first", traffic, streaming=True) as first:
        await first.manager.wait_leading()
        await world.lead_webhook_to([first.port])
        async with replica(world, "second", traffic, streaming=False) as second:
            await world.lead_webhook_to([first.port, second.port])
            assert await authorities(world.admin) == 2
            await the_walk(world)
            await the_rest(world)
            await world.lead_webhook_to([second.port])
            first.manager.stop()
            async with asyncio.timeout(30):
                await second.manager.wait_leading()
            await until(lambda: trusted(world.admin, 1))
            await the_end(world)


async def deploy(world: World, folder: str = "manifests/overlays/dev") -> None:
    """Twice: the second time there is nothing to do."""
    # Where rules in definitions are not known, kubectl's own check says so, and the server drops them.
    options = () if world.version >= (1, 23) else ("--validate=false",)
    which, objects = kustomization(world, folder)
    command = ("apply", *options, *which)
    applied = await world.kubectl(*command, stdin=objects)
    assert applied.status == 0, applied.err
    again = await world.kubectl(*command, stdin=objects)
    assert again.status == 0, again.err
    said = again.out.splitlines()
    assert all(line.endswith((" unchanged", " configured")) for line in said), said
    assert "deployment.apps/kaito-ctrl unchanged" in said


def kustomization(world: World, folder: str) -> tuple[tuple[str, ...], str | None]:
    """How kubectl is told of a *folder*, and its standard input: without what that server is too old for."""
    if world.version >= (1, 21):
        return ("-k", folder), None
    rendered = [each for each in render(ROOT / folder) if each["apiVersion"] != "policy/v1"]
    return ("-f", "-"), json.dumps({**LIST, "items": rendered})


async def remove(world: World) -> None:
    """As docs/deploy.md says."""
    for command in (
        ("delete", "workspaces", "--all", "--all-namespaces"),
        ("delete", "-k", "manifests/base", "-l", "app.kubernetes.io/name=kaito-ctrl"),
        ("delete", "mutatingwebhookconfigurations,validatingwebhookconfigurations", HOOK),
        ("delete", "crd", "workspaces.kaito.sh"),
    ):
        done = await world.kubectl(*command)
        assert done.status == 0, done.err
    left = await world.kubectl("get", "clusterroles,clusterrolebindings,namespaces,crds", "-o", "name")
    assert left.status == 0, left.err
    mine = [line for line in left.out.splitlines() if "kaito" in line]
    assert mine == [], mine
    assert "machines.karpenter.sh" in left.out


async def authorities(admin: Client) -> int:
    """How many replicas the API server trusts, by both registrations."""
    counts = set()
    for kind in ("mutating", "validating"):
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}webhookconfigurations/{HOOK}"
        hook = decode_json(await admin.request("GET", path))["webhooks"][0]
        counts.add(base64.b64decode(hook["clientConfig"]["caBundle"]).count(b"BEGIN CERTIFICATE"))
    (count,) = counts
    return count


async def trusted(admin: Client, count: int) -> bool:
    return await authorities(admin) == count


async def apply(world: World, *objects: Mapping[str, Any]) -> None:
    text = json.dumps({**LIST, "items": objects})
    said = await world.kubectl("apply", "-f", "-", stdin=text)
    assert said.status == 0, said.err


async def the_walk(world: World) -> None:
    """The first quick start, up to where it serves; and what the webhook says to a bad one."""
    said = await world.kubectl("apply", "-f", "examples/inference/kaito_workspace_phi_3.yaml")
    assert said.status == 0, said.err
    said = await world.kubectl("apply", "-f", "-", stdin=json.dumps(BAD))
    assert said.status == 1
    assert "phi-33" in said.err
    waited = await world.kubectl("wait", "--for=condition=WorkspaceReady", f"workspace/{PHI}", "--timeout=55s")
    assert waited.status == 0, waited.err


async def the_rest(world: World) -> None:
    """What the walk does not come by."""
    admin = world.admin
    await apply(world, DISTRIBUTED, ADAPTED)
    await until(lambda: exists(admin, StatefulSet, "llama"))
    await older_revisions(world)
    await the_same_event_twice(world)


async def older_revisions(world: World) -> None:
    """More of them than are kept: the oldest go."""
    admin = world.admin
    ws = await admin.get(Workspace, PHI, "default")
    for number in range(HISTORY + 1):
        metadata = ObjectMeta(name=f"{PHI}-old{number}", namespace="default", labels={REVISION_OWNER_LABEL: PHI})
        await admin.apply(ControllerRevision(metadata=metadata, data={}, revision=0), owner=ws)
    await touch(admin, PHI)

    async def few() -> bool:
        kept = [each for each in await admin.list(ControllerRevision, "default") if owned_by(each, ws)]
        return len(kept) <= HISTORY

    await until(few)


async def the_same_event_twice(world: World) -> None:
    """A tuning workspace whose ConfigMap comes and goes: what is told of it the second time makes a series."""
    admin = world.admin
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tuning"}, "data": CONFIG}
    await apply(world, config)
    await apply(world, TUNING)
    path = "/api/v1/namespaces/default/configmaps"
    for _ in range(2):
        await admin.request("DELETE", f"{path}/tuning")
        await noticed(world, missing=True)
        await admin.request("POST", path, body=config)
        await noticed(world, missing=False)

    async def series() -> bool:
        events = await admin.list(Event, "default")
        return any(each.regarding.name == "tuned" and each.series is not None for each in events)

    await until(series)


async def noticed(world: World, *, missing: bool) -> None:
    """Until the tuning workspace says of its ConfigMap that it is *missing*, or no longer does."""
    await touch(world.admin, "tuned")

    async def said() -> bool:
        ws = await world.admin.get(Workspace, "tuned", "default")
        return ("ConfigMap tuning was not found" in str(ws.status)) == missing

    await until(said)


async def touch(admin: Client, name: str) -> None:
    """Have a workspace looked at again, past the webhook."""
    ws = await admin.get(Workspace, name, "default")
    patch = {"status": {"workerNodes": [*ws.status.worker_nodes, "nobody"]}}
    await admin.patch(Workspace, key_of(ws), patch, subresource="status")


async def exists(admin: Client, kind: type[Resource], name: str) -> bool:
    try:
        await admin.get(kind, name, "default")
    except NotFound:
        return False
    return True


async def the_end(world: World) -> None:
    """What the controllers themselves take away; the rest, which workspaces own, is the garbage collector's."""
    deleted = await world.kubectl("delete", "workspaces", "--all")
    assert deleted.status == 0, deleted.err

    async def nothing() -> bool:
        left: list[object] = list(await world.cloud.list())
        everywhere: tuple[type[Resource], ...] = (Workspace, Machine, Node)
        here: tuple[type[Resource], ...] = (Deployment, StatefulSet, Pod)
        for kind in everywhere:
            left += await world.admin.list(kind)
        for kind in here:
            left += await world.admin.list(kind, "default")
        return not left

    await until(nothing)
