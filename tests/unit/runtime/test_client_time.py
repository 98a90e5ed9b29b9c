"""The server's clock, as its client reads it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from kaito_ctrl.devcluster.apiserver import ApiServer
from kaito_ctrl.runtime import Client
from kaito_ctrl.runtime.clock import SystemClock
from kaito_ctrl.runtime.errors import DecodeError, ServerError
from kaito_ctrl.runtime.transport import Request, Response


class Shifted(SystemClock):
    """A clock that is off."""

    def __init__(self, **off: float) -> None:
        self._off = timedelta(**off)

    def now(self) -> datetime:
        return super().now() + self._off


class Answering:
    """A server that says one thing."""

    def __init__(self, status: int, **headers: str) -> None:
        self._response = Response.of(status, b"{}", headers)

    async def send(self, request: Request) -> Response:
        return self._response

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("hours", [-10, 0, 10])
async def test_it_is_the_servers_clock_however_far_off_the_local_one_is(hours: float) -> None:
    clock = Shifted(hours=hours)
    server = ApiServer(clock=clock, rng=random.Random(1))
    before = clock.now().replace(microsecond=0)
    told = await Client(server.transport()).server_time()
    assert before <= told <= clock.now()
    assert told.tzinfo is UTC
    await server.aclose()


@pytest.mark.parametrize("form", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT"])
async def test_the_forms_that_http_allows_are_understood(form: str) -> None:
    told = await Client(Answering(200, date=form)).server_time()
    assert told == datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize("headers", [{}, {"date": "soon"}])
async def test_an_answer_without_a_date_is_an_error(headers: dict[str, str]) -> None:
    with pytest.raises(DecodeError, match="Date"):
        await Client(Answering(200, **headers)).server_time()


async def test_a_server_that_fails_has_not_said_what_time_it_is() -> None:
    with pytest.raises(ServerError):
        await Client(Answering(503, date="Sun, 06 Nov 1994 08:49:37 GMT")).server_time()
