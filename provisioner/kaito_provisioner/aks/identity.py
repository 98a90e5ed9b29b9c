"""Who we are to Azure: one credential, proven to give a token before anything depends on it.

The kinds are those of ``azure.identity.aio``. What they raise says what they tried; what is added here is what a
person checks next.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, ServiceRequestError, ServiceResponseError
from azure.identity.aio import (
    AzureCliCredential,
    DefaultAzureCredential,
    EnvironmentCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from kaito_provisioner.aks.config import AksSettings, IdentityMode
from kaito_provisioner.cloud import Unauthorized

__all__ = ["NoToken", "TellingCredential", "open_credential"]

_PATIENCE = 60.0
"""Seconds that the first token may take: a managed identity's endpoint may need tens of them on a fresh node."""

_BY_CODE: Mapping[str, str] = {
    "AADSTS70021": "check the federated credential of the identity: its subject must be "
    "system:serviceaccount:NAMESPACE:NAME of our ServiceAccount and its issuer the cluster's OIDC issuer "
    "(az aks show --query oidcIssuerProfile.issuerUrl); a new one needs a few seconds",
    "AADSTS700211": "the federated credential's issuer is not this cluster's: "
    "compare it with az aks show --query oidcIssuerProfile.issuerUrl",
    "AADSTS700212": "the federated credential's audience must be api://AzureADTokenExchange",
    "AADSTS700213": "the federated credential's subject must be system:serviceaccount:NAMESPACE:NAME of our "
    "ServiceAccount, letter by letter",
    "AADSTS700016": "no identity with AZURE_CLIENT_ID is known in the tenant AZURE_TENANT_ID: check both",
    "AADSTS700024": "the node's clock is wrong, or the projected token was not renewed: check both",
    "AADSTS7000215": "AZURE_CLIENT_SECRET is wrong: it must be the secret's value, not its id",
    "AADSTS7000222": "the client secret has expired: make a new one and set AZURE_CLIENT_SECRET",
    "AADSTS90002": "there is no such tenant in this cloud: check AZURE_TENANT_ID and AZURE_CLOUD",
    "AADSTS900023": "AZURE_TENANT_ID is no tenant's id: check it",
}
"""Microsoft Entra's error codes: learn.microsoft.com/entra/identity-platform/reference-error-codes."""
_BY_MODE: Mapping[IdentityMode, str] = {
    "workload": "check that AZURE_CLIENT_ID and AZURE_TENANT_ID are the identity's, and that its federated credential "
    "names this cluster's issuer, the subject system:serviceaccount:NAMESPACE:NAME of our ServiceAccount and the "
    "audience api://AzureADTokenExchange",
    "managed": "check that the identity is assigned to the node pool's VMs, that AZURE_CLIENT_ID is its client id, and "
    "that no network policy keeps the pod from 169.254.169.254",
    "environment": "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET (or AZURE_CLIENT_CERTIFICATE_PATH)",
    "cli": "run az login, and az account set --subscription of the cluster",
    "default": "set AZURE_IDENTITY to the kind of identity that is meant (workload, managed, environment or cli): the "
    "error then names what it lacks",
}
_CODE = re.compile(r"AADSTS\d+")


class NoToken(AzureError):
    """There is no token, so nothing was sent. ``told`` says why."""

    def __init__(self, told: Unauthorized) -> None:
        super().__init__(told.message)
        self.told = told


class TellingCredential:
    """A credential whose every failure is a :class:`NoToken`, so that it is not taken for one of the request."""

    def __init__(self, credential: AsyncTokenCredential, settings: AksSettings) -> None:
        self._credential = credential
        self._settings = settings

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        try:
            return await self._credential.get_token(*scopes, **options)
        except (ValueError, OSError, AzureError) as error:
            raise NoToken(_refusal(self._settings, str(error), error)) from error

    async def close(self) -> None:
        """It belongs to somebody else."""

    async def __aenter__(self) -> TellingCredential:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        return None


@asynccontextmanager
async def open_credential(settings: AksSettings) -> AsyncIterator[AsyncTokenCredential]:
    """The credential that *settings* ask for, closed at the end. Raises ``Unauthorized`` if it yields no token."""
    try:
        credential = _credential(settings)
    except (ValueError, AzureError) as error:
        raise _refusal(settings, str(error), error) from error
    async with credential:
        try:
            async with asyncio.timeout(_PATIENCE):
                await TellingCredential(credential, settings).get_token(settings.scope)
        except TimeoutError as error:
            raise _refusal(settings, f"no answer within {_PATIENCE:.0f} s", error) from error
        except NoToken as error:
            raise error.told from error
        yield credential


def _next_step(message: str, mode: IdentityMode) -> str:
    for code in _CODE.findall(message):
        if code in _BY_CODE:
            return _BY_CODE[code]
    return _BY_MODE[mode]


def _refusal(settings: AksSettings, message: str, cause: Exception) -> Unauthorized:
    fix = _next_step(message, settings.identity)
    if isinstance(cause, ServiceRequestError | ServiceResponseError | TimeoutError):
        fix = f"check that the pod reaches {settings.authority} (egress rules, proxy), and trusts it (AZURE_CA_BUNDLE)"
    return Unauthorized(
        f"no token from the {settings.identity} identity for {settings.scope}: {' '.join(message.split())[:600]}",
        fix=fix,
    )


def _credential(settings: AksSettings) -> AsyncTokenCredential:
    options: dict[str, Any] = {}
    if settings.ca_bundle:
        options["connection_verify"] = settings.ca_bundle
    match settings.identity:
        case "workload":
            return WorkloadIdentityCredential(
                tenant_id=settings.tenant,
                client_id=settings.client,
                token_file_path=settings.token_file,
                authority=settings.authority,
                **options,
            )
        case "managed":
            return ManagedIdentityCredential(client_id=settings.client or None, **options)
        case "environment":
            return EnvironmentCredential(authority=settings.authority, **options)
        case "cli":
            return AzureCliCredential(tenant_id=settings.tenant)
        case "default":
            # It reads the environment by itself; settings may come from elsewhere.
            if settings.client:
                options |= {"managed_identity_client_id": settings.client}
            if settings.tenant:
                options |= {"workload_identity_tenant_id": settings.tenant}
            return DefaultAzureCredential(authority=settings.authority, **options)
