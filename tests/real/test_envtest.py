"""What embedders get: the same few methods on an embedded and on a real server, and nothing left afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from kaito_api.core import ConfigMap
from kaito_api.meta import Model, ObjectMeta, Resource
from kaito_api.workspace import Workspace
from kaito_ctrl import Client, Cluster, Context, Controller, Manager, ObjectKey, Result
from kaito_ctrl.runtime.errors import Forbidden, Unauthorized
from kaito_ctrl.testing.controlplane import ControlPlane
from kaito_ctrl.testing.envtest import Environment, envtest

ROOT = Path(__file__).parents[2]
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "pets.example.org"},
    "spec": {
        "group": "example.org",
        "scope": "Namespaced",
        "names": {"kind": "Pet", "listKind": "PetList", "plural": "pets", "singular": "pet"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "properties": {"sound": {"type": "string"}}}},
                    }
                },
            }
        ],
    },
}


class PetSpec(Model):
    sound: str = ""


class Pet(Resource):
    group, version, kind, plural = "example.org", "v1", "Pet", "pets"
    spec: PetSpec


class PetController(Controller[Pet]):
    """Writes down what each pet says."""

    name = "pets"
    kind = Pet

    async def reconcile(self, pet: Pet, ctx: Context) -> Result:
        metadata = ObjectMeta(name=pet.name, namespace=pet.namespace)
        await ctx.client.apply(ConfigMap(metadata=metadata, data={"sound": pet.spec.sound}))
        return Result.done()


@pytest.fixture(params=["embedded", "real"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[Environment]:
    plane: ControlPlane | None = request.getfixturevalue("plane") if request.param == "real" else None
    async with envtest(plane or "embedded", crds=[CRD]) as environment:
        yield environment


async def test_a_controller_of_a_kind_of_ones_own_runs_on_either(env: Environment) -> None:
    cluster = await env.cluster()
    manager = Manager(cluster, drain=1.0)
    reconciled = asyncio.Event()
    manager.add(PetController(), observe=lambda *_: reconciled.set())
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.run())
        await manager.wait_ready()
        await env.client.create(Pet(metadata=ObjectMeta(name="cat", namespace="default"), spec=PetSpec(sound="meow")))
        await reconciled.wait()
        assert (await env.client.get(ConfigMap, "cat", "default")).data == {"sound": "meow"}
        manager.stop()
    await env.client.delete(Pet, ObjectKey("default", "cat"))


async def test_a_kubeconfig_leads_to_it_over_tcp(env: Environment) -> None:
    async with Cluster.connect(kubeconfig=str(await env.kubeconfig())) as cluster:
        assert await cluster.client.list(Pet, "default") == []


async def test_definitions_can_be_files_rules_in_cel_and_installed_twice(env: Environment) -> None:
    for _ in range(2):
        await env.install([ROOT / "manifests" / "crds"])
    assert await env.client.list(Workspace, "default") == []


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with envtest():
            raise ZeroDivisionError


async def test_a_user_may_do_what_the_rules_say_and_no_more(env: Environment) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    ann = await env.add_user("ann", rules=rules, namespace="default")
    client = Client(await env.transport(ann))
    await client.list(ConfigMap, "default")
    with pytest.raises(Forbidden, match='User "ann" cannot list'):
        await client.list(ConfigMap, "kube-system")
    with pytest.raises(Forbidden):
        await client.create(ConfigMap(metadata=ObjectMeta(name="a", namespace="default")))
    root = await env.add_user("root", ["system:masters"])
    async with Cluster.connect(kubeconfig=str(await env.kubeconfig(root))) as cluster:
        await cluster.client.list(ConfigMap, "kube-system")


async def test_a_service_account_has_a_token_for_a_while(env: Environment) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    account = await env.add_service_account("default", "robot", rules=rules)
    robot = env.token_of(account, lifetime=timedelta(hours=1))
    await Client(await env.transport(robot)).list(ConfigMap, "kube-system")
    with pytest.raises(Forbidden, match='User "system:serviceaccount:default:robot" cannot list'):
        await Client(await env.transport(robot)).list(Workspace, "default")
    late = env.token_of(account, lifetime=timedelta(seconds=-1))
    with pytest.raises(Unauthorized):
        await Client(await env.transport(late)).list(ConfigMap, "kube-system")


async def test_a_client_certificate_ends_when_it_was_meant_to(plane: ControlPlane) -> None:
    async with envtest(plane) as environment:
        past = plane.certificate_user("ann", ["system:masters"], lifetime=timedelta(seconds=-1))
        config = plane.folder / "past"
        config.write_text(str(plane.kubeconfig_of(past)).replace("'", '"'))
        async with Cluster.connect(kubeconfig=str(config)) as cluster:
            with pytest.raises(Unauthorized):
                await cluster.client.list(ConfigMap, "default")
        assert environment.version >= (1, 20)


KILLED = """
import asyncio, sys
from kaito_ctrl.testing.envtest import envtest
async def main():
    async with envtest("real") as env:
        print(env.control_plane.folder, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def test_whoever_is_killed_in_the_block_leaves_no_process_and_no_file(binaries: Path) -> None:
    environ = {**os.environ, "KUBEBUILDER_ASSETS": str(binaries)}
    with subprocess.Popen([sys.executable, "-c", KILLED], env=environ, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        folder = child.stdout.readline().strip()
        assert running_in(folder) >= 3
        child.kill()
        child.wait()
        # The keeper inherited the descriptor: it is closed when the keeper has done its work.
        child.stdout.read()
    assert running_in(folder) == 0
    assert not Path(folder).exists()


def running_in(folder: str) -> int:
    """Processes that work in *folder*, or were told of it."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += folder.encode() in (entry / "cmdline").read_bytes()
            except OSError:
                continue
    return found
