"""`manifests/`: what they render to, and that the controllers live with what they are granted; see docs/deploy.md."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kaito_ctrl.cli.local import LocalKaito
from tests.deployed import ACCOUNT, NAMESPACE, SERVICE, World, live, remove
from tests.e2e.conftest import Kubectl
from tests.permissions import difference, granted
from tests.rendered import render

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[World]:
    starting = LocalKaito.start(root=folder / "pods", boot=0.3, rng=random.Random(7), controllers=False, rbac=True)
    async with starting as kaito:
        endpoint = kaito.dev.endpoint
        assert endpoint is not None
        await kaito.dev.write_kubeconfig(folder / "kubeconfig")
        ports: list[int] = []

        def resolve(*service: object) -> str | None:
            assert service == SERVICE
            ports.append(ports.pop(0))  # round robin
            return f"https://127.0.0.1:{ports[-1]}"

        async def lead_webhook_to(wanted: Sequence[int]) -> None:
            ports[:] = wanted

        kaito.dev.server.resolve_service(resolve)
        yield World(
            kaito.client,
            Kubectl(folder / "kubeconfig"),
            kaito.cloud,
            lambda token: replace(endpoint, token=token).kubeconfig(),
            lead_webhook_to,
            folder,
        )


async def test_the_controllers_use_every_right_that_they_are_granted_and_need_no_other(tmp_path: Path) -> None:
    async with embedded(tmp_path) as world:
        traffic = await live(world)
        await remove(world)
    assert traffic.refusals == []
    unlike = difference(granted(render("base"), NAMESPACE, ACCOUNT), traffic.used)
    assert not unlike, f"manifests/base and what the controllers do are not the same:\n{unlike}"
