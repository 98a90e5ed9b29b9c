"""Credentials that expire: plugins are asked again in time, and again when the server refuses."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_api.core import ConfigMap
from kaito_ctrl.devcluster.apiserver import ApiServer, Endpoint, serve
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.connect import connect
from kaito_ctrl.runtime.errors import TransportError, Unauthorized

PLUGIN = """#!{python}
import json, pathlib
here = pathlib.Path({folder!r})
with (here / "calls").open("a") as calls:
    calls.write("x")
print((here / "credential").read_text())
"""


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class Plugin:
    """An exec plugin of a kubeconfig: hands out what :meth:`give` was last told, and counts its calls."""

    folder: Path

    def install(self) -> dict[str, Any]:
        path = self.folder / "plugin"
        path.write_text(PLUGIN.format(python=sys.executable, folder=str(self.folder)))
        path.chmod(0o755)
        return {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(path),
            "interactiveMode": "Never",
        }

    def give(self, token: str, *, expires: datetime | None = None) -> None:
        status: dict[str, Any] = {"token": token}
        if expires is not None:
            status["expirationTimestamp"] = expires.strftime("%Y-%m-%dT%H:%M:%SZ")
        credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
        fresh = self.folder / "fresh"
        fresh.write_text(json.dumps(credential))
        fresh.replace(self.folder / "credential")

    def fail(self) -> None:
        (self.folder / "credential").unlink()

    @property
    def calls(self) -> int:
        path = self.folder / "calls"
        return len(path.read_text()) if path.exists() else 0


def kubeconfig(folder: Path, endpoint: Endpoint, user: dict[str, Any], **cluster: Any) -> str:
    config = endpoint.kubeconfig()
    config["users"][0]["user"] = user
    config["clusters"][0]["cluster"].update(cluster)
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


async def test_a_token_is_renewed_before_it_expires(server: ApiServer, plugin: Plugin, tmp_path: Path) -> None:
    clock = ManualClock()
    async with serve(server, token="second") as endpoint:
        plugin.give("first", expires=clock.now() + timedelta(hours=1))
        transport = await connect(kubeconfig=kubeconfig(tmp_path, endpoint, {"exec": plugin.install()}), clock=clock)
        plugin.give("second", expires=clock.now() + timedelta(hours=2))
        clock.forward(3590)
        await asyncio.gather(*(Client(transport).list(ConfigMap) for _ in range(5)))
        assert plugin.calls == 2
        await Client(transport).list(ConfigMap)
        assert plugin.calls == 2
        await transport.aclose()


async def test_a_refused_token_is_renewed_once_and_the_request_repeated(
    server: ApiServer, plugin: Plugin, tmp_path: Path
) -> None:
    clock = ManualClock()
    async with serve(server, token="second") as endpoint:
        plugin.give("first")
        transport = await connect(kubeconfig=kubeconfig(tmp_path, endpoint, {"exec": plugin.install()}), clock=clock)
        plugin.give("second")
        await asyncio.gather(*(Client(transport).list(ConfigMap) for _ in range(5)))
        assert plugin.calls == 2
        await transport.aclose()


async def test_a_token_that_stays_wrong_is_an_error_and_no_storm_of_plugin_calls(
    server: ApiServer, plugin: Plugin, tmp_path: Path
) -> None:
    clock = ManualClock()
    async with serve(server, token="right") as endpoint:
        plugin.give("wrong")
        transport = await connect(kubeconfig=kubeconfig(tmp_path, endpoint, {"exec": plugin.install()}), clock=clock)
        for _ in range(5):
            with pytest.raises(Unauthorized):
                await Client(transport).list(ConfigMap)
        assert plugin.calls == 2
        plugin.give("right")
        clock.forward(60)
        await Client(transport).list(ConfigMap)
        await transport.aclose()


async def test_a_token_that_was_replaced_in_the_kubeconfig_is_found(server: ApiServer, tmp_path: Path) -> None:
    async with serve(server, token="second") as endpoint:
        path = kubeconfig(tmp_path, endpoint, {"token": "first"})
        transport = await connect(kubeconfig=path, clock=ManualClock())
        kubeconfig(tmp_path, endpoint, {"token": "second"})
        await Client(transport).list(ConfigMap)
        await transport.aclose()


async def test_a_plugin_that_fails_is_a_transport_error(server: ApiServer, plugin: Plugin, tmp_path: Path) -> None:
    clock = ManualClock()
    async with serve(server, token="second") as endpoint:
        plugin.give("first", expires=clock.now() + timedelta(hours=1))
        transport = await connect(kubeconfig=kubeconfig(tmp_path, endpoint, {"exec": plugin.install()}), clock=clock)
        plugin.fail()
        clock.forward(3700)
        with pytest.raises(TransportError, match="credentials"):
            await Client(transport).list(ConfigMap)
        plugin.give("second")
        clock.forward(60)
        await Client(transport).list(ConfigMap)
        await transport.aclose()


@pytest.mark.parametrize(
    ("name", "works"), [("127.0.0.1", lambda error: not error), ("wrong.example", lambda error: bool(error))]
)
async def test_the_servers_certificate_is_checked_for_the_name_that_the_kubeconfig_gives(
    server: ApiServer, tmp_path: Path, name: str, works: Callable[[list[str]], bool]
) -> None:
    async with serve(server, token="t") as endpoint:
        path = kubeconfig(tmp_path, endpoint, {"token": "t"}, **{"tls-server-name": name})
        transport = await connect(kubeconfig=path)
        errors: list[str] = []
        try:
            await Client(transport).list(ConfigMap)
        except TransportError as error:
            errors.append(str(error))
        assert works(errors)
        await transport.aclose()
