"""Credentials that end while they are in use."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

from kaito_api.core import ConfigMap
from kaito_ctrl import Cluster
from kaito_ctrl.testing.controlplane import ControlPlane


async def test_a_client_certificate_that_the_server_refuses_is_replaced_before_anybody_notices(
    plane: ControlPlane,
) -> None:
    answer, plugin = plane.folder / "certificate", plane.folder / "certificate-plugin"

    def issue(lifetime: timedelta) -> None:
        user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": str(plugin)}}
        (plane.folder / "certified").write_text(json.dumps(plane.kubeconfig_of(user)))
        status = plane.certificate_status("ann", ["system:masters"], lifetime=lifetime)
        # It does not say when it ends: only the server's refusal does.
        body = {"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential", "status": status}
        answer.write_text(json.dumps(body))

    plugin.write_text(f"#!/bin/sh\nexec cat {answer}\n")
    plugin.chmod(0o700)
    issue(timedelta(seconds=2))
    async with Cluster.connect(kubeconfig=str(plane.folder / "certified")) as cluster:
        await cluster.client.list(ConfigMap, "default")
        issue(timedelta(minutes=5))
        await asyncio.sleep(2.5)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(cluster.client.list(ConfigMap, "default"))
