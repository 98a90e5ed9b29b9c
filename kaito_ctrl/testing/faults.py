"""A transport on which a plan's faults strike: between a simulated process and its API server.

What has left the process travels on its own, as bytes in the kernel and on the wire do: a process that is killed,
paused or no longer interested does not call back what it has sent, which may be carried out much later. Latency is
drawn for each call, so answers overtake each other.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import Context
from typing import Protocol

from kaito_ctrl.runtime.codec import decode_list, encode_json
from kaito_ctrl.runtime.errors import TransportError
from kaito_ctrl.runtime.transport import Request, Response, Transport
from kaito_ctrl.testing.plan import Fault, Plan, Spot, SpotKind, draws
from kaito_ctrl.testing.process import current_process
from kaito_ctrl.testing.streams import expired_event, merged
from kaito_ctrl.testing.tape import Tape

__all__ = ["FaultyTransport", "Network", "Witness"]


class Witness(Protocol):
    """Hears of every request of a process; for oracles. Nothing here may await or raise."""

    def sent(self, process: str, request: Request) -> None:
        """The process has sent it; it may stand still before any of it leaves."""
        ...

    def arrived(self, process: str, request: Request, *, sent: float, awaited: bool) -> None:
        """The server is about to carry out what was sent at *sent*; *awaited*: and somebody waits for the answer."""
        ...

    def answered(self, process: str, request: Request, status: int, body: bytes) -> None:
        """The process has the whole answer; not called for watches."""
        ...


class Network:
    """What connects the processes of one run with the server: one seed, one tape, and everything under way."""

    def __init__(self, seed: object, plan: Plan, tape: Tape | None = None, *, latency: float = 0.005) -> None:
        """*latency*: mean seconds of each way."""
        self.seed = seed
        self.plan = plan
        self.tape = tape if tape is not None else Tape()
        self.latency = latency
        self.witness: Witness | None = None
        self.calls = 0
        """How many requests the processes have sent."""
        self.struck: dict[str, int] = {}
        """How often faults of each kind have had an effect."""
        self._flying: set[asyncio.Task[None]] = set()
        self._delayed: set[asyncio.Task[None]] = set()

    def note(self, *what: object) -> None:
        """A line on the tape, with the time before it."""
        self.tape.note(f"{asyncio.get_running_loop().time():.6f}", *what)

    def count(self, kind: str) -> None:
        """A fault of that kind has had an effect."""
        self.struck[kind] = self.struck.get(kind, 0) + 1

    def delay(self, address: str) -> tuple[float, float]:
        """Seconds there and back."""
        if not self.latency:
            return 0.0, 0.0
        there, back = draws(self.seed, f"{address}|latency")
        return -self.latency * math.log(1 - there), -self.latency * math.log(1 - back)

    def carry(self, flight: _Flight) -> None:
        """Have *flight* go its way, outside of any process."""
        task = asyncio.get_running_loop().create_task(flight.run(), name=f"wire/{flight.address}", context=Context())
        self._flying.add(task)
        task.add_done_callback(self._flying.discard)
        if flight.fault is not None:
            self._delayed.add(task)
            task.add_done_callback(self._delayed.discard)

    @property
    def disturbed(self) -> bool:
        """Whether a request that a fault has struck is still under way."""
        return bool(self._delayed)

    async def settle(self) -> None:
        """Until nothing is under way any more."""
        while self._flying:
            await asyncio.wait(self._flying)


class FaultyTransport:
    """The way of one run of a process, called *name*, to the server behind *inner*.

    *crash* is called when a fault kills the process: it must see to it that nothing of it runs any more. What a dead
    process still tries to send fails.
    """

    def __init__(
        self, inner: Transport, network: Network, name: str, *, crash: Callable[[], None] | None = None
    ) -> None:
        self.inner = inner
        self.network = network
        self.name = name
        self.dead = False
        """Set to have nothing more get out or in, as when a process is killed."""
        self.streams = 0
        """Watches that are open, as the process sees it."""
        self.calls = 0
        self.starved_until = 0.0
        self.expired_until = 0.0
        self.down_until = 0.0
        self.failing_until = 0.0
        self._crash = crash
        self._slot = 0.0

    async def send(self, request: Request) -> Response:
        self._live()
        loop = asyncio.get_running_loop()
        address, kind, sent = f"{self.name}/{self.calls}", _kind_of(request), loop.time()
        self.calls += 1
        self.network.calls += 1
        if self.network.witness is not None:
            self.network.witness.sent(self.name, request)
        fault = self.network.plan.at(Spot(address, kind, loop.time()))
        match fault:
            case Fault("pause", amount=seconds) if (process := current_process()) is not None:
                self._strike(fault, request)
                process.pause_for(seconds)
                await asyncio.sleep(0)
            case Fault("crash"):
                self._strike(fault, request)
                self.kill()
        self._live()
        if loop.time() < self.starved_until:
            self._slot = max(self._slot + 1.0, loop.time())
            await asyncio.sleep(self._slot - loop.time())
            self._live()
        flight = _Flight(self, request, address, kind, fault, sent)
        self.network.carry(flight)
        try:
            async with asyncio.timeout(request.timeout):
                response = await flight.answer
        except TimeoutError:
            raise TransportError(f"{request.method} {request.path}: no answer within {request.timeout:g} s") from None
        if kind == "watch" and response.status < 400:
            return self._stream(response, address)
        body = await response.read()
        if fault is not None and fault.kind == "broken":
            self._strike(fault, request)
            return Response(response.status, response.headers, _broken(body))
        if self.network.witness is not None:
            self.network.witness.answered(self.name, request, response.status, body)
        return Response(response.status, response.headers, _whole(body))

    async def aclose(self) -> None:
        """The server lives on."""

    def kill(self) -> None:
        """The end of the process, in the middle of whatever it does."""
        self.dead = True
        if self._crash is not None:
            self._crash()

    # -- inside --------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        if self.dead:
            raise TransportError("this process has been killed")

    def _strike(self, fault: Fault, request: Request | None = None) -> None:
        self.network.count(fault.kind)
        self.network.note(fault, *((request.method, request.path) if request is not None else ()))

    def _stream(self, response: Response, address: str) -> Response:
        self.streams += 1
        is_open = True

        def close() -> None:
            nonlocal is_open
            self.streams -= is_open
            is_open = False

        return Response(response.status, response.headers, self._chunks(response, address, close), close)

    async def _chunks(self, response: Response, address: str, close: Callable[[], None]) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        number, merge = 0, False
        try:
            async with response:
                async for chunk in response.chunks():
                    spot = Spot(f"{address}~{number}", "chunk", loop.time())
                    number += 1
                    fault = self.network.plan.at(spot)
                    self._check_stream()
                    if merge:
                        chunk, merge = merged(chunk), False
                    if fault is not None:
                        self._strike(fault)
                    match fault:
                        case Fault("cut"):
                            raise TransportError("connection reset")
                        case Fault("expired"):
                            yield expired_event()
                            return
                        case Fault("lag" | "freeze", amount=seconds):
                            await asyncio.sleep(seconds)
                            self._check_stream()
                        case Fault("silent"):
                            await loop.create_future()
                        case Fault("duplicate"):
                            yield chunk
                    yield chunk
                    if fault is not None and fault.kind == "coalesce":
                        # What happens meanwhile comes as one chunk, of which only the last states are passed on.
                        await asyncio.sleep(fault.amount)
                        merge = True
        finally:
            close()

    def _check_stream(self) -> None:
        self._live()
        if asyncio.get_running_loop().time() < self.down_until:
            raise TransportError("connection reset")


class _Flight:
    """One request under way: it belongs to nobody's process."""

    def __init__(
        self,
        transport: FaultyTransport,
        request: Request,
        address: str,
        kind: SpotKind,
        fault: Fault | None,
        sent: float,
    ) -> None:
        self.transport = transport
        self.request = request
        self.address = address
        self.kind = kind
        self.fault = fault
        self.sent = sent
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        try:
            response = await self._travel()
        except TransportError as error:
            self._note("no answer")
            if not self.answer.done():
                self.answer.set_exception(error)
            # Whoever has stopped waiting will not look at it.
            with suppress(asyncio.CancelledError):
                self.answer.exception()
            return
        self._note(response.status)
        if self.answer.done() or self.transport.dead:
            await response.aclose()
            if not self.answer.done():
                self.answer.set_exception(TransportError("this process has been killed"))
                self.answer.exception()
        else:
            self.answer.set_result(response)

    async def _travel(self) -> Response:
        transport, request = self.transport, self.request
        fault = self.fault if self.fault is not None else Fault("", "")
        there, back = transport.network.delay(self.address)
        await asyncio.sleep(there + (self._struck(fault.amount) if fault.kind == "slow" else 0.0))
        now = asyncio.get_running_loop().time()
        if fault.kind == "refused" or now < transport.down_until:
            self._struck()
            raise TransportError("connection refused")
        kind = fault.kind
        if now < transport.expired_until:
            kind = "unauthorized"
        elif now < transport.failing_until and self.kind == "write":
            kind = "error"
        refusal = _REFUSALS.get(kind)
        if refusal is not None:
            if kind == fault.kind:
                self._struck()
            return _status(*refusal, retry_after=math.ceil(fault.amount) if fault.kind == "throttled" else None)
        if fault.kind == "conflict" and request.method in {"PATCH", "PUT", "DELETE"}:
            await self._disturb()
        request = await self._rewritten(request, fault)
        if fault.kind == "too-large" and (version := _get(request, "resourceVersion")) not in {None, "", "0"}:
            self._struck()
            return _status(504, "Timeout", f"Timeout: Too large resource version: {version}, current: 1", retry_after=1)
        if fault.kind == "expired" and _get(request, "continue"):
            self._struck()
            return _status(410, "Expired", "The provided continue parameter is too old")
        if transport.network.witness is not None:
            waits = not self.answer.done()
            transport.network.witness.arrived(transport.name, request, sent=self.sent, awaited=waits)
        response = await transport.inner.send(request)
        if fault.kind == "expired" and self.kind == "watch":
            self._struck()
            await response.aclose()
            return Response(200, {"content-type": "application/json"}, _whole(expired_event()))
        await asyncio.sleep(back + (self._struck(fault.amount) if fault.kind == "late" else 0.0))
        if fault.kind in {"lost", "timeout", "crash-after"}:
            self._struck()
            await response.aclose()
            if fault.kind == "timeout":
                return _status(504, "Timeout", "the server was unable to return a response in the time allotted")
            if fault.kind == "crash-after" and not transport.dead:
                transport.kill()
            raise TransportError("connection reset")
        return response

    def _note(self, outcome: object) -> None:
        self.transport.network.note(self.address, self.request.method, self.request.path, outcome)

    def _struck(self, amount: float = 0.0) -> float:
        if self.fault is not None:
            self.transport._strike(self.fault, self.request)
        return amount

    async def _disturb(self) -> None:
        """Somebody else writes to the object that the request is about."""
        path = self.request.path.removesuffix("/status").removesuffix("/scale")
        body = encode_json({"metadata": {"annotations": {"disturbed-by": self.address}}})
        headers = {"content-type": "application/merge-patch+json"}
        query = (("fieldManager", "somebody-else"),)
        async with await self.transport.inner.send(Request("PATCH", path, query, headers, body)) as response:
            await response.read()
        self._struck()

    async def _rewritten(self, request: Request, fault: Fault) -> Request:
        if fault.kind == "paged" and _get(request, "limit"):
            self._struck()
            return _with(request, limit=str(max(int(fault.amount), 1)))
        if fault.kind == "stale" and _get(request, "resourceVersion") == "0" and not _get(request, "continue"):
            newest = await self.transport.inner.send(_with(request, resourceVersion="", limit="1"))
            head, _ = decode_list(await newest.read())
            old = max(int(head.resource_version or 1) - int(fault.amount), 1)
            aged = _with(request, resourceVersion=str(old), resourceVersionMatch="Exact")
            async with await self.transport.inner.send(aged) as probe:
                if probe.status == 200:
                    self._struck()
                    return aged
        return request


_REFUSALS = {
    "throttled": (429, "TooManyRequests", "the server has received too many requests and has asked us to try again"),
    "error": (500, "InternalError", "Internal error occurred: etcdserver: leader changed"),
    "unavailable": (503, "ServiceUnavailable", "the server is currently unable to handle the request"),
    "unauthorized": (401, "Unauthorized", "Unauthorized"),
}


def _kind_of(request: Request) -> SpotKind:
    if request.method != "GET":
        return "write"
    if _get(request, "watch") == "true":
        return "watch"
    parts = request.path.strip("/").split("/")
    below = parts[2:] if parts[0] == "api" else parts[3:]
    if below[:1] == ["namespaces"] and len(below) > 2:
        below = below[2:]
    return "list" if len(below) == 1 else "read"


def _get(request: Request, name: str) -> str | None:
    return next((value for key, value in request.query if key == name), None)


def _with(request: Request, **changes: str) -> Request:
    kept = tuple(pair for pair in request.query if pair[0] not in changes)
    query = (*kept, *((key, value) for key, value in changes.items() if value))
    return Request(
        request.method, request.path, query, request.headers, request.body, request.timeout, request.idle_timeout
    )


def _status(code: int, reason: str, message: str, *, retry_after: int | None = None) -> Response:
    details = {} if retry_after is None else {"retryAfterSeconds": retry_after}
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return Response.of(code, encode_json({**body, "message": message, "details": details}), headers)


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


async def _broken(body: bytes) -> AsyncIterator[bytes]:
    if len(body) > 1:
        yield body[: len(body) // 2]
    raise TransportError("the answer broke off")
