"""Several clusters: a FederatedConfig on a hub becomes a ConfigMap on each member cluster that it names.

Try it, without any cluster: three embedded ones, a FederatedConfig, and what becomes of it, until Ctrl-C::

    python examples/library/fleet.py

Or with clusters of your own, each by its kubeconfig::

    python examples/library/fleet.py --hub hub.yaml --member east=east.yaml --member west=west.yaml

A member that is down costs the others nothing: its own line in the status says so, and it is served when it is back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from kaito_api.core import ConfigMap
from kaito_api.crd import structural_schema
from kaito_api.meta import Model, ObjectMeta, Resource
from kaito_ctrl import Client, Cluster, Context, Controller, Manager, ObjectKey, Result, watches
from kaito_ctrl.runtime import EVERY_CLUSTER, Member, by_label
from kaito_ctrl.runtime.errors import KubeError

NAME, NAMESPACE = "example.org/federated-name", "example.org/federated-namespace"


class FederatedConfigSpec(Model):
    data: Mapping[str, str] = {}
    members: tuple[str, ...] | None = None
    """The clusters that it goes to; all of them if it does not say."""


class MemberStatus(Model):
    name: str
    state: str
    message: str | None = None


class FederatedConfigStatus(Model):
    synced: str = ""
    members: tuple[MemberStatus, ...] = ()


class FederatedConfig(Resource):
    """A ConfigMap for many clusters."""

    group, version, kind, plural = "example.org", "v1", "FederatedConfig", "federatedconfigs"

    spec: FederatedConfigSpec = FederatedConfigSpec()
    status: FederatedConfigStatus = FederatedConfigStatus()


class FederationController(Controller[FederatedConfig]):
    """Brings the copies of one FederatedConfig where they should be, and takes them away with it."""

    name = "federation"
    kind = FederatedConfig
    finalizer = "example.org/federation"
    # No owner reference can cross from one cluster to another: the copies carry labels that lead back.
    sources = (watches(ConfigMap, by_label(NAME, NAMESPACE), cluster=EVERY_CLUSTER),)

    async def reconcile(self, config: FederatedConfig, ctx: Context) -> Result:
        wanted = ctx.members if config.spec.members is None else config.spec.members
        members = await self._everywhere(ctx, {name: config if name in wanted else None for name in ctx.members})
        members += [
            MemberStatus(name=name, state="Unknown", message="no such cluster")
            for name in wanted
            if name not in ctx.members
        ]
        listed = tuple(each for each in members if each.name in wanted)
        synced = sum(each.state == "Synced" for each in listed)
        status = FederatedConfigStatus(synced=f"{synced}/{len(wanted)}", members=listed)
        if status != config.status:
            await ctx.client.patch(FederatedConfig, ctx.key, {"status": status.to_wire()}, subresource="status")
        return self._again(members)

    async def cleanup(self, config: FederatedConfig, ctx: Context) -> Result:
        return self._again(await self._everywhere(ctx, dict.fromkeys(ctx.members)))

    async def _everywhere(self, ctx: Context, wanted: Mapping[str, FederatedConfig | None]) -> list[MemberStatus]:
        """All members at the same time: none waits for one that is slow."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._on(ctx, name, config)) for name, config in wanted.items()]
        return [task.result() for task in tasks]

    async def _on(self, ctx: Context, name: str, wanted: FederatedConfig | None) -> MemberStatus:
        """The state that one member then is in; every failure is its own."""
        try:
            return await self._bring(ctx.key, await ctx.cluster(name), wanted)
        except KubeError as error:
            return MemberStatus(name=name, state="Failed", message=str(error))

    async def _bring(self, key: ObjectKey, member: Member, wanted: FederatedConfig | None) -> MemberStatus:
        present = member.cache.get(ConfigMap, key.name, key.namespace)
        labels = {NAME: key.name, NAMESPACE: key.namespace}
        ours = present is not None and labels.items() <= present.metadata.labels.items()
        if present is not None and not ours:
            state = "Conflict" if wanted is not None else "Absent"
            return MemberStatus(name=member.name, state=state, message="a ConfigMap of that name is somebody else's")
        if wanted is None:
            if present is not None:
                await member.client.delete(ConfigMap, key, uid=present.uid)
            return MemberStatus(name=member.name, state="Absent")
        if present is None or present.data != wanted.spec.data:
            metadata = ObjectMeta(name=key.name, namespace=key.namespace, labels=labels)
            await member.client.apply(ConfigMap(metadata=metadata, data=wanted.spec.data))
        return MemberStatus(name=member.name, state="Synced")

    @staticmethod
    def _again(members: list[MemberStatus]) -> Result:
        return Result.retry_in(10) if any(each.state in ("Failed", "Conflict") for each in members) else Result.done()


def crd() -> dict[str, Any]:
    """The kind, as the API server wants to know it: its schema comes from the models above."""
    schema = structural_schema(FederatedConfig.model_json_schema(by_alias=True))
    schema["properties"]["metadata"] = {"type": "object"}
    column = {"name": "Synced", "type": "string", "jsonPath": ".status.synced"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "federatedconfigs.example.org"},
        "spec": {
            "group": "example.org",
            "scope": "Namespaced",
            "names": {"kind": "FederatedConfig", "listKind": "FederatedConfigList", "plural": "federatedconfigs"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


async def install(client: Client) -> None:
    """Bring the kind to the hub; safe to repeat."""
    await client.request(
        "PATCH",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/federatedconfigs.example.org",
        query=(("fieldManager", "federation"), ("force", "true")),
        body=crd(),
        headers={"content-type": "application/apply-patch+yaml"},
    )


async def run(hub: str | None, members: Mapping[str, str]) -> None:
    """The operator, for the clusters of these kubeconfigs."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster.connect(kubeconfig=hub))
        await install(cluster.client)
        manager = Manager(cluster)
        for name, kubeconfig in members.items():
            manager.add_cluster(name, await stack.enter_async_context(Cluster.connect(kubeconfig=kubeconfig)))
        manager.add(FederationController())
        await manager.run()


async def demo() -> None:
    """The operator on three embedded clusters, with something to do."""
    from kaito_ctrl.devcluster.cluster import DevCluster

    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
        clusters = {name: await stack.enter_async_context(DevCluster.start()) for name in ("hub", "east", "west")}
        for name, dev in clusters.items():
            await dev.write_kubeconfig(folder / name)
            _say(f"kubectl --kubeconfig {folder / name} get {'federatedconfigs' if name == 'hub' else 'configmaps'}")
        hub = Client(clusters["hub"].transport(), "fleet-demo")
        await install(hub)
        metadata, spec = ObjectMeta(name="greeting", namespace="default"), FederatedConfigSpec(data={"hello": "world"})
        await hub.apply(FederatedConfig(metadata=metadata, spec=spec))
        async with asyncio.TaskGroup() as group:
            group.create_task(run(str(folder / "hub"), {name: str(folder / name) for name in ("east", "west")}))
            while True:
                seen = await hub.get(FederatedConfig, "greeting", "default")
                if seen.status.synced == "2/2":
                    break
                await asyncio.sleep(0.1)
            for member in seen.status.members:
                _say(f"{seen} on {member.name}: {member.state}")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hub", metavar="KUBECONFIG", help="the cluster with the FederatedConfigs")
    parser.add_argument(
        "--member", metavar="NAME=KUBECONFIG", action="append", default=[], help="a cluster that they go to; repeat it"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    members = dict(each.split("=", 1) for each in options.member)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(options.hub, members) if members else demo())


if __name__ == "__main__":
    main()
