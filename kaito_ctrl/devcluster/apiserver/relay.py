"""``services/proxy`` and ``pods/proxy``: plain HTTP through the API server to whatever listens behind.

The body streams through, so that a model's tokens arrive as they are made. Connection upgrades (a WebSocket of the
program behind) are not relayed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp

from kaito_ctrl.devcluster.apiserver.backend import Backend
from kaito_ctrl.devcluster.apiserver.errors import StatusError, bad_request
from kaito_ctrl.devcluster.apiserver.kinds import Resource
from kaito_ctrl.devcluster.apiserver.requests import Call
from kaito_ctrl.devcluster.apiserver.store import Obj
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Response

__all__ = ["Relay", "split_name"]

# They belong to one connection, or say who the caller is to this server.
_KEPT_HERE = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def split_name(name: str) -> tuple[str, str, str]:
    """``[scheme:]name[:port]`` as scheme, name and port ("" when not said). Raises a 400."""
    parts = name.split(":")
    if len(parts) == 1:
        return "http", parts[0], ""
    if len(parts) == 2:
        return "http", parts[0], parts[1]
    if len(parts) == 3 and parts[0] in {"http", "https", ""}:
        return parts[0] or "http", parts[1], parts[2]
    raise bad_request(f'invalid service request "{name}"')


def _unavailable(message: str) -> StatusError:
    return StatusError(503, "ServiceUnavailable", message)


class Relay:
    """Sends requests on. The connection pool is made with the first."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._session: aiohttp.ClientSession | None = None

    async def send(self, call: Call, resource: Resource) -> Response:
        """The answer of what is behind. Raises a 503 when nothing is."""
        scheme, name, port = split_name(call.target.name)
        host, number = self.address(resource, call.target.namespace, name, port)
        url = f"{scheme}://{host}:{number}/{quote(call.target.tail, safe='/:@!$&()*+,;=~')}"
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = {key: value for key, value in call.headers.items() if key not in _KEPT_HERE}
        try:
            answer = await self._session.request(
                call.method,
                url,
                params=list(call.query.pairs),
                headers=headers,
                data=call.body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
                ssl=False,
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unavailable(f"error trying to reach service: {error}") from error
        kept = {key.lower(): value for key, value in answer.headers.items() if key.lower() not in _KEPT_HERE}
        return Response(answer.status, kept, _body(answer), answer.close)

    def address(self, resource: Resource, namespace: str, name: str, port: str) -> tuple[str, int]:
        """Host and port that serve it now. Raises a 404 or a 503."""
        stored = self._backend.require(resource, namespace, name)
        return _pod_address(stored.obj, name, port) if resource.kind == "Pod" else self._endpoint(stored.obj, port)

    def _endpoint(self, service: Obj, port: str) -> tuple[str, int]:
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        ports = (service.get("spec") or {}).get("ports") or []
        wanted = next((p for p in ports if port in {"", p.get("name", ""), str(p.get("port"))}), None)
        if wanted is None:
            raise _unavailable(f'no service port "{port}" found for service "{name}"')
        endpoints = self._backend.store.bucket("", "endpoints").items.get((namespace, name))
        found = [
            (address["ip"], int(item["port"]))
            for subset in (endpoints.obj.get("subsets") or () if endpoints is not None else ())
            for item in subset.get("ports") or ()
            for address in subset.get("addresses") or ()
            if item.get("name", "") == wanted.get("name", "")
        ]
        if not found:
            raise _unavailable(f'no endpoints available for service "{name}"')
        return self._backend.env.rng.choice(found)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _pod_address(pod: Mapping[str, Any], name: str, port: str) -> tuple[str, int]:
    address = (pod.get("status") or {}).get("podIP")
    if not address:
        raise _unavailable(f'address not allowed: pod "{name}" has no IP yet')
    ports = [p for c in pod["spec"].get("containers") or () for p in c.get("ports") or ()]
    for item in ports:
        if port in {"", item.get("name", "")}:
            return str(address), int(item["containerPort"])
    if port and not port.isdigit():
        raise bad_request(f'pod "{name}" has no port "{port}"')
    return str(address), int(port or 80)


async def _body(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    except aiohttp.ClientError as error:
        raise TransportError(str(error)) from error
    finally:
        answer.close()
