"""``pods/exec`` on the wire: a command beside a container, in its place, for as long as somebody wants it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from devworld import World, running, terminated, world
from streams import Channels, Target, channels, command, pod_path, spdy_client, upgrade

from kaito_ctrl.devcluster.kinds import Pod
from kaito_ctrl.devcluster.streaming import spdy
from kaito_ctrl.runtime import Client, ObjectKey
from kaito_ctrl.runtime.errors import BadRequest, NotFound

V4 = "v4.channel.k8s.io"


@pytest_asyncio.fixture
async def it() -> AsyncIterator[World]:
    """A cluster with a pod ``p`` that runs."""
    async with world(tcp=True) as made:
        mounts = [{"name": "s", "mountPath": "/scratch"}]
        await made.pod(
            "p",
            "trap 'exit 0' TERM; while :; do sleep 0.1; done",
            env=[{"name": "GREETING", "value": "hello"}],
            volumes=[{"name": "s", "emptyDir": {}}],
            volumeMounts=mounts,
        )
        await made.until(Pod, "p", running)
        yield made


def exec_path(*argv: str, pod: str = "p", **wanted: bool) -> str:
    return pod_path(pod, "exec", command(*argv, **wanted))


async def ended(pid: int) -> None:
    """Until that process is gone."""
    async with asyncio.timeout(15):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def type_on(client: Channels) -> None:
    """Type for as long as the connection takes it."""
    with suppress(ConnectionError, aiohttp.ClientError):
        while True:
            await client.send(0, bytes(50_000))


async def stuck(client: Channels) -> None:
    """Until the connection takes no more."""
    while client.transport.get_write_buffer_size() == 0:
        await asyncio.sleep(0)
    size = 0
    while size != (size := client.transport.get_write_buffer_size()):
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", V4])
async def test_outputs_are_apart_and_the_exit_code_arrives(it: World, protocol: str) -> None:
    path = exec_path("sh", "-c", "echo out; echo err >&2; exit 3")
    async with channels(Target.of(it.dev), path, protocol) as client:
        status = await client.finish()
    assert (client.received[1], client.received[2]) == (b"out\n", b"err\n")
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]


async def test_input_ends_with_the_close_signal(it: World) -> None:
    payload = os.urandom(300_000)
    async with channels(Target.of(it.dev), exec_path("cat", stdin=True)) as client:
        for at in range(0, len(payload), 30_000):
            await client.send(0, payload[at : at + 30_000])
        await client.end(0)
        status = await client.finish()
    assert client.received[1] == payload
    assert status["status"] == "Success"


async def test_a_command_finds_what_its_container_finds(it: World) -> None:
    script = "echo $GREETING $HOSTNAME; pwd; echo kept > /scratch/file; cat /scratch/file"
    async with channels(Target.of(it.dev), exec_path("sh", "-c", script)) as client:
        await client.finish()
    greeting, folder, kept = client.received[1].decode().splitlines()
    assert (greeting, kept) == ("hello p", "kept")
    pod = await it.client.get(Pod, "p", "default")
    own = it.dev.kubelet.root / "pods" / pod.uid
    assert Path(folder) == own / "work" / "main"
    assert (own / "volumes" / "s" / "file").read_text() == "kept\n"


async def test_a_terminal_is_a_real_one(it: World) -> None:
    path = exec_path("env", "PS1=>>", "sh", "-i", stdin=True, tty=True)
    async with channels(Target.of(it.dev), path) as client:
        await client.resize(100, 40)
        await client.until(1, b">>")
        await client.send(0, b"stty size; tty; echo TERM=$TERM\n")
        await client.until(1, b"\r\n40 100\r\n/dev/")
        await client.until(1, b"TERM=xterm\r\n>>")
        await client.resize(77, 22)
        await client.send(0, b"stty size\n")
        await client.until(1, b"22 77\r\n>>")
        await client.send(0, b"cat\n")
        await client.send(0, b"said\n")
        await client.until(1, b"said\r\nsaid\r\n")
        await client.send(0, b"\x03")
        await client.until(1, b"^C\r\n>>")
        await client.send(0, b"(exit 5)\n")
        await client.until(1, b"(exit 5)\r\n>>")
        await client.send(0, b"\x04")
        status = await client.finish()
    assert status["details"]["causes"][0]["message"] == "5"
    assert 2 not in client.received


async def test_a_command_that_is_not_there_is_told_as_an_internal_error(it: World) -> None:
    async with channels(Target.of(it.dev), exec_path("no-such-command")) as client:
        status = await client.finish()
    assert status["reason"] == "InternalError"
    assert 'exec: "no-such-command": No such file or directory' in status["message"]


async def test_a_client_that_goes_takes_its_command_along(it: World) -> None:
    async with channels(Target.of(it.dev), exec_path("sh", "-c", "echo $$; trap '' HUP; sleep 600")) as client:
        await client.until(1, b"\n")
    await ended(int(client.received[1]))


async def test_a_client_that_goes_while_its_input_is_stuck_takes_its_command_along(it: World) -> None:
    async with channels(Target.of(it.dev), exec_path("sh", "-c", "echo $$; sleep 600", stdin=True)) as client:
        await client.until(1, b"\n")
        async with asyncio.TaskGroup() as group:
            typing = group.create_task(type_on(client))
            await stuck(client)
            typing.cancel()
        client.cut()
    await ended(int(client.received[1]))


async def test_a_command_ends_with_its_container(it: World) -> None:
    async with channels(Target.of(it.dev), exec_path("sh", "-c", "echo $$; sleep 600")) as client:
        await client.until(1, b"\n")
        await it.client.delete(Pod, ObjectKey("default", "p"))
        status = await client.finish()
    assert status["details"]["causes"][0]["message"] == "137"
    await ended(int(client.received[1]))


async def test_a_command_ends_with_the_cluster() -> None:
    async with AsyncExitStack() as connected:
        async with world(tcp=True) as it:
            await it.pod("p", "sleep 600")
            await it.until(Pod, "p", running)
            path = exec_path("sh", "-c", "echo $$; trap '' HUP; sleep 600")
            client = await connected.enter_async_context(channels(Target.of(it.dev), path))
            await client.until(1, b"\n")
            finishing = asyncio.create_task(client.finish())
        await ended(int(client.received[1].splitlines()[0]))
        assert (await finishing)["details"]["causes"][0]["message"] == "137"


async def test_a_long_output_arrives_whole_at_the_pace_of_its_reader(it: World) -> None:
    async with channels(Target.of(it.dev), exec_path("sh", "-c", "seq 1000000")) as client:
        await client.until(1, b"1000000\n")
        await client.finish()
    assert client.received[1] == b"".join(b"%d\n" % number for number in range(1, 1_000_001))


async def test_a_command_that_reads_nothing_ends_before_its_input_does(it: World) -> None:
    path = exec_path("echo", "done", stdin=True)
    async with channels(Target.of(it.dev), path) as client, asyncio.TaskGroup() as group:
        typing = group.create_task(type_on(client))
        status = await client.finish()
        typing.cancel()
    assert (client.received[1], status["status"]) == (b"done\n", "Success")


async def test_spdy_carries_a_command_as_streams(it: World) -> None:
    path = exec_path("sh", "-c", "cat; echo err >&2; exit 4", stdin=True)
    async with spdy_client(Target.of(it.dev), path, V4) as client:
        error, stdin, stdout, stderr = [
            await client.open(streamtype=each) for each in ("error", "stdin", "stdout", "stderr")
        ]
        await client.send(spdy.Data(stdin, b"typed"))
        await client.send(spdy.Data(stdin, b"", fin=True))
        await client.until_ended(error, stdout, stderr, stdin)
    assert client.replied == {error, stdin, stdout, stderr}
    assert (client.received[stdout], client.received[stderr]) == (b"typed", b"err\n")
    assert json.loads(client.received[error])["details"]["causes"][0]["message"] == "4"


async def test_spdy_answers_pings_and_refuses_streams_that_are_no_client_s(it: World) -> None:
    async with spdy_client(Target.of(it.dev), exec_path("cat", stdin=True), V4) as client:
        await client.send(spdy.SynStream(2, {"streamtype": "stdin"}))
        await client.send(spdy.Ping(1))
        async with asyncio.timeout(10):
            while not client.others or not client.reset:
                assert await client.take()
    assert client.reset == {2: spdy.PROTOCOL_ERROR}
    assert client.others == [spdy.Ping(1)]


async def test_spdy_that_makes_no_sense_ends_the_connection(it: World) -> None:
    async with spdy_client(Target.of(it.dev), exec_path("cat", stdin=True), V4) as client:
        await client.write(b"\x80\x02\x00\x06\x00\x00\x00\x00")
        async with asyncio.timeout(10):
            while await client.take():
                pass
    assert client.others == [spdy.GoAway(0, 1)]


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        ({"Upgrade": "SPDY/3.1"}, 400, "X-Stream-Protocol-Version is required"),
        ({"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v9"}, 403, "unable to negotiate protocol"),
        ({"Upgrade": "h2c"}, 400, "neither for a WebSocket nor for SPDY/3.1"),
        ({"Upgrade": "websocket", "Sec-WebSocket-Protocol": "chat"}, 400, "are not supported: ['chat']"),
        ({"Connection": "close"}, 400, "Upgrade request required"),
    ],
)
async def test_a_protocol_that_is_not_spoken_is_refused(
    it: World, headers: dict[str, str], status: int, text: str
) -> None:
    found, answer, reader, writer = await upgrade(Target.of(it.dev), exec_path("true"), headers)
    body = await reader.readexactly(int(answer["content-length"]))
    writer.close()
    assert (found, text in body.decode()) == (status, True), body


async def test_whom_it_cannot_be_run_beside_is_said(it: World) -> None:
    target = Target.of(it.dev)
    await it.pod("over", "exit 0", restartPolicy="Never")
    await it.until(Pod, "over", terminated)
    several = [{"name": name, "image": "x", "command": ["sleep", "600"]} for name in ("a", "b")]
    await it.client.create(
        Pod.model_validate(
            {
                "metadata": {"name": "two", "namespace": "default"},
                "spec": {"containers": several, "initContainers": [{**several[0], "name": "i"}]},
            }
        )
    )
    await it.pod("nowhere", "true", nodeSelector={"no": "such"})
    for path, status, text in (
        (exec_path("true", pod="two"), 400, "must be specified for pod two, choose one of: [i a b]"),
        (exec_path("true", pod="nowhere"), 400, "pod nowhere does not have a host assigned"),
        (exec_path("true", pod="nobody"), 404, 'pods "nobody" not found'),
        (exec_path("true") + "&container=other", 400, "container other is not valid for pod p"),
        (exec_path("true", pod="over"), 500, 'container not found ("main")'),
        (pod_path("p", "exec", [("stdout", "true")]), 400, "you must specify a command"),
    ):
        headers = {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": V4}
        found, answer, reader, writer = await upgrade(target, path, headers)
        body = json_or_text(await reader.readexactly(int(answer["content-length"])))
        writer.close()
        assert (found, text in body) == (status, True), body


def json_or_text(body: bytes) -> str:
    return str(json.loads(body)["message"]) if body.startswith(b"{") else body.decode()


async def test_in_memory_there_is_no_connection_to_hand_over(it: World) -> None:
    client = Client(it.dev.transport(), "test")
    with pytest.raises(BadRequest, match="Upgrade request required"):
        await client.request("POST", exec_path("true").partition("?")[0])
    with pytest.raises(NotFound):
        await client.request("POST", pod_path("nobody", "exec").partition("?")[0])
