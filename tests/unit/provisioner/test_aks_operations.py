"""Operations as texts: they survive a restart, and they lead nowhere else."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from kaito_provisioner.aks.operations import Operation, Site

ARM = "https://management.azure.com"
POOLS = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters/c/agentPools"
SITE = Site(ARM, POOLS)
STATUS = f"{ARM}/subscriptions/s/providers/Microsoft.ContainerService/locations/eastus/operations/o?api-version=1"


def token(**changes: Any) -> dict[str, Any]:
    """What the SDK's continuation token holds."""
    pool = {"name": "ws1", "properties": {"provisioningState": "Creating"}}
    data = {
        "request": {"method": "PUT", "url": f"{ARM}{POOLS}/ws1?api-version=1", "headers": {}},
        "response": {
            "status_code": 201,
            "headers": {"Azure-AsyncOperation": STATUS},
            "content": base64.b64encode(json.dumps(pool).encode()).decode(),
        },
        "context": {"deserialized_data": pool},
    }
    return {"version": 1, "data": {**data, **changes}}


def packed(content: object) -> str:
    return Operation("create", base64.b64encode(json.dumps(content).encode()).decode()).pack()


def test_an_operation_comes_back_as_it_was_packed() -> None:
    text = packed(token())
    found = Operation.open(text, "ws1", SITE)
    assert found is not None
    assert found.doing == "create"
    assert json.loads(base64.b64decode(found.token)) == token()
    assert found.pool is not None
    assert found.pool.provisioning_state == "Creating"
    assert found.pack() == text


def test_a_deletion_is_told_from_a_creation() -> None:
    text = packed(
        token(
            request={"method": "DELETE", "url": f"{ARM}{POOLS}/ws1?x"},
            response={"headers": {"location": STATUS}, "content": ""},
        )
    )
    found = Operation.open(text, "ws1", SITE)
    assert found is not None
    assert (found.doing, found.pool) == ("delete", None)


def test_it_is_small_enough_for_an_annotation_or_not_kept_at_all() -> None:
    huge = {str(n): f"{n * 7919:x}" for n in range(2000)}
    assert packed(token(context=huge)) == ""


def _request(**changes: str) -> dict[str, Any]:
    return {"request": {**token()["data"]["request"], **changes}}


def _headers(**headers: str) -> dict[str, Any]:
    return {"response": {**token()["data"]["response"], "headers": headers}}


@pytest.mark.parametrize(
    "changes",
    [
        _request(url=f"https://evil.example{POOLS}/ws1"),
        _request(url=f"https://management.azure.com.evil.example{POOLS}/ws1"),
        _request(url=f"https://evil@management.azure.com:444{POOLS}/ws1"),
        _request(url=f"http://management.azure.com{POOLS}/ws1"),
        _request(url=f"{ARM}{POOLS}/ws2"),
        _request(url=f"{ARM}{POOLS}/ws1/abort"),
        _request(url=f"{ARM}{POOLS.replace('/c/', '/other/')}/ws1"),
        _request(url="https://[::1"),
        _request(method="POST"),
        _headers(**{"Azure-AsyncOperation": "https://evil.example/o"}),
        _headers(**{"azure-asyncoperation": STATUS, "LOCATION": "https://evil.example/o"}),
        _headers(**{"Operation-Location": "http://management.azure.com/o"}),
        {"request": None},
        {"response": "none"},
        {"response": {"headers": {}, "content": "bm8="}},
    ],
)
def test_what_leads_elsewhere_is_no_operation_of_ours(changes: dict[str, Any]) -> None:
    assert Operation.open(packed(token(**changes)), "ws1", SITE) is None


def _cut(text: str) -> str:
    return text[:-8]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: "garbage",
        lambda text: f"aks1:{base64.b64encode(b'garbage').decode()}",
        lambda text: "aks1:§§§",
        lambda text: text.removeprefix("aks1:"),
        _cut,
        lambda text: f"aks1:{base64.b64encode(zlib.compress(b'[' * 60_000, 9)).decode()}",
        lambda text: f"aks1:{base64.b64encode(zlib.compress(b' ' * 10_000_000, 9)).decode()}",
        lambda text: f"aks1:{base64.b64encode(zlib.compress(b'[]', 9)).decode()}",
    ],
)
def test_garbage_is_ignored(spoil: Callable[[str], str]) -> None:
    assert Operation.open(spoil(packed(token())), "ws1", SITE) is None


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        (f"{ARM}/x", True),
        ("https://MANAGEMENT.azure.com:443/x", True),
        ("https://eastus.management.azure.com/x", True),
        ("https://management.azure.com:8443/x", False),
        ("https://notmanagement.azure.com/x", False),
        ("https://azure.com/x", False),
        ("/x", False),
        ("", False),
    ],
)
def test_only_our_resource_manager_is_trusted_with_a_token(url: str, trusted: bool) -> None:
    assert SITE.trusts(url) is trusted
