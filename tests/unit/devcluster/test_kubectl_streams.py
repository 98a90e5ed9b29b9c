"""Stock kubectl and what it connects to in pods: as people type it, in a terminal where they have one.

``KUBECTL`` names binaries, separated by colons: those of 1.31 and later speak WebSocket, older ones SPDY.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from devworld import READY_FAST, World, http_server, running, terminated, waiting, world

from kaito_api.core import Endpoints, Service
from kaito_api.meta import is_true
from kaito_ctrl.devcluster.images import ImageTable, LocalImage
from kaito_ctrl.devcluster.kinds import Pod
from kaito_ctrl.devcluster.process import Process, supervisor
from kaito_ctrl.devcluster.stdio import Stdio
from kaito_ctrl.runtime import ObjectKey

BINARIES = [found for name in os.environ.get("KUBECTL", "kubectl").split(":") if (found := shutil.which(name))]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not BINARIES, reason="no kubectl here"),
]
IMAGES = ImageTable({"curlimages/curl": LocalImage(("curl",))})
NEVER = {"restartPolicy": "Never"}


@dataclass
class Terminal:
    """A terminal in which a command runs."""

    stdio: Stdio
    process: Process
    seen: str = ""

    async def type(self, text: str) -> None:
        await self.stdio.write(text.encode())

    async def until(self, text: str) -> str:
        """Read on until *text* was shown; what was shown up to it."""
        async with asyncio.timeout(30):
            while text not in self.seen:
                data = await self.stdio.read("stdout")
                assert data, (text, self.seen)
                self.seen += data.decode()
        shown, self.seen = self.seen.split(text, 1)
        return shown

    async def finish(self) -> tuple[int, str]:
        """Its exit status, and what else it showed."""
        async with asyncio.timeout(30):
            while data := await self.stdio.read("stdout"):
                self.seen += data.decode()
            return (await self.process.wait()).status, self.seen


@dataclass
class Kubectl:
    """One kubectl against one cluster."""

    binary: str
    home: Path
    it: World

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home), "KUBECONFIG": str(self.home / "config"), "TERM": "xterm"}

    async def __call__(self, *args: str, stdin: bytes = b"", code: int = 0) -> bytes:
        """Its stdout; *code* is the exit status that it must have."""
        async with self.started(*args) as process, asyncio.timeout(60):
            out, err = await process.communicate(stdin)
        assert process.returncode == code, (args, process.returncode, out[:2000], err)
        return out

    @asynccontextmanager
    async def started(self, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            self.binary, *args, stdin=pipe, stdout=pipe, stderr=pipe, env=self.env, cwd=self.home
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    @asynccontextmanager
    async def terminal(self, *args: str, width: int = 80, height: int = 24) -> AsyncIterator[Terminal]:
        async with supervisor() as made, Stdio.open(stdin=True, terminal=True) as stdio:
            stdio.resize(width, height)
            stdin, stdout, stderr = stdio.theirs
            process = await made.start(
                [self.binary, *args], env=self.env, cwd=self.home, stdin=stdin, stdout=stdout, stderr=stderr, tty=True
            )
            stdio.started()
            yield Terminal(stdio, process)


@pytest_asyncio.fixture(params=BINARIES or ["none"])
async def kubectl(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kubectl]:
    """A cluster, and a kubectl that knows it."""
    async with world(tcp=True, images=IMAGES) as it:
        await it.dev.write_kubeconfig(tmp_path / "config")
        yield Kubectl(request.param, tmp_path, it)


@pytest_asyncio.fixture
async def pod(kubectl: Kubectl) -> AsyncIterator[str]:
    await kubectl.it.pod("p", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    await kubectl.it.until(Pod, "p", running)
    yield "p"


async def served(it: World) -> Service:
    """A service ``web`` with a pod behind it."""
    await it.deployment("web", {**http_server(), "ports": [{"containerPort": 5000}], **READY_FAST})
    service = await it.service("web", {"port": 80, "targetPort": 5000})
    await it.until(Endpoints, "web", lambda found: found.subsets and found.subsets[0].addresses)
    await it.settled()
    return service


async def test_exec_passes_outputs_input_and_exit_code(kubectl: Kubectl, pod: str) -> None:
    assert await kubectl("exec", pod, "--", "echo", "hello world") == b"hello world\n"
    await kubectl("exec", pod, "--", "sh", "-c", "exit 42", code=42)
    payload = os.urandom(2_000_000)
    assert await kubectl("exec", "-i", pod, "--", "cat", stdin=payload) == payload
    await kubectl("exec", pod, "--", "no-such-command", code=1)


async def test_cp_copies_there_and_back(kubectl: Kubectl, pod: str) -> None:
    payload = os.urandom(3_000_000)
    (kubectl.home / "there").write_bytes(payload)
    await kubectl("cp", "there", f"{pod}:copied")
    await kubectl("cp", f"{pod}:copied", "back")
    assert (kubectl.home / "back").read_bytes() == payload


async def test_a_shell_in_a_terminal(kubectl: Kubectl, pod: str) -> None:
    async with kubectl.terminal("exec", "-it", pod, "--", "env", "PS1=>>", "sh", "-i", width=100, height=40) as shell:
        await shell.until(">>")
        await shell.type("stty size\n")
        await shell.until("40 100\r\n")
        shell.stdio.resize(77, 22)
        # The news of a new size has no answer: until it is there, the old one is.
        size = ""
        while size != "22 77":
            await shell.until(">>")
            await shell.type("stty size\n")
            await shell.until("stty size\r\n")
            size = (await shell.until("\r\n")).strip()
        await shell.until(">>")
        await shell.type("cat\nsaid\n")
        await shell.until("said\r\nsaid\r\n")
        await shell.type("\x03")
        await shell.until(">>")
        await shell.type("(exit 5)\n")
        await shell.until(">>")
        await shell.type("\x04")
        status, shown = await shell.finish()
    assert status == 5
    assert "command terminated with exit code 5" in shown


async def test_run_rm_gives_output_and_exit_code_and_removes_the_pod(kubectl: Kubectl) -> None:
    run = ("run", "-i", "--rm", "--restart=Never", "--image=any", "--command")
    for name in ("one", "two", "three"):
        out = await kubectl(*run, name, "--", "sh", "-c", "seq 3000")
        assert [line for line in out.split() if line.isdigit()] == [b"%d" % number for number in range(1, 3001)]
        await kubectl.it.until_gone(Pod, name)
    out = await kubectl(*run, "four", "--", "sh", "-c", "cat; exit 7", stdin=b"typed\n", code=7)
    assert b"typed\n" in out


async def test_run_in_a_terminal_asks_a_service_as_the_quick_start_does(kubectl: Kubectl) -> None:
    service = await served(kubectl.it)
    address = service.spec.cluster_ip
    where = kubectl.it.dev.proxy.address("default", "web", 80)
    assert where is not None
    args = ("run", "-it", "--rm", "--restart=Never", "curl", "--image=curlimages/curl", "--")
    url = f"http://{address}:{where[1]}/chat"
    async with kubectl.terminal(*args, "-sS", "-X", "POST", url, "-H", "accept: application/json", "-d", "{}") as run:
        status, shown = await run.finish()
    assert status == 0, shown
    assert "hello from web-" in shown
    assert 'pod "curl" deleted' in shown
    await kubectl.it.until_gone(Pod, "curl")


async def test_a_terminal_run_is_a_conversation(kubectl: Kubectl) -> None:
    script = "echo early; read x; echo got $x; exit 4"
    args = ("run", "-it", "--rm", "--restart=Never", "talk", "--image=any", "--command", "--", "sh", "-c", script)
    async with kubectl.terminal(*args) as run:
        await run.until("early\r\n")
        await run.type("abc\n")
        await run.until("got abc\r\n")
        status, shown = await run.finish()
    assert status == 4, shown


async def test_attach_shows_what_is_printed_and_types_into_it(kubectl: Kubectl) -> None:
    await kubectl.it.pod("p", "while read x; do echo got $x; done", stdin=True, tty=True, **NEVER)
    await kubectl.it.until(Pod, "p", running)
    async with kubectl.terminal("attach", "-it", "p") as attached:
        await attached.type("hello\n")
        await attached.until("got hello\r\n")
    assert (await kubectl.it.client.get(Pod, "p", "default")).status.phase == "Running"


async def test_port_forward_serves_many_at_once_and_large_bodies(kubectl: Kubectl) -> None:
    it = kubectl.it
    script = "head -c 5000000 /dev/urandom > large; exec python3 -m http.server --bind $KAITO_HOST 5000"
    await it.pod("p", script, ports=[{"containerPort": 5000}], **READY_FAST)
    await it.service("p", {"port": 80, "targetPort": 5000})
    pod = await it.until(Pod, "p", lambda pod: is_true(pod.status.conditions, "Ready"))
    large = (it.dev.kubelet.root / "pods" / pod.uid / "work" / "main" / "large").read_bytes()
    async with kubectl.started("port-forward", "service/p", ":80") as process:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+) -> 5000", line)
        assert found, line
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:

            async def fetch() -> bytes:
                async with session.get(f"http://127.0.0.1:{found[1]}/large") as answer:
                    return await answer.read()

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                fetching = [group.create_task(fetch()) for _ in range(8)]
        assert [task.result() == large for task in fetching] == [True] * 8


async def test_logs_follow_a_container_and_remember_its_previous_start(kubectl: Kubectl) -> None:
    it = kubectl.it
    await it.pod("p", "echo one; read x; echo two", stdin=True, **NEVER)
    await it.until(Pod, "p", running)
    async with kubectl.started("logs", "-f", "p") as following:
        assert following.stdout is not None
        assert await following.stdout.readline() == b"one\n"
        await kubectl("attach", "-i", "p", stdin=b"\n")
        assert await following.stdout.read() == b"two\n"
    await it.until(Pod, "p", terminated)
    await it.pod("q", "echo try; exit 1")
    await it.until(Pod, "q", lambda pod: waiting(pod) == "CrashLoopBackOff")
    assert await kubectl("logs", "--previous", "q") == b"try\n"
    await it.client.delete(Pod, ObjectKey("default", "q"))
