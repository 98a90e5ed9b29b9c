"""Probes: how a container is asked whether it has started, lives, and is ready, and what follows from the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from kaito_api.core import Probe

__all__ = ["Target", "Threshold", "check", "watch"]


@dataclass(slots=True)
class Threshold:
    """Turns single answers into a state: it changes after so many equal ones in a row. Pure."""

    success: int
    failure: int
    state: bool
    _run: int = 0
    _last: bool | None = None

    def feed(self, answer: bool) -> bool:
        """The state after *answer*."""
        self._run = self._run + 1 if answer == self._last else 1
        self._last = answer
        if self._run >= (self.success if answer else self.failure):
            self.state = answer
        return self.state

    @property
    def failed(self) -> bool:
        """Whether the failure threshold has been reached, whatever the state was before."""
        return self._last is False and self._run >= self.failure


@dataclass(frozen=True, slots=True)
class Target:
    """How to reach the container."""

    host: str
    ports: Mapping[str, int]
    """Container ports by name."""
    session: aiohttp.ClientSession
    execute: Callable[[Sequence[str]], Awaitable[int]] = field(repr=False)
    """Run a command as in the container; returns its exit status."""

    def port(self, port: int | str) -> int:
        if isinstance(port, int) or port.isdigit():
            return int(port)
        return self.ports.get(port, 0)


async def check(probe: Probe, target: Target) -> bool:
    """Ask once. No answer in time is a failure, as is a port name that the container does not have."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            if probe.http_get is not None:
                return await _http(probe, target)
            if probe.tcp_socket is not None:
                host = probe.tcp_socket.get("host") or target.host
                _, writer = await asyncio.open_connection(host, target.port(probe.tcp_socket["port"]))
                writer.close()
                return True
            if probe.exec is not None:
                return await target.execute(probe.exec.get("command") or ()) == 0
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return False
    return True


async def _http(probe: Probe, target: Target) -> bool:
    get = probe.http_get
    assert get is not None
    path = get.path if get.path.startswith("/") else f"/{get.path}"
    url = f"{get.scheme.lower()}://{get.host or target.host}:{target.port(get.port)}{path}"
    async with target.session.get(url, ssl=False, headers={"User-Agent": "kube-probe/1.32"}) as response:
        return 200 <= response.status < 400


async def watch(probe: Probe, target: Target, threshold: Threshold, tell: Callable[[Threshold], bool]) -> None:
    """Ask for ever, at the probe's period, until *tell*, called after each answer, returns False."""
    await asyncio.sleep(probe.initial_delay_seconds)
    while True:
        threshold.feed(await check(probe, target))
        if not tell(threshold):
            return
        await asyncio.sleep(probe.period_seconds)
