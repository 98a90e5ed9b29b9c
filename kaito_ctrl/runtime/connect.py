"""The transport over TCP: kubernetes-asyncio finds the cluster and the credentials, its aiohttp session moves the
bytes.

Importing this module imports kubernetes-asyncio, which takes about a second: do it when connecting, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from functools import partial

import aiohttp
from kubernetes_asyncio.client.configuration import Configuration
from kubernetes_asyncio.client.rest import RESTClientObject
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config
from yarl import URL

from kaito_ctrl.runtime.clock import Clock, SystemClock
from kaito_ctrl.runtime.credentials import Credentials
from kaito_ctrl.runtime.errors import KubeError, TransportError
from kaito_ctrl.runtime.transport import Request, Response

__all__ = ["TcpTransport", "connect"]


async def connect(
    *, kubeconfig: str | None = None, context: str | None = None, clock: Clock | None = None
) -> TcpTransport:
    """A transport to the cluster of *kubeconfig*, else ``$KUBECONFIG`` or ``~/.kube/config``, else the pod's own.

    Raises :class:`~kaito_ctrl.runtime.errors.KubeError` with what was tried when there is none, or when its
    credentials cannot be had.
    """
    configuration = Configuration()
    configuration.retries = 0

    async def from_kubeconfig() -> datetime | None:
        loader = await load_kube_config(
            config_file=kubeconfig, context=context, client_configuration=configuration, persist_config=False
        )
        expires: datetime | None = getattr(loader, "exec_plugin_expiry", None)
        return expires

    async def from_pod() -> datetime | None:
        load_incluster_config(client_configuration=configuration)
        return None  # and renewed by kubernetes-asyncio itself

    load, expires = from_kubeconfig, None
    try:
        expires = await from_kubeconfig()
    except ConfigException as outside:
        if kubeconfig is not None or context is not None:
            raise KubeError(f"cannot use kubeconfig {kubeconfig or '(default)'}: {outside}") from outside
        load = from_pod
        try:
            await from_pod()
        except ConfigException as inside:
            raise KubeError(
                "no cluster: there is no usable kubeconfig (KUBECONFIG, ~/.kube/config) and this is not a pod. "
                f"kubeconfig: {outside}; pod: {inside}"
            ) from outside
    except Exception as error:  # plugins and identity providers fail in their own ways
        raise KubeError(
            f"cannot use kubeconfig {kubeconfig or '(default)'}: {type(error).__name__} {error}".strip()
        ) from error
    return TcpTransport(configuration, Credentials(configuration, load, expires=expires, clock=clock or SystemClock()))


class TcpTransport:
    """Implements :class:`~kaito_ctrl.runtime.transport.Transport`."""

    def __init__(self, configuration: Configuration, credentials: Credentials) -> None:
        self._configuration = configuration
        self._credentials = credentials
        self._base = (configuration.host or "").rstrip("/")
        # Its pool carries the TLS material and the proxy settings of the kubeconfig.
        self._rest = RESTClientObject(configuration, pools_size=64)
        self._material = self._certificate()
        self._retired: list[RESTClientObject] = []

    @property
    def url(self) -> str:
        """Where the API server is."""
        return self._base

    async def send(self, request: Request) -> Response:
        credentials, certificate = await self._credentials.headers(), self._certificate()
        response = await self._send(request, credentials)
        # A refused request was not carried out: with other credentials it may go out again.
        if response.status == 401:
            try:
                renewed = await self._credentials.renew(credentials)
            except BaseException:
                _release(response)
                raise
            if renewed or self._certificate() != certificate:
                _release(response)
                response = await self._send(request, await self._credentials.headers())
        answered = {name.lower(): value for name, value in response.headers.items()}
        return Response(response.status, answered, _body(response), partial(_release, response))

    async def aclose(self) -> None:
        for rest in (*self._retired, self._rest):
            await rest.close()

    async def _send(self, request: Request, credentials: Mapping[str, str]) -> aiohttp.ClientResponse:
        query = "&".join(f"{URL.build(query={key: value}).raw_query_string}" for key, value in request.query)
        url = URL(f"{self._base}{request.path}{'?' + query if query else ''}", encoded=True)
        try:
            async with asyncio.timeout(request.timeout):
                return await self._pool().request(
                    request.method,
                    url,
                    headers={"user-agent": "kaito-ctrl", **request.headers, **credentials},
                    data=request.body,
                    proxy=self._rest.proxy,
                    server_hostname=self._configuration.tls_server_name,
                    # The body of a watch may be silent for long: the watch itself decides for how long.
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=request.timeout, sock_read=request.idle_timeout
                    ),
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TransportError(f"{request.method} {request.path}: {type(error).__name__} {error}".strip()) from error

    def _pool(self) -> aiohttp.ClientSession:
        if self._certificate() != self._material:
            # A plugin has made another client certificate. Streams that are open end with their old one.
            self._material = self._certificate()
            self._retired.append(self._rest)
            self._rest = RESTClientObject(self._configuration, pools_size=64)
        pool: aiohttp.ClientSession = self._rest.pool_manager
        return pool

    def _certificate(self) -> tuple[str | None, str | None]:
        return self._configuration.cert_file, self._configuration.key_file


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
