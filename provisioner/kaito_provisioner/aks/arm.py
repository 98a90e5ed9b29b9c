"""The agent pools of one managed cluster, through the Azure SDK: each method is one request, and says plainly what came
of it.

The SDK's own patience is off: nothing is retried, no ``Retry-After`` is slept through, no provider registered on the
way. Whoever asked is told, and comes back. A bearer token goes to our Resource Manager and nowhere else, wherever an
answer points.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, cast

import aiohttp
from azure.core import MatchConditions
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import (
    ContentDecodePolicy,
    CustomHookPolicy,
    RequestIdPolicy,
    SansIOHTTPPolicy,
    UserAgentPolicy,
)
from azure.core.pipeline.transport import AsyncHttpTransport
from azure.core.polling.base_polling import BadResponse, BadStatus
from azure.mgmt.containerservice.aio import ContainerServiceClient
from azure.mgmt.core.policies import AsyncARMChallengeAuthenticationPolicy
from azure.mgmt.core.polling.async_arm_polling import AsyncARMPolling

from kaito_provisioner.aks.answers import Answer
from kaito_provisioner.aks.config import AksSettings
from kaito_provisioner.aks.errors import Call, classify, transport_failure
from kaito_provisioner.aks.identity import NoToken, TellingCredential
from kaito_provisioner.aks.operations import Operation, Site
from kaito_provisioner.aks.pools import Pool
from kaito_provisioner.cloud import CloudError, NotFound, Offering, Unavailable

__all__ = ["Arm", "Polled", "open_arm"]

_CONNECT = 10.0
_READ = 60.0
_WHOLE = 90.0
"""Seconds for a call with everything in it: a token, the connection, and a body that comes in drops."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What an operation is found at. ``failure`` is why it failed."""

    running: bool
    failure: Answer | None = None


class Arm:
    """Requests about the agent pools of one cluster. Raises ``CloudError`` and nothing else."""

    def __init__(self, client: ContainerServiceClient, settings: AksSettings) -> None:
        self._pools = client.agent_pools
        self._where = (settings.resource_group, settings.cluster)
        self.site = _site(settings)

    async def list(self) -> Sequence[Pool]:
        """Every pool of the cluster."""
        with _told("read", ""):
            async with asyncio.timeout(_WHOLE):
                return [Pool.of(each.as_dict()) async for each in self._pools.list(*self._where)]

    async def get(self, name: str) -> Pool:
        """The pool as it is now. Raises ``NotFound``."""
        with _told("read", name):
            async with asyncio.timeout(_WHOLE):
                return Pool.of((await self._pools.get(*self._where, name)).as_dict())

    async def create(self, name: str, body: Any, offering: Offering) -> tuple[Pool, Operation | None]:
        """Begin to make a pool where there is none. Raises ``Conflict`` where there is one."""
        seen = _Seen()
        with _told("write", name, offering):
            async with asyncio.timeout(_WHOLE):
                poller = await self._pools.begin_create_or_update(
                    *self._where,
                    name,
                    body,
                    etag="*",
                    match_condition=MatchConditions.IfMissing,
                    raw_response_hook=seen,
                )
            pool = Pool.of(seen.response.json())
            done = poller.polling_method().finished()
            return pool, None if done else Operation("create", poller.continuation_token(), pool)

    async def delete(self, name: str, etag: str) -> Operation | None:
        """Begin to delete the pool that has that *etag*, or whatever there is if empty. Raises ``NotFound``, and
        ``Conflict`` if it has another one, or something else is being done to it."""
        seen = _Seen()
        condition: dict[str, Any] = {"etag": etag, "match_condition": MatchConditions.IfNotModified} if etag else {}
        with _told("write", name):
            async with asyncio.timeout(_WHOLE):
                poller = await self._pools.begin_delete(*self._where, name, **condition, raw_response_hook=seen)
            if seen.response.status_code == 204:
                raise NotFound(f"there is no agent pool {name}")
            done = poller.polling_method().finished()
            return None if done else Operation("delete", poller.continuation_token())

    async def abort(self, name: str) -> None:
        """Begin to end whatever is being done to the pool."""
        with _told("write", name):
            async with asyncio.timeout(_WHOLE):
                await self._pools.begin_abort_latest_operation(*self._where, name)

    async def poll(self, name: str, operation: Operation) -> Polled | None:
        """Ask once what has become of it; ``None`` if the service knows nothing of it any more."""
        seen = _Seen()
        begin: Any = self._pools.begin_create_or_update if operation.doing == "create" else self._pools.begin_delete
        arguments: tuple[Any, ...] = ({},) if operation.doing == "create" else ()
        with _told("read", name):
            try:
                poller = await begin(
                    *self._where, name, *arguments, continuation_token=operation.token, raw_response_hook=seen
                )
                method = cast(AsyncARMPolling, poller.polling_method())
                async with asyncio.timeout(_WHOLE):
                    if not method.finished():
                        await method.update_status()
            except BadStatus as error:
                if seen.response.status_code in (404, 410):
                    return None
                raise HttpResponseError(response=seen.response) from error
            except BadResponse as error:
                raise ValueError(f"an operation's status makes no sense: {error}") from error
            if not method.finished():
                return Polled(running=True)
            if method.status().lower() == "succeeded":
                return Polled(running=False)
            return Polled(running=False, failure=Answer.of(HttpResponseError(response=seen.response)))


@asynccontextmanager
async def open_arm(
    settings: AksSettings, credential: AsyncTokenCredential, *, transport: AsyncHttpTransport[Any, Any] | None = None
) -> AsyncIterator[Arm]:
    """A client with connections of its own, closed at the end. *transport* replaces the network."""
    version: dict[str, Any] = {"api_version": settings.api_version} if settings.api_version else {}
    async with _network(settings, transport) as wire:
        client = ContainerServiceClient(
            credential,
            settings.subscription,
            base_url=settings.endpoint,
            credential_scopes=[settings.scope],
            transport=wire,
            policies=[
                RequestIdPolicy(),
                UserAgentPolicy(base_user_agent=_user_agent()),
                ContentDecodePolicy(),
                _OnlyOurs(_site(settings)),
                AsyncARMChallengeAuthenticationPolicy(TellingCredential(credential, settings), settings.scope),
                CustomHookPolicy(),
            ],
            **version,
        )
        async with client:
            yield Arm(client, settings)


class _ForeignHost(AzureError):
    """A request would leave our Resource Manager."""


class _OnlyOurs(SansIOHTTPPolicy[Any, Any]):
    """Stops a request to anybody else before a token is put on it: an answer's link is only a text."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def on_request(self, request: PipelineRequest[Any]) -> None:
        url = request.http_request.url
        if not self._site.trusts(url):
            raise _ForeignHost(f"an answer points to {url}, which is not at {self._site.endpoint}: it is not followed")


class _Seen:
    """The last response of a call, which the SDK keeps to itself."""

    def __init__(self) -> None:
        self._response: Any = None

    def __call__(self, response: PipelineResponse[Any, Any]) -> None:
        self._response = response.http_response

    @property
    def response(self) -> Any:
        if self._response is None:
            raise ValueError("the SDK showed no response")
        return self._response


@contextmanager
def _told(call: Call, pool: str, offering: Offering | None = None) -> Iterator[None]:
    """Whatever the SDK raises inside, as a ``CloudError``."""
    try:
        yield
    except CloudError:
        raise
    except NoToken as error:
        raise error.told from error
    except HttpResponseError as error:
        raise classify(error, call, pool=pool, offering=offering) from error
    except _ForeignHost as error:
        raise Unavailable(str(error), fix="set AZURE_RESOURCE_MANAGER_ENDPOINT to the host that answers") from error
    except (AzureError, aiohttp.ClientError, OSError) as error:
        raise transport_failure(error, call) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise transport_failure(ValueError(f"an answer that makes no sense: {error}"), call) from error


@asynccontextmanager
async def _network(
    settings: AksSettings, transport: AsyncHttpTransport[Any, Any] | None
) -> AsyncIterator[AsyncHttpTransport[Any, Any]]:
    if transport is not None:
        yield transport
        return
    import ssl

    from azure.core.pipeline.transport import AioHttpTransport

    # One TLS context for all requests: left to itself, the SDK reads the bundle again for each, and keeps no
    # connection alive.
    context = ssl.create_default_context(cafile=settings.ca_bundle or None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=True,
    ) as session:
        yield AioHttpTransport(session=session, session_owner=False, connection_timeout=_CONNECT, read_timeout=_READ)


def _site(settings: AksSettings) -> Site:
    return Site(
        settings.endpoint,
        f"{_path(settings.endpoint)}/subscriptions/{settings.subscription}/resourceGroups/{settings.resource_group}"
        f"/providers/Microsoft.ContainerService/managedClusters/{settings.cluster}/agentPools",
    )


def _path(endpoint: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(endpoint).path.rstrip("/")


@cache
def _user_agent() -> str:
    try:
        version = metadata.version("kaito-ctrl")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"kaito-ctrl/{version}"
