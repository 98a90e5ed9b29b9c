"""The example operators, each as a process of its own, on a real API server with its own controllers."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from kaito_api.core import Node
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.codec import decode_json
from kaito_ctrl.runtime.errors import ApiError
from kaito_ctrl.testing.controlplane import ControlPlane, run_control_plane
from kaito_ctrl.testing.envtest import Environment, envtest
from tests.examples import walks
from tests.examples.walks import data_of, operator
from tests.real.joined import nodes_on

until = partial(walks.until, seconds=40)
FLEET = "/apis/example.org/v1/namespaces/default/federatedconfigs"


async def test_the_mirror_copies_follows_and_takes_away(plane: ControlPlane) -> None:
    async with envtest(plane) as env:
        await walks.mirror(env.client, plane.kubeconfig, seconds=40)


@pytest.mark.timeout(120)
async def test_the_fleet_serves_who_is_there_and_makes_up_for_who_was_not(plane: ControlPlane, binaries: Path) -> None:
    with run_control_plane(binaries, controllers=()) as far:
        async with envtest(plane) as hub, envtest(far) as east, envtest() as west:
            members = [f"--member=east={far.kubeconfig}", f"--member=west={await west.kubeconfig()}"]

            async def write(method: str, path: str, color: str) -> bool:
                body = {
                    "apiVersion": "example.org/v1",
                    "kind": "FederatedConfig",
                    "metadata": {"name": "theme"},
                    "spec": {"data": {"color": color}},
                }
                media = "application/json" if method == "POST" else "application/merge-patch+json"
                try:
                    await hub.client.request(method, path, body=body, headers={"content-type": media})
                except ApiError:
                    return False  # the operator has not brought the kind yet
                return True

            async def copied(env: Environment, color: str | None) -> bool:
                return await data_of(env.client, "default", "theme") == (None if color is None else {"color": color})

            async def synced(text: str) -> bool:
                found = decode_json(await hub.client.request("GET", f"{FLEET}/theme"))
                return bool(found.get("status", {}).get("synced") == text)

            async with operator("fleet.py", plane.kubeconfig, f"--hub={plane.kubeconfig}", *members):
                await until(lambda: write("POST", FLEET, "blue"))
                await until(lambda: copied(east, "blue"))
                await until(lambda: copied(west, "blue"))
                await until(lambda: synced("2/2"))
                far.kill()
                await write("PATCH", f"{FLEET}/theme", "red")
                await until(lambda: copied(west, "red"))
                await until(lambda: synced("1/2"))
                await asyncio.to_thread(far.restart)
                await until(lambda: copied(east, "red"))
                await until(lambda: synced("2/2"))
                await hub.client.request("DELETE", f"{FLEET}/theme")
                await until(lambda: copied(east, None))
                await until(lambda: copied(west, None))


@pytest.mark.timeout(120)
async def test_the_website_is_served_follows_its_spec_and_goes(working: ControlPlane, tmp_path: Path) -> None:
    async with envtest(working) as env, nodes_on(working, tmp_path / "pods") as nodes:
        await nodes.kubelet.register("node", labels={}, capacity={"cpu": "4", "memory": "8Gi", "pods": "10"})
        await walks.website(
            env.client, working.kubeconfig, lambda: nodes.proxy.address("default", "hello", 80), seconds=40
        )
        await nodes.kubelet.deregister("node")
        await env.client.delete(Node, ObjectKey("", "node"))
