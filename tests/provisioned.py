"""A life of the provisioner as `manifests/overlays/aks` deploys it: as its ServiceAccount, two replicas.

It goes through everything that the provisioner asks an API server for. Claims come from a user's kubectl, so that
nobody else's rights are mixed up with its own.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import yaml

from kaito_api.core import Node
from kaito_api.events import Event
from kaito_api.karpenter import NODE_REQUESTS, TERMINATION_TIMESTAMP_ANNOTATION, NodeRequest
from kaito_api.meta import is_true, rfc3339
from kaito_ctrl.cli.daemon import DaemonOptions, NodeApi, build_manager
from kaito_ctrl.cli.runcommand import PROVISIONER_LEASE_NAME
from kaito_ctrl.runtime import Lease, Manager
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import NotFound
from tests.deployed import NAMESPACE, Traffic, World, as_account, deploy, kustomization, running
from tests.e2e.conftest import ROOT, until

__all__ = ["ACCOUNT", "OVERLAYS", "live", "remove"]

ACCOUNT = "kaito-provisioner"
OVERLAYS: Mapping[NodeApi, str] = {"machine": "overlays/aks", "nodeclaim": "overlays/aks-nodeclaim"}
EXAMPLES: Mapping[NodeApi, str] = {"machine": "kaito_machine.yaml", "nodeclaim": "kaito_nodeclaim.yaml"}
TOLERANT = {"tolerations": [{"key": "sku", "operator": "Exists"}]}
FOREVER = {"image": "curlimages/curl", "name": "it", "command": ["sleep", "1000"]}


async def live(world: World, node_api: NodeApi) -> Traffic:
    """Deploy; run two replicas; end nodes in every way; hand over; end."""
    traffic = Traffic()
    try:
        await deploy(world, f"manifests/{OVERLAYS[node_api]}")
        await _live(_Scene(world, node_api), traffic)
    except BaseException as error:
        for each in traffic.refusals[:10]:
            error.add_note(f"before that: {each}")
        error.add_note((await world.kubectl("get", f"{node_api}s,nodes,pods,events", "-o", "wide")).out)
        error.add_note((await world.kubectl("describe", f"{node_api}s")).out)
        raise
    return traffic


async def remove(world: World, node_api: NodeApi) -> None:
    """As docs/aks.md says."""
    names = "app.kubernetes.io/name in (kaito-ctrl, kaito-provisioner, nvidia-device-plugin)"
    which, objects = kustomization(world, f"manifests/{OVERLAYS[node_api]}")
    for command in (
        ("delete", "workspaces", "--all", "--all-namespaces"),
        ("delete", *which, "-l", names),
        ("delete", "crd", "workspaces.kaito.sh", "machines.karpenter.sh"),
    ):
        done = await world.kubectl(*command, stdin=objects)
        assert done.status == 0, done.err
    left = await world.kubectl("get", "clusterroles,clusterrolebindings,namespaces,daemonsets", "-A", "-o", "name")
    assert left.status == 0, left.err
    assert [line for line in left.out.splitlines() if "kaito" in line or "nvidia" in line] == []


async def _live(scene: _Scene, traffic: Traffic) -> None:
    async with scene.replica("first", traffic, streaming=True) as first:
        await first.wait_leading()
        async with scene.replica("second", traffic, streaming=False) as second:
            await scene.a_node_that_is_drained()
            await scene.a_node_that_ends_by_force()
            first.stop()
            await second.wait_leading()
            await scene.a_node_that_somebody_deletes()


class _Scene:
    def __init__(self, world: World, node_api: NodeApi) -> None:
        self.world = world
        self.admin = world.admin
        self.node_api = node_api
        self.kind: type[NodeRequest] = NODE_REQUESTS[node_api]

    @asynccontextmanager
    async def replica(self, name: str, traffic: Traffic, *, streaming: bool) -> AsyncIterator[Manager]:
        options = DaemonOptions(
            workspaces=False,
            node_api=self.node_api,
            metrics_port=None,
            health_port=None,
            leader=Lease(PROVISIONER_LEASE_NAME, namespace=NAMESPACE),
            drain=2.0,
        )
        async with as_account(self.world, ACCOUNT, name, traffic, streaming=streaming, seldom=()) as cluster:
            manager = build_manager(cluster, self.world.cloud, options)
            async with running(manager):
                yield manager

    # -- what happens ----------------------------------------------------------------------------------------------

    async def a_node_that_is_drained(self) -> None:
        """One pod is held up by a budget until somebody gives in; one stays to the end, with its volume."""
        node = await self.node("ws0000000001")
        await self.apply(
            self.pod("held", node, labels={"app": "held"}),
            {
                "apiVersion": "policy/v1" if self.world.version >= (1, 21) else "policy/v1beta1",
                "kind": "PodDisruptionBudget",
                "metadata": {"name": "held"},
                "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "held"}}},
            },
            *self.volume(node),
            self.pod(
                "staying",
                node,
                tolerations=[{"operator": "Exists"}],
                volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            ),
        )
        await self.delete("ws0000000001")
        # Told again, it makes a series.
        await until(self.told_twice)
        await self.user("delete", "poddisruptionbudget", "held")
        await until(self.gone("ws0000000001"))
        await self.user("delete", "volumeattachment", "data")

    async def a_node_that_ends_by_force(self) -> None:
        """Its pod may not be disrupted, and the time is up."""
        node = await self.node("ws0000000002")
        await self.apply(self.pod("busy", node, annotations={"karpenter.sh/do-not-disrupt": "true"}))
        past = rfc3339(SystemClock().now() - timedelta(seconds=1))
        await self.delete("ws0000000002")
        await self.user("annotate", self.node_api, "ws0000000002", f"{TERMINATION_TIMESTAMP_ANNOTATION}={past}")
        await until(self.gone("ws0000000002"))

    async def a_node_that_somebody_deletes(self) -> None:
        node = await self.node("ws0000000003")
        await self.user("delete", "node", node, "--wait=false")
        await until(self.gone("ws0000000003"))

    # -- steps -----------------------------------------------------------------------------------------------------

    async def user(self, *command: str, stdin: str | None = None) -> None:
        done = await self.world.kubectl(*command, stdin=stdin)
        assert done.status == 0, done.err

    async def apply(self, *objects: Mapping[str, Any]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        await self.user("apply", "-f", "-", stdin=text)

    async def node(self, name: str) -> str:
        """A claim of that name, as KAITO writes it, and the name of its node once that is usable."""
        claim = yaml.safe_load((ROOT / "examples/provisioner" / EXAMPLES[self.node_api]).read_text())
        claim["metadata"]["name"] = name
        await self.apply(claim)

        async def ready() -> bool:
            return is_true((await self.admin.get(self.kind, name)).status.conditions, "Ready")

        await until(ready)
        return (await self.admin.get(self.kind, name)).status.node_name

    async def delete(self, name: str) -> None:
        await self.user("delete", self.node_api, name, "--wait=false")

    def gone(self, name: str) -> Callable[[], Awaitable[bool]]:
        """Whether nothing is left of that claim: neither itself, nor its node, nor its machine."""

        async def holds() -> bool:
            try:
                await self.admin.get(self.kind, name)
            except NotFound:
                nodes = [each for each in await self.admin.list(Node) if each.name.startswith(f"aks-{name}-")]
                return not nodes and not await self.world.cloud.list()
            return False

        return holds

    async def told_twice(self) -> bool:
        return any(each.series is not None for each in await self.admin.list(Event))

    def pod(
        self,
        name: str,
        node: str,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": dict(labels or {}),
                "annotations": dict(annotations or {}),
            },
            "spec": {
                "nodeName": node,
                "containers": [FOREVER],
                "terminationGracePeriodSeconds": 1,
                **TOLERANT,
                **spec,
            },
        }

    def volume(self, node: str) -> tuple[dict[str, Any], ...]:
        """A claim that is bound to a volume, which is attached to *node*."""
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "",
            "volumeName": "data",
        }
        attachment = {"attacher": "disk.csi.azure.com", "nodeName": node, "source": {"persistentVolumeName": "data"}}
        return (
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "data", "namespace": "default"},
                "spec": claim,
            },
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "VolumeAttachment",
                "metadata": {"name": "data"},
                "spec": attachment,
            },
        )
