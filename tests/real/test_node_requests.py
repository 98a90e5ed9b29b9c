"""Both kinds of node requests on a real API server: it takes their definitions, and workspaces are served by either."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest

from kaito_api.crd import all_crds
from kaito_api.karpenter import NODE_REQUESTS, NodeRequest
from kaito_api.meta import find_condition
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.daemon import DaemonOptions, NodeApi, build_manager
from kaito_ctrl.runtime import ObjectKey, key_of
from kaito_ctrl.runtime.errors import Invalid
from kaito_ctrl.runtime.meta import collection_path
from kaito_ctrl.testing.controlplane import ControlPlane
from kaito_ctrl.testing.envtest import envtest
from tests.claims import KAITO_MACHINE, KAITO_NODECLAIM, KARPENTER_NODECLAIM, WHOLE_MACHINE


@pytest.mark.parametrize(
    "raw",
    [KAITO_MACHINE, WHOLE_MACHINE, KAITO_NODECLAIM, KARPENTER_NODECLAIM],
    ids=["kaito's machine", "every field of a machine", "kaito's claim", "karpenter's claim"],
)
async def test_what_others_write_passes_through_it_whole(plane: ControlPlane, raw: dict[str, Any]) -> None:
    kind = NODE_REQUESTS[raw["kind"].lower()]
    async with envtest(plane, crds=all_crds()) as env:
        stored = json.loads(await env.client.request("POST", collection_path(kind, None), body=copy.deepcopy(raw)))
        added = {"expireAfter": "720h"} if raw["kind"] == "NodeClaim" else {}
        assert stored["spec"] == {**added, **raw["spec"]}
        await env.client.delete(kind, ObjectKey("", raw["metadata"]["name"]))


async def test_it_keeps_to_patterns_bounds_and_enumerations(plane: ControlPlane) -> None:
    wrong: list[tuple[str, Any]] = [
        ("expireAfter", "forever"),
        ("requirements", [{"key": "-a", "operator": "In"}]),
        ("requirements", [{"key": "a", "operator": "Near"}]),
        ("nodeClassRef", {"group": "kaito.sh", "kind": "KaitoNodeClass"}),
        ("taints", [{"key": "", "effect": "NoSchedule"}]),
    ]
    async with envtest(plane, crds=all_crds()) as env:
        for name, value in wrong:
            raw = {**KAITO_NODECLAIM, "spec": {**KAITO_NODECLAIM["spec"], name: value}}
            with pytest.raises(Invalid, match=f"spec.{name}"):
                await env.client.request("POST", collection_path(NODE_REQUESTS["nodeclaim"], None), body=raw)


@pytest.mark.parametrize("node_api", ["machine", "nodeclaim"])
async def test_a_workspace_asks_for_its_node_and_shows_why_it_is_refused(
    plane: ControlPlane, node_api: NodeApi
) -> None:
    kind, name = NODE_REQUESTS[node_api], f"by-{node_api}"
    async with envtest(plane, crds=all_crds()) as env:
        options = DaemonOptions(node_api=node_api, metrics_port=None, health_port=None, drain=1.0)
        manager = build_manager(await env.cluster(), None, options)

        async def claims() -> list[NodeRequest]:
            return list(await env.client.list(kind, labels={"kaito.sh/workspace": name}))

        async def told() -> bool:
            ws = await env.client.get(Workspace, name, "default")
            found = find_condition(ws.status.conditions, "WorkspaceReady")
            return found is not None and found.message.endswith("InsufficientCapacity: none left; wait")

        async with asyncio.TaskGroup() as group, asyncio.timeout(30):
            group.create_task(manager.run())
            await manager.wait_ready()
            await env.client.request("POST", collection_path(Workspace, "default"), body=_workspace(name))
            while not await claims():
                await asyncio.sleep(0.05)
            [claim] = await claims()
            refused = {"type": kind.launched, "status": "False", "reason": "InsufficientCapacity"}
            refused |= {"message": "none left; wait", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            body = {"status": {"conditions": [refused]}}
            await env.client.patch(kind, key_of(claim), body, subresource="status")
            while not await told():
                await asyncio.sleep(0.05)
            await env.client.delete(Workspace, ObjectKey("default", name))
            while await claims():
                await asyncio.sleep(0.05)
            manager.stop()


def _workspace(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name},
        "resource": {"instanceType": "Standard_NC12s_v3", "labelSelector": {"matchLabels": {"apps": name}}},
        "inference": {"preset": {"name": "falcon-7b"}},
    }
