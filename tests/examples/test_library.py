"""The example operators, each as a process of its own, against an embedded cluster."""

from __future__ import annotations

from pathlib import Path

from kaito_ctrl.devcluster.cluster import DevCluster
from kaito_ctrl.runtime import Client
from tests.examples import walks


async def test_the_mirror_copies_follows_and_takes_away(tmp_path: Path) -> None:
    async with DevCluster.start() as dev:
        await dev.write_kubeconfig(tmp_path / "kubeconfig")
        await walks.mirror(Client(dev.transport()), tmp_path / "kubeconfig")


async def test_the_website_is_served_follows_its_spec_and_goes(tmp_path: Path) -> None:
    async with DevCluster.start() as dev:
        await dev.kubelet.register("node", labels={}, capacity={"cpu": "4", "memory": "8Gi", "pods": "10"})
        await dev.write_kubeconfig(tmp_path / "kubeconfig")
        await walks.website(
            Client(dev.transport()), tmp_path / "kubeconfig", lambda: dev.proxy.address("default", "hello", 80)
        )
