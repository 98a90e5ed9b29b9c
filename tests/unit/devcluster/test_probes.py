"""Probes against real listeners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest
from aiohttp import web

from kaito_api.core import Probe
from kaito_ctrl.devcluster.probes import Target, Threshold, check


def test_a_state_changes_after_so_many_equal_answers_in_a_row() -> None:
    threshold = Threshold(success=2, failure=3, state=False)
    assert [threshold.feed(answer) for answer in (True, False, True, True)] == [False, False, False, True]
    assert [threshold.feed(answer) for answer in (False, False, True, False, False)] == [True] * 5
    assert not threshold.failed
    assert threshold.feed(False) is False
    assert threshold.failed


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/slow":
            await asyncio.sleep(5)
        return web.Response(status=int(request.query.get("status", "200")))

    app = web.Application()
    app.router.add_get("/{any:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]

    async def execute(argv: Sequence[str]) -> int:
        return 0 if list(argv) == ["true"] else 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield Target("127.0.0.1", {"web": port}, session, execute)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ({"httpGet": {"port": "web", "path": "/healthz"}}, True),
        ({"httpGet": {"port": "web", "path": "/x?status=399"}}, True),
        ({"httpGet": {"port": "web", "path": "/x?status=500"}}, False),
        ({"httpGet": {"port": "no-such-port"}}, False),
        ({"httpGet": {"port": "web", "path": "/slow"}, "timeoutSeconds": 1}, False),
        ({"tcpSocket": {"port": "web"}}, True),
        ({"tcpSocket": {"port": 1}}, False),
        ({"exec": {"command": ["true"]}}, True),
        ({"exec": {"command": ["false"]}}, False),
    ],
)
async def test_answers(target: Target, probe: dict[str, object], expected: bool) -> None:
    assert await check(Probe.model_validate(probe), target) is expected
