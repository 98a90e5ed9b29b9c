"""The transport over TCP: kubernetes-asyncio finds the cluster and the credentials, its aiohttp session moves the
bytes.

Importing this module imports kubernetes-asyncio, which takes about a second: do it when connecting, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import aiohttp
from kubernetes_asyncio.client.configuration import Configuration
from kubernetes_asyncio.client.rest import RESTClientObject
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config
from yarl import URL

from kaito_ctrl.runtime.errors import KubeError, TransportError
from kaito_ctrl.runtime.transport import Request, Response

__all__ = ["TcpTransport", "connect"]


async def connect(*, kubeconfig: str | None = None, context: str | None = None) -> TcpTransport:
    """A transport to the cluster of *kubeconfig*, else ``$KUBECONFIG`` or ``~/.kube/config``, else the pod's own.

    Raises :class:`~kaito_ctrl.runtime.errors.KubeError` with what was tried when there is none.
    """
    configuration = Configuration()
    configuration.retries = 0
    try:
        await load_kube_config(
            config_file=kubeconfig, context=context, client_configuration=configuration, persist_config=False
        )
    except ConfigException as outside:
        if kubeconfig is not None or context is not None:
            raise KubeError(f"cannot use kubeconfig {kubeconfig or '(default)'}: {outside}") from outside
        try:
            load_incluster_config(client_configuration=configuration)
        except ConfigException as inside:
            raise KubeError(
                "no cluster: there is no usable kubeconfig (KUBECONFIG, ~/.kube/config) and this is not a pod. "
                f"kubeconfig: {outside}; pod: {inside}"
            ) from outside
    return TcpTransport(configuration)


class TcpTransport:
    """Implements :class:`~kaito_ctrl.runtime.transport.Transport`."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._base = (configuration.host or "").rstrip("/")
        # Its pool carries the TLS material and the proxy settings of the kubeconfig.
        self._rest = RESTClientObject(configuration, pools_size=64)

    async def send(self, request: Request) -> Response:
        query = "&".join(f"{URL.build(query={key: value}).raw_query_string}" for key, value in request.query)
        url = URL(f"{self._base}{request.path}{'?' + query if query else ''}", encoded=True)
        headers = dict(request.headers)
        headers.setdefault("user-agent", "kaito-ctrl")
        for name, value in (await self._credentials()).items():
            headers[name] = value
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=request.timeout, sock_read=request.idle_timeout or request.timeout
        )
        try:
            async with asyncio.timeout(request.timeout):
                response = await self._rest.pool_manager.request(
                    request.method,
                    url,
                    headers=headers,
                    data=request.body,
                    proxy=self._rest.proxy,
                    # The body of a watch may be silent for long: the watch itself decides for how long.
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=request.timeout)
                    if request.idle_timeout is None
                    else timeout,
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TransportError(f"{request.method} {request.path}: {type(error).__name__} {error}".strip()) from error
        answered = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status, answered, _body(response), partial(_release, response))

    async def aclose(self) -> None:
        await self._rest.close()

    async def _credentials(self) -> dict[str, str]:
        # Asking each time lets kubernetes-asyncio renew a token that expires.
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            return {"authorization": token}
        if self._configuration.username:
            return {"authorization": self._configuration.get_basic_auth_token() or ""}
        return {}


async def _body(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise TransportError(f"the answer broke off: {type(error).__name__} {error}".strip()) from error
    finally:
        _release(response)


def _release(response: aiohttp.ClientResponse) -> None:
    # A connection whose body was not read to its end cannot be reused: close it instead of draining it.
    if response.content.is_eof():
        response.release()
    else:
        response.close()
