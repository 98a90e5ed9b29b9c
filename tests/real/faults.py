"""What a real API server does to an operator on its bad days, by hand: ``python -m tests.real.faults``.

Each fault strikes while people change two hundred objects all the time. Afterwards every copy must be what its original
was last made, without anybody's help; and in the bad time itself the operator must not have hammered the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kaito_ctrl.testing.controlplane import API_SERVER, ControlPlane, run_control_plane
from kaito_ctrl.testing.envtest import envtest
from tests.real.meter import Overloaded
from tests.real.mirrorworld import MirrorWorld, mirror_world
from tests.real.proxy import Proxy, proxy_to
from tests.realbinaries import real_binaries

__all__ = ["Seen", "compaction", "crash", "expiry", "freeze", "overload"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one fault did. Times in seconds."""

    fault: str
    outage: float
    """How long it lasted."""
    worked: int
    """Reconciles that succeeded in the second half of the time that was asked for."""
    back: float
    """From its end to the next reconcile that succeeded."""
    converged: float
    """From when people stopped writing to when every copy was right."""
    reconciled: int
    written: int
    before: int
    """Requests of the operator in the busiest second before it."""
    during: int
    """And in the busiest one while it lasted."""
    after: int
    tries: int
    """The most failed reconciles of one object while it lasted."""
    watches: int
    """Watch requests while it lasted."""
    lists: int
    """Lists since it began (and after its end)."""
    complaints: tuple[str, ...]

    def __str__(self) -> str:
        again = f"back at work {self.back:.1f} s after it, and all right {self.converged:.1f} s after the last write"
        lines = [
            f"{self.fault}: for {self.outage:.1f} s; {again}",
            f"  {self.written} objects written, {self.reconciled} reconciles, {self.worked} of them in its second half",
            f"  requests in the busiest second: {self.before} before, {self.during} during, {self.after} after it",
            f"  in it: at most {self.tries} failed tries of one object, {self.watches} watches, {self.lists} lists",
        ]
        lines += [f"  {count} x ERROR {text}" for text, count in Counter(self.complaints).most_common(5)]
        return "\n".join(lines)


async def _observe(
    fault: str,
    world: MirrorWorld,
    strike: Callable[[], Awaitable[None]],
    *,
    seconds: float,
    settle: float,
    patience: float = 60.0,
) -> Seen:
    """Have the fault strike between *settle* seconds of peace, and look on until all is well again."""
    clock = asyncio.get_running_loop().time
    for index in range(world.objects):
        await world.write(index)
    await asyncio.sleep(settle)
    failed_before = len(world.outcomes)
    start = clock()
    await strike()
    end = clock()
    while world.reconciled_after(end) is None:
        assert clock() - end < patience, f"{fault}: no reconcile has succeeded for {patience:g} s"
        await asyncio.sleep(0.05)
    await asyncio.sleep(settle)
    world.resting = True
    converged = await world.converged(patience)
    meter = world.meter
    reads = [
        each for each in meter.between(start, clock()) if each.method == "GET" and each.path.endswith("/configmaps")
    ]
    return Seen(
        fault,
        end - start,
        sum(start + seconds / 2 <= at < start + seconds and how == "success" for at, _, how in world.outcomes),
        world.reconciled_after(end) or 0.0,
        converged,
        len(world.outcomes) - failed_before,
        len(world.wanted),
        meter.busiest_second(start - settle, start),
        meter.busiest_second(start, end),
        meter.busiest_second(end, clock()),
        world.most_tries(start, end),
        sum(each.watch for each in meter.between(start, end)),
        sum(not each.watch for each in reads),
        tuple(world.complaints.said),
    )


@asynccontextmanager
async def _behind_a_proxy(plane: ControlPlane) -> AsyncIterator[tuple[Proxy, str]]:
    async with proxy_to(plane.url) as proxy:
        path = plane.folder / "behind-a-proxy"
        path.write_text(json.dumps(plane.kubeconfig_of({"token": "admin"}, server=proxy.url)))
        yield proxy, str(path)


async def crash(plane: ControlPlane, *, seconds: float, settle: float = 2.0, objects: int = 200) -> Seen:
    """kill -9 of the API server; it is started again *seconds* later."""

    async def strike() -> None:
        await asyncio.to_thread(plane.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(plane.restart)

    config = str(plane.kubeconfig)
    async with mirror_world("crash", objects=objects, people=config, operator=config) as world:
        return await _observe("kill -9 of the API server", world, strike, seconds=seconds, settle=settle)


async def freeze(plane: ControlPlane, *, seconds: float, settle: float = 2.0, objects: int = 200) -> Seen:
    """SIGSTOP of the API server: its connections stay open, and nobody answers."""

    async def strike() -> None:
        plane.pause(API_SERVER)
        await asyncio.sleep(seconds)
        plane.resume(API_SERVER)

    config = str(plane.kubeconfig)
    async with mirror_world("freeze", objects=objects, people=config, operator=config) as world:
        return await _observe("SIGSTOP of the API server", world, strike, seconds=seconds, settle=settle)


async def compaction(plane: ControlPlane, *, seconds: float, settle: float = 2.0, objects: int = 200) -> Seen:
    """The operator is cut off while people go on, and the server forgets what happened meanwhile."""
    async with _behind_a_proxy(plane) as (proxy, operator):

        async def strike() -> None:
            proxy.cut()
            await asyncio.sleep(seconds)
            # The server's own memory of events goes with its process, the storage's with the compaction.
            await asyncio.to_thread(plane.compact)
            await asyncio.to_thread(plane.kill)
            await asyncio.to_thread(plane.restart)
            proxy.heal()

        async with mirror_world(
            "compaction", objects=objects, people=str(plane.kubeconfig), operator=operator
        ) as world:
            return await _observe("cut off, and history compacted", world, strike, seconds=seconds, settle=settle)


async def overload(
    plane: ControlPlane, *, seconds: float, share: float = 0.3, settle: float = 2.0, objects: int = 200
) -> Seen:
    """A *share* of all answers is 429 or 500."""
    config = str(plane.kubeconfig)
    made: list[Overloaded] = []

    def through(transport: object) -> Overloaded:
        made.append(Overloaded(transport, random.Random(7), 0.0))  # type: ignore[arg-type]
        return made[0]

    async def strike() -> None:
        made[0].share = share
        await asyncio.sleep(seconds)
        made[0].share = 0.0

    async with mirror_world("overload", objects=objects, people=config, operator=config, through=through) as world:
        return await _observe(f"{share:.0%} of answers are 429 or 500", world, strike, seconds=seconds, settle=settle)


async def expiry(
    plane: ControlPlane, *, seconds: float, lifetime: float = 15.0, settle: float = 2.0, objects: int = 200
) -> Seen:
    """The operator's token is good for *lifetime* seconds; its plugin has a new one when that is nearly over."""
    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(envtest(plane))
        rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]
        account = await environment.add_service_account("default", "mirror", rules=rules)
        answer, plugin = plane.folder / "credential", plane.folder / "plugin"
        plugin.write_text(f"#!/bin/sh\nexec cat {answer}\n")
        plugin.chmod(0o700)

        def issue() -> None:
            token = environment.token_of(account, lifetime=timedelta(seconds=lifetime)).credentials["token"]
            until = (datetime.now(UTC) + timedelta(seconds=lifetime)).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = {"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential"}
            draft = answer.with_suffix(".new")
            draft.write_text(json.dumps({**body, "status": {"token": token, "expirationTimestamp": until}}))
            draft.replace(answer)

        async def strike() -> None:
            for _ in range(int(seconds)):
                issue()
                await asyncio.sleep(1.0)

        issue()
        user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": str(plugin)}}
        config = plane.folder / "expiring"
        config.write_text(json.dumps(plane.kubeconfig_of(user)))
        world = await stack.enter_async_context(
            mirror_world("expiry", objects=objects, people=str(plane.kubeconfig), operator=str(config))
        )
        return await _observe(f"tokens of {lifetime:g} s", world, strike, seconds=seconds, settle=settle)


async def _all(seconds: float, lifetime: float) -> None:
    with run_control_plane(real_binaries()) as plane:
        for fault in (
            crash(plane, seconds=seconds),
            freeze(plane, seconds=seconds),
            compaction(plane, seconds=seconds),
            overload(plane, seconds=seconds),
            expiry(plane, seconds=max(seconds, 4 * lifetime), lifetime=lifetime),
        ):
            print(await fault, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.real.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each fault lasts (default: 60)")
    parser.add_argument("--lifetime", type=float, default=30.0, help="of a token, in seconds (default: 30)")
    options = parser.parse_args()
    asyncio.run(_all(options.seconds, options.lifetime))


if __name__ == "__main__":
    main()
