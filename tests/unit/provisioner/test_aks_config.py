"""What the environment says about the cluster and us, and what is said about it when it is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

import pytest

from kaito_provisioner.aks import AksSettings, SettingsError

GOOD = {
    "ARM_SUBSCRIPTION_ID": "00000000-0000-0000-0000-000000000001",
    "ARM_RESOURCE_GROUP": "my-group",
    "AZURE_CLUSTER_NAME": "my-cluster",
}


def problems(**env: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as error:
        AksSettings.from_env({**GOOD, **env})
    return error.value.problems


def test_three_variables_are_enough() -> None:
    settings = AksSettings.from_env(GOOD)
    assert settings.subscription == GOOD["ARM_SUBSCRIPTION_ID"]
    assert (settings.resource_group, settings.cluster) == ("my-group", "my-cluster")
    assert settings.endpoint == "https://management.azure.com"
    assert settings.authority == "https://login.microsoftonline.com"
    assert settings.identity == "default"


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        AksSettings.from_env({
            "ARM_SUBSCRIPTION_ID": "my subscription",
            "AZURE_CLOUD": "moon",
            "AZURE_RESOURCE_MANAGER_ENDPOINT": "http://127.0.0.1:8443",
            "AZURE_CA_BUNDLE": "/no/such/file",
            "AZURE_IDENTITY": "passport",
            "VNET_SUBNET_ID": "my-subnet",
        })  # fmt: skip
    named = [each.split()[0] for each in error.value.problems]
    assert named == [
        "ARM_SUBSCRIPTION_ID",
        "ARM_RESOURCE_GROUP",
        "AZURE_CLUSTER_NAME",
        "AZURE_CLOUD",
        "AZURE_IDENTITY",
        "AZURE_RESOURCE_MANAGER_ENDPOINT",
        "AZURE_CA_BUNDLE",
        "VNET_SUBNET_ID",
    ]
    for problem in error.value.problems:
        assert problem in str(error.value)


def test_the_sdks_name_of_the_subscription_will_do() -> None:
    env = {**GOOD, "AZURE_SUBSCRIPTION_ID": "00000000-0000-0000-0000-000000000002"}
    assert AksSettings.from_env(env).subscription.endswith("1")
    del env["ARM_SUBSCRIPTION_ID"]
    assert AksSettings.from_env(env).subscription.endswith("2")


@pytest.mark.parametrize(
    ("name", "endpoint", "authority", "scope"),
    [
        ("china", "management.chinacloudapi.cn", "login.chinacloudapi.cn", "management.chinacloudapi.cn"),
        (
            "AzureUSGovernmentCloud",
            "management.usgovcloudapi.net",
            "login.microsoftonline.us",
            "management.core.usgovcloudapi.net",
        ),
        ("AZURE_PUBLIC_CLOUD", "management.azure.com", "login.microsoftonline.com", "management.azure.com"),
    ],
)
def test_each_cloud_has_its_own_endpoints(name: str, endpoint: str, authority: str, scope: str) -> None:
    settings = AksSettings.from_env({**GOOD, "AZURE_CLOUD": name})
    assert settings.endpoint == f"https://{endpoint}"
    assert settings.authority == f"https://{authority}"
    assert settings.scope == f"https://{scope}/.default"


def test_endpoints_of_ones_own_replace_the_clouds() -> None:
    settings = AksSettings.from_env({
        **GOOD,
        "AZURE_RESOURCE_MANAGER_ENDPOINT": "https://127.0.0.1:8443/",
        "AZURE_AUTHORITY_HOST": "https://127.0.0.1:8443/",
    })  # fmt: skip
    assert settings.endpoint == settings.authority == "https://127.0.0.1:8443"


@pytest.mark.parametrize("url", ["http://arm.example", "https://arm.example/?a=b", "https://", "https://a:port", "arm"])
def test_a_token_is_only_ever_sent_over_tls(url: str) -> None:
    assert problems(AZURE_RESOURCE_MANAGER_ENDPOINT=url)[0].startswith("AZURE_RESOURCE_MANAGER_ENDPOINT is")


def test_an_api_without_preconditions_is_refused() -> None:
    assert "overwritten" in problems(AZURE_API_VERSION="2024-01-01")[0]
    assert "2026-08-01" in problems(AZURE_API_VERSION="latest")[0]
    assert AksSettings.from_env({**GOOD, "AZURE_API_VERSION": "2024-09-01"}).api_version == "2024-09-01"


def test_a_region_is_read_in_either_spelling() -> None:
    assert AksSettings.from_env({**GOOD, "LOCATION": "East US"}).location == "eastus"


@pytest.mark.parametrize(
    ("env", "mode"),
    [
        ({"AZURE_IDENTITY": "managed", "AZURE_CLIENT_SECRET": "x"}, "managed"),
        ({"AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential"}, "managed"),
        ({"AZURE_TOKEN_CREDENTIALS": "AzureCliCredential"}, "cli"),
        ({"AZURE_TOKEN_CREDENTIALS": "prod"}, "default"),
        ({"DEPLOYMENT_MODE": "managed", "AZURE_FEDERATED_TOKEN_FILE": "/some/file"}, "default"),
        ({"AZURE_CLIENT_SECRET": "x"}, "environment"),
        ({}, "default"),
    ],
)
def test_the_identity_is_the_one_that_is_named_or_else_the_one_that_is_set_up(env: dict[str, str], mode: str) -> None:
    assert AksSettings.from_env({**GOOD, **env}).identity == mode


def test_a_pod_with_workload_identity_needs_no_further_word(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    env = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_FEDERATED_TOKEN_FILE": str(token)}
    assert AksSettings.from_env({**GOOD, **env}).identity == "workload"


def test_workload_identity_that_was_not_injected_is_explained() -> None:
    found = problems(AZURE_IDENTITY="workload", AZURE_FEDERATED_TOKEN_FILE="/no/such/token")
    assert [each.split()[0] for each in found] == ["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"]
    assert all("azure.workload.identity/use=true" in each for each in found)


def test_the_package_loads_without_the_azure_sdk_and_says_what_is_missing_when_it_is_needed() -> None:
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("azure", "msal"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
import kaito_provisioner
from kaito_provisioner.aks import AksSettings
try:
    from kaito_provisioner.aks import connect_aks
except ModuleNotFoundError as error:
    print(error)
"""
    done = run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'kaito-ctrl[aks]'" in done.stdout
    loaded = "import sys, kaito_provisioner.aks; print([m for m in sys.modules if m.split('.')[0] == 'azure'])"
    assert run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.strip() == "[]"
