"""Leader election on a real API server, by force: ``python -m tests.real.failover --rounds 20``.

Two managers contend in two processes. The leader is killed, paused and let go on, asked to stop, cut off, or loses its
Lease object; each time the server says who wrote what, in its own order. There must never be two that write in turns,
and nobody may be missing for longer than a lease lasts and its takers wait.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kaito_api import coordination
from kaito_api.core import ConfigMap
from kaito_api.meta import ObjectMeta
from kaito_ctrl import Client, Cluster, ObjectKey
from kaito_ctrl.runtime.transport import Request
from kaito_ctrl.testing.controlplane import ControlPlane, run_control_plane
from tests.real.candidate import DURATION, LEASE, NAMESPACE, RETRY_PERIOD, WORK
from tests.real.proxy import Proxy, proxy_to
from tests.realbinaries import real_binaries

__all__ = ["BLOWS", "LONGEST", "Round", "fail_over"]

ROOT = Path(__file__).parents[2]
BLOWS = ("killed", "paused", "stopped", "cut off", "lease deleted")
_JITTER = 1.2
LONGEST = DURATION + RETRY_PERIOD * (1 + _JITTER) + RETRY_PERIOD
"""Seconds: a candidate may see the last renewal one pause late, waits for the lease to lapse, and spreads its attempt
over one more retry period."""
HANDED_OVER = RETRY_PERIOD * (1 + _JITTER)
"""Seconds until a candidate looks again, and finds the lease released."""


@dataclass(frozen=True, slots=True)
class Write:
    """What the server says of one write, in its order; *at* is when we heard of it."""

    at: float
    by: str


@dataclass(frozen=True, slots=True)
class Round:
    """One blow. Times in seconds."""

    blow: str
    before: str
    after: str
    gap: float
    """The longest time in which nobody wrote."""
    changes: int
    """How often another one wrote than before."""
    late: int
    """Writes of the former leader after the first one of the new."""
    status: int | None
    """How the process of the former leader ended, if it did."""

    def __str__(self) -> str:
        ended = "" if self.status is None else f", ended with {self.status}"
        return (
            f"{self.blow:<14} {self.before:>3} -> {self.after:<3} nobody wrote for {self.gap:5.2f} s, "
            f"{self.changes} changes, {self.late} late writes{ended}"
        )


@dataclass
class Candidate:
    """A manager's process, behind a proxy of its own."""

    identity: str
    proxy: Proxy
    process: asyncio.subprocess.Process

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@dataclass
class Arena:
    """The two, and what the server says of them."""

    plane: ControlPlane
    client: Client
    stack: AsyncExitStack
    writes: list[Write] = field(default_factory=list)
    candidates: dict[str, Candidate] = field(default_factory=dict)
    _names: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _written: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Keep a record of every write of the work."""
        loop = asyncio.get_running_loop()
        path, rest = f"/api/v1/namespaces/{NAMESPACE}/configmaps", b""
        query = (("watch", "true"), ("fieldSelector", f"metadata.name={WORK}"))
        async with await self.client.transport.send(Request("GET", path, query, idle_timeout=None)) as response:
            async for chunk in response.chunks():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    by = msgspec.json.decode(line)["object"].get("data", {}).get("by")
                    if by is not None:
                        self.writes.append(Write(loop.time(), by))
                        self._written.set()
                        self._written.clear()
        raise AssertionError("the server has ended the watch of the work")

    async def enter(self) -> Candidate:
        """A fresh manager joins, and stands by."""
        identity = f"m{next(self._names)}"
        proxy = await self.stack.enter_async_context(proxy_to(self.plane.url))
        config = self.plane.folder / f"kubeconfig-{identity}"
        config.write_text(json.dumps(self.plane.kubeconfig_of({"token": "admin"}, server=proxy.url)))
        log = (self.plane.folder / f"{identity}.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.real.candidate", str(config), identity),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        log.close()
        assert process.stdout is not None
        candidate = self.candidates[identity] = Candidate(identity, proxy, process)
        line = await process.stdout.readline()
        assert b"ready" in line or await self._said(process.stdout), (self.plane.folder / f"{identity}.log").read_text()
        return candidate

    @staticmethod
    async def _said(output: asyncio.StreamReader) -> bool:
        """Logs go to the standard output, too."""
        while line := await output.readline():
            if line.strip() == b"ready":
                return True
        return False

    async def next_write(self, *, by_other_than: str = "") -> Write:
        """The next write of anybody (else)."""
        seen = len(self.writes)
        while True:
            found = next((each for each in self.writes[seen:] if each.by != by_other_than), None)
            if found is not None:
                return found
            await self._written.wait()

    async def reap(self, candidate: Candidate) -> int:
        """Wait for the end of a process that has to end."""
        del self.candidates[candidate.identity]
        assert candidate.process.stdout is not None
        async with asyncio.timeout(20):
            await candidate.process.stdout.read()
            return await candidate.process.wait()

    def round(self, blow: str, start: int, status: int | None) -> Round:
        """What the server says since write number *start*."""
        writes = self.writes[start:]
        before, after = writes[0].by, writes[-1].by
        gap = max(later.at - earlier.at for earlier, later in itertools.pairwise(writes))
        changes = sum(later.by != earlier.by for earlier, later in itertools.pairwise(writes))
        first = next((number for number, each in enumerate(writes) if each.by == after), 0)
        late = sum(each.by == before for each in writes[first:]) if after != before else 0
        return Round(blow, before, after, gap, changes, late, status)


async def strike(arena: Arena, blow: str) -> Round:
    """One blow at whoever leads, and what came of it. Two contend again afterwards."""
    await arena.next_write()
    start = len(arena.writes) - 1
    leader = arena.candidates[(await arena.next_write()).by]
    status: int | None = None
    async with asyncio.timeout(30):
        match blow:
            case "killed":
                leader.signal(signal.SIGKILL)
                await arena.next_write(by_other_than=leader.identity)
                status = await arena.reap(leader)
            case "paused":
                leader.signal(signal.SIGSTOP)
                await arena.next_write(by_other_than=leader.identity)
                leader.signal(signal.SIGCONT)
                status = await arena.reap(leader)  # it finds out, and ends
            case "stopped":
                leader.signal(signal.SIGTERM)
                await arena.next_write(by_other_than=leader.identity)
                status = await arena.reap(leader)
            case "cut off":
                leader.proxy.cut()
                await arena.next_write(by_other_than=leader.identity)
                leader.proxy.heal()
                status = await arena.reap(leader)
            case "lease deleted":
                await arena.client.delete(coordination.Lease, ObjectKey(NAMESPACE, LEASE))
                # Whoever was fooled by that would write within a lease's time.
                await asyncio.sleep(DURATION + RETRY_PERIOD)
        await arena.next_write()
        await asyncio.sleep(0.5)
    result = arena.round(blow, start, status)
    if status is not None:
        await arena.enter()
    return result


@asynccontextmanager
async def arena_on(plane: ControlPlane) -> AsyncIterator[Arena]:
    """Two managers that contend."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster.connect(kubeconfig=str(plane.kubeconfig)))
        await cluster.client.apply(ConfigMap(metadata=ObjectMeta(name=WORK, namespace=NAMESPACE), data={"n": "0"}))
        arena = Arena(plane, cluster.client, stack)
        watching = asyncio.create_task(arena.watch())
        try:
            await arena.enter()
            await arena.enter()
            yield arena
        finally:
            for candidate in tuple(arena.candidates.values()):
                candidate.process.kill()
                await arena.reap(candidate)
            watching.cancel()
            await asyncio.wait((watching,))


async def fail_over(plane: ControlPlane, blows: list[str]) -> AsyncIterator[Round]:
    """Strike again and again."""
    async with arena_on(plane) as arena:
        for blow in blows:
            yield await strike(arena, blow)


async def _table(rounds: int) -> None:
    with run_control_plane(real_binaries()) as plane:
        found = []
        async for each in fail_over(plane, [BLOWS[number % len(BLOWS)] for number in range(rounds)]):
            print(each, flush=True)
            found.append(each)
    print(f"\nlongest allowed: {LONGEST:.1f} s, after a clean stop {HANDED_OVER:.1f} s, without a change none")
    for blow in BLOWS:
        gaps = sorted(each.gap for each in found if each.blow == blow)
        if gaps:
            middle = gaps[len(gaps) // 2]
            print(f"{blow:<14} {len(gaps)} rounds, gaps {gaps[0]:.2f} to {gaps[-1]:.2f} s, median {middle:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.real.failover", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    asyncio.run(_table(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
