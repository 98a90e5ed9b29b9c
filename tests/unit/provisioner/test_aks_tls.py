"""The whole way over TLS: who we are, the wire, and what is left open at the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from kaito_ctrl.runtime.clock import SystemClock
from kaito_provisioner.aks import AksSettings, connect_aks
from kaito_provisioner.cloud import ClaimRef, LaunchRequest, NotFound, Offering, Unauthorized, Unavailable
from kaito_provisioner.testing import LocalArm, Timings

OFFERING = Offering("Standard_NC6s_v3")
REQUEST = LaunchRequest("ws1", "uid-1", (OFFERING.instance_type,), (OFFERING,))


class Hurried(SystemClock):
    """Sets the backend's clock forward: what it would wait for by then is there in a moment."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@pytest.fixture
async def arm() -> AsyncIterator[LocalArm]:
    async with LocalArm(serve=True, timings=Timings().scaled(0.001)) as arm:
        arm.throttles.enabled = False
        yield arm


def settings(arm: LocalArm, monkeypatch: pytest.MonkeyPatch, identity: str = "workload") -> AksSettings:
    env = arm.environment("workload" if identity == "workload" else "managed")
    for name, value in env.items():
        # The SDK's own readers of the environment have no other.
        monkeypatch.setenv(name, value)
    return AksSettings.from_env({**os.environ, **env})


@pytest.mark.parametrize("identity", ["workload", "managed"])
async def test_a_pool_is_made_and_deleted(arm: LocalArm, monkeypatch: pytest.MonkeyPatch, identity: str) -> None:
    found = settings(arm, monkeypatch, identity)
    assert found.identity == identity
    clock = Hurried()
    async with connect_aks(found, clock=clock) as cloud:
        instance = await cloud.create(REQUEST)
        assert instance.state == "Creating"
        assert arm.requests.counts["token"] == 1
        while (instance := await cloud.find(ClaimRef("ws1", "uid-1"))).state != "Running":
            clock.ahead += 10
        with suppress(NotFound):
            while instance := await cloud.delete(instance):
                clock.ahead += 10
    assert not arm.pools()


async def test_a_process_that_follows_goes_on_with_the_operation(
    arm: LocalArm, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm.capacity.limit(OFFERING.instance_type, 0)
    found = replace(settings(arm, monkeypatch), api_version="2024-09-01")
    async with connect_aks(found, clock=SystemClock()) as cloud:
        operation = (await cloud.create(REQUEST)).operation
    clock = Hurried()
    async with connect_aks(found, clock=clock) as cloud:
        while (instance := await cloud.find(ClaimRef("ws1", "uid-1", operation=operation))).state == "Creating":
            clock.ahead += 10
    assert instance.error is not None
    assert instance.error.reason == "InsufficientCapacity"


@pytest.mark.parametrize(
    ("claims", "hint"),
    [
        ({"subject": "system:serviceaccount:default:default"}, "subject must be system:serviceaccount:NAMESPACE:NAME"),
        ({"audience": "https://kubernetes.default.svc"}, "audience must be api://AzureADTokenExchange"),
        ({"issuer": "https://elsewhere"}, "issuer is not this cluster's"),
    ],
)
async def test_a_federated_credential_that_does_not_fit_is_said_at_the_start(
    arm: LocalArm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims: dict[str, str], hint: str
) -> None:
    token = tmp_path / "token"
    token.write_text(arm.issuer.assertion(**claims))
    found = replace(settings(arm, monkeypatch), token_file=str(token))
    with pytest.raises(Unauthorized) as error:
        async with connect_aks(found, clock=SystemClock()):
            pass
    assert hint in error.value.fix
    assert "AADSTS" in error.value.message
    assert "\n" not in error.value.message


async def test_an_unknown_client_and_tenant_are_told_apart(arm: LocalArm, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(arm, monkeypatch)
    for wrong, hint in (
        (replace(found, client="44444444-4444-4444-4444-444444444444"), "AZURE_CLIENT_ID"),
        (replace(found, tenant="44444444-4444-4444-4444-444444444444"), "AZURE_TENANT_ID"),
    ):
        with pytest.raises(Unauthorized) as error:
            async with connect_aks(wrong, clock=SystemClock()):
                pass
        assert hint in error.value.fix


async def test_an_identity_that_is_not_set_up_is_said_at_the_start(
    arm: LocalArm, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settings(arm, monkeypatch)
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unauthorized) as error:
        async with connect_aks(replace(found, identity="environment"), clock=SystemClock()):
            pass
    assert "AZURE_CLIENT_SECRET" in error.value.fix


async def test_a_certificate_that_nobody_vouches_for_is_refused(arm: LocalArm, monkeypatch: pytest.MonkeyPatch) -> None:
    found = replace(settings(arm, monkeypatch), ca_bundle="")
    async with connect_aks(found, clock=SystemClock(), credential=arm.credential()) as cloud:
        with pytest.raises(Unavailable) as error:
            await cloud.create(REQUEST)
    assert "certificate" in error.value.message.lower()
    assert not arm.requests.counts["put"]


async def test_an_identity_that_is_taken_away_later_is_said_as_plainly_and_leaves_nothing_in_doubt(
    arm: LocalArm, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm.issuer.lifetime = timedelta(0)  # every request needs a new one
    async with connect_aks(settings(arm, monkeypatch), clock=SystemClock()) as cloud:
        arm.issuer.identity = replace(arm.issuer.identity, subject="system:serviceaccount:other:other")
        with pytest.raises(Unauthorized) as error:
            await cloud.create(REQUEST)
    assert "AADSTS700213" in error.value.message
    assert "subject" in error.value.fix
    assert not error.value.ambiguous


async def test_a_token_endpoint_that_cannot_be_reached_is_a_matter_of_the_network(
    arm: LocalArm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    nowhere = replace(settings(arm, monkeypatch), authority="https://127.0.0.1:1")
    with pytest.raises(Unauthorized) as error:
        async with connect_aks(nowhere, clock=SystemClock()):
            pass
    assert "reaches https://127.0.0.1:1" in error.value.fix


async def test_a_token_that_is_no_good_any_more_is_replaced(arm: LocalArm, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect_aks(settings(arm, monkeypatch), clock=SystemClock(), credential=arm.credential()) as cloud:
        await cloud.list()
        arm.issuer.revoke()
        with pytest.raises(Unauthorized):
            await cloud.list()
        assert await cloud.list() == ()
