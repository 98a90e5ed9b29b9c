"""Cluster IPs: which are free, and who decides."""

from __future__ import annotations

import ipaddress
import random

__all__ = ["ServiceAddresses"]


class ServiceAddresses:
    """The addresses of one CIDR; its first and last are never given out."""

    def __init__(self, cidr: str, rng: random.Random) -> None:
        self._network = ipaddress.ip_network(cidr)
        self._rng = rng
        self._base = int(self._network.network_address)
        self._taken: set[int] = set()

    @property
    def family(self) -> str:
        return f"IPv{self._network.version}"

    def take(self, wanted: str = "") -> str:
        """Reserve *wanted*, or a random free address. Raises ``ValueError`` saying why it cannot."""
        if wanted:
            try:
                address = ipaddress.ip_address(wanted)
            except ValueError:
                raise ValueError("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)") from None
            if address not in self._network:
                raise ValueError(
                    f"failed to allocate IP {wanted}: the provided IP is not in the valid range. "
                    f"The range of valid IPs is {self._network}"
                )
            if int(address) in self._taken:
                raise ValueError(f"failed to allocate IP {wanted}: provided IP is already allocated")
            self._taken.add(int(address))
            return wanted
        size = self._network.num_addresses - 2
        if len(self._taken) >= size:
            raise ValueError("failed to allocate a serviceIP: range is full")
        while True:
            candidate = self._base + 1 + self._rng.randrange(size)
            if candidate not in self._taken:
                self._taken.add(candidate)
                return str(ipaddress.ip_address(candidate))

    def release(self, address: str) -> None:
        """Give an address back; unknown ones are ignored."""
        try:
            self._taken.discard(int(ipaddress.ip_address(address)))
        except ValueError:
            return
