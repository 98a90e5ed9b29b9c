"""The kubelet's own port, as a real API server uses it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import AsyncGeneratorType

import aiohttp
import pytest
import pytest_asyncio
from devworld import QUICK, READY_FAST, World, http_server, running, world
from streams import Target, channels, spdy_client

from kaito_api.core import Endpoints
from kaito_ctrl.devcluster.kinds import Node, Pod
from kaito_ctrl.devcluster.kubelet import ProcessKubelet
from kaito_ctrl.devcluster.kubeletapi import KubeletPort
from kaito_ctrl.devcluster.podaddresses import can_bind
from kaito_ctrl.runtime import ObjectKey
from kaito_ctrl.runtime.certs import CertificateAuthority, IssuedCertificate

NOW = datetime.now(UTC)
AUTHORITY = CertificateAuthority("kubelet clients", now=NOW)
TRUSTED = AUTHORITY.issue_client("kube-apiserver", now=NOW)
STRANGER = CertificateAuthority("somebody else", now=NOW).issue_client("kube-apiserver", now=NOW)


@asynccontextmanager
async def kubelet_of(it: World, folder: Path, **options: str) -> AsyncIterator[tuple[ProcessKubelet, Target]]:
    """A second kubelet of the cluster, with a port; its node is ``far``."""
    port = KubeletPort(AUTHORITY.pem.decode())
    env = {"PATH": os.environ["PATH"]}
    async with ProcessKubelet(it.dev.cluster, root=folder, port=port, env=env, timings=QUICK, **options) as kubelet:
        await kubelet.register("far")
        node = await it.client.get(Node, "far")
        number = node.status.daemon_endpoints["kubeletEndpoint"]["Port"]
        address = next(each.address for each in node.status.addresses if each.type == "InternalIP")
        yield kubelet, Target(f"https://{address}:{number}", context(TRUSTED), {})


def context(client: IssuedCertificate | None) -> ssl.SSLContext:
    """As a kube-apiserver connects: the kubelet's certificate is its own, and not looked at."""
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if client is not None:
        client.load_into(made)
    return made


@pytest_asyncio.fixture
async def far(tmp_path: Path) -> AsyncIterator[tuple[World, Target]]:
    """A cluster with a pod ``p`` on the node ``far``, and where that one's kubelet listens."""
    async with world(nodes=()) as it, kubelet_of(it, tmp_path / "far") as (_, target):
        await it.pod("p", "echo one; echo two; sleep 600")
        await it.until(Pod, "p", running)
        yield it, target


async def get(target: Target, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(target.url + path, ssl=target.context) as answer:
        return answer.status, await answer.text()


async def test_it_says_what_runs(far: tuple[World, Target]) -> None:
    _, target = far
    assert await get(target, "/healthz") == (200, "ok")
    status, body = await get(target, "/pods")
    assert status == 200
    assert [item["metadata"]["name"] for item in json.loads(body)["items"]] == ["p"]


async def test_it_streams_logs(far: tuple[World, Target]) -> None:
    _, target = far
    assert await get(target, "/containerLogs/default/p/main?follow=true&limitBytes=8") == (200, "one\ntwo\n")
    assert await get(target, "/containerLogs/default/p/main?tailLines=1") == (200, "two\n")
    status, text = await get(target, "/containerLogs/default/p/main?previous=true")
    assert (status, text) == (400, 'previous terminated container "main" in pod "p" not found')
    status, text = await get(target, "/containerLogs/default/p/main?sinceTime=yesterday")
    assert (status, text.partition(":")[0]) == (400, "invalid log options")


async def test_a_log_that_is_followed_no_more_is_let_go_of_though_it_is_silent(far: tuple[World, Target]) -> None:
    _, target = far
    path = "/containerLogs/default/p/main?follow=true"
    async with aiohttp.ClientSession() as session, session.get(target.url + path, ssl=target.context) as answer:
        assert await answer.content.readexactly(8) == b"one\ntwo\n"
        assert readers() == 1
    async with asyncio.timeout(10):
        while readers():
            await asyncio.sleep(0.01)


def readers() -> int:
    """How many logs are being read now."""
    return sum(
        # Not isinstance: that asks each object, and some of other tests' libraries complain about being asked.
        type(each) is AsyncGeneratorType and each.ag_code.co_qualname == "ContainerLog.read" and each.ag_running
        for each in gc.get_objects()
    )


async def test_it_executes_and_attaches_in_either_protocol(far: tuple[World, Target]) -> None:
    it, target = far
    uid = (await it.client.get(Pod, "p", "default")).uid
    for place in ("default/p/main", f"default/p/{uid}/main"):
        async with channels(target, f"/exec/{place}?command=echo&command=hi&output=1&error=1") as client:
            await client.finish()
        assert client.received[1] == b"hi\n"
    async with spdy_client(target, "/attach/default/p/main?output=1", "v4.channel.k8s.io") as attached:
        streams = [await attached.open(streamtype=each) for each in ("error", "stdout")]
        await it.client.delete(Pod, ObjectKey("default", "p"))
        await attached.until_ended(*streams)
    assert json.loads(attached.received[streams[0]])["status"] == "Success"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/", 404, "404 page not found\n"),
        ("/exec/default/p", 404, "404 page not found\n"),
        ("/containerLogs/default/nobody/main", 400, "pod nobody does not have a host assigned"),
        ("/containerLogs/default/p/other", 400, "container other is not valid for pod p"),
        ("/exec/default/p/some-uid/main?command=true&output=1", 404, "pod p with uid some-uid not found"),
        ("/exec/default/p/main?command=true", 400, "you must specify at least 1 of stdin, stdout, stderr\n"),
        ("/exec/default/p/main?output=1", 400, "you must specify a command\n"),
    ],
)
async def test_what_is_not_there_is_said(far: tuple[World, Target], path: str, status: int, text: str) -> None:
    assert await get(far[1], path) == (status, text)


async def test_it_takes_nobody_without_a_certificate_of_the_authority(far: tuple[World, Target]) -> None:
    _, target = far
    for certificate in (None, STRANGER):
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await get(Target(target.url, context(certificate), {}), "/healthz")


async def test_a_kubelet_without_a_port_names_none() -> None:
    async with world() as it:
        assert (await it.client.get(Node, "n1")).status.daemon_endpoints == {}


# -- pod addresses that a real API server takes ------------------------------------------------------------------


async def test_a_block_of_one_address_is_shared_by_all_pods(tmp_path: Path) -> None:
    async with world(nodes=()) as it, kubelet_of(it, tmp_path / "far", pod_cidr="127.0.0.7/32"):
        for name in ("a", "b"):
            await it.pod(name, "sleep 600")
            assert (await it.until(Pod, name, running)).status.pod_ip == "127.0.0.7"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="takes root, and the ip command")
async def test_a_block_of_addresses_is_this_machine_s_while_the_kubelet_runs(tmp_path: Path) -> None:
    prefix = f"198.18.{os.getpid() % 256}."  # for tests of equipment: nobody's
    assert not can_bind(f"{prefix}1")
    async with world(nodes=()) as it, kubelet_of(it, tmp_path / "far", pod_cidr=f"{prefix}0/24"):
        await it.deployment("web", {**http_server(), "ports": [{"containerPort": 5000}], **READY_FAST})
        await it.service("web", {"port": 9000, "targetPort": 5000})
        made = await it.until(Endpoints, "web", lambda found: found.subsets and found.subsets[0].addresses)
        address = made.subsets[0].addresses[0].ip
        assert address.startswith(prefix)
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}:5000/") as answer:
            assert "hello from web-" in await answer.text()
    assert not can_bind(f"{prefix}1")


async def test_addresses_that_cannot_be_had_are_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with world(nodes=()) as it:
        with pytest.raises(RuntimeError, match=r"198\.18\.78\.0/24 are not this machine's.*Run as root"):
            async with kubelet_of(it, tmp_path / "far", pod_cidr="198.18.78.0/24"):
                pass
