"""``why`` on a cluster: for each way to fail, the objects as a cluster holds them, and what is said of them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rich.console import Console

from kaito_api.apps import Deployment
from kaito_api.karpenter import NODE_REQUESTS, NodeRequest
from kaito_api.meta import Resource
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.local import install_crds
from kaito_ctrl.cli.why import print_explanation, print_timeline, read_world
from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.reconcilers.workspace.story import explain, timeline
from kaito_ctrl.reconcilers.workspace.validation import Rules
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import KubeError
from kaito_ctrl.runtime.meta import collection_path
from kaito_presets import Catalogue, SkuTable
from tests.unit.reconcilers import test_findings as causes
from tests.unit.reconcilers.conftest import KEY, NAME, manifest

RULES = Rules(Catalogue.builtin(), SkuTable.builtin("azure"))
OURS = {"kaito.sh/workspace": NAME, "kaito.sh/workspacenamespace": "default"}
MERGE = {"content-type": "application/merge-patch+json"}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    server = ApiServer(clock=SystemClock(), rng=random.Random(5))
    client = Client(server.transport())
    await install_crds(client)
    yield client
    await server.aclose()


async def put(client: Client, obj: Resource, **spec: Any) -> None:
    """Create *obj* as one of the workspace's, with its status, as its controllers would have left it."""
    wire = obj.to_wire()
    wire["metadata"] = {
        key: value
        for key, value in wire["metadata"].items()
        if key not in ("uid", "creationTimestamp", "deletionTimestamp", "resourceVersion")
    }
    wire["metadata"]["labels"] = {**wire["metadata"].get("labels", {}), **OURS}
    wire["spec"] = {**wire.get("spec", {}), **spec}
    status = wire.pop("status", {})
    path = collection_path(type(obj), obj.namespace)
    await client.request("POST", path, body=wire)
    await client.request("PATCH", f"{path}/{obj.name}/status", body={"status": status}, headers=MERGE)


async def ask(client: Client) -> dict[str, Any]:
    world = await read_world(client, KEY, RULES)
    # Long after whatever was created just now: what nobody has looked at yet is not in question.
    now = SystemClock().now()
    out = io.StringIO()
    print_explanation(world, explain(world, now), now, Console(file=out, width=100), as_json=True)
    said: dict[str, Any] = json.loads(out.getvalue())
    shown = io.StringIO()
    print_explanation(world, explain(world, now), now, Console(file=shown, width=100), as_json=False)
    if said["cause"]:
        assert said["cause"]["code"] in shown.getvalue()
        assert said["cause"]["fix"][:20] in shown.getvalue()
    return said


async def looked_at(client: Client, **conditions: str) -> None:
    """The workspace as its controller has seen it."""
    await client.request("POST", collection_path(Workspace, "default"), body=manifest())
    live = await client.get(Workspace, NAME, "default")
    wire = [
        {
            "type": kind,
            "status": status,
            "reason": "Test",
            "message": "",
            "observedGeneration": live.metadata.generation,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for kind, status in {"MachineReady": "Unknown", **conditions}.items()
    ]
    path = f"{collection_path(Workspace, 'default')}/{NAME}/status"
    await client.request("PATCH", path, body={"status": {"conditions": wire}}, headers=MERGE)


@pytest.mark.parametrize("row", causes.CLAIMS, ids=causes.named(causes.CLAIMS))
async def test_what_keeps_a_node_away_is_named(client: Client, row: tuple[Any, str, str, str]) -> None:
    await looked_at(client)
    await put(client, row[0])
    said = await ask(client)
    assert said["cause"]["code"] == row[2]
    assert row[3] in said["cause"]["fix"]
    if row[1] == "CapacityReserved":
        assert said["stage"]["name"] == row[1]
        assert [link["object"] for link in said["chain"] if link["state"] == "wrong"] == [str(row[0])]


@pytest.mark.parametrize("kind", NODE_REQUESTS.values(), ids=NODE_REQUESTS)
async def test_a_place_in_the_clouds_queue_is_what_is_waited_for(client: Client, kind: type[NodeRequest]) -> None:
    await looked_at(client)
    await put(client, causes.claim(1, "False", "Throttled", "place 12 of 80, in about 12 min", kind=kind))
    said = await ask(client)
    assert said["cause"] is None
    assert (said["stage"]["name"], said["stage"]["state"]) == ("CapacityReserved", "Active")
    assert "ws1: place 12 of 80" in said["stage"]["message"]
    [link] = [each for each in said["chain"] if each["object"] == f"{kind.kind} ws1"]
    assert (link["state"], link["detail"]) == ("busy", "place 12 of 80, in about 12 min")


@pytest.mark.parametrize("row", causes.PODS, ids=[row[2] for row in causes.PODS])
async def test_what_keeps_a_pod_from_serving_is_named(client: Client, row: tuple[Any, str, str, str]) -> None:
    await looked_at(client, ResourceReady="True", InferenceReady="False")
    await put(client, Deployment.model_validate({"metadata": {"name": NAME, "namespace": "default"}}), **WORKLOAD)
    await put(client, row[0], containers=[{"name": "ws", "image": "a"}])
    said = await ask(client)
    assert said["cause"]["code"] == row[2]
    assert row[3] in said["cause"]["fix"]


WORKLOAD = {
    "replicas": 1,
    "selector": {"matchLabels": OURS},
    "template": {"metadata": {"labels": OURS}, "spec": {"containers": [{"name": "ws", "image": "a"}]}},
}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('pods "ws-1" is forbidden: exceeded quota: q, requested: pods=1', "ResourceQuota"),
        ('pods "ws-1" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurity"),
    ],
)
async def test_what_keeps_pods_from_being_made_is_named(client: Client, text: str, code: str) -> None:
    await looked_at(client, ResourceReady="True")
    failing = causes.replicas(text)
    await put(client, failing.evolve(metadata=failing.metadata.evolve(namespace="default", name=NAME)), **WORKLOAD)
    assert (await ask(client))["cause"]["code"] == code


async def test_a_node_that_is_lost_is_named(client: Client) -> None:
    await looked_at(client, ResourceReady="True", InferenceReady="False")
    silent = causes.node(
        metadata={"labels": {"apps": "phi-3"}},
        status={"conditions": [{"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting"}]},
    )
    await put(client, silent)
    said = await ask(client)
    assert said["cause"]["code"] == "NodeNotReady"
    assert "kubectl describe node n1" in said["cause"]["fix"]


async def test_a_workspace_that_makes_no_sense_is_named_with_its_problems(client: Client) -> None:
    await looked_at(client)
    path = f"{collection_path(Workspace, 'default')}"
    bad = manifest(instanceType="Standard_Nothing")
    bad["metadata"]["name"] = "bad"
    bad["inference"]["preset"]["name"] = "no-such"
    await client.request("POST", path, body=bad)
    world = await read_world(client, ObjectKey("default", "bad"), RULES)
    cause = explain(world, SystemClock().now()).cause
    assert cause is not None
    assert cause.code == "InvalidWorkspace"
    assert "no-such" in cause.message


async def test_one_that_is_not_there_is_an_error_that_says_which_are(client: Client) -> None:
    await looked_at(client)
    with pytest.raises(KubeError, match=f"there are: default/{NAME}"):
        await read_world(client, ObjectKey("default", "other"), RULES)


async def test_the_timeline_of_a_cluster_can_be_read_by_people_and_programs(client: Client) -> None:
    await looked_at(client)
    await put(client, causes.CLAIMS[0][0])
    moments = timeline(await read_world(client, KEY, RULES))
    out = io.StringIO()
    print_timeline(moments, Console(file=out, width=100), as_json=True)
    assert {row["object"] for row in json.loads(out.getvalue())} >= {f"Workspace default/{NAME}", "Machine ws1"}
    shown = io.StringIO()
    print_timeline(moments, Console(file=shown, width=100), as_json=False)
    assert "Machine ws1" in shown.getvalue()
    assert shown.getvalue().splitlines()[0].split() == ["TIME", "AFTER", "OBJECT", "WHAT"]
