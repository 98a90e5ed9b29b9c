"""Pod IPs on the loopback interface: Linux binds any address of 127.0.0.0/8 without setup."""

from __future__ import annotations

import ipaddress
import random
import socket

__all__ = ["FALLBACK", "PodAddresses", "can_bind"]

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


class PodAddresses:
    """Hands out the addresses of a CIDR block, in random order, so that two clusters on one machine seldom meet.

    Where they cannot be bound (macOS), everybody gets 127.0.0.1, and two pods cannot listen on the same port.
    """

    def __init__(self, cidr: str, rng: random.Random) -> None:
        self._network = ipaddress.IPv4Network(cidr)
        self._rng = rng
        self._taken: set[str] = set()
        self._usable = can_bind(str(self._network[1]))

    def take(self) -> str:
        """A free address. Raises ``RuntimeError`` when there is none left."""
        if not self._usable:
            return FALLBACK
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
