"""Pod IPs: addresses of this machine that its pods can listen on, without a network of their own.

Linux binds any address of 127.0.0.0/8 without setup. A real API server takes no such address into an Endpoints object;
there the pods get a block that :func:`local_block` makes this machine's, or share an address that it has.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["FALLBACK", "PodAddresses", "can_bind", "local_block"]

FALLBACK = "127.0.0.1"


def can_bind(address: str, port: int = 0) -> bool:
    """Whether a listener could be bound there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError:
            return False
    return True


@asynccontextmanager
async def local_block(cidr: str) -> AsyncIterator[None]:
    """Have every address of *cidr* be this machine's while the block runs.

    Nothing is done for addresses that already are. Otherwise it takes Linux, the ``ip`` command, and the right to use
    it (root, or CAP_NET_ADMIN): a route of type ``local`` over the loopback interface. Raises ``RuntimeError``.
    """
    network = ipaddress.IPv4Network(cidr)
    route = ("local", str(network), "dev", "lo")
    if network.is_loopback or can_bind(str(network[min(1, network.num_addresses - 1)])):
        yield
        return
    problem = await _ip("add", *route)
    if problem:
        raise RuntimeError(
            f"the pod addresses {cidr} are not this machine's, and could not be made so: {problem}. Run as root, or "
            "give the pods an address of this machine to share, as a block of one: pod_cidr='192.0.2.7/32'"
        )
    try:
        yield
    finally:
        await asyncio.shield(_ip("del", *route))


async def _ip(*words: str) -> str:
    """Change a route; returns what is wrong, if anything is."""
    try:
        process = await asyncio.create_subprocess_exec(
            "ip", "-4", "route", *words, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        return f"ip: {error.strerror}"
    _, message = await process.communicate()
    return message.decode(errors="replace").strip() or "ip failed" if process.returncode else ""


class PodAddresses:
    """Hands out the addresses of a CIDR block, in random order, so that two clusters on one machine seldom meet.

    A block of one address is everybody's, as with ``hostNetwork``: two pods cannot listen on the same port. So is
    127.0.0.1 where a loopback block cannot be bound (macOS).
    """

    def __init__(self, cidr: str, rng: random.Random) -> None:
        self._network = ipaddress.IPv4Network(cidr)
        self._rng = rng
        self._taken: set[str] = set()
        self._shared = str(self._network[0]) if self._network.num_addresses == 1 else ""
        if not self._shared and self._network.is_loopback and not can_bind(str(self._network[1])):
            self._shared = FALLBACK

    def take(self) -> str:
        """A free address. Raises ``RuntimeError`` when there is none left."""
        if self._shared:
            return self._shared
        hosts = self._network.num_addresses - 2
        if len(self._taken) >= hosts:
            raise RuntimeError(f"all {hosts} pod addresses of {self._network} are in use")
        while True:
            address = str(self._network[self._rng.randint(1, hosts)])
            if address not in self._taken:
                self._taken.add(address)
                return address

    def release(self, address: str) -> None:
        """Give it back."""
        self._taken.discard(address)
