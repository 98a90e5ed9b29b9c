"""``pods/attach`` on the wire: to be where a container's own command is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from devworld import World, running, terminated, world
from streams import Target, channels, command, pod_path, upgrade

from kaito_ctrl.devcluster.kinds import Pod
from kaito_ctrl.runtime import ObjectKey

NEVER = {"restartPolicy": "Never"}
FOR_ONE = {"stdin": True, "stdinOnce": True, **NEVER}
"""What ``kubectl run -i`` asks for."""


@pytest_asyncio.fixture
async def it() -> AsyncIterator[World]:
    async with world(tcp=True) as made:
        yield made


def attach_path(pod: str = "p", **wanted: bool) -> str:
    return pod_path(pod, "attach", command(**wanted))


async def test_who_attaches_sees_what_is_printed_from_then_on(it: World) -> None:
    await it.pod("p", "echo before; read x; echo got $x >&2; sleep 600", stdin=True)
    await it.until(Pod, "p", running)
    async with (
        channels(Target.of(it.dev), attach_path()) as watcher,
        channels(Target.of(it.dev), attach_path(stdin=True)) as typist,
    ):
        while b"before" not in (await it.logs("p")).encode():
            await asyncio.sleep(0.01)
        await typist.send(0, b"hello\n")
        for client in (watcher, typist):
            await client.until(2, b"got hello\n")
            assert b"before" not in client.received.get(2, b"")


async def test_a_client_that_leaves_leaves_the_container_as_it_was(it: World) -> None:
    await it.pod("p", "while read x; do echo got $x; done; echo no more", stdin=True, **NEVER)
    await it.until(Pod, "p", running)
    for word in (b"one", b"two"):
        async with channels(Target.of(it.dev), attach_path(stdin=True)) as client:
            await client.send(0, word + b"\n")
            await client.until(1, b"got " + word)
    assert await it.logs("p") == "got one\ngot two\n"


async def test_the_input_of_a_container_for_one_client_ends_with_that_client_s(it: World) -> None:
    await it.pod("p", "cat; echo ended; exit 7", **FOR_ONE)
    await it.until(Pod, "p", running)
    async with channels(Target.of(it.dev), attach_path(stdin=True)) as client:
        await client.send(0, b"typed\n")
        await client.end(0)
        status = await client.finish()
    assert client.received[1] == b"typed\nended\n"
    assert status == {"metadata": {}, "status": "Success"}  # how the container ended is in the pod's status
    pod = await it.until(Pod, "p", terminated)
    assert terminated(pod)["exitCode"] == 7


@pytest.mark.parametrize("tty", [False, True])
async def test_a_container_for_one_client_loses_nothing_when_it_ends_before_that_one_comes(
    it: World, tty: bool
) -> None:
    await it.pod("p", "seq 20000; echo -n without an end of line; exit 3", tty=tty, **FOR_ONE)
    await it.until(Pod, "p", terminated)
    async with channels(Target.of(it.dev), attach_path(stdin=True, tty=tty)) as client:
        await client.finish()
    lines = client.received[1].decode().splitlines()
    assert lines == [*map(str, range(1, 20001)), "without an end of line"]
    assert (await it.logs("p")).splitlines() == lines


async def test_what_is_kept_for_one_client_is_shown_to_one_only(it: World) -> None:
    await it.pod("p", "echo first; read x; echo second; sleep 600", **FOR_ONE)
    await it.until(Pod, "p", running)
    async with channels(Target.of(it.dev), attach_path(stdin=True)) as client:
        await client.until(1, b"first\n")
        async with channels(Target.of(it.dev), attach_path()) as late:
            await client.send(0, b"\n")
            await late.until(1, b"second\n")
            assert late.received[1] == b"second\n"


async def test_more_than_can_be_kept_is_left_to_the_log(it: World) -> None:
    await it.pod("p", "head -c 6000000 /dev/zero | tr '\\0' 'x' | fold -w 999; echo", **FOR_ONE)
    await it.until(Pod, "p", terminated)
    assert await refused(it, attach_path(stdin=True)) == (500, "container main not found in pod p_default")
    assert (await it.logs("p")).count("x") == 6_000_000


async def test_a_terminal_that_is_attached_has_the_client_s_size(it: World) -> None:
    await it.pod("p", "while read x; do stty size; done", stdin=True, tty=True, **NEVER)
    await it.until(Pod, "p", running)
    async with channels(Target.of(it.dev), attach_path(stdin=True, tty=True)) as client:
        await client.resize(91, 33)
        await client.send(0, b"\n")
        await client.until(1, b"33 91\r\n")


async def test_everybody_attached_is_told_when_the_container_ends(it: World) -> None:
    await it.pod("p", "read x; exit 0", stdin=True, **NEVER)
    await it.until(Pod, "p", running)
    async with (
        channels(Target.of(it.dev), attach_path()) as watcher,
        channels(Target.of(it.dev), attach_path(stdin=True)) as typist,
    ):
        await typist.send(0, b"\n")
        assert (await watcher.finish())["status"] == "Success"
        assert (await typist.finish())["status"] == "Success"


async def test_a_client_that_reads_nothing_and_goes_does_not_hold_the_container_for_ever(it: World) -> None:
    await it.pod("p", "read x; seq 3000000 | tail -n 2000000; echo all said", stdin=True, **NEVER)
    await it.until(Pod, "p", running)
    async with channels(Target.of(it.dev), attach_path(stdin=True)) as client:
        await client.send(0, b"\n")
        await client.until(1, b"1000005\n")
        client.cut()
    await it.until(Pod, "p", lambda pod: pod.status.phase == "Succeeded")


async def test_a_container_that_does_not_run_cannot_be_attached_to(it: World) -> None:
    await it.pod("p", "exit 0", **NEVER)
    await it.until(Pod, "p", terminated)
    assert await refused(it, attach_path()) == (500, "container main not found in pod p_default")
    await it.client.delete(Pod, ObjectKey("default", "p"))


async def refused(it: World, path: str) -> tuple[int, str]:
    headers = {"Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io"}
    status, answer, reader, writer = await upgrade(Target.of(it.dev), path, headers)
    body = await reader.readexactly(int(answer["content-length"]))
    writer.close()
    return status, body.decode()
