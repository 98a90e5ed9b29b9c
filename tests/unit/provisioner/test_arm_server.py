"""The local ARM over TLS on loopback: the SDK's own transport, and its own ways to a token."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from armworld import GPU, Azure
from azure.core.exceptions import ClientAuthenticationError, ResourceNotFoundError, ServiceRequestError
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential, WorkloadIdentityCredential
from azure.mgmt.containerservice.aio import ContainerServiceClient

from kaito_provisioner.testing import LocalArm, Timings

FAST = Timings().scaled(0.0005)
SCOPE = "https://management.azure.com/.default"


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[Azure]:
    async with LocalArm(serve=True, timings=FAST, **options) as arm, arm.client(polling_interval=0) as client:
        yield Azure(arm, client)


def workload(arm: LocalArm, **changes: Any) -> WorkloadIdentityCredential:
    given = {
        "tenant_id": arm.issuer.identity.tenant,
        "client_id": arm.issuer.identity.client_id,
        "token_file_path": str(arm.token_file),
        "authority": arm.base_url,
        "connection_verify": str(arm.ca_file),
    }
    return WorkloadIdentityCredential(**{**given, **changes})


async def test_a_pool_is_made_and_deleted_over_tls() -> None:
    async with served() as azure:
        pool = await azure.make(tags={"a": "b"})
        assert pool.properties is not None
        assert (pool.properties.provisioning_state, pool.properties.tags) == ("Succeeded", {"a": "b"})
        assert await azure.names() == ["system", "ws1"]
        azure.arm.api.page_size = 1
        assert await azure.names() == ["system", "ws1"]
        await azure.delete()
        with pytest.raises(ResourceNotFoundError):
            await azure.get()


async def test_only_those_who_trust_its_authority_talk_to_it() -> None:
    async with served() as azure:
        client = azure.arm.client(connection_verify=True)
        async with client:
            with pytest.raises(ServiceRequestError, match="certificate verify failed"):
                await client.agent_pools.get(*azure.where, "system", retry_total=0)
        assert azure.arm.ca_pem.startswith(b"-----BEGIN CERTIFICATE-----")
        ssl.create_default_context(cadata=azure.arm.ca_pem.decode())


async def test_the_answers_carry_azures_headers() -> None:
    async with served() as azure:
        seen: list[Any] = []
        await azure.pools.get(*azure.where, "system", raw_response_hook=lambda response: seen.append(response))
        headers = seen[0].http_response.headers
        for name in ("x-ms-request-id", "x-ms-correlation-request-id", "x-ms-routing-request-id"):
            assert headers[name]
        date = datetime.strptime(headers["Date"], "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - date) < timedelta(minutes=1)


@pytest.mark.parametrize("after", [True, False])
async def test_a_connection_can_be_lost(after: bool) -> None:
    async with served() as azure:
        azure.arm.faults.drop(on="put", after=after)
        with pytest.raises(ServiceRequestError):
            await azure.put(retry_total=0)
        assert set(azure.arm.pools()) == ({"ws1"} if after else set())


async def test_a_lost_put_is_sent_twice_by_aiohttp() -> None:
    async with served() as azure:
        azure.arm.faults.drop(on="put", after=True, resent=True)
        error = await azure.refused(azure.put(retry_total=0))
        assert "Creating) is in progress" in str(error.message)
        assert azure.arm.requests.counts["put"] == 2


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_workload_identity_gets_a_token_for_its_service_accounts() -> None:
    async with served() as azure, workload(azure.arm) as credential:
        options: dict[str, Any] = {"base_url": azure.arm.base_url, "connection_verify": str(azure.arm.ca_file)}
        async with ContainerServiceClient(credential, azure.arm.cluster.subscription, **options) as client:
            pool = await client.agent_pools.get(*azure.where, "system")
        assert pool.name == "system"
        assert azure.arm.requests.counts["token"] == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"subject": "system:serviceaccount:default:default"}, "AADSTS700213"),
        ({"issuer": "https://elsewhere"}, "AADSTS700211"),
        ({"audience": "https://kubernetes.default.svc"}, "AADSTS700212"),
        ({"expires": datetime(2020, 1, 1, tzinfo=UTC)}, "AADSTS700024"),
    ],
)
async def test_a_federated_token_has_to_be_the_right_one(changes: dict[str, Any], code: str) -> None:
    async with served() as azure, workload(azure.arm) as credential:
        assert azure.arm.token_file is not None
        azure.arm.token_file.write_text(azure.arm.issuer.assertion(**changes))
        with pytest.raises(ClientAuthenticationError, match=code):
            await credential.get_token(SCOPE)


async def test_a_federated_token_has_to_be_signed_by_the_clusters_issuer() -> None:
    async with served() as azure, LocalArm() as stranger, workload(azure.arm) as credential:
        assert azure.arm.token_file is not None
        azure.arm.token_file.write_text(stranger.issuer.assertion())
        with pytest.raises(ClientAuthenticationError, match="AADSTS50027"):
            await credential.get_token(SCOPE)


@pytest.mark.parametrize(
    ("changes", "code"), [({"client_id": "somebody"}, "AADSTS700016"), ({"tenant_id": "elsewhere"}, "AADSTS90002")]
)
async def test_tenant_and_client_have_to_be_known(changes: dict[str, str], code: str) -> None:
    async with served() as azure, workload(azure.arm, **changes) as credential:
        with pytest.raises(ClientAuthenticationError, match=code):
            await credential.get_token(SCOPE)


async def test_a_managed_identity_gets_its_token_on_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as azure:
        for name, value in azure.arm.environment("managed").items():
            monkeypatch.setenv(name, value)
        async with ManagedIdentityCredential(client_id=azure.arm.issuer.identity.client_id) as credential:
            options: dict[str, Any] = {"base_url": azure.arm.base_url, "connection_verify": str(azure.arm.ca_file)}
            async with ContainerServiceClient(credential, azure.arm.cluster.subscription, **options) as client:
                assert (await client.agent_pools.get(*azure.where, "system")).name == "system"
        monkeypatch.setenv("IDENTITY_HEADER", "guessed")
        async with ManagedIdentityCredential() as credential:
            with pytest.raises(ClientAuthenticationError):
                await credential.get_token(SCOPE)


async def test_the_environment_is_enough_for_the_sdks_default_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as azure:
        for name, value in azure.arm.environment().items():
            monkeypatch.setenv(name, value)
        async with DefaultAzureCredential(connection_verify=str(azure.arm.ca_file)) as credential:
            assert (await credential.get_token(SCOPE)).token


async def test_a_token_is_for_azures_resource_manager_and_ends() -> None:
    async with served() as azure:
        url = f"{azure.arm.base_url}{azure.arm.cluster.path}?api-version=2024-01-01"
        context = ssl.create_default_context(cadata=azure.arm.ca_pem.decode())

        async def code(token: str) -> str:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=context) as answer:
                assert "www-authenticate" in answer.headers
                return str((await answer.json())["error"]["code"])

        assert await code("") == "AuthenticationFailed"
        assert await code("made-up") == "InvalidAuthenticationToken"
        assert await code(azure.arm.issuer.issue("https://vault.azure.net")[0]) == "InvalidAuthenticationTokenAudience"
        azure.arm.issuer.lifetime = timedelta(0)
        assert await code(azure.arm.issuer.issue()[0]) == "ExpiredAuthenticationToken"


# -- the program -----------------------------------------------------------------------------------------------------


async def test_the_program_says_what_a_daemon_needs_and_ends_when_told(tmp_path: Path) -> None:
    file = tmp_path / "env"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kaito_provisioner.testing", "--boot", "0.01", "--env-file", str(file)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        said = {}
        while "AZURE_FEDERATED_TOKEN_FILE" not in said:
            line = (await process.stdout.readline()).decode()
            assert line.startswith("export "), line
            name, _, value = line.removeprefix("export ").strip().partition("=")
            said[name] = value
        assert file.read_text().splitlines() == [f"{name}={value}" for name, value in said.items()]
        options: dict[str, Any] = {"connection_verify": said["AZURE_CA_BUNDLE"]}
        async with (
            WorkloadIdentityCredential(
                tenant_id=said["AZURE_TENANT_ID"],
                client_id=said["AZURE_CLIENT_ID"],
                token_file_path=said["AZURE_FEDERATED_TOKEN_FILE"],
                authority=said["AZURE_AUTHORITY_HOST"],
                **options,
            ) as credential,
            ContainerServiceClient(
                credential,
                said["ARM_SUBSCRIPTION_ID"],
                base_url=said["AZURE_RESOURCE_MANAGER_ENDPOINT"],
                polling_interval=0,
                **options,
            ) as client,
        ):
            where = said["ARM_RESOURCE_GROUP"], said["AZURE_CLUSTER_NAME"]
            body: Any = {"properties": {"vmSize": GPU, "count": 1}}
            await (await client.agent_pools.begin_create_or_update(*where, "ws1", body)).result()
            assert (await client.agent_pools.get(*where, "ws1")).name == "ws1"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert not Path(said["AZURE_CA_BUNDLE"]).exists()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
