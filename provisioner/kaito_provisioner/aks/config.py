"""Which managed cluster is served, in which Azure cloud, and who we are there: read from the environment, all at once.

The variables are those of gpu-provisioner and of the Azure SDK, so that its Deployments and the workload identity
webhook work unchanged. Whoever has flags too lays their values over the environment's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

__all__ = ["AksSettings", "AzureCloud", "IdentityMode", "SettingsError"]

AzureCloud = Literal["public", "china", "usgov"]
IdentityMode = Literal["workload", "managed", "environment", "cli", "default"]

_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_GROUP = re.compile(r"[-\w.()]{0,89}[-\w()]")
_CLUSTER = re.compile(r"[a-zA-Z0-9](?:[-_a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
_SUBNET = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.Network/virtualNetworks/[^/]+/subnets/[^/]+",
    re.IGNORECASE,
)
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
_OLDEST = "2024-09-01"
"""The first with preconditions on agent pools: change log of azure-mgmt-containerservice 33.0.0."""


@dataclass(frozen=True, slots=True)
class _Endpoints:
    arm: str
    authority: str
    scope: str


_CLOUDS: Mapping[AzureCloud, _Endpoints] = {
    "public": _Endpoints(
        "https://management.azure.com",
        "https://login.microsoftonline.com",
        "https://management.azure.com/.default",
    ),
    "china": _Endpoints(
        "https://management.chinacloudapi.cn",
        "https://login.chinacloudapi.cn",
        "https://management.chinacloudapi.cn/.default",
    ),
    "usgov": _Endpoints(
        "https://management.usgovcloudapi.net",
        "https://login.microsoftonline.us",
        "https://management.core.usgovcloudapi.net/.default",
    ),
}
_CLOUD_NAMES: Mapping[str, AzureCloud] = {
    "public": "public",
    "azurecloud": "public",
    "azurepublic": "public",
    "azurepubliccloud": "public",
    "china": "china",
    "azurechina": "china",
    "azurechinacloud": "china",
    "usgov": "usgov",
    "azuregovernment": "usgov",
    "azureusgovernment": "usgov",
    "azureusgovernmentcloud": "usgov",
}
"""As the Azure CLI, the SDKs and Azure's cloud-provider files name them."""
_CREDENTIALS: Mapping[str, IdentityMode] = {
    "prod": "default",
    "dev": "default",
    "environmentcredential": "environment",
    "workloadidentitycredential": "workload",
    "managedidentitycredential": "managed",
    "azureclicredential": "cli",
}
"""What ``AZURE_TOKEN_CREDENTIALS`` may say."""


class SettingsError(ValueError):
    """Settings are missing or malformed: ``problems`` names each, and says how to mend it."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("the aks provisioner cannot start:\n" + "\n".join(f"  - {each}" for each in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class AksSettings:
    """One managed cluster, and how to reach and enter its cloud. Built by :meth:`from_env`."""

    subscription: str
    resource_group: str
    """The managed cluster's own, not the one that its nodes are in."""
    cluster: str
    location: str = ""
    """The cluster's region; empty: not known, so zones are spelled without it."""
    cloud: AzureCloud = "public"
    endpoint: str = _CLOUDS["public"].arm
    """The Resource Manager's URL, without a slash at its end."""
    authority: str = _CLOUDS["public"].authority
    """The URL of who gives tokens, without a slash at its end."""
    scope: str = _CLOUDS["public"].scope
    """What tokens are asked for."""
    ca_bundle: str = ""
    """A PEM file of the authorities to trust instead of the system's."""
    identity: IdentityMode = "default"
    tenant: str = ""
    client: str = ""
    token_file: str = ""
    subnet: str = ""
    """The id of the subnet for nodes; empty: the service's choice."""
    api_version: str = ""
    """The agent-pool API's; empty: the SDK's."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> AksSettings:
        """What *env* says. Raises :class:`SettingsError` with everything that is wrong with it.

        ============================================ =================================================================
        ``ARM_SUBSCRIPTION_ID``                      the subscription; ``AZURE_SUBSCRIPTION_ID`` will do
        ``ARM_RESOURCE_GROUP``                       the managed cluster's resource group
        ``AZURE_CLUSTER_NAME``                       the managed cluster
        ``LOCATION``                                 its region, e.g. ``eastus``
        ``AZURE_CLOUD``                              ``public``, ``china`` or ``usgov``; ``AZURE_ENVIRONMENT`` will do
        ``AZURE_RESOURCE_MANAGER_ENDPOINT``          another Resource Manager than the cloud's
        ``AZURE_AUTHORITY_HOST``                     another giver of tokens than the cloud's
        ``AZURE_CA_BUNDLE``                          a PEM file; ``REQUESTS_CA_BUNDLE`` and ``SSL_CERT_FILE`` will do
        ``AZURE_IDENTITY``                           ``workload``, ``managed``, ``environment``, ``cli``, ``default``
        ``AZURE_TOKEN_CREDENTIALS``                  the same in the Azure SDK's words
        ``AZURE_TENANT_ID``, ``AZURE_CLIENT_ID``     who we are
        ``AZURE_FEDERATED_TOKEN_FILE``               the token that Kubernetes vouches for us with
        ``VNET_SUBNET_ID``                           the subnet for nodes
        ``AZURE_API_VERSION``                        the version of the agent-pool API
        ============================================ =================================================================
        """
        return _Reader(env).settings()


class _Reader:
    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._problems: list[str] = []

    def settings(self) -> AksSettings:
        subscription = self._required(
            ("ARM_SUBSCRIPTION_ID", "AZURE_SUBSCRIPTION_ID"),
            _GUID,
            "the subscription's id",
            "az account show --query id",
        )
        group = self._required(
            ("ARM_RESOURCE_GROUP",), _GROUP, "the managed cluster's resource group", "az aks list --output table"
        )
        cluster = self._required(
            ("AZURE_CLUSTER_NAME",), _CLUSTER, "the managed cluster's name", "az aks list --output table"
        )
        cloud = self._cloud()
        endpoints = _CLOUDS[cloud]
        identity = self._identity()
        settings = AksSettings(
            subscription=subscription,
            resource_group=group,
            cluster=cluster,
            # Regions are written both ways ("East US"); zone labels have this one.
            location=self._first("LOCATION").replace(" ", "").lower(),
            cloud=cloud,
            endpoint=self._url("AZURE_RESOURCE_MANAGER_ENDPOINT") or endpoints.arm,
            authority=self._url("AZURE_AUTHORITY_HOST") or endpoints.authority,
            scope=endpoints.scope,
            ca_bundle=self._file("AZURE_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"),
            identity=identity,
            tenant=self._first("AZURE_TENANT_ID"),
            client=self._first("AZURE_CLIENT_ID"),
            token_file=self._first("AZURE_FEDERATED_TOKEN_FILE"),
            subnet=self._optional(
                "VNET_SUBNET_ID", _SUBNET, "a subnet's resource id (/subscriptions/.../subnets/NAME)"
            ),
            api_version=self._optional("AZURE_API_VERSION", _VERSION, "a version such as 2026-08-01"),
        )
        if settings.api_version and settings.api_version < _OLDEST:
            self._problems.append(
                f"AZURE_API_VERSION is {settings.api_version}: use {_OLDEST} or a later one, for older ones know no "
                "If-None-Match, and a pool that there is could be overwritten"
            )
        if identity == "workload":
            self._check_workload(settings)
        if self._problems:
            raise SettingsError(tuple(self._problems))
        return settings

    def _first(self, *names: str) -> str:
        return next((value for name in names if (value := self._env.get(name, "").strip())), "")

    def _required(self, names: tuple[str, ...], pattern: re.Pattern[str], what: str, command: str) -> str:
        value = self._first(*names)
        if not value:
            self._problems.append(f"{names[0]} is not set: give it {what} ({command})")
        elif pattern.fullmatch(value) is None:
            self._problems.append(f"{names[0]} is {value!r}, which cannot be {what} ({command})")
        return value

    def _optional(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        value = self._first(name)
        if value and pattern.fullmatch(value) is None:
            self._problems.append(f"{name} is {value!r}: give it {what}, or leave it out")
        return value

    def _cloud(self) -> AzureCloud:
        name = self._first("AZURE_CLOUD", "AZURE_ENVIRONMENT")
        if not name:
            return "public"
        cloud = _CLOUD_NAMES.get(name.lower().replace("_", ""))
        if cloud is None:
            self._problems.append(f"AZURE_CLOUD is {name!r}: use one of {', '.join(get_args(AzureCloud))}")
            return "public"
        return cloud

    def _url(self, name: str) -> str:
        value = self._first(name)
        if not value:
            return ""
        try:
            parts = urlsplit(value)
            fit = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            fit = False
        if not fit or parts.query or parts.fragment or parts.username is not None:
            # A token goes there: never over plain HTTP.
            self._problems.append(f"{name} is {value!r}: give it an https:// URL without a query, or leave it out")
        return value.rstrip("/")

    def _file(self, *names: str) -> str:
        for name in names:
            value = self._first(name)
            if value and not Path(value).is_file():
                self._problems.append(f"{name} is {value!r}, which is no file: mount the PEM bundle there, or unset it")
            if value:
                return value
        return ""

    def _identity(self) -> IdentityMode:
        chosen = self._first("AZURE_IDENTITY").lower()
        if chosen:
            for mode in get_args(IdentityMode):
                if chosen == mode:
                    return mode  # type: ignore[no-any-return]
            self._problems.append(f"AZURE_IDENTITY is {chosen!r}: use one of {', '.join(get_args(IdentityMode))}")
            return "default"
        named = self._first("AZURE_TOKEN_CREDENTIALS")
        if named:
            return _CREDENTIALS.get(named.lower(), "default")
        if self._first("DEPLOYMENT_MODE").lower() == "managed":
            return "default"  # as gpu-provisioner reads it
        if self._first("AZURE_FEDERATED_TOKEN_FILE"):
            return "workload"
        if self._first("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH"):
            return "environment"
        return "default"

    def _check_workload(self, settings: AksSettings) -> None:
        hint = (
            "label the pod azure.workload.identity/use=true and annotate its ServiceAccount "
            "azure.workload.identity/client-id, so that the workload identity webhook sets it"
        )
        for name, value in (
            ("AZURE_TENANT_ID", settings.tenant),
            ("AZURE_CLIENT_ID", settings.client),
            ("AZURE_FEDERATED_TOKEN_FILE", settings.token_file),
        ):
            if not value:
                self._problems.append(f"{name} is not set, which workload identity needs: {hint}")
        if settings.token_file and not Path(settings.token_file).is_file():
            self._problems.append(f"AZURE_FEDERATED_TOKEN_FILE is {settings.token_file!r}, which is no file: {hint}")
