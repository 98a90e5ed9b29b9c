"""The first quick start: apply, watch, ask, delete; and what happens when things go wrong on the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from kaito_api.apps import Deployment
from kaito_api.core import Node, Pod, Service
from kaito_api.karpenter import Machine
from kaito_api.meta import is_true
from kaito_api.workspace import Workspace
from kaito_ctrl.cli.ask import ask
from kaito_ctrl.runtime.errors import NotFound
from tests.e2e.conftest import Local, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FILE = "examples/inference/kaito_workspace_phi_3.yaml"
NAME = "workspace-phi-3-mini"
Start = Callable[..., Any]


async def ready(it: Local) -> bool:
    try:
        ws = await it.kaito.client.get(Workspace, NAME, "default")
    except NotFound:
        return False
    return is_true(ws.status.conditions, "WorkspaceReady")


async def left_over(it: Local) -> list[str]:
    client = it.kaito.client
    found: list[str] = [f"instance {each.name}" for each in await it.kaito.cloud.list()]
    for kind in (Workspace, Machine, Node, Deployment, Pod):
        found += [str(each) for each in await client.list(kind)]
    found += [str(each) for each in await client.list(Service, "default") if each.name != "kubernetes"]
    return found


async def test_the_walk_as_users_type_it(start: Start) -> None:
    async with start(boot=1.0) as it:
        applied = await it.kubectl("apply", "-f", FILE)
        assert applied.out == f"workspace.kaito.sh/{NAME} created\n", applied.err

        early = await it.kubectl("get", "workspace", NAME)
        heading = "NAME INSTANCE RESOURCEREADY INFERENCEREADY WORKSPACEREADY AGE"
        assert early.out.splitlines()[0].split() == heading.split()
        assert re.fullmatch(rf"{NAME}\s+Standard_NC6s_v3\s+\d+s", early.out.splitlines()[1].strip()), early.out

        waited = await it.kubectl("wait", "--for=condition=WorkspaceReady", f"workspace/{NAME}", "--timeout=60s")
        assert waited.out == f"workspace.kaito.sh/{NAME} condition met\n", waited.err

        shown = await it.kubectl("get", "workspace", NAME)
        assert shown.out.splitlines()[1].split()[:5] == [NAME, "Standard_NC6s_v3", "True", "True", "True"]
        by_file = await it.kubectl("get", "-f", FILE)
        assert by_file.out.splitlines()[1].split()[:5] == [NAME, "Standard_NC6s_v3", "True", "True", "True"]

        service = (await it.kubectl("get", "svc", NAME)).out.splitlines()[1].split()
        assert service[:2] == [NAME, "ClusterIP"]
        assert service[3:5] == ["<none>", "80/TCP,29500/TCP"]
        address = (await it.kubectl("get", "svc", NAME, "-o", "jsonpath={.spec.clusterIPs[0]}")).out
        assert address.startswith("127.96.")

        host, port = it.kaito.dev.proxy.address("default", NAME, 80)
        answer = await ask(f"http://{host}:{port}/chat", "What is Kubernetes?")
        assert answer.text.startswith("What is Kubernetes?")
        assert len(answer.text) > len("What is Kubernetes?")
        assert answer.random

        logs = await it.kubectl("logs", f"deployment/{NAME}")
        assert "THE WEIGHTS ARE RANDOM" in logs.out, logs.out + logs.err
        described = await it.kubectl("describe", "workspace", NAME)
        assert "workspace is ready" in described.out, described.err

        again = await it.kubectl("apply", "-f", FILE)
        assert again.out == f"workspace.kaito.sh/{NAME} unchanged\n", again.err

        deleted = await it.kubectl("delete", "workspace", NAME)
        assert f'workspace.kaito.sh "{NAME}" deleted' in deleted.out, deleted.err

        async def nothing() -> bool:
            return not await left_over(it)

        await until(nothing)


async def test_a_converged_workspace_causes_no_writes(start: Start) -> None:
    async with start(boot=0.1) as it:
        await it.kubectl("apply", "-f", FILE)
        await until(lambda: ready(it))
        await asyncio.sleep(1.0)

        async def versions() -> dict[str, str]:
            client = it.kaito.client
            objects = [each for kind in (Workspace, Machine, Deployment, Service) for each in await client.list(kind)]
            return {str(each): each.metadata.resource_version for each in objects}

        before = await versions()
        await asyncio.sleep(3.0)
        assert await versions() == before


BAD: list[tuple[str, dict[str, str], list[str]]] = [
    ("an unknown preset", {"phi-3-mini-4k-instruct": "phi-33"}, ["inference.preset.name", "phi-33"]),
    ("an unknown instance type", {"Standard_NC6s_v3": "Huge"}, ["resource.instanceType", "Huge"]),
    (
        "no labelSelector",
        {"  labelSelector:\n    matchLabels:\n      apps: phi-3\n": ""},
        ["resource.labelSelector", "equired"],
    ),
    (
        "both inference and tuning",
        {
            "inference:\n": "tuning:\n  preset: {name: phi-3-mini-4k-instruct}\n  method: lora\n"
            "  input: {image: 'registry.example/data:1'}\n"
            "  output: {image: 'registry.example/out:1', imagePushSecret: s}\ninference:\n"
        },
        ["not both"],
    ),
    (
        "everything at once",
        {"phi-3-mini-4k-instruct": "phi-33", "Standard_NC6s_v3": "Huge", "    matchLabels:\n      apps: phi-3\n": ""},
        ["inference.preset.name", "resource.instanceType", "resource.labelSelector"],
    ),
]


async def test_bad_input_is_refused_with_every_problem_named(start: Start) -> None:
    from tests.e2e.conftest import ROOT

    good = (ROOT / FILE).read_text()
    async with start() as it:
        for what, replacements, expected in BAD:
            text = good
            for old, new in replacements.items():
                assert old in text, what
                text = text.replace(old, new)
            refused = await it.kubectl("apply", "-f", "-", stdin=text)
            assert refused.status == 1, (what, refused)
            if "error validating data" in refused.err:
                # Kubectl before 1.25 checks the schema itself, and says no before the server is asked.
                assert 'missing required field "labelSelector"' in refused.err
                refused = await it.kubectl("apply", "--validate=false", "-f", "-", stdin=text)
                assert refused.status == 1, (what, refused)
            for word in expected:
                assert word in refused.err, (what, refused.err)
        assert await left_over(it) == []


@pytest.mark.parametrize("moment", ["applied", "machine", "launched", "node", "resource", "deployment", "pod"])
async def test_killed_controllers_start_again_and_converge_with_one_machine(start: Start, moment: str) -> None:
    async with start(boot=0.3) as it:
        await it.kubectl("apply", "-f", FILE)
        client = it.kaito.client

        async def reached() -> bool:
            machines = await client.list(Machine)
            match moment:
                case "applied":
                    return True
                case "machine":
                    return bool(machines)
                case "launched":
                    return any(is_true(each.status.conditions, "MachineLaunched") for each in machines)
                case "node":
                    return bool(await client.list(Node))
                case "resource":
                    ws = await client.get(Workspace, NAME, "default")
                    return is_true(ws.status.conditions, "ResourceReady")
                case "deployment":
                    return bool(await client.list(Deployment))
                case _:
                    return bool(await client.list(Pod, "default"))

        await until(reached)
        await it.kaito.kill_controllers()
        await until(lambda: ready(it))
        assert len(await client.list(Machine)) == 1
        assert len(await it.kaito.cloud.list()) == 1


async def test_controllers_that_are_killed_all_the_time_still_get_there(start: Start) -> None:
    async with start(boot=0.3) as it:
        await it.kubectl("apply", "-f", FILE)
        for _ in range(40):
            await asyncio.sleep(0.03)
            await it.kaito.kill_controllers()
        await until(lambda: ready(it))
        assert len(await it.kaito.cloud.list()) == 1


@pytest.mark.parametrize("moment", ["applied", "machine", "node", "pod", "killed"])
async def test_a_deletion_at_any_moment_leaves_nothing(start: Start, moment: str) -> None:
    async with start(boot=0.5) as it:
        await it.kubectl("apply", "-f", FILE)
        client = it.kaito.client
        seen = {"machine": Machine, "node": Node, "pod": Pod, "killed": Node}.get(moment)

        async def reached() -> bool:
            return seen is None or bool(await client.list(seen))

        await until(reached)
        deletion = asyncio.ensure_future(it.kubectl("delete", "workspace", NAME))
        if moment == "killed":
            await it.kaito.kill_controllers()
        assert (await deletion).status == 0

        async def nothing() -> bool:
            return not await left_over(it)

        await until(nothing)
