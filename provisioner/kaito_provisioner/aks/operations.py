"""Long-running operations as a text that any process can go on with: the SDK's continuation token, packed.

The text is kept in the cluster, where others may write too, and following it means sending a bearer token. So it is
opened and looked at first: whatever does not speak of this very pool, at our own Resource Manager, is none.

The SDK's token carries the first answer twice; packed it is a third as long.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from kaito_provisioner.aks.pools import Pool

__all__ = ["Operation", "Site"]

_PREFIX = "aks1:"
_LONGEST = 4096
"""Characters: it is kept in an annotation."""
_LARGEST = 64 * 1024
"""Bytes, unpacked: nobody makes us unpack a bomb."""
_URL_HEADERS = ("azure-asyncoperation", "operation-location", "location")

Doing = Literal["create", "delete"]
_METHODS: Mapping[object, Doing] = {"PUT": "create", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Site:
    """Where our requests may go: the Resource Manager, and the pools of our cluster in it."""

    endpoint: str
    pools: str
    """The path of the cluster's agent pools."""

    def trusts(self, url: str) -> bool:
        """Whether *url* is our Resource Manager's: of the same host, or of a regional one below it."""
        try:
            ours, theirs = urlsplit(self.endpoint), urlsplit(url)
            ports = (ours.port or 443) == (theirs.port or 443)
        except ValueError:
            return False
        mine, host = (ours.hostname or "").lower(), (theirs.hostname or "").lower()
        return (
            theirs.scheme == "https"
            and ports
            and theirs.username is None
            and (host == mine or host.endswith(f".{mine}"))
        )

    def is_pool(self, url: str, name: str) -> bool:
        """Whether *url* is that of the cluster's pool *name*. Azure changes the case of paths."""
        return self.trusts(url) and urlsplit(url).path.lower() == f"{self.pools}/{name}".lower()


@dataclass(frozen=True, slots=True)
class Operation:
    """One that can be asked about. ``token`` is the SDK's, ``pool`` what the service showed when it began."""

    doing: Doing
    token: str
    pool: Pool | None = None

    def pack(self) -> str:
        """As :meth:`open` reads it; empty if it would be too long to keep."""
        packed = base64.b64encode(zlib.compress(base64.b64decode(self.token), 9)).decode("ascii")
        text = f"{_PREFIX}{packed}"
        return text if len(text) <= _LONGEST else ""

    @classmethod
    def open(cls, text: str, pool: str, site: Site) -> Operation | None:
        """The operation on *pool* that *text* speaks of; ``None`` if it speaks of none, or of somebody else's."""
        try:
            raw = _unpack(text)
            token = json.loads(raw)["data"]
            request, response = token["request"], token["response"]
            doing = _METHODS[request["method"]]
            urls = [str(value) for key, value in response["headers"].items() if key.lower() in _URL_HEADERS]
            if not site.is_pool(request["url"], pool) or not all(map(site.trusts, urls)):
                return None
            shown = _pool(token)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error, binascii.Error):
            return None
        return cls(doing, base64.b64encode(raw).decode("ascii"), shown)


def _unpack(text: str) -> bytes:
    if not text.startswith(_PREFIX) or len(text) > _LONGEST:
        raise ValueError("none of ours")
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(base64.b64decode(text.removeprefix(_PREFIX), validate=True), _LARGEST)
    if not unpacker.eof:
        raise ValueError("cut off, or too large")
    return raw


def _pool(token: Mapping[str, Any]) -> Pool | None:
    body = base64.b64decode(token["response"]["content"])
    return Pool.of(json.loads(body)) if body else None
